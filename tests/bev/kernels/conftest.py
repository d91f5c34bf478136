"""What calls a kernel runs it here too, by Triton's interpreter."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch import Tensor

from bev import motion, pillars
from bev.detection import suppression
from bev.lift import table


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nothing was written to holds NaN, so that a cell left out shows."""

    def poisoned(*size: int, dtype: torch.dtype = torch.float32, **_: object) -> Tensor:
        return torch.full(size, float("nan") if dtype.is_floating_point else 7, dtype=dtype)

    def poisoned_like(tensor: Tensor) -> Tensor:
        return poisoned(*tensor.shape, dtype=tensor.dtype)

    pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
    for module in (motion, table, pillars, suppression):
        monkeypatch.setattr(module, "in_triton", lambda _: True)
    for kernel in ("lift", "motion", "pillars", "points", "sectors", "suppression"):
        module = import_module(f"bev.kernels.{kernel}")
        monkeypatch.setattr(module, "torch", _Torch(empty=poisoned, empty_like=poisoned_like))


class _Torch(ModuleType):
    """torch with a few functions of one's own."""

    def __init__(self, **changes: object) -> None:
        super().__init__("torch")
        self.__dict__.update(torch.__dict__ | changes)
