"""What several files of tests use and takes long to make: made once in a test run, whichever of its workers comes first."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

_folder: Path | None = None


def use_folder(folder: Path) -> None:
    """Where it lies; told by a session fixture, the same in all workers of a run."""
    global _folder
    _folder = folder


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, filled by `make` where no worker has done so. Do not change what is in it."""
    assert _folder is not None, "tests/conftest.py names the folder when a session begins"
    place, done = _folder / name, _folder / f"{name}.done"
    with (_folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as long as another worker makes it; given back where that one dies
        if not done.exists():
            place.mkdir(exist_ok=True)
            make(place)
            done.touch()
    return place
