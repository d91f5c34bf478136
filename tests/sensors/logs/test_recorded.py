"""A log in many files: each is opened as its time comes, and all come in order."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.logs.log import LogError, LogWarning
from sensors.logs.mcap.log import McapFile
from sensors.logs.messages import Other
from sensors.logs.recorded import RecordedLog
from sensors.logs.recorded_file import merge_due
from sensors.logs.sqlite_log import SqliteFile
from tests.sensors.logs.mcap.mcap_files import Written
from tests.sensors.logs.split_bag import Opened, name_of, one_after_another, write_parts


def read(log: RecordedLog, **asked: Any) -> list[Written]:
    messages = []
    for message in log.messages(**asked):
        assert isinstance(message.payload, Other)
        messages.append(Written(message.topic, message.log_time_ns, message.publish_time_ns, message.payload.data))
    return messages


def told(log: RecordedLog, **asked: Any) -> tuple[list[Written], list[str]]:
    """(messages, warnings)"""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        messages = read(log, **asked)
    assert all(issubclass(one.category, LogWarning) for one in caught)
    return messages, [str(one.message) for one in caught]


def spans(parts: list[list[Written]]) -> tuple[tuple[int, int], ...]:
    times = [[message.log_ns for message in part] for part in parts]
    return tuple((min(part), max(part)) for part in times)


def descriptors(folder: Path) -> int:
    """How many of the process lead into `folder`; elsewhere other threads open files as they like."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own, or closed meanwhile
            count += link.readlink().is_relative_to(folder)
    return count


@st.composite
def split(draw: st.DrawFn) -> list[list[Written]]:
    """Files that overlap, repeat times and go back in time as they like."""
    time, lag = st.integers(0, 60), st.integers(-20, 20)
    parts = draw(st.lists(st.lists(st.tuples(time, lag), min_size=1, max_size=12), min_size=1, max_size=5))
    number = iter(range(1000))
    return [
        [Written(f"/t{at % 2}", 100 + at, 100 + at + later, bytes([next(number)])) for at, later in part]
        for part in parts
    ]


@given(
    parts=split(),
    start=st.none() | st.integers(95, 165),
    length=st.none() | st.integers(0, 40),
    topics=st.sampled_from([None, ("/t1",), ()]),
)
def test_many_files_give_what_one_would(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[list[Written]],
    start: int | None,
    length: int | None,
    topics: tuple[str, ...] | None,
) -> None:
    files = write_parts(tmp_path_factory.mktemp("split"), parts, chunk_bytes=100)
    log = RecordedLog(Path("bag"), files, McapFile)
    end = None if length is None else (start or 100) + length

    messages = [message for part in parts for message in part]
    ordered = sorted(messages, key=lambda message: message.log_ns)  # equal times by file, then as written
    wanted = [
        message
        for message in ordered
        if (topics is None or message.topic in topics)
        and (start is None or message.log_ns >= start)
        and (end is None or message.log_ns < end)
    ]
    for _ in range(2):
        assert told(log, topics=topics, start_ns=start, end_ns=end) == (wanted, [])
    assert log.span_ns() == (min(start for start, _ in spans(parts)), max(end for _, end in spans(parts)))
    assert not log.damage


@given(st.lists(st.lists(st.integers(0, 30), min_size=1).map(sorted), max_size=8))
def test_streams_are_begun_when_due(streams: list[list[int]]) -> None:
    begun: list[int] = []

    def begin(number: int) -> Iterator[tuple[int, int]]:
        begun.append(number)
        return ((time, number) for time in streams[number])

    due = sorted((times[0], n, begin) for n, times in enumerate(streams))
    ordered = sorted((time, n) for n, times in enumerate(streams) for time in times)
    for item, expected in zip(merge_due(due, lambda item: item[0]), ordered, strict=True):
        assert item == expected
        assert all(streams[one][0] <= item[0] for one in begun)
    assert sorted(begun) == list(range(len(streams)))


@pytest.mark.parametrize("asked", [{}, {"start_ns": 2_000}, {"topics": ["/topic_1"]}], ids=str)
def test_one_file_at_a_time_is_open(tmp_path: Path, asked: dict[str, Any]) -> None:
    parts, opened = one_after_another(60), Opened()
    files = write_parts(tmp_path / "bag", parts)
    log = RecordedLog(tmp_path / "bag", files, opened)
    before = descriptors(tmp_path)
    for _ in log.messages(**asked):
        assert descriptors(tmp_path) <= before
    assert opened.most_at_once <= 2  # the next is begun before the last is forgotten
    assert opened.names.count(name_of(30)) <= 3


def test_files_that_all_overlap_hold_no_descriptors(tmp_path: Path) -> None:
    count = 60
    parts = [
        [Written("/t", 1_000, 1_000, b"first"), Written("/t", 2_000 + n, 2_000 + n, b"last")] for n in range(count)
    ]
    log = RecordedLog(tmp_path, write_parts(tmp_path / "bag", parts), McapFile)
    before = descriptors(tmp_path)
    assert [message.log_time_ns for message in log.messages() if descriptors(tmp_path) <= before] == [
        *[1_000] * count, *(2_000 + n for n in range(count))
    ]  # fmt: skip


def test_sqlite_files_are_closed_after_their_last_message(tmp_path: Path) -> None:
    files = [tmp_path / f"bag_{number}.db3" for number in range(40)]
    for number, file in enumerate(files):
        with sqlite3.connect(file) as database:
            database.executescript("""
                PRAGMA synchronous = OFF;
                CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT);
                CREATE TABLE messages (id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB);
                INSERT INTO topics VALUES (1, '/t', 'test/msg/Words', 'raw');
            """)
            database.executemany(
                "INSERT INTO messages VALUES (NULL, 1, ?, x'00')", [(10 * number + n,) for n in range(10)]
            )
        database.close()
    log = RecordedLog(tmp_path, files, SqliteFile)
    before = descriptors(tmp_path)
    times = [message.log_time_ns for message in log.messages() if descriptors(tmp_path) <= before + 2]
    assert times == list(range(400))
    assert descriptors(tmp_path) == before
    assert log.topics()[0].count == 400
    assert log.storage == "40 files, the first: SQLite"


def test_a_reading_that_is_given_up_closes_its_file(tmp_path: Path) -> None:
    log = RecordedLog(tmp_path, write_parts(tmp_path / "bag", one_after_another(5)), McapFile)
    before = descriptors(tmp_path)
    messages = log.messages()
    next(messages)
    del messages
    assert descriptors(tmp_path) == before


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_cannot_be_opened_is_left_out_and_told_once(tmp_path: Path, gone: bool) -> None:
    parts = one_after_another(60)
    files = write_parts(tmp_path / "bag", parts)
    if gone:
        files[33].unlink()
    else:
        files[33].write_bytes(b"no MCAP at all")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log = RecordedLog(tmp_path / "bag", files, McapFile)
        rest = [message for number, part in enumerate(parts) for message in part if number != 33]
        for _ in range(2):
            assert read(log) == rest
            assert log.damage.bad_files == 1
    assert len(caught) == 1
    assert "bag_33.mcap: expected an MCAP file" in str(caught[0].message)
    assert "left out" in str(caught[0].message)


def test_files_that_the_system_refuses_are_left_out(tmp_path: Path) -> None:
    files = [*write_parts(tmp_path, one_after_another(2)), tmp_path / ("ä" * 200)]  # longer than a name may be
    with pytest.warns(LogWarning, match="cannot be read: File name too long. This file of .* is left out"):
        log = RecordedLog(tmp_path, files, McapFile)
    assert len(read(log)) == 10
    with pytest.raises(LogError, match="cannot be read: File name too long"):
        RecordedLog(tmp_path, files[2:], McapFile)


def test_a_bag_none_of_whose_files_can_be_opened_is_refused(tmp_path: Path) -> None:
    files = write_parts(tmp_path / "bag", one_after_another(3))
    for file in files:
        file.write_bytes(b"no MCAP at all")
    with pytest.warns(LogWarning), pytest.raises(LogError, match=r"bag_0\.mcap: expected an MCAP file"):
        RecordedLog(tmp_path / "bag", files, McapFile)


def test_damage_of_every_file_counts_once_a_reading(tmp_path: Path) -> None:
    parts = one_after_another(4, each=40)
    files = write_parts(tmp_path / "bag", parts, chunk_bytes=300)
    for number in (1, 2):
        data = bytearray(files[number].read_bytes())
        data[data.index(b"zstd") + 20] ^= 0xFF  # the first chunk's content, in both at the same byte
        files[number].write_bytes(data)
    log = RecordedLog(tmp_path / "bag", files, McapFile)
    assert not log.damage
    warned = []
    for start in (None, 0, parts[3][0].log_ns):
        warned += told(log, start_ns=start)[1]
        assert log.damage.bad_chunks == len(log.damage.bad_chunk_offsets) == (0 if start else 2)
    assert [f"bag_{number}.mcap: the chunk at byte" in text for number, text in zip((1, 2), warned, strict=True)] == [
        True
    ] * 2
