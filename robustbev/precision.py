"""In what numbers a model computes: bfloat16 where the device gains by it, float32 where it would be emulated or slower.

Weights stay float32; what is chosen here is the dtype of torch's autocast. Geometry, softmax and sums are float32 in any case.
"""

from __future__ import annotations

import os
import platform
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

PrecisionName = Literal["float32", "bfloat16", "float16"]
PrecisionSetting = Literal["auto", "float32", "bfloat16", "float16"]

_BFLOAT16_CAPABILITY = (8, 0)  # of GPUs, from NVIDIA's Ampere on
# What ONEDNN_MAX_CPU_ISA may name that has no bfloat16 arithmetic; torch's own answer takes all AVX-512 for native.
_ISA_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
# `tests.benchmarks.throughput`, on two cores
_EMULATED = "; with AVX2 configs/tiny.yaml trained at 0.6 samples/s in it, and at 6.6 in float32"
_WITHOUT_AMX = "; on an Intel Xeon without AMX configs/tiny.yaml trained at 6.6 samples/s in it, and at 8.7 in float32"


class PrecisionWarning(UserWarning):
    """A precision was asked for that the device has to emulate, or is slower in."""


@dataclass(frozen=True)
class Precision:
    """What a model computes in, and why."""

    name: PrecisionName
    reason: str
    warning: str | None = None  # what was asked for costs more than it gives

    def autocast(self, device_type: str) -> AbstractContextManager[object]:
        """Within it, what may be less than float32 is computed in this precision."""
        if self.name == "float32":
            return nullcontext()
        return torch.autocast(device_type, getattr(torch, self.name))

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


FLOAT32 = Precision("float32", "as the weights are")
# torch's own limit, and oneDNN's by both its names
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


@dataclass(frozen=True)
class Arithmetic:
    """Which short floats a device computes natively, and gains by."""

    kind: str  # torch's device type
    bfloat16: bool
    float16: bool
    reason: str  # how this is known, with the device in front
    bfloat16_cost: str = _EMULATED  # of a CPU that does not gain by it

    def choose(self, setting: PrecisionSetting, *, training: bool) -> Precision:
        """The precision for a setting; see `choose_precision`."""
        native = {"float32": True, "bfloat16": self.bfloat16, "float16": self.float16}
        if setting != "auto":
            warning = None
            if not native[setting]:
                cost = self.bfloat16_cost if self.kind == "cpu" and setting == "bfloat16" else ""
                warning = f"{setting} is slow here ({self.reason}{cost}): set the precision to auto"
            return Precision(setting, "as configured", warning)
        if self.kind == "cpu" and not training:
            # One frame at a time, converting weights costs more than bfloat16 saves: the tiny model took 197 against 147 ms
            # on one core of an Intel Xeon with AVX-512 BF16, configs/nuscenes.yaml 13.0 against 9.3 s.
            return Precision("float32", "the faster one for inference on a CPU")
        if self.bfloat16:
            return Precision("bfloat16", self.reason)
        if self.float16 and self.kind == "cuda":
            return Precision("float16", self.reason)
        return Precision("float32", self.reason)


def choose_precision(setting: PrecisionSetting, device: torch.device | str, *, training: bool = False) -> Precision:
    """What to compute in on a device.

    Args:
        setting: auto is bfloat16 where the device gains by it (a GPU of compute capability 8.0 or more; a CPU with AMX, with
            ARM's BF16 instructions, or with AVX-512 BF16 where that is not Intel's), float16 on older GPUs, float32 elsewhere;
            for inference float32 on every CPU. Anything else is taken as it is, with a warning in the result where it is slow.
        device: where the model is.
        training: whether it is to be trained. Training in float16 needs a gradient scaler.
    """
    return arithmetic_of(device).choose(setting, training=training)


def arithmetic_of(device: torch.device | str) -> Arithmetic:
    """What a device of this machine computes natively and gains by."""
    device = torch.device(device)
    if device.type == "cuda":
        if torch.version.hip is not None:
            return Arithmetic("cuda", bfloat16=True, float16=True, reason="an AMD GPU has bfloat16")
        return gpu_arithmetic(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    if device.type == "cpu":
        return _cpu_arithmetic()
    return Arithmetic(device.type, bfloat16=False, float16=False, reason=f"nothing was measured on {device.type}")


def gpu_arithmetic(name: str, capability: tuple[int, int]) -> Arithmetic:
    """What an NVIDIA GPU computes natively, by its compute capability."""
    bfloat16 = capability >= _BFLOAT16_CAPABILITY
    has = "bfloat16" if bfloat16 else "float16 and no bfloat16"
    return Arithmetic("cuda", bfloat16, True, f"{name} of compute capability {capability[0]}.{capability[1]} has {has}")


def _cpu_arithmetic() -> Arithmetic:
    """Of the instructions that torch uses here: those that the processor has, but for what the environment forbids."""
    if platform.machine() in ("aarch64", "arm64"):
        bfloat16, float16 = _onednn_has("bf16"), _onednn_has("fp16")
        reason = f"this CPU {'has' if bfloat16 else 'lacks'} ARM's BF16 instructions"
        return Arithmetic("cpu", bfloat16, float16, reason)
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if os.environ.get(name)]
    vectors = torch.backends.cpu.get_cpu_capability()  # as ATEN_CPU_CAPABILITY allows
    isa = next((os.environ[name].upper() for name in _LIMITS[1:] if os.environ.get(name)), "ALL")
    allowed = vectors.startswith("AVX512") and _onednn_has("bf16") and isa not in _ISA_WITHOUT_BFLOAT16
    features = {"AVX-512 BF16": "avx512_bf16", "AMX": "amx_tile"}
    names = [name for name, feature in features.items() if _cpu_has(feature)]
    fp16 = allowed and _onednn_has("fp16")
    if names == ["AVX-512 BF16"] and allowed and _vendor() == "GenuineIntel":
        # Its bfloat16 products are made for AMX, which virtual machines often hide; without, a convolution takes 1.9 times as
        # long as in float32.
        reason = "this Intel CPU has AVX-512 BF16 without AMX, which is slower than float32"
        return Arithmetic("cpu", False, fp16, reason, _WITHOUT_AMX)
    if names and not allowed:
        reason = f"this CPU has {' and '.join(names)}, but torch may not use it: {', '.join(limits) or vectors}"
    elif names:
        reason = f"this CPU has {' and '.join(names)}"
    else:
        reason = f"this CPU ({vectors}) has neither AVX-512 BF16 nor AMX"
    return Arithmetic("cpu", bool(names) and allowed, fp16, reason)


def _vendor() -> str:
    """Who made an x86 processor, as it calls itself; "" where the system does not tell."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    vendor = re.search(r"^vendor_id\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    return vendor[1] if vendor else ""


def _cpu_has(feature: str) -> bool:
    """Whether the processor has an instruction set. Torch has no public name for it; False where it cannot say."""
    ask = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return bool(ask is not None and ask())


def _onednn_has(dtype: str) -> bool:
    """Whether torch's oneDNN computes a dtype, within the limits that the environment sets it."""
    ask = getattr(torch.ops.mkldnn, f"_is_mkldnn_{dtype}_supported", None)
    return bool(ask is not None and ask())


class DeviceError(ValueError):
    """torch cannot compute there."""


def usable_device(device: str | torch.device) -> torch.device:
    """The device, once something lay on it.

    Raises:
        DeviceError: it is no device, or none that torch can use on this machine, in one line.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    # torch has one of them for each kind of device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise DeviceError(
            f"device: expected one that torch can use here ({here}), got {str(device)!r}: {reason}; `robustbev doctor` tells "
            "what this machine can run"
        ) from error
    return found
