"""Bags in SQLite: nothing is written beside them, and what a killed recorder has not merged is not left out in silence."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from sensors.logs.log import LogError, LogWarning
from sensors.logs.sqlite_log import SqliteLog

# The tables of a ROS 2 bag, and messages 0..9 in the database itself. A recorder that is killed leaves 10..19, which it
# committed, and 20..29, which it did not, in its log of changes.
_KILLED = """
import os, sqlite3, sys
bag = sqlite3.connect(sys.argv[1], isolation_level=None)
bag.execute("PRAGMA journal_mode = " + sys.argv[2])
bag.execute("PRAGMA wal_autocheckpoint = 0")
bag.execute("PRAGMA cache_size = 5")  # so that changes reach the disk before they are committed
bag.execute("CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT)")
bag.execute("CREATE TABLE messages (id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)")
bag.execute("CREATE INDEX timestamp_idx ON messages (timestamp ASC)")
bag.execute("INSERT INTO topics VALUES (1, '/words', 'test/msg/Words', 'cdr')")
def record(numbers):
    bag.execute("BEGIN")
    bag.executemany("INSERT INTO messages VALUES (?, 1, ?, ?)", [(n + 1, 100 * n, bytes([n]) * 5000) for n in numbers])
record(range(10))
bag.execute("COMMIT")
bag.execute("PRAGMA wal_checkpoint(TRUNCATE)")
record(range(10, 20))
bag.execute("COMMIT")
record(range(20, 30))
os._exit(1)
"""


def killed(folder: Path, journal_mode: str) -> Path:
    folder.mkdir()
    subprocess.run([sys.executable, "-c", _KILLED, str(folder / "bag.db3"), journal_mode], check=False)
    return folder / "bag.db3"


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


def numbers(log: SqliteLog) -> list[int]:
    return [message.log_time_ns // 100 for message in log.messages()]


def without_changes(bag: Path) -> Path:
    for end in ("-wal", "-shm", "-journal"):
        bag.with_name(bag.name + end).unlink(missing_ok=True)
    return bag


@pytest.mark.parametrize(("journal_mode", "beside"), [("WAL", "-wal"), ("DELETE", "-journal")])
@pytest.mark.parametrize("by_link", [False, True])
def test_a_killed_bag_is_refused_until_its_changes_are_merged(
    tmp_path: Path, journal_mode: str, beside: str, by_link: bool
) -> None:
    bag = path = killed(tmp_path / "bag", journal_mode)
    if by_link:
        path = tmp_path / "link.db3"
        path.symlink_to(bag)
    before = contents(bag.parent)
    with pytest.raises(
        LogError, match=rf"{path}: expected a bag that was closed, got bag\.db3{beside} beside it"
    ) as said:
        SqliteLog(path)
    assert contents(bag.parent) == before
    command = str(said.value).partition("merge them: sqlite3 bag.db3 ")[2]
    with sqlite3.connect(bag) as database:
        database.execute(command.strip("'"))
    database.close()
    assert numbers(SqliteLog(path)) == list(range(20))


@pytest.mark.parametrize("changes", [b"", bytes(4096)], ids=["empty", "zeroed"])
def test_changes_that_are_done_with_are_no_fault(tmp_path: Path, changes: bytes) -> None:
    bag = killed(tmp_path / "bag", "WAL")
    for name in ("-wal", "-journal"):
        (bag.parent / (bag.name + name)).write_bytes(changes)
    before = contents(bag.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numbers(SqliteLog(bag)) == list(range(10))
    assert contents(bag.parent) == before


def test_a_bag_is_read_from_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    bag = without_changes(killed(tmp_path / "bag", "WAL"))
    bag.chmod(0o444)
    bag.parent.chmod(0o555)
    before = contents(bag.parent)
    assert numbers(SqliteLog(bag)) == list(range(10))
    assert contents(bag.parent) == before
    bag.parent.chmod(0o755)


def test_times_that_are_no_numbers_are_no_ends_of_the_span(tmp_path: Path) -> None:
    bag = killed(tmp_path / "bag", "WAL")
    with sqlite3.connect(bag) as database:
        database.execute("DELETE FROM messages WHERE timestamp < 200 OR timestamp > 1500")
        database.execute(
            "INSERT INTO messages VALUES (90, 1, 'noon', x'00'), (91, 1, NULL, x'00'), (92, 1, 0.5, x'00')"
        )
    database.close()
    assert SqliteLog(bag).span_ns() == (200, 1500)


@pytest.mark.parametrize("column", ["name", "type", "serialization_format"])
@pytest.mark.parametrize("value", [None, 3, b"/words"])
def test_topics_whose_words_are_none_are_left_out_by_name(tmp_path: Path, column: str, value: object) -> None:
    bag = without_changes(killed(tmp_path / "bag", "WAL"))
    with sqlite3.connect(bag) as database:
        database.execute("CREATE TABLE anew (id INTEGER PRIMARY KEY, name, type, serialization_format)")
        database.execute(
            "INSERT INTO anew VALUES (1, '/words', 'test/msg/Words', 'cdr'), (2, '/more', 'a/msg/B', 'cdr')"
        )
        database.execute(f"UPDATE anew SET {column} = ? WHERE id = 1", (value,))
        database.execute("DROP TABLE topics")
        database.execute("ALTER TABLE anew RENAME TO topics")
        count = database.execute("SELECT COUNT(*) FROM messages").fetchone()[0]
    database.close()
    with pytest.warns(LogWarning, match="1 of its topics have no name and type in text; their messages are left out"):
        log = SqliteLog(bag)
    assert [topic.name for topic in log.topics()] == ["/more"]
    assert list(log.messages()) == []
    assert log.damage.bad_records == count > 0
