"""How much memory a run takes."""

from __future__ import annotations

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
