"""Databases that compute what they hold, or name a page many times: what is asked of one costs what its bytes would."""

from __future__ import annotations

import sqlite3
import struct
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sensors.logs.log import LogError
from sensors.logs.sqlite_log import SqliteLog
from tests.hostile.files import MAX_MIB, MAX_SECONDS, measured

PAGE = 512
TOPICS = (
    "CREATE TABLE topics(id INTEGER PRIMARY KEY, name, type, serialization_format);"
    "INSERT INTO topics VALUES (1, '/words', 'a/msg/Words', 'cdr');"
)
MESSAGES = "CREATE TABLE messages(id INTEGER PRIMARY KEY, timestamp, topic_id, data{});"
ENDLESS = (
    "CREATE VIEW messages AS WITH RECURSIVE r(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM r)"
    " SELECT id, id AS timestamp, 1 AS topic_id, x'00' AS data FROM r"
)
ROWS = "INSERT INTO messages(timestamp, topic_id) SELECT value, 1 FROM json_each('[{}]');"


def database(path: Path, script: str) -> Path:
    with closing(sqlite3.connect(path)) as file:
        file.execute(f"PRAGMA page_size = {PAGE}")
        file.executescript(TOPICS + script)
    return path


@cache
def sound() -> bytes:
    with TemporaryDirectory() as folder:
        rows = "INSERT INTO messages VALUES (1, 1, 1, zeroblob(3000)), (2, 2, 1, x'00')"
        return database(Path(folder) / "bag.db3", MESSAGES.format("") + rows).read_bytes()


def view_called_a_table(path: Path) -> None:
    database(path, MESSAGES.format(""))
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA writable_schema = ON")
        file.execute("UPDATE sqlite_master SET sql = ?, rootpage = 0 WHERE name = 'messages'", (ENDLESS,))
        file.commit()


def pages_of_one_page(path: Path, levels: int = 14, cells: int = 60) -> None:
    """A tree in which every page names the page below it many times: cells^levels rows of one row."""
    database(path, MESSAGES.format("") + "INSERT INTO messages VALUES (1, 1, 1, x'00')")
    with closing(sqlite3.connect(path)) as file:
        (root,) = file.execute("SELECT rootpage FROM sqlite_master WHERE name = 'messages'").fetchone()
    data = bytearray(path.read_bytes())
    begin, pages = (root - 1) * PAGE, len(data) // PAGE
    data += data[begin : begin + PAGE]
    for child in range(pages + 1, pages + levels + 1):
        start = PAGE - 5 * cells  # of the cells: number of the page below, a key
        head = struct.pack(">BHHHBI", 5, 0, cells, start, 0, child)
        head += b"".join(struct.pack(">H", start + 5 * cell) for cell in range(cells))
        data += head.ljust(start, b"\0") + struct.pack(">IB", child, 1) * cells
    data[begin : begin + PAGE] = data[-PAGE:]
    data[28:32] = struct.pack(">I", len(data) // PAGE)
    path.write_bytes(data)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a view without end": lambda path: database(path, ENDLESS),
    "a view without end that is called a table": view_called_a_table,
    "400 MB of zeros that are computed": lambda path: database(
        path, MESSAGES.format(" AS (zeroblob(400000000))") + ROWS.format(1)
    ),
    "computed zeros, as many as the file has bytes, in every row": lambda path: database(
        path, MESSAGES.format(" AS (zeroblob(4000))") + ROWS.format(",".join(["1"] * 900))
    ),
    "a page that is there 60^14 times": pages_of_one_page,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_database_that_computes_what_it_holds_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bag.db3"
    HOSTILE[name](path)
    with measured() as cost, pytest.raises(LogError, match=str(path)):
        SqliteLog(path)
    assert cost.seconds < MAX_SECONDS
    assert cost.mib < MAX_MIB


@given(
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=4)), max_size=8),
    cut=st.integers(0, 2000),
)
@example(edits=[(304, b"\xff" * 4), (308, b"\xff\xff\xff\x7f")], cut=0)  # a page that claims more than any memory has
@example(edits=[(412, b"\x18")], cut=0)  # a table whose name is no text
def test_an_altered_database_is_read_in_part_or_refused(
    edits: list[tuple[int, bytes]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "altered.db3"
    data = bytearray(sound())
    for at, content in edits:
        begin = at % len(data)
        data[begin : begin + len(content)] = content
    path.write_bytes(data[: len(data) - cut])
    with warnings.catch_warnings(), measured() as cost:
        warnings.simplefilter("ignore")
        with suppress(LogError):
            list(SqliteLog(path).messages())
    assert cost.seconds < MAX_SECONDS
    assert cost.mib < MAX_MIB


def test_words_in_the_place_of_data_are_bad_records(tmp_path: Path) -> None:
    path = database(
        tmp_path / "bag.db3", MESSAGES.format("") + "INSERT INTO messages VALUES (1, 1, 1, 'a'), (2, 2, 1, x'00')"
    )
    log = SqliteLog(path)
    assert [message.log_time_ns for message in log.messages()] == [2]
    assert log.damage.bad_records == 1
