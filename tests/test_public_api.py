"""What is public stays as it is, or the changelog says so."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fusion
import fusion.runtime
from tests import public_api
from tests.public_api import CHANGELOG, LISTED, ROOT, changes, describe, parse, public_objects, untold, what_to_do
from tests.test_architecture import ROOMS
from tests.test_docs import blocks

DATA = re.compile(r"\[[A-Z\]]|\[\]")  # a shape: [B, C, X, Y]
TENSORS = "Tensor|BEVFeatures|FusedBEV"


@pytest.fixture(scope="module")
def now() -> dict[str, str]:
    return describe()


def test_no_signature_changes_unless_the_changelog_names_it(now: dict[str, str]) -> None:
    changed = changes(parse(LISTED.read_text(encoding="utf-8")), now)
    lines = untold(changed, CHANGELOG.read_text(encoding="utf-8"))
    assert not lines, what_to_do(lines)


def test_the_list_comes_back_from_its_file_as_it_was(now: dict[str, str]) -> None:
    assert parse(public_api.as_text(now)) == now
    assert public_api.as_text(now) == public_api.as_text(dict(reversed(now.items())))


BEFORE = {"fusion.Mean": "(a)", "fusion.Mean.run": "(self)", "fusion.gone": "()", "robustbev.load": "(path)"}
AFTER = {
    "fusion.Mean": "(a, b)",
    "fusion.Mean.run": "(self)",
    "fusion.New": "()",
    "fusion.New.run": "()",
    "robustbev.load": "(path)",
}


def log(text: str) -> str:
    return f"# Changelog\n\n## 0.2.0 - unreleased\n\n{text}\n\n## 0.1.0\n\n- `Mean`, `gone` and `New` long ago.\n"


def test_what_changed_went_or_came_is_told_once() -> None:
    assert list(changes(BEFORE, AFTER)) == ["fusion.Mean", "fusion.New", "fusion.gone"]
    assert changes(BEFORE, BEFORE) == {}


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("", ["fusion.Mean", "fusion.New", "fusion.gone"]),
        ("- Mean, New and gone are words here.", ["fusion.Mean", "fusion.New", "fusion.gone"]),
        ("- `fusion.Mean(a, b)` takes b; `gone` has gone.", ["fusion.New"]),
        ("- `Mean`\n- `gone`\n- `New.run`", []),
    ],
)
def test_the_changelog_names_changes_in_backticks_in_the_unreleased_section(text: str, missing: list[str]) -> None:
    lines = untold(changes(BEFORE, AFTER), log(text))
    assert [line.partition(":")[0] for line in lines] == missing
    if lines:
        assert f"{missing[0]}: was " in what_to_do(lines)
        assert public_api.COMMAND in what_to_do(lines)


def test_without_an_unreleased_section_nothing_is_told() -> None:
    assert untold(changes(BEFORE, AFTER), "# Changelog\n\n## 0.1.0\n\n- `Mean`, `gone`, `New`\n")


def test_the_list_is_not_written_over_what_the_changelog_does_not_tell(
    now: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed, changelog = tmp_path / "api.txt", tmp_path / "CHANGELOG.md"
    monkeypatch.setattr(public_api, "describe", lambda: dict(now))
    for name, path in (("LISTED", listed), ("CHANGELOG", changelog), ("ROOT", tmp_path)):
        monkeypatch.setattr(public_api, name, path)
    older = public_api.as_text(now | {"fusion.MeanFusion": "(channels)"})
    listed.write_text(older)
    changelog.write_text(log(""))
    assert public_api.main() == 1
    assert listed.read_text() == older
    assert "fusion.MeanFusion: was (channels), is (channels: " in capsys.readouterr().err
    changelog.write_text(log("- `MeanFusion` takes more."))
    assert public_api.main() == 0
    assert parse(listed.read_text()) == now


FOR_ROBOTS = (
    "README.md",
    "docs/quickstart.md",
    "docs/inputs.md",
    "docs/rigs.md",
    "docs/sensors.md",
    "docs/deployment.md",
)


@pytest.mark.parametrize("page", FOR_ROBOTS)
def test_what_pages_for_robots_import_is_public(page: str) -> None:
    """Pages for who writes encoders or tasks of their own go deeper."""
    public = {name for name, _ in public_objects()}
    used = {
        f"{node.module}.{alias.name}"
        for block in blocks((ROOT / page).read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(block.code))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ROOMS
        for alias in node.names
    }
    assert used <= public


# What a name says of itself


def documented() -> Iterator[Any]:
    """Public classes and functions of `fusion`, and their own public methods."""
    for name, thing in public_objects():
        if not name.startswith("fusion.") or not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        yield pytest.param(thing, id=name)
        if inspect.isclass(thing):
            yield from (
                pytest.param(member, id=f"{name}.{key}")
                for key, member in vars(thing).items()
                if inspect.isfunction(member) and not key.startswith("_")
            )


@pytest.mark.parametrize("thing", list(documented()))
def test_every_public_name_of_fusion_says_what_it_takes_and_gives(thing: Any) -> None:
    """A summary in its first line; shapes where tensors pass; errors where a class or function is called by a user."""
    text = inspect.getdoc(thing) or ""
    assert len(text.partition("\n")[0]) > 20, "no summary"
    inherited = "`Fuser.forward`" in text
    if inspect.isfunction(thing) and not inherited and re.search(TENSORS, str(inspect.signature(thing))):
        assert DATA.search(text), "no shape of a tensor"
    if thing is fusion.runtime.Artifact:
        assert "ValueError" in (inspect.getdoc(thing.__call__) or "")
    # Fusers alone make a FusedBEV, and `fusion.runtime.load` what else there is of its classes.
    elif inspect.isclass(thing) and thing is not fusion.FusedBEV and "runtime" not in thing.__module__:
        assert "ValueError" in text, "not said what is refused"
        assert DATA.search(text + (inspect.getdoc(getattr(thing, "forward", None)) or "")) or "(X, Y)" in text


def test_types_are_public_too() -> None:
    assert "Absent" in fusion.__all__


# A user's own file


def checker(name: str) -> str | None:
    """The program, beside this interpreter or on the path."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def run_checker(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    search = {"MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **search}, capture_output=True, text=True, check=False
    )


WRONG_USES = {  # two faults each
    "robot.py": '\n\nfused_too: str = CrossAttentionFusion({"thermal": "four"}, 16)\n',
    "stack.py": '\n\nruns_too: str = load("robust.onnx", threads="four")\n',
}


def users_files(tmp_path: Path) -> list[str]:
    """Users' files in a folder of their own, far from our settings: each as it is, and with faults as wrong_NAME."""
    for name, wrong in WRONG_USES.items():
        text = (ROOT / "tests" / "typed_user" / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / f"wrong_{name}").write_text(text + wrong, encoding="utf-8")
    return [*WRONG_USES, *(f"wrong_{name}" for name in WRONG_USES)]


def assert_the_wrong_uses_alone_are_told(done: subprocess.CompletedProcess[str]) -> None:
    told = [line for line in done.stdout.splitlines() if re.search(r"\berror\b:", line)]
    for name in WRONG_USES:
        assert len([line for line in told if f"wrong_{name}" in line]) == 2, done.stdout + done.stderr
    assert len(told) == 2 * len(WRONG_USES), done.stdout + done.stderr


@pytest.mark.slow
def test_mypy_strict_accepts_users_files_and_finds_wrong_ones(tmp_path: Path) -> None:
    """`py.typed` lets a type checker see our types; without it the wrong uses would pass as Any."""
    pytest.importorskip("mypy")
    command = (sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"))
    assert_the_wrong_uses_alone_are_told(run_checker(tmp_path, *command, *users_files(tmp_path)))


@pytest.mark.slow
def test_pyright_strict_accepts_users_files_and_finds_wrong_ones(tmp_path: Path) -> None:
    """By basedpyright, which is pyright with its own node, so that pip installs all of it."""
    program = checker("basedpyright") or checker("pyright")
    if program is None:
        pytest.skip("neither basedpyright nor pyright is installed")
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    done = run_checker(tmp_path, program, "--pythonpath", sys.executable, *users_files(tmp_path))
    assert_the_wrong_uses_alone_are_told(done)
