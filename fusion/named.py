"""Parameters of single modalities, stored under the modality's name: no order of names can swap two sensors.

Letters: B samples, M modalities, C channels, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import torch
from torch import Tensor, nn


class NamedParameters(nn.ParameterDict):
    """A parameter of each modality, all of one shape: `rows` [M, ...] in the order of `names`."""

    def __init__(self, names: Sequence[str], rows: Tensor) -> None:
        super().__init__((key_of(name), nn.Parameter(row.clone())) for name, row in zip(names, rows, strict=True))

    def stacked(self) -> Tensor:
        """[M, ...] in the order of the names."""
        return torch.stack(tuple(self.values()))


class NamedModules(nn.ModuleDict):
    """A module of each modality by its name."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__({key_of(name): module for name, module in modules.items()})


class NamedConv(nn.Module):
    """A convolution over all modalities' channels whose kernels are stored by modality.

    Computes what `nn.Conv2d(M * channels, channels, size, padding=size // 2)` does, and starts as it does.
    """

    def __init__(self, names: Sequence[str], channels: int, size: int) -> None:
        super().__init__()
        whole = nn.Conv2d(len(names) * channels, channels, size)
        kernels = zip(names, whole.weight.detach().chunk(len(names), dim=1), strict=True)
        self.kernels = NamedModules({name: _Kernel(kernel) for name, kernel in kernels})
        self.bias = whole.bias
        self.padding = size // 2

    def forward(self, x: Tensor) -> Tensor:
        """[B, M * channels, X, Y] in the order of the names -> [B, channels, X, Y]."""
        weight = torch.cat(list(self.kernels.parameters()), dim=1)
        return nn.functional.conv2d(x, weight, self.bias, padding=self.padding)


class _Kernel(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())


_CONTAINERS = (NamedParameters((), torch.empty(0)), NamedModules({}))  # know which names are their own attributes


def key_of(name: str) -> str:
    """`name` as it stands in state dicts: itself, or percent-encoded where torch would refuse it."""
    if not name:
        return "%"
    if any(hasattr(container, name) for container in _CONTAINERS):
        return f"%{ord(name[0]):02X}{name[1:]}"
    return name.replace("%", "%25").replace(".", "%2E")


def name_of(key: str) -> str:
    """The inverse of `key_of`."""
    return "" if key == "%" else unquote(key)


class NamedModule(nn.Module):
    """A module with parameters of single modalities, loaded by name in whatever order of names it was built."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of every module; ValueError where `state_dict` has parameters of other modalities (if `strict`)."""
        if strict:
            _check_names(self, state_dict)
        return super().load_state_dict(state_dict, strict, assign)


def _check_names(module: nn.Module, state: Mapping[str, Any]) -> None:
    expected, got = (_modalities(module, names) for names in (module.state_dict(), state))
    if expected != got:
        raise ValueError(
            f"state dict: expected parameters of {_listed(expected)}, for which this {type(module).__name__} is built, got "
            f"those of {_listed(got)}: build it for these, or load what both have with strict=False"
        )


def _modalities(module: nn.Module, names: Iterable[str]) -> set[str]:
    """Whose parameters are among `names`, of the state dict of a module like this one."""
    prefixes = [
        f"{path}." for path, part in module.named_modules() if isinstance(part, (NamedParameters, NamedModules))
    ]
    keys = (name.removeprefix(prefix) for prefix in prefixes for name in names if name.startswith(prefix))
    return {name_of(key.partition(".")[0]) for key in keys}


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "no modality"
