"""Which Python and which machine can have what: pyproject.toml, constraints, Makefile, docs and our own errors agree."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sensors.extras
from sensors.errors import MissingExtraError
from sensors.extras import COMPLETE, EXTRAS, LIMITS, remedy, require, unavailable

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ((3, 11), (3, 12), (3, 13))
MACHINES = ("x86_64", "aarch64")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Import names of LIMITS that are not their distribution's.
DISTRIBUTIONS = {"nuscenes": "nuscenes-devkit"}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def requirements(*extras: str) -> list[Requirement]:
    """Of these extras and of those that they name; without any, the base installation's."""
    if not extras:
        return [Requirement(line) for line in PROJECT["dependencies"]]
    found = [Requirement(line) for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    ours = [extra for one in found if one.name == "robustbev" for extra in sorted(one.extras)]
    return [one for one in found if one.name != "robustbev"] + (requirements(*ours) if ours else [])


def wanted(requirement: Requirement, python: tuple[int, int], machine: str) -> bool:
    dotted = f"{python[0]}.{python[1]}"
    there: dict[str, str] = {
        "python_version": dotted,
        "python_full_version": f"{dotted}.0",
        "platform_machine": machine,
    }
    environment = {
        **{k: str(v) for k, v in default_environment().items()},
        **there,
        "sys_platform": "linux",
        "extra": "",
    }
    return requirement.marker is None or requirement.marker.evaluate(environment)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
def test_what_cannot_be_had_is_what_the_markers_leave_out(
    python: tuple[int, int], machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (*python, 1, "final", 0))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    left_out = {one.name for one in requirements("all") if not wanted(one, python, machine)}
    assert left_out == {DISTRIBUTIONS.get(name, name) for name in LIMITS if unavailable(name)}
    assert not [one for one in requirements() if one.marker is not None], "the base installation is for every machine"


def test_complete_are_the_pythons_that_can_have_everything_newest_first() -> None:
    able = [python for python in PYTHONS if all(wanted(one, python, "x86_64") for one in requirements("all"))]
    assert list(COMPLETE) == sorted(able, reverse=True)
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert named == [f"{major}.{minor}" for major, minor in PYTHONS]
    assert PROJECT["requires-python"] == f">={PYTHONS[0][0]}.{PYTHONS[0][1]}"


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
def test_each_requirement_has_one_pin_that_satisfies_it(python: tuple[int, int], machine: str) -> None:
    pins: dict[str, list[str]] = {}
    for line in text("constraints.txt").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if wanted(pin, python, machine):
                (exact,) = pin.specifier
                pins.setdefault(canonicalize_name(pin.name), []).append(exact.version)
    for one in requirements() + requirements("all"):
        if wanted(one, python, machine):
            (version,) = pins[canonicalize_name(one.name)]
            assert one.specifier.contains(version), one


@pytest.mark.parametrize("extra", ["replay", "export", "train"])
def test_whatever_a_command_needs_brings_the_command(extra: str) -> None:
    assert {one.name for one in requirements("cli")} <= {one.name for one in requirements(extra)}


def test_replay_and_export_need_nothing_that_a_python_lacks() -> None:
    lacking = {DISTRIBUTIONS.get(name, name) for name, limit in LIMITS.items() if limit.python is not None}
    assert lacking.isdisjoint(one.name for one in requirements("replay", "export"))
    assert {name for name, limit in LIMITS.items() if limit.python}.isdisjoint(EXTRAS["replay"] + EXTRAS["export"])


def test_the_message_names_pip_or_who_can_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors.extras, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    with pytest.raises(MissingExtraError) as told:
        require("robustbev train", "data", "nuscenes", "simplejpeg")
    assert str(told.value) == (
        "robustbev train needs nuscenes, simplejpeg, which are not installed: Python 3.13 cannot have nuscenes "
        "(nuscenes-devkit requires numpy < 2, which has no wheel for it): use Python 3.12 or 3.11"
    )
    with pytest.raises(MissingExtraError, match=r'not installed: pip install "robustbev\[data\]"$'):
        require("robustbev simulate", "data", "simplejpeg")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert remedy(["spconv"], ["spconv"]) == "aarch64 cannot have spconv (no wheel for it): use a machine with x86_64"


# --- the Makefile --------------------------------------------------------------------------------------------------


def make(folder: Path, *arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """`make` in a folder with nothing but the Makefile and the files it looks at, `path` before the PATH's basics."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_text(text(name), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS")}
    return subprocess.run(
        ["make", "venv", *arguments], cwd=folder, env={**environment, "PATH": f"{path}:/bin:/usr/bin"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def interpreter(folder: Path, version: str, *, works: bool = True) -> None:
    folder.mkdir(exist_ok=True)
    script = folder / f"python{version}"
    script.write_text(f"#!/bin/sh\nexit {0 if works else 1}\n")
    script.chmod(0o755)


def test_make_takes_the_newest_that_can_do_everything_and_works(tmp_path: Path) -> None:
    versions = [f"{major}.{minor}" for major, minor in COMPLETE]
    assert re.search(r"^PYTHONS := (.*)$", text("Makefile"), re.MULTILINE)[1].split() == versions  # type: ignore[index]
    path = tmp_path / "bin"
    for version in (*versions, "3.13"):
        interpreter(path, version)
    assert f"python{versions[0]} -m venv" in make(tmp_path, "-n", path=path).stdout
    interpreter(path, versions[0], works=False)  # without ensurepip, or a stand-in of pyenv
    assert f"python{versions[1]} -m venv" in make(tmp_path, "-n", path=path).stdout
    assert "/opt/other/python -m venv" in make(tmp_path, "-n", "PYTHON=/opt/other/python", path=path).stdout


def test_make_says_what_to_install_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "bin"
    for major, minor in COMPLETE:
        interpreter(path, f"{major}.{minor}", works=False)
    done = make(tmp_path, path=path)
    assert done.returncode == 2
    assert "needs one of Python 3.12 3.11 with venv; got: none on the PATH" in done.stderr
    asked = make(tmp_path, "PYTHON=python9", path=path)
    assert asked.stderr.startswith("RobustBEV needs one of Python 3.12 3.11 with venv; got: python9\n")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_docs_name_the_pythons_that_make_takes(page: str) -> None:
    newest, *others = [f"{major}.{minor}" for major, minor in COMPLETE]
    assert f"Python {newest} or {' or '.join(others)}" in text(page)
    assert f"python{newest} -m venv" in text(page)
