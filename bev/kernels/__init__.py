"""What a GPU computes in kernels of our own, in Triton; each has a plain twin in the module that calls it."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch


def in_triton(device: torch.device) -> bool:
    """Whether to call a kernel: on a CUDA device, where Triton is installed, and while no graph is made by torch.

    torch.compile and torch.export get the plain twin, which they see through.
    """
    return device.type == "cuda" and _installed() and not torch.compiler.is_compiling()


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
