"""Arrays of numpy and torch, held against what a graph takes. Neither library is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .manifest import Array, TensorSpec


@dataclass(frozen=True)
class NumpyArrays:
    """Takes numpy arrays."""

    numpy: Any

    def take(self, spec: TensorSpec, value: Array) -> Array:
        if not isinstance(value, self.numpy.ndarray):
            raise ValueError(f"{spec.name}: expected a numpy array, {spec}, got {_kind(value)}; use numpy.asarray")
        _check_numpy(spec, value)
        return self.numpy.asarray(value, order="C")


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"


def _check_numpy(spec: TensorSpec, value: Array) -> None:
    if hasattr(value, "mask"):
        raise ValueError(
            f"{spec.name}: expected a plain array, got a masked one, whose mask would be lost; fill it first"
        )
    if value.dtype.name != spec.dtype:
        raise ValueError(
            f"{spec.name}: expected dtype {spec.dtype}, got {value.dtype}; use .astype('{spec.dtype}') if the values are in "
            f"{spec.unit or 'its unit'}"
        )
    if not value.dtype.isnative:
        raise ValueError(f"{spec.name}: expected {spec.dtype} in this machine's byte order, got {value.dtype.str}")


@dataclass(frozen=True)
class TorchTensors:
    """Takes tensors, and numpy arrays, which it moves to the artifact's device."""

    torch: Any
    device: str

    def take(self, spec: TensorSpec, value: Array) -> Array:
        if isinstance(value, self.torch.Tensor):
            return self._tensor(spec, value)
        if not hasattr(value, "__array_interface__") or not hasattr(value, "dtype"):
            raise ValueError(f"{spec.name}: expected a tensor or a numpy array, {spec}, got {_kind(value)}")
        _check_numpy(spec, value)
        array = value if value.flags.writeable and value.flags.c_contiguous else value.copy(order="C")
        return self.torch.from_numpy(array).to(self.device)

    def _tensor(self, spec: TensorSpec, value: Array) -> Array:
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype != spec.dtype:
            raise ValueError(
                f"{spec.name}: expected dtype {spec.dtype}, got {dtype}; use .to(torch.{spec.dtype}) if the values are in "
                f"{spec.unit or 'its unit'}"
            )
        if value.device.type != self.device:
            raise ValueError(
                f"{spec.name}: expected a tensor on {self.device}, for which this was exported, got one on {value.device}"
            )
        if value.layout is not self.torch.strided:
            raise ValueError(f"{spec.name}: expected a dense tensor, got {value.layout}; use .to_dense()")
        return value.detach().resolve_neg().contiguous()
