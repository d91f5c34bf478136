"""An exported graph that checks what it is given before it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .arrays import NumpyArrays, TorchTensors
from .manifest import Array, Symbol, TensorSpec


@dataclass(frozen=True)
class Artifact:
    """An exported graph, ready to run.

    `manifest` is the parsed manifest; `inputs` and `outputs` are its tensors in the graph's order.
    """

    path: Path
    kind: str
    part: str
    manifest: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: Mapping[str, Symbol]
    _library: NumpyArrays | TorchTensors
    _run: Callable[[list[Array]], Sequence[Array]]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name: numpy arrays of an ONNX artifact, tensors of the others (which take numpy arrays over, too).

        Raises:
            ValueError: an input is unknown, missing, or not what the manifest says; nothing has been computed then.
        """
        outputs = self._run(self.check(inputs))
        return dict(zip((spec.name for spec in self.outputs), outputs, strict=True))

    def check(self, inputs: Mapping[str, Array]) -> list[Array]:
        """`inputs` in the graph's order and memory layout, or the ValueError that a call would raise."""
        if not isinstance(inputs, Mapping):
            raise ValueError(f"inputs: expected a mapping from names to arrays, got {type(inputs).__name__}")
        names = [spec.name for spec in self.inputs]
        unknown = [str(name) for name in inputs if name not in names]
        missing = [name for name in names if name not in inputs]
        if unknown:
            raise ValueError(f"unknown input {', '.join(unknown[:5])}; {self.path.name} takes {', '.join(names)}")
        if missing:
            raise ValueError(
                f"missing input {', '.join(missing)}; {self.path.name} takes them all: for an absent sensor give any values "
                "and switch it off in its mask"
            )
        arrays = [self._library.take(spec, inputs[spec.name]) for spec in self.inputs]
        values = self._sizes(arrays)
        for spec, array in zip(self.inputs, arrays, strict=True):
            self._check_range(spec, array, values)
        return arrays

    def _sizes(self, arrays: Sequence[Array]) -> dict[str, int]:
        """Every symbol's value; ValueError where a size is not the manifest's, or a symbol has two values."""
        values: dict[str, tuple[int, str]] = {}
        for spec, array in zip(self.inputs, arrays, strict=True):
            shape = [int(size) for size in array.shape]
            if len(shape) != len(spec.shape):
                raise ValueError(f"{spec.name}: expected {len(spec.shape)} axes, {spec}, got {len(shape)}: {shape}")
            for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
                if isinstance(dim, int):
                    if size != dim:
                        raise ValueError(
                            f"{spec.name}: expected {spec}, got {shape}: axis {axis} has {size}, not {dim}"
                        )
                    continue
                symbol = self.symbols[dim]
                if not symbol.min <= size <= symbol.max:
                    raise ValueError(
                        f"{spec.name}: expected {dim} from {symbol.min} to {symbol.max} in {spec}, got {shape}: axis {axis} has "
                        f"{size} ({symbol.meaning or dim})"
                    )
                value, first = values.setdefault(dim, (size, spec.name))
                if value != size:
                    raise ValueError(
                        f"{spec.name}: {dim} is {size} in {shape} but {value} in {first}; a symbol has one value in a call"
                    )
        return {symbol: value for symbol, (value, _) in values.items()}

    def _check_range(self, spec: TensorSpec, array: Array, sizes: Mapping[str, int]) -> None:
        """ValueError where an index or a count leads outside its tensor: kernels read where it points."""
        limit = None if spec.below is None else math.prod(d if isinstance(d, int) else sizes[d] for d in spec.below)
        says = "indices" if limit is not None else "counts"
        if limit is None and spec.name.endswith("_count"):
            points = next((s for s in self.inputs if s.name == spec.name.removesuffix("_count") + "_points"), None)
            if points is not None and len(points.shape) > 1:
                rows = points.shape[1]
                limit = (rows if isinstance(rows, int) else sizes[rows]) + 1
        if limit is None or not math.prod(array.shape):
            return
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= limit:
            raise ValueError(
                f"{spec.name}: expected {says} from 0 to {limit - 1}, got {low if low < 0 else high}: "
                + ("build the tables for this rig and batch" if says == "indices" else "no more than there are points")
            )
