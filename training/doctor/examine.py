"""`robustbev doctor`: what is installed, from where our packages come, and what this machine can run.

Stands on the base installation alone: `python -m training.doctor` works without any extra.
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from sensors.extras import EXTRAS, missing, remedy, unavailable
from training.doctor.machine import Answer, Machine, abilities, look

PACKAGES = ("robustbev", "training", "sensors", "bev", "fusion")
_VERSIONS = (
    "torch", "numpy", "pydantic", "safetensors", "nuscenes-devkit", "ray", "mlflow", "spconv", "simplejpeg", "embreex",
    "mcap", "foxglove-sdk", "rosbags", "rerun-sdk", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript",
)  # fmt: skip


def report(machine: Machine | None = None) -> tuple[list[str], list[str]]:
    """The report's lines, and what is wrong."""
    machine = look() if machine is None else machine
    lines = [f"Python {platform.python_version()} on {platform.platform()}", ""]
    origins = package_origins()
    lines += ["Packages", *(f"  {name:<10} {path}" for name, path in origins.items()), ""]
    lines += ["Versions", *(f"  {name:<16} {_version(name)}" for name in _VERSIONS), ""]
    lines += ["Extras", *_extras(), ""]
    lines += ["This machine", *(f"  {line}" for line in machine.lines()), ""]
    lines += ["What runs here", *_answers(abilities(machine, missing)), ""]
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
        # What pip cannot bring stands by itself: it does not keep pip from bringing the rest.
        groups = [[name for name in absent if not unavailable(name)], [name for name in absent if unavailable(name)]]
        states = [f"without {', '.join(names)}: {remedy([extra], names)}" for names in groups if names]
        lines += [f"  {extra:<8} {state}" for state in states or ["installed"]]
    return lines


def _answers(answers: Sequence[Answer]) -> list[str]:
    width = max(len(answer.what) for answer in answers)
    return [f"  {answer.what:<{width}}  {'yes' if answer.able else 'no ':<3}  {answer.said}" for answer in answers]


def examine(config: Path | None = None, settings: Sequence[str] = ()) -> int:
    """Print the report, and whether this machine can run a configuration; 1 where something is wrong or it cannot.

    Raises:
        FileNotFoundError, ConfigError: there is no such configuration, or it is none.
        MissingExtraError: reading it takes a library that is not there.
    """
    machine = look()
    lines, warnings = report(machine)
    print("\n".join(lines))
    can = True
    if config is not None:
        from training.doctor.config import check_config

        answers = check_config(config, settings, machine)
        can = all(answer.able for answer in answers)
        print("\n".join([f"{config}: {'can' if can else 'cannot'} run here", *_answers(answers), ""]))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not warnings:
        print("All packages share one root.")
    return 0 if can and not warnings else 1


def main(arguments: Sequence[str] = ()) -> int:
    """`python -m training.doctor [--config FILE [key=value ...]]`."""
    import argparse

    parser = argparse.ArgumentParser("python -m training.doctor", description=examine.__doc__)
    parser.add_argument("--config", type=Path, help="say too whether this machine can run this configuration")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings over the file's")
    given = parser.parse_args(arguments)
    if given.settings and given.config is None:
        parser.error("settings are of a configuration: say with --config which")
    try:
        return examine(given.config, given.settings)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
