"""What this machine has, and what of RobustBEV it can run. Needs the base installation alone."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sensors.extras import remedy
from training.data.handover import shared_memory_bytes, shared_memory_fault

if TYPE_CHECKING:
    from robustbev.precision import Arithmetic

GIB = 2**30
LITTLE_MEMORY_BYTES = 8 * GIB  # caution, not a measurement: several processes hold torch and a batch each
_COMPILER_TIMEOUT_S = 60


@dataclass(frozen=True)
class Gpu:
    """A CUDA device, as torch sees it."""

    name: str
    memory_bytes: int
    free_bytes: int
    arithmetic: Arithmetic


@dataclass(frozen=True)
class Compiler:
    """The C++ compiler that torch.compile and AOTInductor call."""

    command: str
    fault: str | None  # why it does not do; None: it does

    @property
    def works(self) -> bool:
        return self.fault is None


@dataclass(frozen=True)
class Machine:
    """What there is."""

    cores: int  # that this process may use
    threads: int  # of torch
    arithmetic: Arithmetic  # of the CPU
    memory_bytes: int  # of the machine, or of the container where that is less
    available_bytes: int
    disk_bytes: int  # free, where this process stands
    gpus: tuple[Gpu, ...]
    compiler: Compiler
    providers: tuple[str, ...] | None  # of onnxruntime; None: it is not installed
    shared_memory_bytes: int | None = None  # free in /dev/shm; None: the system does not work with one

    def lines(self) -> list[str]:
        """For the report."""
        lines = [
            f"{platform.machine()}, {self.cores} CPU cores, {self.threads} threads for torch, {_gib(self.memory_bytes)} memory "
            f"({_gib(self.available_bytes)} of it free), {_gib(self.disk_bytes)} free on this disk",
            f"training on the CPU is in {self.arithmetic.choose('auto', training=True)}",
        ]
        for i, gpu in enumerate(self.gpus):
            lines.append(f"GPU {i}: {gpu.name}, {_gib(gpu.memory_bytes)} ({_gib(gpu.free_bytes)} of it free)")
            lines.append(f"  training on it is in {gpu.arithmetic.choose('auto', training=True)}")
        if not self.gpus:
            lines.append("no GPU that torch can use")
        lines.append(f"C++ compiler: {self.compiler.command}" + (", works" if self.compiler.works else ""))
        if self.compiler.fault is not None:
            lines[-1] = f"C++ compiler: {self.compiler.fault}"
        said = "not installed" if self.providers is None else ", ".join(self.providers) or "none"
        lines.append(f"onnxruntime's providers: {said}")
        if self.shared_memory_bytes is not None:
            lines.append(
                shared_memory_fault(self.shared_memory_bytes) or f"{_gib(self.shared_memory_bytes)} free in /dev/shm"
            )
        if self.memory_bytes < LITTLE_MEMORY_BYTES:
            lines.append("less than 8 GiB of memory: use data.workers=0 and a smaller batch_size")
        return lines


@dataclass(frozen=True)
class Answer:
    """Whether something can be done here, with the reason, or with what to do."""

    what: str
    able: bool
    said: str


def look() -> Machine:
    """What this machine has."""
    import torch

    from robustbev.precision import arithmetic_of

    total, available = _memory_bytes()
    return Machine(
        cores=_cores(),
        threads=torch.get_num_threads(),
        arithmetic=arithmetic_of("cpu"),
        memory_bytes=total,
        available_bytes=available,
        disk_bytes=shutil.disk_usage(".").free,
        gpus=_gpus(),
        compiler=_compiler(),
        providers=_providers(),
        shared_memory_bytes=shared_memory_bytes(),
    )


def abilities(machine: Machine, missing: Callable[[str], Sequence[str]]) -> list[Answer]:
    """What of RobustBEV can be run. `missing`: the libraries of an extra that are not there, as `sensors.extras.missing`."""
    on = f"on GPU 0 ({machine.gpus[0].name})" if machine.gpus else f"on the CPU ({machine.cores} cores)"
    gpu = (
        ""
        if machine.gpus
        else "no GPU that torch can use, and its model is too large to train on a CPU: install CUDA's torch"
    )
    nuscenes = f"on {len(machine.gpus)} GPU{'s' if len(machine.gpus) > 1 else ''}; the data set is yours to get"
    compiler = machine.compiler.fault or ""
    return [
        Answer("perceive", True, f"robustbev.load and model.perceive, {on}"),
        _answer("train tiny", _extra(missing, "train", "data", "cli"), f"configs/tiny.yaml, {on}"),
        _answer("train nuscenes", _extra(missing, "train", "data", "cli") or gpu, f"configs/nuscenes.yaml, {nuscenes}"),
        _answer("replay", _extra(missing, "replay", "cli"), f"drive logs, {on}"),
        _answer("export pt2", "", "torch alone"),
        _answer("export onnx", _extra(missing, "export"), f"runs by {', '.join(machine.providers or ())}"),
        _answer("export aoti", compiler, f"compiled by {machine.compiler.command} for {platform.machine()}"),
    ]


def _answer(what: str, obstacle: str, said: str) -> Answer:
    return Answer(what, not obstacle, obstacle or said)


def _extra(missing: Callable[[str], Sequence[str]], *extras: str) -> str:
    """What of the extras is not there, and what brings it; "" where all is."""
    lacking = {extra: list(missing(extra)) for extra in extras}
    lacking = {extra: absent for extra, absent in lacking.items() if absent}
    if not lacking:
        return ""
    absent = list(dict.fromkeys(name for names in lacking.values() for name in names))
    return f"without {', '.join(absent)}: {remedy(list(lacking), absent)}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> tuple[int, int]:
    """Total and available; of the container (cgroup v2) where that has less than the machine."""
    total = available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass  # not Linux: all of it, as far as can be known
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return total, available
    return min(total, limit), max(0, min(available, limit - used))


def _gpus() -> tuple[Gpu, ...]:
    import torch

    from robustbev.precision import arithmetic_of

    gpus = []
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        try:
            free = torch.cuda.mem_get_info(i)[0]
        except RuntimeError:  # a device that another process holds for itself
            free = 0
        gpus.append(Gpu(device.name, device.total_memory, free, arithmetic_of(f"cuda:{i}")))
    return tuple(gpus)


def _compiler() -> Compiler:
    """The compiler that torch's Inductor takes (CXX, else g++), tried on what its code needs: OpenMP and Python's header."""
    command = os.environ.get("CXX") or "g++"
    if shutil.which(command.split()[0]) is None:
        return Compiler(command, f"no {command}: install g++ (Debian and Ubuntu: apt install g++), or name one in CXX")
    include = sysconfig.get_path("include")
    if not (Path(include) / "Python.h").is_file():
        return Compiler(command, f"{command} is there, but no Python.h in {include}: install python3-dev")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.cpp"
        source.write_text("#include <Python.h>\n#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        words = [
            *command.split(),
            "-fopenmp",
            "-fPIC",
            "-shared",
            f"-I{include}",
            str(source),
            "-o",
            f"{folder}/try.so",
        ]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=_COMPILER_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Compiler(command, f"{command} does not work: {error}")
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        return Compiler(command, f"{command} cannot compile with OpenMP and Python.h: {said}")
    return Compiler(command, None)


def _providers() -> tuple[str, ...] | None:
    if find_spec("onnxruntime") is None:
        return None
    try:
        import onnxruntime

        return tuple(onnxruntime.get_available_providers())
    except (ImportError, AttributeError, OSError):  # a broken installation, as of a GPU build without its libraries
        return ()


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
