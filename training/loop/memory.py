"""How much memory a run takes."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch


def resident_memory_bytes() -> int:
    """Resident memory of this process, 0 where the system does not say (there is no /proc)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def cuda_memory_bytes(device: torch.device) -> int:
    """The most memory that tensors on a CUDA device took at once so far, 0 on others."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


# Of mallopt(3), glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for the next step of training; -> whether the C library could be told.

    By default glibc hands every large tensor's pages back to the system at once, and the next step's first touch of each
    page is a fault again: on two cores that took a sixth of the tiny config's training step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
