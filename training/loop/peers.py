"""The workers that train together, as one of them sees them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor


class Peers(Protocol):
    """The workers that train together."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def mean(self, values: Tensor) -> Tensor: ...  # [K] float64 on the CPU, over all ranks

    def gather(self, value: Any) -> list[Any]: ...  # of all ranks, in order, on every rank

    def barrier(self) -> None: ...

    def no_sync(self) -> AbstractContextManager[object]: ...  # gradients stay local, for accumulation


class Alone:
    """`Peers` of a run in one process."""

    rank = 0
    world_size = 1

    def mean(self, values: Tensor) -> Tensor:
        return values

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self) -> None:
        return None

    def no_sync(self) -> AbstractContextManager[object]:
        return nullcontext()
