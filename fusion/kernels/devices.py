"""Where a kernel runs, and in which dtype: asked in one place, so that a test can take any device's way on a CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn


def in_blocks(device: torch.device) -> bool:
    """Whether to go block by block, each small enough for a core's cache.

    A GPU wants all cells at once, and a graph (torch.compile, torch.export) unrolls no loops.
    """
    return device.type == "cpu" and not torch.compiler.is_compiling()


def in_triton(device: torch.device) -> bool:
    """Whether kernels written in Triton may be taken.

    CUDA builds of torch for Linux bring Triton. A graph makes kernels of its own.
    """
    return device.type == "cuda" and _has_triton() and not torch.compiler.is_compiling()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def autocasts(device: torch.device) -> bool:
    """Whether autocast chooses dtypes now."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """No autocast."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def widened(x: Tensor) -> Tensor:
    """`x` in float32 at least: in what sums and exponentials are taken."""
    return x if x.dtype == torch.float64 else x.float()


def projected(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)`, with `x` in the layer's dtype unless autocast chooses."""
    return layer(x if autocasts(x.device) else x.to(layer.weight.dtype))
