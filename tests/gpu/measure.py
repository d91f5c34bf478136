"""How long, how much memory, how near to what the device can do, and where the host waits for it."""

from __future__ import annotations

import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
Work = Callable[[], object]

# What a CPU can tell of a GPU's waits: numbers read from tensors, tensors made of numbers, shapes that depend on data.
_WAITS = {
    torch.ops.aten._local_scalar_dense.default: "reads a number from a tensor",
    torch.ops.aten.lift_fresh.default: "makes a tensor of numbers",
    torch.ops.aten.nonzero.default: "has a shape that depends on data",
    torch.ops.aten.linalg_inv_ex.default: "checks for a singular matrix",
}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Work, device: torch.device, *, rounds: int = 20, warmup: int = 3) -> float:
    """The median of `rounds`, each timed on the device itself."""
    if device.type != "cuda":
        rounds, warmup = min(rounds, 3), min(warmup, 1)
    times = []
    for number in range(warmup + rounds):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        if number >= warmup:
            times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def device_ms(work: Work, device: torch.device, *, rounds: int = 20, warmup: int = 3) -> float:
    """The median of `rounds` as the device sees them, without the host's time to launch: for what takes less than that."""
    if device.type != "cuda":
        return milliseconds(work, device)
    times = []
    for number in range(warmup + rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(2_000_000)  # a millisecond, in which the host gets ahead
        start.record()
        work()
        end.record()
        synchronise(device)
        if number >= warmup:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def peak_mib(work: Work, device: torch.device) -> float | None:
    """MiB that `work` takes at its peak beyond what is there before it; None where the device does not count."""
    if device.type != "cuda":
        return None
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    synchronise(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


@cache
def bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written: what this device gives, measured, not what its data sheet says."""
    count = 2**28 if device.type == "cuda" else 2**24
    source, target = torch.empty(count, device=device), torch.empty(count, device=device)
    return 2 * 4 * count / (milliseconds(lambda: target.copy_(source), device) * 1e-3)


@cache
def arithmetic(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product in `dtype`."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / (milliseconds(lambda: a @ b, device) * 1e-3)


def shares(
    ms: float, num_bytes: float, operations: float, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Of the measured bandwidth and arithmetic, for work that has to move so many bytes and do so many operations."""
    return {
        "of_bandwidth": num_bytes / (ms * 1e-3) / bandwidth(device),
        "of_arithmetic": operations / (ms * 1e-3) / arithmetic(device, dtype),
    }


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in double precision."""
    got, expected = got.detach().cpu().double(), expected.detach().cpu().double()
    return float((got - expected).norm() / expected.norm().clamp(min=1e-30))


def with_gradients(function: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor) -> list[Tensor]:
    """The first output and the gradients of every input, for an upward gradient that differs from place to place."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    first = output if isinstance(output, Tensor) else output[0]
    upward = torch.linspace(-1, 1, first.numel(), device=first.device).view_as(first).to(first.dtype)
    gradients = torch.autograd.grad(first, leaves, upward, allow_unused=True)
    used = [gradient for gradient in gradients if gradient is not None]  # type: ignore[redundant-expr]  # its stub says never
    return [first, *used]


def _place(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line of ours in a stack; an environment in the checkout is not ours."""
    here = Path(__file__).parent
    for frame in reversed(frames):
        file = Path(frame.filename)
        if ROOT in file.parents and here not in file.parents and "site-packages" not in file.parts:
            return f"{file.relative_to(ROOT)}:{frame.lineno}"
    return f"outside of the repository: {frames[-1].filename}:{frames[-1].lineno}"


class _Recorder(TorchDispatchMode):
    def __init__(self, places: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WAITS:
            self._places[f"{_place(traceback.extract_stack())} {_WAITS[func]}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Counts by place: on a GPU where the host really waits, elsewhere what would make it wait on one."""
    places: Counter[str] = Counter()
    if device.type != "cuda":
        with _Recorder(places):
            yield places
        return

    def note(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            places[_place(traceback.extract_stack())] += 1

    synchronise(device)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
