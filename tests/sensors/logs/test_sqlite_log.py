"""Bags in SQLite whose recorder was killed: read with what was committed, and nothing is written beside them."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

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


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where copies are made; nothing of them is left when the log is gone."""
    folder = tmp_path / "copies"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    gc.collect()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("mode", [0o755, 0o555], ids=["writable", "read-only"])
@pytest.mark.parametrize(
    ("journal_mode", "beside"), [("WAL", ["-wal"]), ("WAL", ["-wal", "-shm"]), ("DELETE", ["-journal"])], ids=str
)
def test_a_killed_bag_is_read_with_what_was_committed_and_left_as_it_is(
    tmp_path: Path, copies: Path, journal_mode: str, beside: list[str], mode: int
) -> None:
    bag = killed(tmp_path / "bag", journal_mode)
    for file in bag.parent.iterdir():
        if file != bag and file.name.removeprefix(bag.name) not in beside:
            file.unlink()
        else:
            file.chmod(0o644 & mode)
    assert len(contents(bag.parent)) == 1 + len(beside)
    bag.parent.chmod(mode)
    before = contents(bag.parent)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log = SqliteLog(bag)
        assert numbers(log) == list(range(20))
        assert [message.log_time_ns for message in log.messages(start_ns=1500)] == [1500, 1600, 1700, 1800, 1900]
    (warned,) = caught
    assert warned.category is LogWarning
    assert f"{bag}: bag.db3{beside[0]} holds changes" in str(warned.message)
    assert str(warned.message).endswith("a temporary copy with them is read")
    assert log.span_ns() == (0, 1900)
    assert [(topic.name, topic.count) for topic in log.topics()] == [("/words", 20)]
    assert not log.damage
    assert contents(bag.parent) == before
    bag.parent.chmod(0o755)


def test_a_bag_that_is_reached_by_a_link_has_its_changes_too(tmp_path: Path, copies: Path) -> None:
    link = tmp_path / "link.db3"
    link.symlink_to(killed(tmp_path / "bag", "WAL"))
    with pytest.warns(LogWarning, match=r"link\.db3: bag\.db3-wal holds changes"):
        assert numbers(SqliteLog(link)) == list(range(20))


@pytest.mark.parametrize("changes", [b"", bytes(4096)], ids=["empty", "zeroed"])
def test_changes_that_are_done_with_need_no_copy(tmp_path: Path, copies: Path, changes: bytes) -> None:
    bag = killed(tmp_path / "bag", "WAL")
    for name in ("-wal", "-journal"):
        (bag.parent / (bag.name + name)).write_bytes(changes)
    before = contents(bag.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log = SqliteLog(bag)
        assert numbers(log) == list(range(10))
        assert list(copies.iterdir()) == []
    assert contents(bag.parent) == before


def test_a_bag_without_changes_is_read_from_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    bag = killed(tmp_path / "bag", "WAL")
    for name in ("-wal", "-shm"):
        (bag.parent / (bag.name + name)).unlink()
    bag.chmod(0o444)
    bag.parent.chmod(0o555)
    before = contents(bag.parent)
    assert numbers(SqliteLog(bag)) == list(range(10))
    assert contents(bag.parent) == before
    bag.parent.chmod(0o755)


def test_a_copy_that_does_not_fit_is_refused(tmp_path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bag = killed(tmp_path / "bag", "WAL")
    needed = bag.stat().st_size + 2 * bag.with_name("bag.db3-wal").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(LogError, match=rf"expected {needed} bytes free in {copies} .*, got {needed - 1}\. Set TMPDIR"):
        SqliteLog(bag)


def test_a_copy_that_can_be_made_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bag = killed(tmp_path / "bag", "WAL")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(LogError, match=rf"{bag}: bag\.db3-wal beside it cannot be merged .*No such file.*TMPDIR"):
        SqliteLog(bag)


def test_a_bag_that_is_still_recorded_is_refused(tmp_path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bag = killed(tmp_path / "bag", "WAL")
    copy = shutil.copyfile

    def goes_on(source: Path, target: Path) -> Path:
        with source.open("ab") as file:
            file.write(b"more")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", goes_on)
    with pytest.raises(LogError, match=r"it changed while it was read\. Stop its recorder"):
        SqliteLog(bag)


def test_changes_of_no_sense_are_no_part_of_the_bag(tmp_path: Path, copies: Path) -> None:
    bag = killed(tmp_path / "bag", "WAL")
    bag.with_name("bag.db3-wal").write_bytes(os.urandom(50_000))
    with pytest.warns(LogWarning, match="holds changes"):
        assert numbers(SqliteLog(bag)) == list(range(10))


def test_a_database_that_cannot_be_merged_is_refused(tmp_path: Path, copies: Path) -> None:
    bag = killed(tmp_path / "bag", "DELETE")
    data = bytearray(bag.read_bytes())
    data[16:100] = bytes(84)  # the header, behind its first words
    bag.write_bytes(data)
    bag.with_name("bag.db3-journal").write_bytes(b"no journal")
    with pytest.raises(LogError, match=r"bag\.db3-journal beside it cannot be merged into a copy"):
        SqliteLog(bag)


def test_times_that_are_no_numbers_are_no_ends_of_the_span(tmp_path: Path) -> None:
    bag = killed(tmp_path / "bag", "WAL")
    with sqlite3.connect(bag) as database:
        database.execute("DELETE FROM messages WHERE timestamp < 200 OR timestamp > 1500")
        database.execute(
            "INSERT INTO messages VALUES (90, 1, 'noon', x'00'), (91, 1, NULL, x'00'), (92, 1, 0.5, x'00')"
        )
    database.close()
    assert SqliteLog(bag).span_ns() == (200, 1500)


def altered_index(bag: Path, old: int, new: int) -> None:
    """A time in the index over times, and not in the rows, altered."""
    with sqlite3.connect(bag) as database:
        (root,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'timestamp_idx'").fetchone()
        page_bytes = database.execute("PRAGMA page_size").fetchone()[0]
    database.close()
    data, begin = bytearray(bag.read_bytes()), (root - 1) * page_bytes
    at = data.index(old.to_bytes(2, "big"), begin, begin + page_bytes)
    data[at : at + 2] = new.to_bytes(2, "big")
    bag.write_bytes(data)


@pytest.mark.parametrize("new", [650, 10, 900], ids=["another", "before", "twice"])
def test_an_index_over_times_that_says_otherwise_than_the_messages_is_not_followed(tmp_path: Path, new: int) -> None:
    bag = killed(tmp_path / "bag", "WAL")
    bag.with_name("bag.db3-wal").unlink()
    altered_index(bag, 600, new)
    log = SqliteLog(bag)
    with pytest.warns(LogWarning, match=f"index over times says {new} of message 7, which says 600"):
        assert numbers(log) == list(range(10))
    assert log.damage.bad_records == 1


def test_an_index_over_times_that_lacks_messages_is_not_followed(tmp_path: Path) -> None:
    bag = killed(tmp_path / "bag", "WAL")
    bag.with_name("bag.db3-wal").unlink()
    with sqlite3.connect(bag) as database:
        database.execute("PRAGMA writable_schema = ON")
        sql = "CREATE INDEX timestamp_idx ON messages (timestamp ASC)"
        database.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'timestamp_idx'", (sql + " WHERE id <> 4",))
    database.close()
    with sqlite3.connect(bag) as database:
        database.execute("REINDEX")
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'timestamp_idx'", (sql,))
    database.close()
    log = SqliteLog(bag)
    with pytest.warns(LogWarning, match="index over times holds 9 of 10 messages"):
        assert numbers(log) == list(range(10))
    assert log.damage.bad_records == 1


@pytest.mark.parametrize("column", ["name", "type", "serialization_format"])
@pytest.mark.parametrize("value", [None, 3, b"/words"])
def test_topics_whose_words_are_none_are_left_out_by_name(tmp_path: Path, column: str, value: object) -> None:
    bag = killed(tmp_path / "bag", "DELETE")
    bag.with_name("bag.db3-journal").unlink(missing_ok=True)
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
