"""Inference promises fixed shapes: each part exports as one graph, which then serves input that it has never seen.

What fails to export here would also break torch.compile's graph and CUDA graphs: a branch on values, a shape that data decide.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bev.lift.table import LiftTable, build_lift_table
from fusion import BEVFeatures
from robustbev import PerceptionModel
from sensors.batch import CameraBatch, LidarBatch, RadarBatch, SensorBatch
from sensors.modality import MovingFeatures, SensorFeatures
from tests.tiny_model import random_sensors, tiny_model

# torch warns of its own deprecated habits while it exports.
pytestmark = pytest.mark.filterwarnings("ignore")


def flat(value: Any) -> tuple[Tensor, ...]:
    """The tensors of nested dataclasses, in order."""
    if isinstance(value, Tensor):
        return (value,)
    if hasattr(value, "__dataclass_fields__"):
        return tuple(t for f in fields(value) for t in flat(getattr(value, f.name)))
    return ()


class Lidar(nn.Module):
    def __init__(self, model: PerceptionModel) -> None:
        super().__init__()
        self.encoder = model.encoder("lidar")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        assert self.encoder is not None
        return flat(self.encoder(LidarBatch(*tensors)))


class Radar(nn.Module):
    def __init__(self, model: PerceptionModel) -> None:
        super().__init__()
        self.encoder = model.encoder("radar")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        assert self.encoder is not None
        return flat(self.encoder(RadarBatch(*tensors)))


class Camera(nn.Module):
    def __init__(self, model: PerceptionModel) -> None:
        super().__init__()
        self.encoder = model.encoder("camera")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        assert self.encoder is not None
        images, intrinsics, poses, present, *table = tensors
        return flat(self.encoder(CameraBatch(images, intrinsics, poses, present, LiftTable(*table))))


class Fuse(nn.Module):
    """Fuser, backbone, head and decoding, of those modalities that are given; or the fuser alone."""

    def __init__(self, model: PerceptionModel, modalities: tuple[str, ...], *, alone: bool) -> None:
        super().__init__()
        self.model = model
        self.modalities = modalities
        self.alone = alone

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        features: dict[str, BEVFeatures | None] = {}
        first = 0
        for name in self.modalities:
            kind, count = (SensorFeatures, 3) if name == "camera" else (MovingFeatures, 4)
            features[name] = kind(*tensors[first : first + count])
            first += count
        if self.alone:
            return flat(self.model.fuser(features))
        return flat(self.model.perceive_features(features, tensors[0].shape[0]))


@dataclass(frozen=True)
class Part:
    module: nn.Module
    inputs: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # to export with, and to try it on


def inputs_of(batch: SensorBatch, name: str, model: PerceptionModel) -> tuple[Tensor, ...]:
    cameras, camera = batch.part("camera"), model.encoder("camera")
    assert cameras is not None
    assert camera is not None
    if name != "camera":
        return flat(batch.part(name))
    table = build_lift_table(
        cameras.intrinsics, cameras.reference_T_camera, image_size=camera.image_size, stride=camera.stride_px,
        bins=camera.bins, grid=camera.grid, z_range_m=camera.z_range_m, samples=camera.lift_samples,
    )  # fmt: skip
    return (*flat(cameras), *flat(table))


def another_batch() -> SensorBatch:
    """Other noise, other counts, one sensor of each kind gone."""
    batch = random_sensors(seed=7)
    assert batch.part("camera") is not None
    assert batch.part("lidar") is not None
    assert batch.part("radar") is not None
    batch.part("camera").present[0, 1] = False
    batch.part("lidar").count[0] = 0
    batch.part("lidar").present[1] = False
    batch.part("radar").count[1] = 3
    batch.part("radar").present[0] = False
    return batch


def of_two_lidars(batch: SensorBatch) -> SensorBatch:
    """One for the right half of the turn and one for the left; in the last sample the left one is gone."""
    lidar = batch.part("lidar")
    assert lidar is not None
    right = torch.arange(lidar.sectors.shape[2]) < lidar.sectors.shape[2] // 2
    present = lidar.present.repeat(1, 2)
    present[-1, 1] = False
    both = torch.stack([right, ~right]).float().repeat(len(present), 1, 1)
    return batch.having(lidar=replace(lidar, present=present, sectors=both))


def part(name: str, fuser: dict[str, Any] | None = None) -> Part:
    model = tiny_model() if fuser is None else tiny_model(fuser=fuser)
    batches = of_two_lidars(random_sensors()), of_two_lidars(another_batch())
    if name in ("lidar", "radar", "camera"):
        module = {"lidar": Lidar, "radar": Radar, "camera": Camera}[name](model)
        return Part(module, (inputs_of(batches[0], name, model), inputs_of(batches[1], name, model)))
    modalities = tuple(name.removeprefix("fuse ").split("+"))
    with torch.no_grad():
        encoded = [model.encode(batch) for batch in batches]
    first, second = (tuple(t for n in modalities for t in flat(e[n])) for e in encoded)
    # After the fuser all is the same whichever it is.
    return Part(Fuse(model, modalities, alone=fuser is not None), (first, second))


@pytest.mark.parametrize("name", ["lidar", "radar", "camera", "fuse camera+lidar+radar", "fuse lidar"])
def test_it_exports_as_one_graph_and_serves_other_input(name: str) -> None:
    it = part(name)
    with torch.no_grad():
        exported = torch.export.export(it.module, it.inputs[0], strict=True).module()
        for inputs in it.inputs:
            for got, expected in zip(exported(*inputs), it.module(*inputs), strict=True):
                torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "fuser",
    [
        {"heads": 2, "neighbourhood": 3},
        {"kind": "channel_weights", "absent": "mask"},
        {"kind": "latent", "heads": 2},
        {"kind": "joint", "heads": 2, "absent": "mask"},
        {"kind": "gated", "heads": 2, "adds": ["radar"]},
    ],
    ids=str,
)
def test_every_way_to_fuse_exports(fuser: dict[str, Any]) -> None:
    it = part("fuse lidar+radar", fuser)
    with torch.no_grad():
        exported = torch.export.export(it.module, it.inputs[0], strict=True).module()
        for got, expected in zip(exported(*it.inputs[1]), it.module(*it.inputs[1]), strict=True):
            torch.testing.assert_close(got, expected)
