"""A small fuser as an artifact of each kind with its manifest, and inputs for it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import Tensor, nn

from fusion import BEVFeatures, CrossAttentionFusion
from tests.shared import made_once

CHANNELS, OUT, GRID = {"camera": 3, "lidar": 4}, 8, (6, 5)
SUFFIX = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".aoti.pt2"}
INPUTS = ("camera_features", "camera_coverage", "lidar_features", "lidar_coverage", "present")
OUTPUTS = ("features", "attention", "coverage")


class SmallFuser(nn.Module):
    """Two modalities, either of which `present` takes away."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.fuser = CrossAttentionFusion(CHANNELS, OUT, heads=2)

    def forward(
        self,
        camera_features: Tensor,
        camera_coverage: Tensor,
        lidar_features: Tensor,
        lidar_coverage: Tensor,
        present: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        camera = BEVFeatures(camera_features, torch.where(present[:, 0, None, None], camera_coverage, 0.0))
        lidar = BEVFeatures(lidar_features, torch.where(present[:, 1, None, None], lidar_coverage, 0.0))
        fused = self.fuser({"camera": camera, "lidar": lidar})
        return fused.features, fused.attention, fused.coverage


def random_inputs(samples: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """What the fuser takes, as numpy arrays."""
    random = np.random.default_rng(seed)
    inputs: dict[str, NDArray[Any]] = {"present": np.ones((samples, len(CHANNELS)), dtype=np.bool_)}
    for name, count in CHANNELS.items():
        inputs[f"{name}_features"] = random.standard_normal((samples, count, *GRID), dtype=np.float32)
        inputs[f"{name}_coverage"] = np.ones((samples, *GRID), dtype=np.float32)
    return inputs


def eager(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the fuser itself says."""
    with torch.no_grad():
        outputs = SmallFuser().eval()(*(torch.from_numpy(inputs[name]) for name in INPUTS))
    return {name: output.numpy() for name, output in zip(OUTPUTS, outputs, strict=True)}


def write_artifact(folder: Path, kind: str) -> Path:
    """`robust` of this kind and its manifest, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"robust{SUFFIX[kind]}"
    path.write_bytes(_exported(kind))
    write_manifest(path, kind)
    return path


def write_manifest(path: Path, kind: str, changes: Mapping[str, Any] | None = None) -> None:
    """The manifest that fits the file, with some entries changed."""
    path.with_name(path.name + ".json").write_text(json.dumps(manifest_of(path, kind) | dict(changes or {})))


def manifest_of(path: Path, kind: str) -> dict[str, Any]:
    """The manifest of the small fuser as it lies at `path`."""
    data = path.read_bytes()
    inputs = [
        entry
        for name, count in CHANNELS.items()
        for entry in (
            {"name": f"{name}_features", "dtype": "float32", "shape": ["B", count, *GRID], "meaning": f"of the {name}"},
            {"name": f"{name}_coverage", "dtype": "float32", "shape": ["B", *GRID], "unit": "0 to 1", "frame": "cells"},
        )
    ]
    inputs.append({"name": "present", "dtype": "bool", "shape": ["B", len(CHANNELS)]})
    shapes = {"features": ["B", OUT, *GRID], "attention": ["B", len(CHANNELS), *GRID], "coverage": ["B", *GRID]}
    outputs = [{"name": name, "dtype": "float32", "shape": shape} for name, shape in shapes.items()]
    return {
        "format": "robustbev-artifact", "format_version": 1, "kind": kind, "part": "fuser", "file": path.name,
        "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "inputs": inputs, "outputs": outputs,
        "symbols": {"B": {"meaning": "samples", "min": 1, "max": 64}}, "modalities": list(CHANNELS), "machine": None,
    }  # fmt: skip


@cache
def _exported(kind: str) -> bytes:
    """The file's bytes. Exported once in a test run: it takes seconds."""
    name = f"robust{SUFFIX[kind]}"
    return (made_once(f"small-{kind}", lambda folder: _export(kind, folder / name)) / name).read_bytes()


def _export(kind: str, path: Path) -> None:
    samples = torch.export.Dim("B", min=1, max=64)
    given = random_inputs(5)
    arguments = tuple(torch.from_numpy(given[name]) for name in INPUTS)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            SmallFuser().eval(), arguments, dynamic_shapes=tuple({0: samples} for _ in arguments)
        )
        match kind:
            case "onnx":
                torch.onnx.export(
                    program, (), path, dynamo=True, external_data=False, opset_version=20, verbose=False,
                    input_names=INPUTS, output_names=OUTPUTS,
                )  # fmt: skip
            case "pt2":
                torch.export.save(program, path)


def link_distributions(distributions: tuple[str, ...], folder: Path) -> None:
    """Links to these distributions and what they need, of those that are installed here."""
    folder.mkdir()
    waiting, found = [canonicalize_name(name) for name in distributions], set()
    while waiting:
        if (name := waiting.pop()) in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
