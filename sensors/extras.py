"""Optional libraries: which command of pip brings one that is not there, and which interpreter and machine can have it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from sensors.errors import MissingExtraError

# Extra -> import names that tell whether it is there.
EXTRAS = {
    "cli": ("typer", "rich", "yaml"),
    "data": ("nuscenes", "simplejpeg", "cv2", "scipy", "embreex"),
    "train": ("ray", "mlflow", "matplotlib"),
    "replay": ("mcap", "mcap_protobuf", "foxglove", "rosbags", "cv2", "simplejpeg", "scipy", "matplotlib", "av"),
    "rerun": ("rerun",),
    "spconv": ("spconv",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "dev": ("pytest", "ruff", "mypy", "importlinter", "hypothesis"),
}
COMPLETE = ((3, 12), (3, 11))  # the versions of Python that can have everything, newest first


@dataclass(frozen=True)
class Limit:
    """Where a library cannot be had: a marker of pyproject.toml, for people."""

    why: str
    python: tuple[int, int] | None = None  # the first version without it
    machine: str | None = None  # the one without it, as `platform.machine` names it


LIMITS = {
    "nuscenes": Limit("nuscenes-devkit requires numpy < 2, which has no wheel for it", python=(3, 13)),
    "embreex": Limit("no wheel for it", machine="aarch64"),
    "spconv": Limit("no wheel for it", machine="aarch64"),
}


def missing(extra: str) -> list[str]:
    """The libraries of an extra that are not installed."""
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def installed_version(distribution: str) -> str:
    """The version of a distribution, of this project's too; "not installed" in a checkout that is not."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def unavailable(library: str) -> str:
    """Why this interpreter or machine cannot have a library, and what to use instead; "" where pip can bring it."""
    limit, python, machine = LIMITS.get(library), sys.version_info[:2], platform.machine()
    if limit is not None and limit.python is not None and python >= limit.python:
        can = " or ".join(f"{major}.{minor}" for major, minor in COMPLETE)
        return f"Python {python[0]}.{python[1]} cannot have {library} ({limit.why}): use Python {can}"
    if limit is not None and limit.machine == machine:
        return f"{machine} cannot have {library} ({limit.why}): use a machine with x86_64"
    return ""


def remedy(extras: Sequence[str], libraries: Sequence[str]) -> str:
    """What brings all of these libraries, which are of these extras: pip's command, or why nothing does here."""
    reasons = [reason for name in libraries if (reason := unavailable(name))]
    return "; ".join(reasons) or f'pip install "robustbev[{",".join(extras)}]"'


def require(what: str, extra: str, *libraries: str) -> None:
    """Raise MissingExtraError, saying what to do, unless all `libraries` (default: the whole extra) are there."""
    absent = [name for name in (libraries or EXTRAS[extra]) if find_spec(name) is None]
    if absent:
        raise MissingExtraError(
            f"{what} needs {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed: "
            f"{remedy([extra], absent)}"
        )
