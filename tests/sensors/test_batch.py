"""A batch promises: wherever it goes, all of it goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from sensors.batch import TensorBatch
from tests.tiny_model import random_training_batch, tiny_model
from training.data.batch import TrainingBatch
from training.loop.step import StepConfig, TrainingStep


def whole_batch() -> TrainingBatch:
    """With the table of the lift and the views of the dropout, so that no field is None."""
    model, batch = tiny_model(), random_training_batch()
    cameras = batch.sensors.part("camera")
    assert cameras is not None
    table = model.encoder("camera").table(cameras.intrinsics, cameras.reference_T_camera, cameras.present)
    batch = replace(batch, sensors=batch.sensors.having(camera=replace(cameras, lift=table)))
    return TrainingStep(model, StepConfig()).draw(batch, torch.Generator().manual_seed(0))


def tensors(value: Any, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its dotted name; no field may be None."""
    assert value is not None, name
    if isinstance(value, Tensor):
        yield name, value
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors(part, f"{name}.{key}")
    if is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name), f"{name}.{field.name}")


def test_every_tensor_is_pinned_where_a_loader_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = whole_batch()
    before, after = dict(tensors(batch)), dict(tensors(pin_memory(batch)))
    assert len(before) > 25
    assert before.keys() == after.keys()
    assert {id(tensor) for tensor in after.values()} == {id(tensor) for tensor in pinned}
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) or tensor.isnan().any(), name
    parts: list[TensorBatch | None] = [
        batch.sensors.part("camera"),
        batch.sensors.part("lidar"),
        batch.sensors.part("radar"),
    ]
    for part in parts:  # each by itself too
        assert part is not None
        assert type(pin_memory(part)) is type(part)


def test_every_tensor_moves_and_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = whole_batch()
    moved = batch.to("meta")
    assert {tensor.device.type for _, tensor in tensors(moved)} == {"meta"}
    assert (moved.tokens, moved.sensors.batch_size) == (batch.tokens, batch.sensors.batch_size)
    asked = []

    def to(tensor: Tensor, device: str, *, non_blocking: bool) -> Tensor:
        asked.append((device, non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "to", to)
    batch.to("cuda", non_blocking=True)
    assert asked == [("cuda", True)] * len(dict(tensors(batch)))
