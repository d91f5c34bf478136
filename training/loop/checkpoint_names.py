"""Checkpoints of versions that stored what belongs to a modality by its position, in the names of today."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from robustbev.weights import state_by_name

_OF_PARAMETERS = ("model", "average", "optimizer")
Groups = list[dict[str, Any]]


def renamed(
    tensors: Mapping[str, Tensor], groups: Sequence[Mapping[str, Any]], model: nn.Module
) -> tuple[dict[str, Tensor], Groups]:
    """Weights, moments and the optimiser's groups of a checkpoint by the names of `model`, which may be theirs already.

    Raises:
        ValueError, LookupError: the checkpoint is not sound.
    """
    names = {
        name: list(state_by_name(model, {name: tensor}))
        for key, tensor in tensors.items()
        if (name := key.removeprefix("model.")) != key
    }
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind not in _OF_PARAMETERS:
            found[key] = tensor
            continue
        name, colon, moment = name.rpartition(":") if kind == "optimizer" else (name, "", "")
        # Each part counts the steps by itself, in a tensor without axes.
        parts = state_by_name(model, {name: tensor}) if tensor.ndim else {new: tensor.clone() for new in names[name]}
        found |= {f"{kind}.{new}{colon}{moment}": part for new, part in parts.items()}
    return found, [{**group, "names": [new for old in group["names"] for new in names[old]]} for group in groups]
