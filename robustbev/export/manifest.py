"""The manifest beside an artifact: what it is, what it takes and gives, and what it was made with."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from fusion.runtime import TensorSpec
from fusion.runtime.manifest import FORMAT, FORMAT_VERSION
from robustbev.config import ModelConfig
from robustbev.export.interface import Interface
from sensors.extras import installed_version

Kind = Literal["onnx", "pt2", "aoti"]
Part = Literal["model", "fuser", "rig"]


def write_manifest(
    path: Path, name: str, *, kind: Kind, part: Part, interface: Interface, about: Mapping[str, Any], opset: int | None
) -> Path:
    """Write the manifest of the artifact at `path`, which will be called `name`, beside it; `about` is of what was exported."""
    data = path.read_bytes()
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "part": part,
        "file": name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "inputs": [_entry(spec) for spec in interface.inputs],
        "outputs": [_entry(spec) for spec in interface.outputs],
        "symbols": {symbol: asdict(what) for symbol, what in interface.symbols.items()},
        **about,
        "opset": opset,
        "versions": _versions(kind),
        "machine": _machine() if kind == "aoti" else None,
    }
    file = path.with_name(f"{path.name}.json")
    file.write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return file


def _entry(spec: TensorSpec) -> dict[str, Any]:
    return {name: value for name, value in asdict(spec).items() if name != "below" or value is not None}


def about_model(config: ModelConfig) -> dict[str, Any]:
    """What a manifest tells of a model."""
    return {
        "grid": config.grid.model_dump(mode="json") | {"shape": list(config.grid.bev().shape)},
        "classes": list(config.classes),
        "attributes": list(config.attributes),
        "modalities": list(config.modalities),
        "rig": None if config.rig is None else config.rig.model_dump(mode="json"),
    }


def about_fuser(modalities: Sequence[str], grid_shape: tuple[int, int]) -> dict[str, Any]:
    """What a manifest tells of a fuser that belongs to no model of ours."""
    return {
        "grid": {"shape": list(grid_shape)},
        "classes": [],
        "attributes": [],
        "modalities": list(modalities),
        "rig": None,
    }


def _versions(kind: Kind) -> dict[str, str]:
    packages = ("robustbev", "torch", "onnx") if kind == "onnx" else ("robustbev", "torch")
    return {package: installed_version(package) for package in packages}


def _machine() -> dict[str, Any]:
    """What an AOTInductor package is compiled for and with."""
    return {
        "device": "cpu",
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
