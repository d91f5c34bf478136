"""ROS 2 bags in SQLite (.db3), read without ROS and without writing a byte beside them."""

from __future__ import annotations

import contextlib
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from sensors.logs.decode import ChannelInfo
from sensors.logs.log import Damage, LogError, LogWarning
from sensors.logs.recorded import Query, RawMessage, RecordedLog

MAGIC = b"SQLite format 3\x00"


class SqliteLog(RecordedLog):
    """A ROS 2 bag in one SQLite file or several; implements `sensors.logs.log.Log`. Publish times are not in it: log times.

    Raises:
        LogError: missing, no SQLite file, or none of a ROS 2 bag.
    """

    def __init__(self, path: Path, files: list[Path] | None = None) -> None:
        super().__init__(path, [SqliteFile(file) for file in (files or [path])])


class SqliteFile:
    """One .db3 file; implements `sensors.logs.recorded.RecordedFile`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._damage = Damage()
        self._warned = False
        if not path.is_file():
            raise LogError(f"{path}: expected a SQLite file, got {'a folder' if path.is_dir() else 'nothing there'}")
        self._check_length()
        try:
            with closing(self._open()) as database:
                self._channels = _channels(database)
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

    def span_ns(self) -> tuple[int, int] | None:
        return self._span

    def new_damage(self) -> Damage:
        return replace(self._damage)

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
        last = None
        try:
            for row in database.execute(*_selection(query, self._channels, "ORDER BY timestamp, id")):
                last = (row[1], row[0])
                yield row
            return
        except sqlite3.Error as error:
            damage.bad_records += 1
            self._warn(f"only what a scan of it finds is read: {error}")
        found = []
        with contextlib.suppress(sqlite3.Error):  # its end, already told
            for row in database.execute(*_selection(query, self._channels, "", "NOT INDEXED")):
                if isinstance(row[1], int) and (last is None or (row[1], row[0]) > last):
                    found.append(row)
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
        # `immutable` keeps SQLite from making files beside the bag; it would overlook a log of changes that lies there.
        pending = self.path.with_name(self.path.name + "-wal")
        mode = "mode=ro" if pending.is_file() and pending.stat().st_size else "immutable=1"
        name = quote(str(self.path.absolute()))
        database = sqlite3.connect(f"file:{name}?{mode}", uri=True, check_same_thread=False)
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
        try:
            first, last = database.execute(
                "SELECT MIN(timestamp), MAX(timestamp) FROM messages WHERE typeof(timestamp) = 'integer'"
            ).fetchone()
        except sqlite3.DatabaseError as error:
            self._damage.bad_records += 1
            self._warn(f"its messages cannot all be read: {error}")
            return None
        return None if first is None else (int(first), int(last))

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{self.path}: {text}", LogWarning, stacklevel=2)


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


def _channels(database: sqlite3.Connection) -> dict[int, ChannelInfo]:
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"topics", "messages"} <= tables:
        raise _NoBagError(f"with the tables {', '.join(sorted(tables)) or '(none)'}, and not topics and messages")
    schemas: dict[str, tuple[bytes, str]] = {}
    if "message_definitions" in tables:
        rows = database.execute("SELECT topic_type, encoding, encoded_message_definition FROM message_definitions")
        schemas = {type_: (str(text).encode(), encoding) for type_, encoding, text in rows}
    try:
        counts = dict(database.execute("SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id"))
    except sqlite3.DatabaseError:
        counts = None  # `read` tells what is damaged
    channels = {}
    for number, name, type_, encoding in database.execute("SELECT id, name, type, serialization_format FROM topics"):
        schema, schema_encoding = schemas.get(type_, (b"", ""))
        count = None if counts is None else counts.get(number, 0)
        channels[number] = ChannelInfo(name, type_, encoding, schema, schema_encoding, count)
    return channels


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
