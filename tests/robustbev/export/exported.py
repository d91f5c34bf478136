"""A tiny model as artifacts, and what the model itself makes of the same input.

Letters: B samples, M modalities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

import robustbev.export
from fusion.runtime.manifest import SUFFIXES
from robustbev import CameraConfig, PerceptionModel
from robustbev.export import Kind, export
from robustbev.export.check import Run, Tensors, runner
from robustbev.export.example import random_batch
from robustbev.export.graphs import Graph, ModelGraph, RigGraph, model_inputs, perception_outputs
from robustbev.export.interface import Interface
from robustbev.export.write import trace
from sensors.batch import SensorBatch
from tests.shared import made_once
from tests.tiny_model import CAMERAS, RADARS, tiny_config, tiny_model

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


_programs: dict[type[Graph], ExportedProgram] = {}


def exported_tiny(kind: Kind) -> Exported:
    """Exported once in a test run; its files are not to be changed."""
    camera = tiny_config().of_kind(CameraConfig)["camera"]
    model = tiny_model(
        camera=camera.model_copy(update={"depth": 1}),
        lidar={"pillar_channels": 8, "blocks": 0},
        radar={"width": 8, "blocks": 0},
    )

    def make(out: Path) -> None:
        # AOTInductor refuses a graph of which another kind was written: sizes that data alone decide are used up.
        programs = {} if kind == "aoti" and _programs else _programs
        # What calls the kernels is not timed here; they themselves are compiled as ever.
        with traced_once(programs), torch._inductor.config.patch("aot_inductor.compile_wrapper_opt_level", "O0"):
            export(model, out, kind=kind, name="tiny", cameras=CAMERAS, radars=RADARS)

    out = made_once(f"tiny-{kind}", make)
    path = out / f"tiny{SUFFIXES[kind]}"
    rig_path = path.with_name(path.name.replace("tiny.", "tiny.rig."))
    return Exported(
        model,
        path,
        rig_path,
        runner(path, kind, ModelGraph(model)),
        runner(rig_path, kind, RigGraph(model.encoder("camera"))),
    )


@contextmanager
def traced_once(programs: dict[type[Graph], ExportedProgram]) -> Iterator[None]:
    """`export` traces anew for every kind of file. Within this the graphs of one model are traced once, into `programs`."""

    def once(graph: Graph, interface: Interface, example: Mapping[str, Tensor]) -> ExportedProgram:
        if type(graph) not in programs:
            programs[type(graph)] = trace(graph, interface, example)
        return copy(programs[type(graph)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robustbev.export, "trace", once)
        yield


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
        return model.detection.head(model.backbone(fused.features)).heatmap.sigmoid()


def spoiled(inputs: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensors:
    """The same inputs with rubbish in those named: NaN, the largest whole number, True."""
    rubbish = {
        torch.float32: torch.nan, torch.int64: torch.iinfo(torch.int64).max, torch.uint8: 255, torch.bool: True,
    }  # fmt: skip
    return {k: torch.full_like(v, rubbish[v.dtype]) if k in names else v for k, v in inputs.items()}
