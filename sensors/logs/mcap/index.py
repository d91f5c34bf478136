"""Where an MCAP file's messages lie: by its summary where that is sound, else by a walk over its records.

The walk goes from record to record by their lengths and ends where one makes no sense: where the file was cut off, or where a
length is damaged.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from mcap.opcode import Opcode
from mcap.records import Channel, Schema

from sensors.logs.log import Damage, LogError
from sensors.logs.mcap.file import HEAD_BYTES, MAGIC, RandomFile, RecordError
from sensors.logs.mcap.records import COMPRESSIONS, LARGEST_BYTES, Content, Exactly, content_of
from sensors.logs.mcap.summary import DATA_END_BYTES, Source, Summary, read_chunk, read_summary

_RUN_BYTES = 1 << 20  # messages outside chunks are read so many bytes at a time
_LEAST_CHUNK_BYTES = HEAD_BYTES + 40  # two times, two sizes, a checksum and the length of a word
_PRIVATE = 0x80  # opcodes from here on are the writer's own, and no damage


@dataclass
class McapIndex:
    """What is in a file, and what is wrong with it as a whole."""

    sources: list[Source] = field(default_factory=list)  # as in the file
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)  # messages of each channel
    compressions: set[str] = field(default_factory=set)
    span_ns: tuple[int, int] | None = None
    damage: Damage = field(default_factory=Damage)
    unread_bytes: int = 0  # from `damage.truncated_at_byte` on
    first_fault: str = ""  # of a chunk


def build_index(file: RandomFile) -> McapIndex:
    """The index of an MCAP file, damaged or not; LogError where all of its chunks are of an unknown compression."""
    summary, walk = read_summary(file), _Walk(file)
    complete = summary is not None and bool(summary.chunks) and summary.complete()
    if summary is not None and complete:
        walk.by_summary(summary)
    else:
        walk.by_records(summary)
    index = walk.index
    if index.compressions and not index.compressions & {*COMPRESSIONS}:
        raise LogError(
            f"{file.path}: expected chunks of compression lz4, zstd or none, got {', '.join(sorted(index.compressions))}. "
            "Convert it: mcap compress"
        )
    if file.at(0).read(len(MAGIC)) != MAGIC:
        index.damage.bad_records += 1
    runs = [source for source in index.sources if not source.chunk]
    if index.damage.bad_chunks or len(runs) < len(index.sources):
        walk.refuse(runs)  # no writer mixes them with chunks: the inside of a damaged chunk, or a damaged index
    unchecked = [source for source in index.sources if not source.checked]
    end = walk.data_end or (summary and summary.data_end)
    if end and (unchecked or not complete):
        crc = int.from_bytes(file.at(end + HEAD_BYTES).read(4), "little")  # 0: not recorded
        if crc and file.crc(0, end) != crc:
            index.damage.bad_records += 1
            walk.refuse(unchecked)  # nothing tells which of them was altered
    return index


class _Walk:
    """Goes through a file and adds what it says to an index."""

    def __init__(self, file: RandomFile) -> None:
        self.file, self.index = file, McapIndex()
        self.data_end: int | None = None  # where the record that ends the data section begins
        self._room_bytes = LARGEST_BYTES  # for schemas and channels
        self._same: dict[frozenset[int], frozenset[int]] = {}  # most sources hold the same channels

    def by_summary(self, summary: Summary) -> None:
        """Take the chunks that a complete summary knows."""
        index, counts = self.index, summary.statistics
        assert counts is not None  # Summary.complete
        index.schemas, index.channels, index.compressions = summary.schemas, summary.channels, summary.compressions
        index.sources, index.counts = summary.chunks, counts.channel_message_counts
        index.span_ns = (counts.message_start_time, counts.message_end_time) if counts.message_count else None

    def by_records(self, summary: Summary | None) -> None:
        """Walk over all records."""
        file, index = self.file, self.index
        at = self._walk(len(MAGIC), file.size)
        if self.data_end is None or not file.ends_whole():
            index.damage.truncated_at_byte, index.unread_bytes = at, file.size - at
        elif summary is None:  # it is damaged, and perhaps more has moved
            index.damage.bad_records += 1
        if summary is not None:  # sound, but without a checksum, or without all that it takes
            index.schemas, index.channels = summary.schemas | index.schemas, summary.channels | index.channels
        spans = [source.log_ns for source in index.sources if source.messages]
        index.span_ns = (min(spans)[0], max(last for _, last in spans)) if spans else None

    def refuse(self, sources: Collection[Source]) -> None:
        """Leave out and count."""
        for source in sources:
            if source.chunk:
                self._bad_chunk(source.offset, "it has no checksum, and that of all data is wrong")
            else:
                self.index.damage.bad_records += source.messages or 0
        offsets = {source.offset for source in sources}
        self.index.sources = [source for source in self.index.sources if source.offset not in offsets]

    def _walk(self, at: int, stop: int) -> int:
        """Take the records up to the data section's end; -> that end, or where a record begins that is not whole."""
        run = at  # from here on lie messages outside chunks that were not taken yet
        while self.data_end is None:
            opcode, end = self.file.head(at) or (0, at)
            known = 0 < opcode <= Opcode.DATA_END or opcode >= _PRIVATE
            if not known or end > stop:
                break
            if opcode != Opcode.MESSAGE or end - run > _RUN_BYTES:
                self._take_run(run, at)
                run = at if opcode == Opcode.MESSAGE else end
            if opcode == Opcode.DATA_END and end - at == DATA_END_BYTES:
                self.data_end = at
            elif opcode != Opcode.MESSAGE:
                self._take_record(opcode, at, end)
            at = end
        self._take_run(run, at)
        return at

    def _take_record(self, opcode: int, at: int, end: int) -> None:
        """Take a chunk or a definition, pass over the rest, but for a chunk whose opcode is damaged."""
        try:
            if opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
                kind: type[Schema | Channel] = Schema if opcode == Opcode.SCHEMA else Channel
                content = Exactly(self.file.at(at + HEAD_BYTES), end - at - HEAD_BYTES)
                self._define([content.parse(kind, whole=True)])
                return
            if opcode != Opcode.CHUNK and end - at < _LEAST_CHUNK_BYTES:
                return
            chunk = read_chunk(self.file, at, end - at)
            if opcode != Opcode.CHUNK:
                self.index.damage.bad_records += 1
                return
            self.index.compressions.add(chunk.compression)
            source = Source(at, end - at, True, chunk.uncompressed_crc != 0, chunk.uncompressed_size, (0, 0))
            self._take(source, content_of(chunk))
        except RecordError as error:
            if opcode == Opcode.CHUNK:
                self._bad_chunk(at, str(error))
            elif opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
                self.index.damage.bad_records += 1

    def _bad_chunk(self, offset: int, fault: str) -> None:
        self.index.damage.add_bad_chunk(offset)
        self.index.first_fault = self.index.first_fault or f"at byte {offset}: {fault}"

    def _take_run(self, begin: int, end: int) -> None:
        """Take messages outside chunks."""
        if begin < end:
            source = Source(begin, end - begin, False, False, end - begin, (0, 0))
            try:
                self._take(source, source.load(self.file))
            except RecordError:
                self.index.damage.bad_records += 1

    def _take(self, source: Source, content: Content) -> None:
        index, messages = self.index, content.messages
        self._define(content.definitions)
        for entry in messages:
            index.counts[entry[2]] = index.counts.get(entry[2], 0) + 1
        if messages:
            times = [entry[0] for entry in messages]
            source.log_ns = (min(times), max(times))
        channels = frozenset(entry[2] for entry in messages)
        source.channels, source.messages = self._same.setdefault(channels, channels), len(messages)
        index.sources.append(source)

    def _define(self, definitions: Collection[Schema | Channel]) -> None:
        for one in definitions:
            known: dict[int, Any] = self.index.schemas if isinstance(one, Schema) else self.index.channels
            if one.id not in known:
                self._room_bytes -= len(str(one))
                if self._room_bytes < 0:
                    raise RecordError(f"expected schemas and channels of {LARGEST_BYTES} bytes in all, got more")
                known[one.id] = one
