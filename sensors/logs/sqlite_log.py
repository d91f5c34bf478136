"""ROS 2 bags in SQLite (.db3), read without ROS and without writing a byte beside them.

SQLite itself merges or deletes a log of changes that a killed recorder left beside a database. A bag with one is refused, with
the command that merges it. https://sqlite.org/wal.html

A database can compute what it holds, and name one page many times, so that a few kilobytes have rows without end. Whatever is
asked of one takes work, and gives values, by its bytes: https://sqlite.org/security.html.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sensors.logs.decode import ChannelInfo
from sensors.logs.log import Damage, LogError
from sensors.logs.recorded import RecordedLog
from sensors.logs.recorded_file import Notices, Query, RawMessage

MAGIC = b"SQLite format 3\x00"
_CHANGES = ("-wal", "-journal")  # logs of changes that were not merged, or not completed
# Python's own, where a fault names a table by what is no UTF-8, or a page claims more than any memory has.
_UNREADABLE = (sqlite3.Error, UnicodeDecodeError, MemoryError)
_STEPS_A_LOOK = 10_000  # of SQLite's machine; it takes some ten for a row
_MOST_VALUE_BYTES = 2**30
_DATA = "CASE typeof(data) WHEN 'blob' THEN data END"  # a text's length is not known before it is read
_ENDS = "SELECT timestamp FROM messages WHERE typeof(timestamp) = 'integer' ORDER BY timestamp"


class SqliteLog(RecordedLog):
    """A ROS 2 bag in one SQLite file; implements `sensors.logs.log.Log`. Publish times are not in it: log times.

    Raises:
        LogError: missing, cut off, no SQLite file, or none of a ROS 2 bag.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, [path], SqliteFile)


class SqliteFile:
    """One .db3 file; implements `sensors.logs.recorded_file.RecordedFile`."""

    def __init__(self, path: Path, notices: Notices | None = None) -> None:
        self.path = path
        self._notices = notices or Notices()
        if not path.is_file():
            raise LogError(f"{path}: expected a SQLite file, got {'a folder' if path.is_dir() else 'nothing there'}")
        _check_changes(path)
        try:
            with closing(self._open()) as database:
                self._channels = self._find_channels(database)
                # Two questions: by the index over times each costs one step.
                first, last = database.execute(f"SELECT ({_ENDS} LIMIT 1), ({_ENDS} DESC LIMIT 1)").fetchone()
                self._span = None if first is None else (int(first), int(last))
                self._counts = dict(database.execute("SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id"))
                (claimed,) = database.execute(f"SELECT TOTAL(LENGTH({_DATA})) FROM messages").fetchone()
        except _UNREADABLE as error:
            raise LogError(
                f"{path}: expected a ROS 2 bag in SQLite, got a file that SQLite cannot read: {error}. Copy the file again, or "
                f"recover what is in it: sqlite3 {path.name} .recover | sqlite3 whole.db3"
            ) from error
        if claimed > (size := path.stat().st_size):
            raise LogError(
                f"{path}: expected messages of at most its {size} bytes, got {claimed:.0f} that it makes of them"
            )

    @property
    def channels(self) -> dict[int, ChannelInfo]:
        return self._channels

    def counts(self) -> dict[int, int]:
        return self._counts

    def span_ns(self) -> tuple[int, int] | None:
        return self._span

    def new_damage(self) -> Damage:
        return Damage()

    def storage(self) -> str:
        return "SQLite"

    def read(self, query: Query, damage: Damage) -> Iterator[RawMessage]:
        """Messages in order of time, then of recording, up to the first that SQLite cannot read."""
        where, arguments = ["1"], []
        if query.channels is not None:
            numbers = sorted(query.channels & self._channels.keys())
            where.append(f"topic_id IN ({','.join('?' * len(numbers))})")
            arguments += numbers
        for bound, time_ns in ((">=", query.start_ns), ("<", query.end_ns)):
            if time_ns is not None:
                where.append(f"timestamp {bound} ?")
                arguments.append(max(-(2**63), min(time_ns, 2**63 - 1)))
        ordered = f"WHERE {' AND '.join(where)} ORDER BY timestamp, id"
        with closing(self._open()) as database:
            try:
                for time, topic, data in database.execute(
                    f"SELECT timestamp, topic_id, {_DATA} FROM messages {ordered}", arguments
                ):
                    if topic in self._channels and isinstance(time, int) and isinstance(data, bytes):
                        yield RawMessage(time, time, topic, data)
                    else:
                        damage.bad_records += 1
            except _UNREADABLE as error:
                damage.bad_records += 1
                self._warn(
                    f"it is read as far as SQLite can: {error}. Recover the rest: sqlite3 {self.path.name} .recover"
                )

    def _open(self) -> sqlite3.Connection:
        """The one way in: read-only; `immutable` keeps SQLite from making files beside the bag."""
        name, size = quote(str(self.path.absolute())), self.path.stat().st_size
        looks = iter(range(100 + size // 1000))  # ten steps a byte
        try:
            database = sqlite3.connect(f"file:{name}?mode=ro&immutable=1", uri=True, check_same_thread=False)
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(size, _MOST_VALUE_BYTES))
            database.set_progress_handler(lambda: next(looks, None) is None, _STEPS_A_LOOK)
            database.execute("PRAGMA trusted_schema = OFF")
        except sqlite3.OperationalError as error:
            raise LogError(
                f"{self.path}: expected a file to read, got: {error}. May it be read, and more files be open (ulimit -n)?"
            ) from error
        return database

    def _find_channels(self, database: sqlite3.Connection) -> dict[int, ChannelInfo]:
        """The topics. Those that have no text for name and type are left out, and their messages as damage when they come."""
        (page_bytes,), (pages,) = (
            database.execute(f"PRAGMA {name}").fetchone() for name in ("page_size", "page_count")
        )
        if (size := self.path.stat().st_size) < page_bytes * pages:  # SQLite takes the rest of a torn page to be zeros
            raise sqlite3.DatabaseError(f"{page_bytes * pages} bytes as it says itself, cut off at {size}")
        named = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND typeof(name) = 'text'")
        tables = {name for (name,) in named}
        if not {"topics", "messages"} <= tables:
            got = f"a database with the tables {', '.join(sorted(tables)) or '(none)'}, and not topics and messages"
            raise LogError(f"{self.path}: expected a ROS 2 bag in SQLite, got {got}")
        schemas: dict[str, tuple[bytes, str]] = {}
        if "message_definitions" in tables:
            rows = database.execute("SELECT topic_type, encoding, encoded_message_definition FROM message_definitions")
            schemas = {row[0]: (row[2].encode(), row[1]) for row in rows if all(isinstance(word, str) for word in row)}
        channels, nameless = {}, 0
        for number, name, type_, encoding in database.execute(
            "SELECT id, name, type, serialization_format FROM topics"
        ):
            if isinstance(number, int) and all(isinstance(word, str) for word in (name, type_, encoding)):
                channels[number] = ChannelInfo(name, type_, encoding, *schemas.get(type_, (b"", "")))
            else:
                nameless += 1
        if nameless:
            self._warn(f"{nameless} of its topics have no name and type in text; their messages are left out")
        return channels

    def _warn(self, text: str) -> None:
        self._notices.tell(f"{self.path}: {text}")


def _check_changes(path: Path) -> None:
    """LogError where a log of changes lies beside the bag: it may hold a part of the messages, or take some back.

    An empty one, or one whose head was zeroed, is done with.
    """
    bag = path.resolve()  # beside it, not beside a link to it
    for file in (bag.with_name(bag.name + end) for end in _CHANGES):
        try:
            with file.open("rb") as log:
                done_with = not any(log.read(8))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise LogError(
                f"{file}: cannot be read: {error.strerror}. It may hold a part of the bag's messages"
            ) from error
        if not done_with:
            raise LogError(
                f"{path}: expected a bag that was closed, got {file.name} beside it, with changes that its recorder has not "
                f"merged. When it has ended, merge them: sqlite3 {bag.name} 'PRAGMA journal_mode = DELETE'"
            )
