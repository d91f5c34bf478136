"""What a run says of its memory, and that it keeps what it frees."""

from __future__ import annotations

import sys

import pytest
import torch

from training.loop.memory import cuda_memory_bytes, keep_freed_memory, resident_memory_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_resident_memory_holds_what_is_written() -> None:
    before = resident_memory_bytes()
    # More than a process that keeps freed memory is likely to have in store.
    block = torch.ones(2**30, dtype=torch.uint8)
    assert resident_memory_bytes() > max(before, block.numel())
    assert cuda_memory_bytes(torch.device("cpu")) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_the_c_library_takes_the_settings() -> None:
    assert keep_freed_memory()
