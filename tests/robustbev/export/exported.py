"""A tiny model as artifacts, and what the model itself makes of the same input.

Letters: B samples, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from fusion.runtime.manifest import SUFFIXES
from robustbev import PerceptionModel
from robustbev.export import Kind, export
from robustbev.export.check import Run, Tensors, perception_outputs, runner
from robustbev.export.example import random_batch
from robustbev.export.graphs import ModelGraph, RigGraph, model_inputs
from sensors.batch import SensorBatch
from tests.shared import made_once
from tests.tiny_model import CAMERAS, RADARS, tiny_model

KINDS = ("camera", "lidar", "radar")
SUBSETS = [subset for count in (3, 2, 1) for subset in combinations(KINDS, count)]
LOST_CAMERAS = [1, 3, 4]


@dataclass(frozen=True)
class Exported:
    model: PerceptionModel
    path: Path
    rig_path: Path
    run: Run
    rig: Run


def exported_tiny(kind: Kind) -> Exported:
    """Exported once in a test run; its files are not to be changed."""
    model = tiny_model()
    out = made_once(
        f"tiny-{kind}", lambda out: export(model, out, kind=kind, name="tiny", cameras=CAMERAS, radars=RADARS)
    )
    path = out / f"tiny{SUFFIXES[kind]}"
    rig_path = path.with_name(path.name.replace("tiny.", "tiny.rig."))
    return Exported(
        model,
        path,
        rig_path,
        runner(path, kind, ModelGraph(model)),
        runner(rig_path, kind, RigGraph(model.encoder("camera"))),
    )


def noise(model: PerceptionModel, seed: int, *, batch_size: int = 2, points: int = 700) -> SensorBatch:
    return random_batch(
        model, {"camera": CAMERAS, "lidar": 1, "radar": RADARS}, seed=seed, batch_size=batch_size, points=points
    )


def without_cameras(batch: SensorBatch, lost: list[int]) -> SensorBatch:
    assert batch.part("camera") is not None
    present = batch.part("camera").present.clone()
    present[:, lost] = False
    return batch.having(camera=replace(batch.part("camera"), present=present))


def eager(model: PerceptionModel, batch: SensorBatch) -> Tensors:
    with torch.no_grad():
        return perception_outputs(model(batch))


def inputs_for(model: PerceptionModel, batch: SensorBatch, subset: tuple[str, ...]) -> Tensors:
    """The whole batch, with only `subset` said to be there."""
    here = torch.tensor([[name in subset for name in KINDS]]).repeat(batch.batch_size, 1)
    return model_inputs(model, batch) | {"present": here}


def heatmap_of(model: PerceptionModel, batch: SensorBatch) -> Tensor:
    with torch.no_grad():
        fused = model.fuser(model.encode(batch), grid_shape=model.grid.shape, batch_size=batch.batch_size)
        return model.head(model.backbone(fused.features)).heatmap.sigmoid()


def spoiled(inputs: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensors:
    """The same inputs with rubbish in those named: NaN, the largest whole number, True."""
    rubbish = {
        torch.float32: torch.nan, torch.int64: torch.iinfo(torch.int64).max, torch.uint8: 255, torch.bool: True,
    }  # fmt: skip
    return {k: torch.full_like(v, rubbish[v.dtype]) if k in names else v for k, v in inputs.items()}
