"""Whether weights belong to a model, and if not, which tensors and settings differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel
from torch import Tensor, nn

from sensors.documents import DocumentError, read_json
from training.files.settings import differences

_SHOWN = 3  # tensors or settings named in an error, of each kind


class CheckpointMismatchError(ValueError):
    """A checkpoint that does not belong to this model or this run."""


def check_architecture(path: Path, saved: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise CheckpointMismatchError, naming tensors and settings, unless `saved` has just the tensors of `model`."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in saved.items()}
    faults = [
        *_some("missing", [name for name in own if name not in shapes]),
        *_some("unexpected", [name for name in shapes if name not in own]),
        *_some(
            "of another shape",
            [f"{n} {list(shapes[n])} instead of {list(own[n])}" for n in own if n in shapes and shapes[n] != own[n]],
        ),
    ]
    if not faults:
        return
    differences = _some("settings that differ", _config_differences(path, model))
    raise CheckpointMismatchError(
        f"{path}: this checkpoint is of another architecture: {'; '.join([*faults, *differences])}. "
        "Use the configuration it was trained with, or another name= for a new run"
    )


def _config_differences(path: Path, model: nn.Module) -> list[str]:
    config = getattr(model, "config", None)
    if not isinstance(config, BaseModel) or not (path / "config.json").is_file():
        return []
    try:
        saved = read_json(path / "config.json")
    except (DocumentError, OSError):
        return []  # it only helps to explain
    if not isinstance(saved, dict):
        return []
    return [
        f"{name} {old} in the checkpoint, {new} here"
        for name, (old, new) in differences(saved, config.model_dump(mode="json")).items()
    ]


def _some(what: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return [f"{len(items)} {what}: {', '.join(items[:_SHOWN])}{more}"]
