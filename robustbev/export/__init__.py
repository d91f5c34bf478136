"""A model, or its fuser alone, as one file that runs without this project: ONNX, torch's archive, or machine code.

    path = export(robustbev.load("runs/robust/..."), "artifacts", kind="onnx", part="model", name="robust")

writes `robust.onnx`, which goes from tensors to boxes, and `robust.rig.onnx`, which makes the look-up tables of a calibration;
each has a manifest beside it (`robust.onnx.json`). One artifact serves every subset of the sensors: who is there is an input.
`fusion.runtime` loads them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fusion import BEVFeatures, Fuser
from fusion.runtime.manifest import SUFFIXES
from robustbev.checks import check_weights
from robustbev.export.check import Difference, Tensors, compare, compare_tables, runner
from robustbev.export.example import fuser_inputs, masked, random_batch, rig_inputs
from robustbev.export.graphs import (
    FuserGraph,
    Graph,
    ModelGraph,
    RigGraph,
    model_inputs,
    own_copy,
    perception_outputs,
    prefix,
)
from robustbev.export.interface import (
    OWN_GRID,
    ExportError,
    Interface,
    fuser_interface,
    model_interface,
    rig_interface,
)
from robustbev.export.manifest import Kind, Part, about_fuser, about_model, write_manifest
from robustbev.export.write import OPSET, need_onnx, trace, write_program
from robustbev.model import PerceptionModel
from robustbev.tasks.task import CELLS
from sensors.batch import CameraBatch, LidarBatch
from sensors.camera.config import CameraConfig

__all__ = ["ExportError", "Kind", "export", "export_fuser", "model_inputs"]


@dataclass(frozen=True)
class _Job:
    """One artifact to be written, and what it has to give."""

    part: Part
    suffix: str  # between the name and that of the kind
    graph: Graph
    interface: Interface
    example: Tensors  # traced with
    trial: Tensors  # tried on: of another batch size, with sensors gone
    expected: Tensors  # what the model makes of the trial


def export(
    model: PerceptionModel,
    out: str | Path,
    *,
    kind: Kind,
    part: Literal["model", "fuser"] = "model",
    name: str | None = None,
    cameras: int | None = None,
    lidars: int | None = None,
    radars: int | None = None,
) -> Path:
    """Write an artifact with its manifest into the folder `out`; of a model with cameras also `NAME.rig`, for calibrations.

    Each is compared with the model on random input first. All files come into place together, or none does.

    Args:
        model: on any device; the artifact runs on a CPU.
        out: made if it is not there; files of the same names are replaced.
        kind: "onnx", "pt2" (torch.export) or "aoti" (AOTInductor: machine code for this kind of machine).
        part: "model" from tensors to boxes, or "fuser" alone.
        name: of the files; default: the part.
        cameras, lidars, radars: how many the rig has, where they are not those of `model.config.rig`. A model that knows no rig
            has one LiDAR where nothing else is said.

    Returns:
        The artifact's path, `out/NAME.onnx`, `out/NAME.pt2` or `out/NAME.aoti.pt2`.

    Raises:
        MissingExtraError: ONNX without its libraries.
        ValueError: an argument is none of those named, or nobody says how many sensors there are.
        ExportError: the artifact does not compute what the model computes, or cannot be compiled here. Nothing is written then.
    """
    name = _checked(kind, part, name)
    copy = own_copy(model)
    about = about_model(copy.config)
    if part == "fuser":
        channels = dict.fromkeys(copy.config.modalities, copy.config.channels)
        jobs = [_fuser_job(copy.fuser, channels, copy.config.channels, copy.grid.shape, CELLS)]
    else:
        jobs = _model_jobs(copy, _counts(copy, {"camera": cameras, "lidar": lidars, "radar": radars}))
    return _write_all(jobs, Path(out), name, kind, about)


def export_fuser(
    fuser: Fuser,
    out: str | Path,
    *,
    channels: Mapping[str, int],
    out_channels: int,
    grid_shape: tuple[int, int],
    kind: Kind,
    name: str = "fuser",
) -> Path:
    """Write a fuser of any sensors with its manifest into the folder `out`, as `export` does with that of a model.

    Args:
        fuser: on a CPU; it is exported in evaluation mode.
        out: made if it is not there; files of the same names are replaced.
        channels: of each modality's features by its name, all of `fuser.modalities` in their order.
        out_channels: C of the fused grid.
        grid_shape: (X, Y) cells.
        kind: "onnx", "pt2" or "aoti", see `export`.
        name: of the files.

    Returns:
        The artifact's path.

    Raises:
        MissingExtraError, ExportError: see `export`.
        ValueError: an argument does not fit the fuser.
    """
    name = _checked(kind, "fuser", name)
    if tuple(channels) != fuser.modalities:
        raise ValueError(
            f"channels: expected those of {', '.join(fuser.modalities)}, in this order, got {', '.join(channels) or 'none'}"
        )
    if unfit := [modality for modality in channels if not re.fullmatch(r"[A-Za-z_]\w{0,79}", modality, re.ASCII)]:
        raise ValueError(
            f"channels: expected names of letters, digits and _, after which tensors are named, got {unfit[0]!r}: give this "
            "modality another name"
        )
    check_weights(fuser)
    copy = deepcopy(fuser).eval().requires_grad_(False)
    job = _fuser_job(copy, channels, out_channels, grid_shape, OWN_GRID)
    return _write_all([job], Path(out), name, kind, about_fuser(fuser.modalities, grid_shape))


def _checked(kind: str, part: str, name: str | None) -> str:
    """The files' name; ValueError or MissingExtraError where what is asked for cannot be."""
    _check_choice("kind", kind, get_args(Kind))
    _check_choice("part", part, ("model", "fuser"))
    name = part if name is None else name
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"name: expected a file's name without folder or leading dot, got {name!r}")
    if kind == "onnx":
        need_onnx()
    return name


def _write_all(jobs: Sequence[_Job], out: Path, name: str, kind: Kind, about: Mapping[str, Any]) -> Path:
    """All files of all jobs, or none; -> the first."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".robustbev-export-", dir=out) as place:
        folder = Path(place)
        written = [file for job in jobs for file in _write(job, folder, name, kind, about)]
        for file in written:
            file.replace(out / file.name)
    return out / written[0].name


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what}: expected one of {', '.join(choices)}, got {value!r}")


def _counts(model: PerceptionModel, asked: Mapping[str, int | None]) -> dict[str, int]:
    """Sensors of each modality, as asked for by kind, or as the rig has them."""
    rig, counts = model.config.rig, {}
    for name, modality in model.config.modalities.items():
        kind = modality.kind
        count = asked[kind]
        if count is not None and sum(other.kind == kind for other in model.config.modalities.values()) > 1:
            raise ValueError(
                f"{kind}s: the model has several modalities of {kind}s; their numbers are those of its rig"
            )
        if count is None and rig is not None:
            count = len(model.config.channels_of(name, rig))
        elif count is None and kind == "lidar":
            count = 1
        if count is None:
            raise ValueError(
                f"how many {kind}s the model has is not in its config.json (it has no rig): say {kind}s=, or --{kind}s"
            )
        if not 1 <= count <= 64:
            raise ValueError(f"{kind}s: expected 1 to 64, got {count}")
        counts[name] = count
    return counts


@torch.no_grad()
def _model_jobs(model: PerceptionModel, counts: Mapping[str, int]) -> list[_Job]:
    first = random_batch(model, counts)
    trial = random_batch(model, counts, seed=1, batch_size=3, points=900)
    modalities = model.config.modalities
    present = torch.ones(3, len(modalities), dtype=torch.bool)
    present[1, -1] = False
    for name, part in trial.parts.items():
        if isinstance(part, CameraBatch) or (isinstance(part, LidarBatch) and counts[name] > 1):
            part.present[0, 0] = False
    expected, interface = perception_outputs(model(masked(trial, modalities, present))), model_interface(model, counts)
    _check_outputs(interface, expected)
    jobs = [
        _Job(
            "model",
            "",
            ModelGraph(model),
            interface,
            model_inputs(model, first),
            model_inputs(model, trial) | {"present": present},
            expected,
        )
    ]
    for name, camera in model.config.of_kind(CameraConfig).items():
        graph = RigGraph(model.encoder(name))
        inputs = rig_inputs(trial.part(name))
        eager = dict(zip(graph.outputs, graph(*inputs.values()), strict=True))
        interface, suffix = rig_interface(model, camera, counts[name]), f".{prefix(name, 'camera')}rig"
        jobs.append(_Job("rig", suffix, graph, interface, rig_inputs(first.part(name)), inputs, eager))
    return jobs


def _check_outputs(interface: Interface, expected: Tensors) -> None:
    """ExportError where a task's `interface` is not what its output is."""
    batch_size, specs = len(expected["perceived"]), {spec.name: spec for spec in interface.outputs}
    for name in dict.fromkeys((*specs, *expected)):
        shape = [batch_size if size == "B" else size for size in specs[name].shape] if name in specs else None
        stated = "no such output" if shape is None else f"{specs[name].dtype} {shape}"
        tensor = expected.get(name)
        given = "none" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        if stated != given:
            raise ExportError(
                f"output {name}: its task's interface has {stated} for a batch of {batch_size}, and the model gives {given}: "
                "correct the interface"
            )


@torch.no_grad()
def _fuser_job(fuser: Fuser, channels: Mapping[str, int], out_channels: int, grid: tuple[int, int], frame: str) -> _Job:
    interface = fuser_interface(fuser, dict(channels), out_channels, grid, frame)
    trial = fuser_inputs(channels, grid, seed=1, batch_size=3)
    trial["present"][1, -1] = False
    fused = fuser(
        {
            name: BEVFeatures(trial[f"{name}_features"], trial[f"{name}_coverage"] * trial["present"][:, i, None, None])
            for i, name in enumerate(channels)
        }
    )
    if fused.features.shape[1] != out_channels:
        raise ValueError(f"out_channels: expected {fused.features.shape[1]}, which the fuser gives, got {out_channels}")
    expected: dict[str, Tensor] = {"features": fused.features, "attention": fused.attention, "coverage": fused.coverage}
    return _Job("fuser", "", FuserGraph(fuser), interface, fuser_inputs(channels, grid), trial, expected)


def _write(job: _Job, folder: Path, name: str, kind: Kind, about: Mapping[str, Any]) -> list[Path]:
    """The artifact and its manifest in `folder`; ExportError where it does not compute what the model computes."""
    path = folder / f"{name}{job.suffix}{SUFFIXES[kind]}"
    write_program(trace(job.graph, job.interface, job.example), path, kind, job.interface)
    got = runner(path, kind, job.graph)(job.trial)
    difference: Difference = (compare_tables if job.part == "rig" else compare)(job.expected, got)
    if not difference.fits:
        raise ExportError(
            f"{path.name}: the exported {job.part} does not compute what the model computes: {difference}. Nothing was written; "
            "this is a fault of the export, please report it with the model's config.json"
        )
    opset = OPSET if kind == "onnx" else None
    manifest = write_manifest(
        path, path.name, kind=kind, part=job.part, interface=job.interface, about=about, opset=opset
    )
    return [path, manifest]
