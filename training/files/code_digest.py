"""Of which code figures are, so that those of other code are measured anew."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import bev
import fusion
import robustbev
import sensors
import training


@lru_cache(maxsize=1)  # the code that this process runs stays the same
def code_digest() -> str:
    """SHA-256 of all of our code that may run between a file of the data set and its figures.

    Of whole packages: which of their files cannot change a figure is not to be kept in mind at every change.
    """
    return digest_of((bev, fusion, sensors, robustbev, training))


def digest_of(packages: Sequence[ModuleType]) -> str:
    """SHA-256 of names and contents of every Python file below the packages."""
    digest = hashlib.sha256()
    for package in packages:
        assert package.__file__ is not None
        root = Path(package.__file__).parent
        for file in sorted(root.rglob("*.py")):
            name = f"{package.__name__}/{file.relative_to(root).as_posix()}"
            digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
