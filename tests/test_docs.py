"""The Python blocks of README.md and docs/ run as printed, each page from top to bottom in one namespace.

A block that cannot run here, since it needs files or hardware of the reader's, has a comment on the line before it that says why:

    <!-- not run: needs a trained model -->
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>\S[^\n]*?) -->\n+)?```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A block of Python and where it begins."""

    line: int  # of its first line of code, counted from 1
    code: str
    why_not: str | None  # what keeps it from running here


def blocks(page: str) -> list[Block]:
    """The Python blocks of a page's text."""
    return [Block(page.count("\n", 0, m.start("code")) + 1, m["code"], m["why"]) for m in BLOCK.finditer(page)]


def pages_with_blocks() -> list[Path]:
    return [page for page in PAGES if any(b.why_not is None for b in blocks(page.read_text(encoding="utf-8")))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", pages_with_blocks(), ids=name_of)
def test_what_a_page_shows_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__docs__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.why_not is None:
            padded = "\n" * (block.line - 1) + block.code  # so that an error names the page's own line
            exec(compile(padded, name_of(page), "exec"), namespace)
    assert not list(tmp_path.iterdir()), "an example leaves files behind"


def test_the_blocks_of_a_page_are_found_with_their_lines_and_reasons() -> None:
    page = "# A\n\n```python\na = 1\n```\n\n<!-- not run: needs a robot -->\n```python\nb = 2\n```\n\n```sh\nls\n```\n"
    assert blocks(page) == [Block(4, "a = 1\n", None), Block(9, "b = 2\n", "needs a robot")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_of_python_escapes(page: Path) -> None:
    """One that is indented, or whose fence is spelt otherwise, would not be run, and nobody would know."""
    text = page.read_text(encoding="utf-8")
    assert len(blocks(text)) == len(re.findall(r"```\s*(?:python|py)\b", text))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_local_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_bringing_sensors_takes_ten_lines(capsys: pytest.CaptureFixture[str]) -> None:
    first = blocks((ROOT / "docs" / "fusion.md").read_text(encoding="utf-8"))[0]
    assert len([line for line in first.code.splitlines() if line and "import" not in line]) <= 10
    exec(compile(first.code, "docs/fusion.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["thermal", "ultrasonic", "depth"]
    assert abs(sum(float(line.split()[3]) for line in said) - 1) < 0.02
