"""Names that speak for themselves: every table, error and progress line shows them, and does nothing else."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from sensors.health.fault_model import HealthModelError
from sensors.health.monitor import HealthMonitor
from sensors.text import plain
from tests.hostile.files import MAX_MIB, MAX_SECONDS, measured
from training.commands.app import app
from training.files.table import Column, Table

NAMES = [
    "\x1b[31mred\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\u202eevil", "/lidar_top[/red]", "[link=https://x.invalid]y", "\r\b\b",
    '=HYPERLINK("http://x.invalid")', "@SUM(1)", "+1+1", "-1+1", "<script>alert(1)</script>", "a|b", "../../up", "$\\bad$", "[",
]  # fmt: skip


def harmless(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


@given(st.text())
def test_plain_text_is_printable_and_what_was_printable_stays(text: str) -> None:
    assert harmless(plain(text))
    if harmless(text):
        assert plain(text) == text


def table(name: str) -> Table:
    return Table(name, [Column(name, wrap=True), Column("figure", ".3f")], [[name, 0.5]], caption=name)


@given(st.sampled_from(NAMES) | st.text(min_size=1, max_size=20))
def test_a_table_shows_any_name_and_does_nothing_else(name: str) -> None:
    console = Console(file=io.StringIO(), width=300, force_terminal=False)
    console.print(table(name).rich())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert harmless(shown)
    markdown = table(name).markdown()
    assert "<" not in markdown
    assert harmless(markdown)
    lines = markdown.splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines[:3]} == {3}
    assert "<script" not in table(name).html()
    (first, _), *_ = list(csv.reader(io.StringIO(table(name).csv(), newline="")))[:1]
    assert first in (plain(name), f"'{plain(name)}")
    assert len(first) == 1 or first[0] not in "=+-@"


@pytest.mark.parametrize("name", NAMES)
def test_errors_and_topics_are_told_without_being_obeyed(name: str, tmp_path: Path) -> None:
    writer = pytest.importorskip("mcap.writer").Writer(str(file := tmp_path / "drive.mcap"))
    writer.start()
    schema = writer.register_schema(f"foxglove.PointCloud{name}", "jsonschema", b"{}")
    writer.add_message(writer.register_channel(f"/lidar_top{name}", f"json{name}", schema), 10**9, b"{}", 10**9)
    points = writer.register_schema("foxglove.PointCloud", "jsonschema", b"{}")
    frame = json.dumps({"frame_id": name}).encode()
    writer.add_message(writer.register_channel(f"/front{name}", "json", points), 10**9, frame, 10**9)
    writer.finish()
    for words in (["inspect", str(file)], ["inspect", str(tmp_path / f"none{name.replace('/', '')}.mcap")]):
        told = CliRunner().invoke(app, words)
        assert isinstance(told.exception, SystemExit)
        assert harmless(told.output), told.output
        assert "none" in told.output or "/lidar_top" in told.output


def test_json_that_is_small_and_holds_much_is_refused(tmp_path: Path) -> None:
    """48 MiB of empty lists are 1.3 GiB."""
    file = tmp_path / "health.json"
    file.write_text("[" + "[]," * (16 * 2**20) + "[]]")
    with measured() as cost, pytest.raises(HealthModelError, match="expected at most 8388608 bytes, got more"):
        HealthMonitor.load(file)
    assert cost.seconds < MAX_SECONDS
    file.write_text("[" + "[]," * (8 * 2**20 // 3 - 2) + "[]]")
    with measured() as cost, pytest.raises(HealthModelError):
        HealthMonitor.load(file)
    assert cost.seconds < MAX_SECONDS
    assert cost.mib < MAX_MIB
