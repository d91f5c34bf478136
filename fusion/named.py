"""Parameters of single modalities, stored under the modality's name: no order of names can swap two sensors.

Letters: B samples, M modalities, C channels, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias
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

    def is_positional(self, key: str) -> bool:
        """Whether versions before the names stored the rows of all modalities as one tensor under `key`, relative to here."""
        return not key

    def split(self, key: str, tensor: Tensor, order: Sequence[str]) -> dict[str, Tensor]:
        """Such a tensor by keys with names; ValueError where it does not fit."""
        rows = dict(zip(order, tensor, strict=False)) if tensor.ndim and len(tensor) == len(order) else {}
        return _named(rows, tensor, order, "{}")


class NamedModules(nn.ModuleDict):
    """A module of each modality by its name."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__({key_of(name): module for name, module in modules.items()})

    def is_positional(self, key: str) -> bool:
        """As of `NamedParameters`: where modules were numbered."""
        index, _, rest = key.partition(".")
        return index.isdecimal() and bool(rest) and index not in self

    def split(self, key: str, tensor: Tensor, order: Sequence[str]) -> dict[str, Tensor]:
        """As of `NamedParameters`."""
        index, _, rest = key.partition(".")
        return _named(dict(zip(order[int(index) :], [tensor], strict=False)), tensor, order, f"{{}}.{rest}", count=1)


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

    def __iter__(self) -> Iterator[str]:
        return iter(self.kernels)

    def is_positional(self, key: str) -> bool:
        """As of `NamedParameters`."""
        return key == "weight"

    def split(self, key: str, tensor: Tensor, order: Sequence[str]) -> dict[str, Tensor]:
        """As of `NamedParameters`."""
        fits = tensor.ndim == 4 and tensor.shape[1] == len(order) * tensor.shape[0]
        kernels = dict(zip(order, tensor.chunk(len(order), dim=1), strict=True)) if fits else {}
        return _named(kernels, tensor, order, "kernels.{}.weight")


class _Kernel(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())


_Named: TypeAlias = NamedParameters | NamedModules | NamedConv
_TAKEN = (NamedParameters((), torch.empty(0)), NamedModules({}))  # know which names are those of their own attributes


def key_of(name: str) -> str:
    """`name` as it stands in state dicts: itself, or percent-encoded where torch would refuse it."""
    if not name:
        return "%"
    if any(hasattr(container, name) for container in _TAKEN):
        return f"%{ord(name[0]):02X}{name[1:]}"
    return name.replace("%", "%25").replace(".", "%2E")


def name_of(key: str) -> str:
    """The inverse of `key_of`."""
    return "" if key == "%" else unquote(key)


class NamedModule(nn.Module):
    """A module with parameters of single modalities, loaded by name in whatever order of names it was built.

    State dicts from before the names, which have modalities by position, are refused with a ValueError; see `named_state`.
    """

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of every module; ValueError where `state_dict` has parameters of other modalities (if `strict`)."""
        _check_positions(self, state_dict, "")
        if strict:
            _check_names(self, state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        _check_positions(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *others)


def named_state(module: nn.Module, state: Mapping[str, Tensor], modalities: Sequence[str]) -> dict[str, Tensor]:
    """A state dict from before parameters were stored by name, as `module` loads it; what is by name comes back as it is.

    Args:
        module: a fuser of the same modalities, in any order.
        state: its state dict, in which modalities are rows ([M, C], say) and numbers.
        modalities: names in the order of the fuser that wrote it; of a `GatedFusion` the base's, then the added ones'.

    Raises:
        ValueError: `modalities` are not those of the module, or a tensor is not one of that many.
    """
    named = dict(state)
    for path, part in _parts(module):
        names = [name_of(key) for key in part]
        order = [name for name in modalities if name in names]
        if sorted(order) != sorted(names):
            raise ValueError(f"modalities: expected each of {', '.join(names)} once, got {', '.join(modalities)}")
        for name, tensor in state.items():
            key = _relative(name, path)
            if key is None or not part.is_positional(key):
                continue
            try:
                split = part.split(key, tensor, order)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            del named[name]
            named |= {f"{path}.{new}": each for new, each in split.items()}
    return named


def _check_positions(module: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
    for path, part in _parts(module):
        if any(
            key is not None and part.is_positional(key) for key in (_relative(name, prefix + path) for name in state)
        ):
            raise ValueError(
                f"{prefix}{path}: expected parameters by the names of the modalities, got them by position, in an order that is "
                "not told: load_state_dict(fusion.named_state(fuser, state, modalities)), where `modalities` are in the order "
                "of the fuser that wrote them"
            )


def _check_names(module: nn.Module, state: Mapping[str, Any]) -> None:
    ours, theirs = (
        {
            name_of(key.partition(".")[0])
            for path, part in _parts(module)
            if not isinstance(part, NamedConv)  # whose kernels are a part of their own
            for name in names
            if (key := _relative(name, path)) is not None
        }
        for names in (module.state_dict(), state)
    )
    if ours != theirs:
        raise ValueError(
            f"state dict: expected parameters of {_listed(ours)}, for which this {type(module).__name__} is built, got those of "
            f"{_listed(theirs)}: build it for these, or load what both have with strict=False"
        )


def _parts(module: nn.Module) -> Iterator[tuple[str, _Named]]:
    for path, part in module.named_modules():
        if isinstance(part, (NamedParameters, NamedModules, NamedConv)):
            yield path, part


def _relative(name: str, path: str) -> str | None:
    """`name` as seen from `path`, "" where they are one, None where it lies elsewhere."""
    if name == path:
        return ""
    return name.removeprefix(f"{path}.") if name.startswith(f"{path}.") else None


def _named(
    found: Mapping[str, Tensor], tensor: Tensor, order: Sequence[str], key: str, count: int | None = None
) -> dict[str, Tensor]:
    if len(found) != (len(order) if count is None else count):
        raise ValueError(
            f"expected parameters of {len(order)} modalities ({', '.join(order)}), got {list(tensor.shape)}"
        )
    return {key.format(key_of(name)): each.clone() for name, each in found.items()}


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "no modality"
