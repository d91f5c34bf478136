"""`robustbev doctor`: what is installed, from where our packages come, and what this machine can run.

Stands on the base installation alone: `python -m training.doctor` works without any extra.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from training.extras import EXTRAS, missing

PACKAGES = ("robustbev", "training", "sensors", "bev", "fusion")
_VERSIONS = (
    "torch", "numpy", "pydantic", "safetensors", "nuscenes-devkit", "ray", "mlflow", "spconv", "simplejpeg", "embreex",
    "mcap", "foxglove-sdk", "rosbags", "rerun-sdk",
)  # fmt: skip


def report() -> tuple[list[str], list[str]]:
    """The report's lines, and what is wrong."""
    lines = [f"Python {platform.python_version()} on {platform.platform()}", ""]
    origins = package_origins()
    lines += ["Packages", *(f"  {name:<10} {path}" for name, path in origins.items()), ""]
    lines += ["Versions", *(f"  {name:<16} {_version(name)}" for name in _VERSIONS), ""]
    lines += ["Extras", *_extras(), ""]
    lines += ["This machine", *_machine(), ""]
    return lines, shadowed(origins)


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


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _extras() -> list[str]:
    lines = []
    for extra in EXTRAS:
        absent = missing(extra)
        state = "installed" if not absent else f'without {", ".join(absent)}: pip install "robustbev[{extra}]"'
        lines.append(f"  {extra:<8} {state}")
    return lines


def _machine() -> list[str]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gib = 2**30
    lines = [
        f"  {cores} CPU cores, {torch.get_num_threads()} threads for torch, {_memory_bytes() / gib:.1f} GiB memory, "
        f"{shutil.disk_usage('.').free / gib:.0f} GiB free on this disk"
    ]
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: use step.precision=float32"
        lines.append(f"  GPU {i}: {device.name}, {device.total_memory / gib:.0f} GiB, {bf16}")
    if torch.cuda.is_available():
        lines.append("  runs configs/tiny.yaml and configs/nuscenes.yaml")
    else:
        lines.append("  no GPU that torch can use: runs configs/tiny.yaml; configs/nuscenes.yaml needs one")
    if _memory_bytes() < 8 * gib:
        lines.append("  less than 8 GiB of memory: use data.workers=0 and a smaller batch_size")
    return lines


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def main() -> int:
    """Print the report; 1 where something is wrong."""
    lines, warnings = report()
    print("\n".join(lines))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not warnings:
        print("All packages share one root.")
    return 1 if warnings else 0


if __name__ == "__main__":
    sys.exit(main())
