"""The Python blocks of README.md and docs/ run as printed, each page from top to bottom in one namespace.

A block that cannot run here, since it needs files or hardware of the reader's, has a comment on the line before it that says why:

    <!-- not run: needs a trained model -->

Command lines are not run, but every `robustbev ...` is parsed: in code blocks whole, in running text its options.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from training.commands.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>\S[^\n]*?) -->\n+)?```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)


FENCE = re.compile(r"^```(?P<kind>\S*)\n.*?^```", re.MULTILINE | re.DOTALL)
SHELL = ("", "sh", "bash", "shell", "console")
COMMAND = re.compile(r"^(?:\$ )?(?:\S*bin/)?robustbev (?P<words>.*)$")


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


def command_lines(page: str) -> list[str]:
    """What follows `robustbev` in a page's shell blocks, indented or fenced; `&&` and continued lines understood."""
    text = FENCE.sub(lambda block: block[0] if block["kind"] in SHELL else "", page).replace("\\\n", " ")
    lines, shell = [], False
    for line in text.splitlines():
        shell = not shell if line.startswith("```") else shell
        if shell or line.startswith("    "):
            lines += [found["words"] for part in line.split("&&") if (found := COMMAND.match(part.strip()))]
    return lines


def mentions(page: str) -> list[str]:
    """What follows `robustbev` in backticks in running text: a command and perhaps some of its options."""
    return re.findall(r"(?<!`)`robustbev ([^`\n]+)`(?!`)", FENCE.sub("", page))


def parse_whole(line: str) -> None:
    """Raise what the command line would, short of running it."""
    group: Any = typer.main.get_command(app)
    words = shlex.split(line, comments=True)
    if words[0] not in group.commands:
        raise ValueError(f"robustbev {words[0]}: no such command")
    group.commands[words[0]].make_context(words[0], words[1:])


def parse_options(line: str) -> None:
    """ValueError for a command, or an option of it, that does not exist; what else the command needs may be left out."""
    group: Any = typer.main.get_command(app)
    name, *rest = shlex.split(line, comments=True)
    if name not in group.commands:
        raise ValueError(f"robustbev {name}: no such command")
    known = {spelt for parameter in group.commands[name].params for spelt in parameter.opts} | {"--help"}
    if unknown := [word for word in rest if word.startswith("-") and word.partition("=")[0] not in known]:
        raise ValueError(f"robustbev {name}: no such option {unknown[0]}")


@pytest.fixture
def as_it_was() -> Iterator[None]:
    """A page may seed torch and set its threads."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("page", pages_with_blocks(), ids=name_of)
def test_what_a_page_shows_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__docs__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.why_not is None:
            padded = "\n" * (block.line - 1) + block.code  # so that an error names the page's own line
            exec(compile(padded, name_of(page), "exec", dont_inherit=True), namespace)
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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_could_be_typed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line in command_lines(text):
        parse_whole(line)
    for line in mentions(text):
        parse_options(line)


@pytest.mark.parametrize(
    "line",
    ["fly", "train", "train --configuration a.yaml", "show --sample", "replay a.mcap --checkpoint a --health maybe"],
)
def test_a_command_line_that_could_not_be_typed_is_told(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing|requires|is not one of"):
        parse_whole(line)


def test_a_mention_may_be_short_but_not_wrong() -> None:
    parse_options("replay ... --rate 0.1")
    with pytest.raises(ValueError, match="no such option --speed"):
        parse_options("replay --speed 0.1")


def test_command_lines_are_found_wherever_a_page_has_them() -> None:
    page = (
        "Text `robustbev doctor` text.\n\n    robustbev train --config a \\\n        b=c && robustbev show --config a  # why\n"
        "\n```sh\n.venv/bin/robustbev demo\n```\n\n```python\n    robustbev = 1\n```\n"
    )
    assert [shlex.split(line, comments=True) for line in command_lines(page)] == [
        ["train", "--config", "a", "b=c"], ["show", "--config", "a"], ["demo"],
    ]  # fmt: skip
    assert mentions(page) == ["doctor"]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_into_a_page_leads_to_a_heading(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]*\.md)?#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert [anchor for file, anchor in links if anchor not in anchors(page.parent / file if file else page)] == []


def test_bringing_sensors_takes_ten_lines(capsys: pytest.CaptureFixture[str]) -> None:
    first = blocks((ROOT / "docs" / "fusion.md").read_text(encoding="utf-8"))[0]
    assert len([line for line in first.code.splitlines() if line and "import" not in line]) <= 10
    exec(compile(first.code, "docs/fusion.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["thermal", "ultrasonic", "depth"]
    assert abs(sum(float(line.split()[3]) for line in said) - 1) < 0.02


def test_a_table_of_subsets_from_own_arrays_takes_sixty_lines_and_no_private_name() -> None:
    program = blocks((ROOT / "docs" / "own-data.md").read_text(encoding="utf-8"))[0]
    assert len([line for line in program.code.splitlines() if line]) <= 60
    assert not re.search(r"(?<!\w)_\w|\._", program.code)
