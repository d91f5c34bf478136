"""ROS 2 bags in SQLite (.db3), read without ROS and without writing a byte beside them.

SQLite itself merges or deletes a log of changes that a killed recorder left beside a database. A bag with one is refused, with
the command that merges it. https://sqlite.org/wal.html
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from urllib.parse import quote

from sensors.logs.decode import ChannelInfo
from sensors.logs.log import Damage, LogError
from sensors.logs.recorded import RecordedLog
from sensors.logs.recorded_file import Notices, Query, RawMessage

MAGIC = b"SQLite format 3\x00"
_CHANGES = ("-wal", "-journal")  # logs of changes that were not merged, or not completed


class SqliteLog(RecordedLog):
    """A ROS 2 bag in one SQLite file; implements `sensors.logs.log.Log`. Publish times are not in it: log times.

    Raises:
        LogError: missing, no SQLite file, or none of a ROS 2 bag.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, [path], SqliteFile)


class SqliteFile:
    """One .db3 file; implements `sensors.logs.recorded_file.RecordedFile`."""

    def __init__(self, path: Path, notices: Notices | None = None) -> None:
        self.path = path
        self._damage = Damage()
        self._notices = notices or Notices()
        if not path.is_file():
            raise LogError(f"{path}: expected a SQLite file, got {'a folder' if path.is_dir() else 'nothing there'}")
        _check_changes(path)
        self._check_length()
        try:
            with closing(self._open()) as database:
                self._channels, nameless = _channels(database)
                if nameless:  # their messages are counted as damage when they come
                    self._warn(f"{nameless} of its topics have no name and type in text; their messages are left out")
                self._span = self._find_span(database)
        except sqlite3.Error as error:
            raise LogError(
                f"{path}: expected a ROS 2 bag in SQLite, got a file that SQLite cannot read: {error}"
            ) from error
        except _NoBagError as error:
            raise LogError(f"{path}: expected a ROS 2 bag in SQLite, got a database {error}") from error

    @property
    def channels(self) -> dict[int, ChannelInfo]:
        return self._channels

    def counts(self) -> dict[int, int] | None:
        try:
            with closing(self._open()) as database:
                return dict(database.execute("SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id"))
        except sqlite3.DatabaseError:
            return None  # `read` tells what is damaged

    def span_ns(self) -> tuple[int, int] | None:
        return self._span

    def publish_span_ns(self) -> tuple[int, int] | None:
        return self._span

    def new_damage(self) -> Damage:
        return deepcopy(self._damage)

    def storage(self) -> str:
        return "SQLite"

    def read(self, query: Query, damage: Damage) -> Iterator[RawMessage]:
        """Messages in order of time, then of recording. Their bytes are fetched one message at a time."""
        with closing(self._open()) as database:
            for number, time, topic in self._rows(database, query, damage):
                if topic not in self._channels or not isinstance(time, int):
                    damage.bad_records += 1
                elif (data := self._data(database, number, damage)) is not None:
                    yield RawMessage(time, time, topic, data)

    def _rows(self, database: sqlite3.Connection, query: Query, damage: Damage) -> Iterator[tuple[int, int, int]]:
        """(id, time, topic) in order; where the index over times is damaged, by a scan of the table as far as it goes."""
        last: tuple[int, int] | None = None
        try:
            for number, time, topic in database.execute(*_selection(query, self._channels, "ORDER BY timestamp, id")):
                last = (time, number) if isinstance(time, int) else last
                yield number, time, topic
            return
        except sqlite3.Error as error:
            damage.bad_records += 1
            self._warn(f"only what a scan of it finds is read: {error}")
        found = []
        with contextlib.suppress(sqlite3.Error):  # its end, already told
            for number, time, topic in database.execute(*_selection(query, self._channels, "", "NOT INDEXED")):
                if isinstance(time, int) and (last is None or (time, number) > last):
                    found.append((number, time, topic))
        yield from sorted(found, key=lambda row: (row[1], row[0]))

    def _data(self, database: sqlite3.Connection, number: int, damage: Damage) -> bytes | None:
        try:
            row = database.execute("SELECT data FROM messages WHERE id = ?", (number,)).fetchone()
            if row is not None and isinstance(row[0], bytes):
                return row[0]
            fault = "it holds no bytes"
        except sqlite3.Error as error:
            fault = str(error)
        damage.bad_records += 1
        self._warn(f"message {number} is left out: {fault}")
        return None

    def _open(self) -> sqlite3.Connection:
        """The one way in: read-only; `immutable` keeps SQLite from making files beside the bag."""
        name = quote(str(self.path.absolute()))
        try:
            database = sqlite3.connect(f"file:{name}?mode=ro&immutable=1", uri=True, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise LogError(
                f"{self.path}: expected a file to read, got: {error}. May it be read, and more files be open (ulimit -n)?"
            ) from error
        with contextlib.suppress(sqlite3.Error):  # no database: the next statement tells
            # Without it a file that was cut off is refused as a whole. Nothing is written: the connection is read-only.
            database.execute("PRAGMA writable_schema = ON")
        return database

    def _check_length(self) -> None:
        """A file that was cut off between pages can be read up to there; SQLite takes the rest of a torn page to be zeros."""
        size, (stated, page_bytes) = self.path.stat().st_size, _stated_bytes(self.path)
        if stated <= size:
            return
        if size % page_bytes:
            raise LogError(
                f"{self.path}: expected a SQLite file of {stated} bytes as its header says, got {size}, "
                "cut off within a page. Copy the file again"
            )
        self._damage.truncated_at_byte = size
        self._warn(f"it ends at byte {size} of {stated}; what is whole is read")

    def _find_span(self, database: sqlite3.Connection) -> tuple[int, int] | None:
        ends = "SELECT timestamp FROM messages WHERE typeof(timestamp) = 'integer' ORDER BY timestamp"
        try:  # two questions: by the index over times each costs one step
            first, last = database.execute(f"SELECT ({ends} LIMIT 1), ({ends} DESC LIMIT 1)").fetchone()
        except sqlite3.DatabaseError as error:
            self._damage.bad_records += 1
            self._warn(f"its messages cannot all be read: {error}")
            return None
        return None if first is None else (int(first), int(last))

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


def _stated_bytes(path: Path) -> tuple[int, int]:
    """Sizes of a database and of its pages by its header; 0 where it does not say. https://sqlite.org/fileformat.html, 1.3."""
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(MAGIC) or header[24:28] != header[92:96]:
        return 0, 1
    page_bytes, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
    page_bytes = 65536 if page_bytes == 1 else max(page_bytes, 1)
    return pages * page_bytes, page_bytes


class _NoBagError(ValueError):
    """A database that is no bag: its tables are others."""


def _channels(database: sqlite3.Connection) -> tuple[dict[int, ChannelInfo], int]:
    """The topics, and how many there are beside them that have no text for name and type."""
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"topics", "messages"} <= tables:
        raise _NoBagError(f"with the tables {', '.join(sorted(tables)) or '(none)'}, and not topics and messages")
    schemas: dict[str, tuple[bytes, str]] = {}
    if "message_definitions" in tables:
        rows = database.execute("SELECT topic_type, encoding, encoded_message_definition FROM message_definitions")
        schemas = {row[0]: (row[2].encode(), row[1]) for row in rows if all(isinstance(word, str) for word in row)}
    channels, nameless = {}, 0
    for number, name, type_, encoding in database.execute("SELECT id, name, type, serialization_format FROM topics"):
        if isinstance(number, int) and all(isinstance(word, str) for word in (name, type_, encoding)):
            channels[number] = ChannelInfo(name, type_, encoding, *schemas.get(type_, (b"", "")))
        else:
            nameless += 1
    return channels, nameless


def _selection(query: Query, channels: dict[int, ChannelInfo], order: str, index: str = "") -> tuple[str, list[int]]:
    """The SQL for a query, and its arguments."""
    where, arguments = ["1"], []
    if query.channels is not None:
        numbers = sorted(query.channels & channels.keys())
        where.append(f"topic_id IN ({','.join('?' * len(numbers))})")
        arguments += numbers
    for bound, time in ((">=", query.start_ns), ("<", query.end_ns)):
        if time is not None:
            where.append(f"timestamp {bound} ?")
            arguments.append(max(-(2**63), min(time, 2**63 - 1)))
    return f"SELECT id, timestamp, topic_id FROM messages {index} WHERE {' AND '.join(where)} {order}", arguments
