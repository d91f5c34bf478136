"""Where a kernel runs, and in which dtype: asked in one place, so that a test can take any device's way on a CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def in_blocks(device: torch.device) -> bool:
    """Whether to go block by block, each small enough for a core's cache.

    A GPU wants all cells at once, and a graph (torch.compile, torch.export) unrolls no loops.
    """
    return device.type == "cpu" and not torch.compiler.is_compiling()


def autocasts(device: torch.device) -> bool:
    """Whether autocast chooses dtypes now."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """No autocast, where the device knows of it."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def widened(x: Tensor) -> Tensor:
    """`x` in float32 at least: in what sums and exponentials are taken."""
    return x if x.dtype == torch.float64 else x.float()


def projected(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)`, with `x` in the layer's dtype unless autocast chooses."""
    return layer(x if autocasts(x.device) else x.to(layer.weight.dtype))
