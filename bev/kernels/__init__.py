"""What a GPU computes in kernels of our own, in Triton; each has a plain twin in the module that calls it."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


def in_triton(device: torch.device) -> bool:
    """Whether to call a kernel: on a CUDA device, where Triton is installed, and while no graph is made by torch.

    torch.compile and torch.export get the plain twin, which they see through.
    """
    return device.type == "cuda" and _installed() and not torch.compiler.is_compiling()


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *given: Any, **named: Any) -> None:
    """`kernel[grid](first, *given, **named)` on the device of `first`, for of itself Triton takes the current one.

    A grid of no programs is none to launch.
    """
    if all(grid):
        with torch.cuda.device_of(first):  # for a CPU's tensor this does nothing
            kernel[grid](first, *given, **named)
