"""Sound files with something changed in them, and what reading one does."""

from __future__ import annotations

import random
import resource
import signal
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests.fuzz.doors import Door

SECONDS, MIB = 2.0, 300.0
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_WORDS = (b"null", b"[]", b"{}", b"-1", b"1e999", b"NaN", b'""', b"\0", b"[[", b"\\ud800", b"9" * 30, b"../")


@dataclass(frozen=True)
class Finding:
    """What is not as it should be, or the most that a run took."""

    fault: str
    data: bytes
    seconds: float = 0.0
    mib: float = 0.0


def mutations(seeds: tuple[bytes, ...], count: int, seed: int) -> Iterator[bytes]:
    """`count` files; the same every time."""
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        for _ in range(1 + int(rng.expovariate(0.5))):
            _change(data, rng, seeds)
        yield bytes(data)


def _change(data: bytearray, rng: random.Random, seeds: tuple[bytes, ...]) -> None:
    at, size = rng.randrange(len(data) + 1), 1 << rng.randrange(4)
    match rng.randrange(8):
        case 0 if data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        case 1:
            data[at : at + size] = struct.pack("<Q", rng.choice(_NUMBERS))[:size]
        case 2:
            data[at : at + size] = struct.pack(">Q", rng.choice(_NUMBERS))[-size:]
        case 3:
            del data[at : at + rng.choice((1, size, 64))]
        case 4:
            data[at:at] = data[at : at + rng.choice((size, 64, 256))]
        case 5:
            data[at:at] = rng.choice(_WORDS)
        case 6:
            other = rng.choice(seeds)
            begin = rng.randrange(len(other) + 1)
            data[at : at + 32] = other[begin : begin + 32]
        case _:
            data[at : at + size] = rng.randbytes(size)
            if rng.random() < 0.05:
                del data[at:]


def fuzz(door: Door, count: int, seed: int = 0) -> tuple[list[Finding], Finding]:
    """-> what went wrong, the first of each kind, and the most seconds and MiB that any run took."""
    findings: dict[str, Finding] = {}
    longest = 0.0
    before = signal.signal(signal.SIGPROF, _ring)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: proc(5)
    resident_mib = _peak_mib()
    try:
        for data in mutations(door.seeds, count, seed):
            fault, began = "", time.process_time()
            signal.setitimer(signal.ITIMER_PROF, 5 * SECONDS)
            try:
                door.read(data)
            except door.refuses:
                pass
            except Exception as error:
                fault = f"{type(error).__name__} in {_place(error)}"
            signal.setitimer(signal.ITIMER_PROF, 0)
            seconds, mib = time.process_time() - began, _peak_mib() - resident_mib
            longest = max(longest, seconds)
            if not fault and seconds > SECONDS:
                fault = f"more than {SECONDS:g} s"
            elif not fault and mib > MIB:
                fault = f"more than {MIB:g} MiB"
            if fault:
                findings.setdefault(fault, Finding(fault, data, seconds, mib))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return list(findings.values()), Finding("", b"", longest, _peak_mib() - resident_mib)


def _ring(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError


def _peak_mib() -> float:
    """The most that the process held since then, so that what one run took is never less than what this grew by."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
