"""`robustbev doctor`: what is installed, from where our packages come, and what this machine can run.

Stands on the base installation alone: `python -m training.doctor` works without any extra.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from robustbev.precision import choose_precision
from sensors.extras import EXTRAS, installed_version, missing, remedy, unavailable
from sensors.text import tell
from training.data.handover import shared_memory_bytes, shared_memory_fault
from training.doctor.answer import Answer, without

PACKAGES = ("robustbev", "training", "sensors", "bev", "fusion")
_VERSIONS = (
    "torch", "numpy", "pydantic", "safetensors", "nuscenes-devkit", "ray", "mlflow", "spconv", "simplejpeg", "embreex",
    "mcap", "foxglove-sdk", "rosbags", "rerun-sdk", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript",
)  # fmt: skip
_GIB = 2**30


def examine(config: Path | None = None, settings: Sequence[str] = (), rig: Path | None = None) -> int:
    """Print the report, and whether this machine can run a configuration; 1 where something is wrong or it cannot.

    `rig`: a PNG to draw the configuration's sensors into.

    Raises:
        FileNotFoundError, ConfigError: there is no such configuration, or it is none.
        MissingExtraError: reading it takes a library that is not there.
    """
    origins = package_origins()
    warnings = shadowed(origins)
    parts = {
        f"Python {platform.python_version()} on {platform.platform()}": [],
        "Packages": [f"{name:<10} {path}" for name, path in origins.items()],
        "Versions": [f"{name:<16} {installed_version(name)}" for name in _VERSIONS],
        "Extras": _extras(),
        "This machine": _machine(),
        "What runs here": _lines(abilities()),
    }
    can = True
    if config is not None:
        from training.doctor.config import check_config

        answers = check_config(config, settings, rig)
        can = all(answer.able for answer in answers)
        parts[f"{config}: {'can' if can else 'cannot'} run here"] = _lines(answers)
    for title, lines in parts.items():
        tell("\n  ".join([title, *lines]), end="\n\n")
    for warning in warnings:
        tell(f"warning: {warning}", file=sys.stderr)
    if not warnings:
        tell("All packages share one root.")
    return 0 if can and not warnings else 1


def package_origins() -> dict[str, Path]:
    """Package -> the folder or file that an import of it takes."""
    origins = {}
    for name in PACKAGES:
        module = importlib.import_module(name)
        file = getattr(module, "__file__", None)
        # A folder without __init__.py, picked up by chance, has no file but a list of places.
        origins[name] = Path(file) if file else Path(next(iter(module.__path__)))
    return origins


def shadowed(origins: dict[str, Path]) -> list[str]:
    """One warning for each package that does not lie beside `robustbev`: names like `sensors` are easily shadowed."""
    home = origins["robustbev"].parent.parent
    return [
        f"{name} is imported from {path}, but robustbev from {home}: another package of this name comes first on sys.path "
        f"({sys.path[0] or 'the working directory'} is searched first); remove it or change PYTHONPATH"
        for name, path in origins.items()
        if home not in path.parents
    ]


def abilities() -> list[Answer]:
    """What of RobustBEV can be run here."""
    gpus = torch.cuda.device_count()
    on = f"on GPU 0 ({torch.cuda.get_device_name(0)})" if gpus else "on the CPU"
    no_gpu = "no GPU that torch can use, and its model is too large to train on a CPU: install CUDA's torch"
    command = os.environ.get("CXX") or "g++"  # what torch's Inductor calls
    include = Path(sysconfig.get_path("include"))
    no_compiler = ""
    if shutil.which(command.split()[0]) is None:
        no_compiler = f"no {command}: install g++ (Debian and Ubuntu: apt install g++), or name one in CXX"
    elif not (include / "Python.h").is_file():
        no_compiler = f"{command} is there, but no Python.h in {include}: install python3-dev"
    training = without("train", "data", "cli")
    answers = {
        "perceive": ("", f"robustbev.load and model.perceive, {on}"),
        "train tiny": (training, f"configs/tiny.yaml, {on}"),
        "train nuscenes": (
            training or ("" if gpus else no_gpu),
            f"configs/nuscenes.yaml, {on}; get the data set yourself",
        ),
        "replay": (without("replay", "cli"), f"drive logs, {on}"),
        "export pt2": ("", "torch alone"),
        "export onnx": (without("export"), f"runs by {_providers()}"),
        "export aoti": (no_compiler, f"compiled by {command} for {platform.machine()}"),
    }
    return [Answer(what, not obstacle, obstacle or ability) for what, (obstacle, ability) in answers.items()]


def _extras() -> list[str]:
    lines = []
    for extra in EXTRAS:
        absent = missing(extra)
        # What pip cannot bring stands by itself: it does not keep pip from bringing the rest.
        groups = [[name for name in absent if not unavailable(name)], [name for name in absent if unavailable(name)]]
        states = [f"without {', '.join(names)}: {remedy([extra], names)}" for names in groups if names]
        lines += [f"{extra:<8} {state}" for state in states or ["installed"]]
    return lines


def _machine() -> list[str]:
    """Processors, GPUs, what training computes in on each and why, disk and /dev/shm."""
    lines = [f"{platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads for torch"]
    lines.append(f"training on the CPU is in {choose_precision('auto', 'cpu', training=True)}")
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        lines.append(f"GPU {i}: {gpu.name}, {gpu.total_memory / _GIB:.1f} GiB")
        lines.append(f"  training on it is in {choose_precision('auto', f'cuda:{i}', training=True)}")
    if not torch.cuda.device_count():
        lines.append("no GPU that torch can use")
    lines.append(f"onnxruntime's providers: {_providers()}")
    lines.append(f"{shutil.disk_usage('.').free / _GIB:.1f} GiB free on this disk")
    shared = shared_memory_bytes()
    if shared is not None:
        lines.append(shared_memory_fault(shared) or f"{shared / _GIB:.1f} GiB free in /dev/shm")
    return lines


def _providers() -> str:
    if find_spec("onnxruntime") is None:
        return "not installed"
    try:
        import onnxruntime

        return ", ".join(onnxruntime.get_available_providers())
    except (ImportError, AttributeError, OSError):  # a broken installation, as of a GPU build without its libraries
        return "none"


def _lines(answers: Sequence[Answer]) -> list[str]:
    width = max(len(answer.what) for answer in answers)
    return [f"{answer.what:<{width}}  {'yes' if answer.able else 'no ':<3}  {answer.reason}" for answer in answers]
