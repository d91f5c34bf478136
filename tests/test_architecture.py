"""The house's promises: which room imports which, what is packaged, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("bev", "fusion", "robustbev", "sensors", "training")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(level, first name) of every import in a file, inside functions too; level 0 is absolute."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, (node.module or "").partition(".")[0]


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after a statement."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_rooms_import_only_from_floors_below() -> None:
    pytest.importorskip("importlinter")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_model_imports_nothing_of_training() -> None:
    rooms = {"robustbev", "bev", "fusion", "sensors"}
    allowed = {*sys.stdlib_module_names, *rooms, "torch", "numpy", "pydantic", "safetensors"}
    for file in (ROOT / "robustbev").glob("*.py"):
        assert {name for _, name in imports(file)} <= allowed, file.name


@pytest.mark.parametrize("room", ["fusion", "bev"])
def test_the_lowest_floor_stands_on_torch_alone_and_can_be_vendored(room: str) -> None:
    for file in (ROOT / room).rglob("*.py"):
        absolute = {name for level, name in imports(file) if level == 0}
        allowed = {*sys.stdlib_module_names, "torch"}
        if file.parent == ROOT / "fusion" / "runtime":  # which runs on a robot without torch, too
            allowed |= {"numpy", "onnxruntime"}
        if file.parent.name == "kernels":  # some of which are a GPU's, and loaded there alone
            allowed |= {"triton"}
        assert absolute <= allowed, f"{file.relative_to(ROOT)} imports {absolute}"


def test_the_model_loads_without_any_extra() -> None:
    extras = {
        "nuscenes",
        "cv2",
        "simplejpeg",
        "scipy",
        "spconv",
        "ray",
        "mlflow",
        "typer",
        "rich",
        "matplotlib",
        "yaml",
    }
    assert not loaded_by("import robustbev") & extras


def test_the_command_answers_before_heavy_libraries_load() -> None:
    assert not loaded_by("import training.cli") & {"torch", "ray", "mlflow", "nuscenes", "matplotlib", "numpy"}


def test_every_package_is_listed_and_says_that_it_is_typed() -> None:
    found = {
        ".".join(folder.relative_to(ROOT).parts)
        for room in ROOMS
        for folder in (ROOT / room, *(ROOT / room).rglob("*"))
        if folder.is_dir() and any(folder.glob("*.py"))
    }
    setuptools = PROJECT["tool"]["setuptools"]
    assert set(setuptools["packages"]) == found
    for package in found:
        assert (ROOT / package.replace(".", "/") / "__init__.py").is_file(), f"{package} has no __init__.py"
    for room in ROOMS:
        assert (ROOT / room / "py.typed").is_file()
        assert setuptools["package-data"][room] == ["py.typed"]


def test_pins_are_versions_without_a_place_to_get_them_from() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line and "@" not in line and "+" not in line and "/" not in line for line in lines)


def test_all_means_every_extra() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    named = set(extras["all"][0].partition("[")[2].rstrip("]").split(","))
    assert named | {"cli", "data"} == set(extras) - {"all"}
    assert "robustbev[cli,data]" in extras["train"]
