"""Files that mean harm, and a guard that measures what reading one costs."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import struct
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

CANARY = "CANARY"  # whatever executes anything creates this file in the working directory
# Of processor time. What is refused at once takes some tenths of it, and several times as long beside others on one core.
MAX_SECONDS, MAX_MIB = 5.0, 500.0
_HANG_S = 10.0  # of processor time
_ROOM_MIB = 2048.0  # what a reader that goes wrong may take before it gets a MemoryError, for the machine's sake


class Bomb:
    """Unpickling this creates the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


@dataclass
class Cost:
    """Processor seconds, and how much the process grew at its largest."""

    seconds: float = 0.0
    mib: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """Cost of the block, which gets a TimeoutError after 10 s and a MemoryError after 2 GiB."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"still not refused after {_HANG_S:g} s of work")

    cost, before = Cost(), signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, _HANG_S)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: proc(5)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int((_status_mib("VmSize") + _ROOM_MIB) * 2**20), limits[1]))
    resident, started = _status_mib("VmRSS"), time.process_time()
    try:
        yield cost
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        cost.seconds = time.process_time() - started
        cost.mib = _status_mib("VmHWM") - resident
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1]) / 1024


def pickled() -> bytes:
    """A pickle that creates the canary."""
    return pickle.dumps(Bomb())


def torch_pickled(path: Path) -> None:
    """A torch file, which is a zip archive around a pickle, that creates the canary."""
    torch.save({"blocks.0.attn.qkv.weight": Bomb()}, path)


def zipped(path: Path) -> None:
    """A zip archive with a member that climbs out of the folder it is unpacked into."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"../../{CANARY}", "here")
        archive.writestr("data.pkl", pickled())


def safetensors_file(header: Mapping[str, Any] | bytes, *, stated: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file of any header: 8 bytes of its length (or what is stated), JSON, data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if stated is None else stated) + text + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """A tensor's entry in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def deep(depth: int = 200_000) -> str:
    """Brackets in brackets: JSON and YAML alike."""
    return "[" * depth + "]" * depth


def laughs(levels: int = 30) -> str:
    """A YAML list `bomb` that is a kilobyte on disk and 10^30 words when its references are followed."""
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join([*lines, f"bomb: *a{levels - 1}"]) + "\n"


def yaml_objects() -> str:
    """YAML that an unsafe loader would turn into a call."""
    return f'a: !!python/object/apply:os.mkdir ["{CANARY}"]\nb: !!python/name:os.system\n'
