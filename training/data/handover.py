"""How a batch comes from a loader's worker: its tensors in one memory file, which needs neither /dev/shm nor a socket.

torch's own ways put every tensor into /dev/shm (64 MB in a container, by default), and a batch that does not fit is lost in the
worker's sending thread: nobody hears of it, and the trainer waits. A file made by memfd_create(2) is bounded by the memory
alone. The trainer opens it in the worker's /proc/PID/fd and says so by making it one byte longer; then the worker lets go.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_NEEDED_BYTES = 2**20  # semaphores, a page each; no batch goes through it
_ALIGNMENT_BYTES = 64  # a cache line, and more than any dtype needs

_Slot = tuple[int, torch.dtype, torch.Size, int]  # first byte, dtype, shape, elements


def memory_files_work() -> bool:
    """Whether this system has memory files that another process can open; elsewhere torch's own way must do."""
    return hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()


def shared_memory_bytes(statvfs: Callable[[Path], os.statvfs_result] = os.statvfs) -> int | None:
    """What is free in /dev/shm; None where the system does not work with one."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        status = statvfs(_SHARED_MEMORY)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def shared_memory_fault(free_bytes: int | None) -> str | None:
    """Why processes cannot load beside this one, None where they can: their queues have semaphores in /dev/shm."""
    if free_bytes is None or free_bytes >= SHARED_MEMORY_NEEDED_BYTES:
        return None
    needed = SHARED_MEMORY_NEEDED_BYTES / 2**20
    return (
        f"/dev/shm has {free_bytes / 2**20:.1f} MiB free, and {needed:.0f} MiB are needed: enlarge it "
        "(docker run --shm-size=64m), remove what lies in it, or use data.workers=0"
    )


class Parcel:
    """A batch that is unpickled, in another process, as the batch itself.

    Args:
        content: anything that can be pickled; its dense CPU tensors go into the memory file, and come out contiguous.
    """

    def __init__(self, content: object) -> None:
        stream = io.BytesIO()
        packer = _Packer(stream)
        packer.dump(content)
        self._pickled, self._size = stream.getvalue(), packer.size
        _let_go()
        self._file = os.memfd_create("robustbev-batch")
        os.ftruncate(self._file, self._size)
        _held.append((self._file, self._size))
        for tensor, (start, *_) in packer.tensors:
            _write(self._file, tensor, start)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (os.getpid(), self._file, self._size, self._pickled)


_held: list[tuple[int, int]] = []  # in a worker: memory files that may not have been opened yet, and their sizes


def _let_go() -> None:
    """Close the files that were opened at the other end."""
    for file, size in tuple(_held):
        if os.fstat(file).st_size > size:
            os.close(file)
            _held.remove((file, size))


def _open(worker: int, number: int, size: int, pickled: bytes) -> object:
    file = os.open(f"/proc/{worker}/fd/{number}", os.O_RDWR)
    try:
        memory = mmap.mmap(file, size)
        os.ftruncate(file, size + 1)
    finally:
        os.close(file)
    return _Unpacker(io.BytesIO(pickled), memory).load()


class _Packer(pickle.Pickler):
    """Leaves tensors out and notes where they belong."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[Tensor, _Slot]] = []
        self.size = _ALIGNMENT_BYTES  # a file without tensors can be mapped, too

    def persistent_id(self, obj: Any) -> _Slot | None:
        if type(obj) is not Tensor or obj.device.type != "cpu" or obj.layout != torch.strided or obj.requires_grad:
            return None
        slot = (self.size, obj.dtype, obj.shape, obj.numel())
        self.tensors.append((obj, slot))
        self.size += -(-obj.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        return slot


class _Unpacker(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, memory: mmap.mmap) -> None:
        super().__init__(stream)
        self._memory = memory

    def persistent_load(self, pid: Any) -> Tensor:
        start, dtype, shape, count = pid
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=start).view(shape)


def _write(file: int, tensor: Tensor, start: int) -> None:
    left = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
    while left:
        done = os.pwrite(file, left, start)
        left, start = left[done:], start + done
