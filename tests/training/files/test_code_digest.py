"""Figures are kept for the code that they were measured with: another decode, preparation or model measures anew."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import bev
import fusion
import robustbev
import sensors
import training
from training.files.code_digest import code_digest, digest_of


def copy_of(package: ModuleType, folder: Path) -> ModuleType:
    """The package's files elsewhere; nothing in them runs."""
    assert package.__file__ is not None
    copied = folder / package.__name__
    shutil.copytree(Path(package.__file__).parent, copied, ignore=shutil.ignore_patterns("__pycache__"))
    spec = importlib.util.spec_from_file_location(package.__name__, copied / "__init__.py")
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def test_all_that_lies_between_data_and_figures_counts(tmp_path: Path) -> None:
    packages = [copy_of(package, tmp_path) for package in (bev, fusion, sensors, robustbev, training)]
    assert digest_of(packages) == code_digest()
    seen = {code_digest()}
    for changed in (
        "bev/detection/head.py", "fusion/fusers/cross_attention.py", "sensors/prepare.py",
        "sensors/corruptions/weather.py", "sensors/logs/decode.py", "robustbev/model.py",
        "training/tasks/detection/submission.py",
        "training/tasks/detection/official.py", "training/robustness/cases.py",
    ):  # fmt: skip
        file = tmp_path / changed
        content = file.read_bytes()
        file.write_bytes(content + b"# changed\n")
        seen.add(digest_of(packages))
        file.write_bytes(content)
    assert len(seen) == 10
    (tmp_path / "bev" / "new").mkdir()
    (tmp_path / "bev" / "new" / "part.py").touch()  # a folder that came into being later is not forgotten
    assert digest_of(packages) not in seen


def test_other_files_and_other_places_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = copy_of(bev, tmp_path / "a"), copy_of(bev, tmp_path / "b")
    (tmp_path / "b" / "bev" / "__pycache__").mkdir()
    (tmp_path / "b" / "bev" / "__pycache__" / "heads.pyc").touch()
    monkeypatch.chdir(tmp_path)
    assert digest_of([first]) == digest_of([second])
