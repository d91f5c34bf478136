"""MCAP files read at the level of their records, so that damage costs no more than the chunk that it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from sensors.logs.decode import ChannelInfo
from sensors.logs.encode import MissingLogLibraryError
from sensors.logs.log import Damage, LogError
from sensors.logs.mcap.file import MAGIC, RandomFile, RecordError
from sensors.logs.recorded import RecordedLog
from sensors.logs.recorded_file import Notices, Query, RawMessage, merge_due

if TYPE_CHECKING:
    from sensors.logs.mcap.index import McapIndex
    from sensors.logs.mcap.summary import Source

_OPEN_BYTES = 2**28  # of chunks that are open at once because they overlap in time, of all files of a log
_MESSAGE_BYTES = 200  # of an open chunk's message, beside what it says


def looks_like_mcap(path: Path) -> bool:
    """Whether the file begins or ends as an MCAP file does: one end may be damaged."""
    with closing(RandomFile(path)) as file:
        return file.at(0).read(len(MAGIC)) == MAGIC or file.ends_whole()


class McapLog(RecordedLog):
    """A drive log in one MCAP file, whole or damaged; implements `sensors.logs.log.Log`.

    Every message of every chunk that is whole is given. A chunk whose checksum is wrong, or that does not decompress, is left
    out and counted; a file that was cut off, or whose writer was killed, gives one LogWarning with the offset. Without a sound
    summary nothing is read behind a damaged length, and how many bytes are not is told. Messages outside chunks, and in chunks
    without a checksum, are covered by the data section's checksum alone: where that is wrong all of them are refused, where it
    was not recorded, or is cut off, an altered payload cannot be told. In a file that has chunks, messages outside them are
    left out, because the inside of a broken chunk looks like them. Messages whose channel is lost count as bad records.

    With a sound summary opening costs a few reads; without one (cut off, damaged, or never checksummed) the file is read
    once. Reading holds the chunks that overlap in time, up to 256 MiB; a chunk beyond that is left out as a damaged one.

    Raises:
        LogError: missing, empty, no MCAP file, or of a compression that nothing here reads.
        MissingLogLibraryError: mcap is not installed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, [path], McapFile)


class McapFile:
    """One MCAP file; implements `sensors.logs.recorded_file.RecordedFile`."""

    def __init__(self, path: Path, notices: Notices | None = None) -> None:
        self.path = path
        self._notices = notices or Notices()
        if not path.is_file():
            raise LogError(f"{path}: expected an MCAP file, got {'a folder' if path.is_dir() else 'nothing there'}")
        if not looks_like_mcap(path):
            raise LogError(
                f"{path}: expected an MCAP file, got one that begins otherwise ({path.stat().st_size} bytes)"
            )
        try:
            from sensors.logs.mcap.index import build_index
        except ImportError as error:
            raise MissingLogLibraryError(error.name or "mcap") from error
        with closing(RandomFile(path)) as file:
            self._index = build_index(file)
        self._channels = _channel_infos(self._index)
        self._tell()

    @property
    def channels(self) -> dict[int, ChannelInfo]:
        return self._channels

    def counts(self) -> dict[int, int]:
        return self._index.counts

    def span_ns(self) -> tuple[int, int] | None:
        return self._index.span_ns

    def new_damage(self) -> Damage:
        return deepcopy(self._index.damage)

    def storage(self) -> str:
        chunks = sum(source.chunk for source in self._index.sources)
        names = sorted(name or "none" for name in self._index.compressions)
        return f"MCAP, {chunks} chunks, compression {', '.join(names)}" if chunks else "MCAP without chunks"

    def read(self, query: Query, damage: Damage) -> Iterator[RawMessage]:
        """Messages in order. Chunks are loaded when the first of their messages is due, and dropped after their last."""
        sources = self._index.sources

        def begin(number: int) -> Iterator[RawMessage]:
            return self._messages(sources[number], query, damage)

        return merge_due(((first_ns, number, begin) for first_ns, number in self._waiting(query)), attrgetter("log_ns"))

    def _waiting(self, query: Query) -> list[tuple[int, int]]:
        """(first time, place in the file) of the sources that may hold messages that are asked for, by time."""
        waiting = []
        for number, source in enumerate(self._index.sources):
            if query.channels is not None and source.channels is not None and not source.channels & query.channels:
                continue
            if not query.misses(source.log_ns):
                waiting.append((source.log_ns[0], number))
        return sorted(waiting)

    def _messages(self, source: Source, query: Query, damage: Damage) -> Iterator[RawMessage]:
        try:
            if query.held.bytes + source.content_bytes > _OPEN_BYTES:
                raise RecordError(
                    f"expected chunks that overlap in time to hold at most {_OPEN_BYTES} bytes, got more. Sort it: mcap sort"
                )
            with closing(RandomFile(self.path)) as file:  # anew for each: many files that overlap hold no descriptors
                content = source.load(file)
        except RecordError as error:
            damage.add_bad_chunk(source.offset)
            self._notices.tell(f"{self.path}: the chunk at byte {source.offset} is left out: {error}")
            return
        entries = [
            entry
            for entry in content.messages
            if (query.channels is None or entry[2] in query.channels)
            and (query.start_ns is None or entry[0] >= query.start_ns)
            and (query.end_ns is None or entry[0] < query.end_ns)
        ]
        entries.sort(key=itemgetter(0))
        longest = max((end - begin for _, _, _, begin, end in entries), default=0)  # of which the next one is a copy
        size = len(content.data) + longest + _MESSAGE_BYTES * len(content.messages)
        query.held.bytes += size
        try:
            for log_ns, publish_ns, channel, begin, end in entries:
                if channel in self._channels:
                    yield RawMessage(log_ns, publish_ns, channel, content.data[begin:end])
                else:
                    damage.bad_records += 1
        finally:
            query.held.bytes -= size

    def _tell(self) -> None:
        """One warning for what opening the file has shown."""
        index, damage = self._index, self._index.damage
        parts = []
        if damage.truncated_at_byte is not None:
            parts.append(
                f"nothing whole follows from byte {damage.truncated_at_byte} on, {index.unread_bytes} bytes are not read"
            )
        if damage.bad_chunks:
            parts.append(f"{damage.bad_chunks} damaged chunks are left out, the first {index.first_fault}")
        if damage.bad_records:
            parts.append(f"{damage.bad_records} records make no sense")
        if parts:
            self._notices.tell(f"{self.path}: {'; '.join(parts)}; what is whole is read")


def _channel_infos(index: McapIndex) -> dict[int, ChannelInfo]:
    infos = {}
    for number, channel in index.channels.items():
        schema = index.schemas.get(channel.schema_id)
        infos[number] = ChannelInfo(
            channel.topic,
            schema.name if schema else "",
            channel.message_encoding,
            schema.data if schema else b"",
            schema.encoding if schema else "",
            schema_lost=schema is None and channel.schema_id != 0,
        )
    return infos
