"""Where an MCAP file's messages lie: by its summary where that is sound, else by a walk over its records.

The walk goes from record to record by their lengths and ends where one makes no sense: where the file was cut off, or where a
length is damaged. Chunks behind that are found by the summary's index alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, Header, McapRecord, Metadata, Schema

from sensors.logs.log import Damage, LogError
from sensors.logs.mcap.file import HEAD, HEAD_BYTES, MAGIC, RandomFile, RecordError
from sensors.logs.mcap.records import COMPRESSIONS, LARGEST_BYTES, Content, Exactly, content_of
from sensors.logs.mcap.summary import DATA_END_BYTES, FOOTER_BYTES, Source, Summary, read_chunk, read_summary

_RUN_BYTES = 1 << 20  # messages outside chunks are read so many bytes at a time
_TAIL_BYTES = 1 << 20  # longer than the summary of a file without chunks, which needs the checksum before it
_DATA_END = HEAD.pack(Opcode.DATA_END, DATA_END_BYTES - HEAD_BYTES)
_PRIVATE = 0x80  # opcodes from here on are the writer's own, and no damage
_KINDS: dict[int, type[McapRecord]] = {
    Opcode.HEADER: Header,
    Opcode.METADATA: Metadata,
    Opcode.SCHEMA: Schema,
    Opcode.CHANNEL: Channel,
}


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
    complete = summary is not None and summary.complete()
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
    unchecked = [source for source in index.sources if not source.checked]
    runs = [source for source in unchecked if not source.chunk]
    end = walk.data_end
    if end is not None and (crc := int.from_bytes(file.at(end + HEAD_BYTES).read(4), "little")):
        if (unchecked or not complete) and file.crc(0, end) != crc:
            index.damage.bad_records += 1
            walk.refuse(unchecked)  # nothing tells which of them was altered
    elif (index.damage or not complete) and (len(runs) < len(index.sources) or index.damage.bad_chunks):
        walk.refuse(runs)  # more likely the inside of a damaged chunk, or a damaged index, than messages of their own
    return index


class _Walk:
    """Goes through a file and adds what it says to an index."""

    def __init__(self, file: RandomFile) -> None:
        self.file, self.index, self.whole = file, McapIndex(), file.ends_whole()
        self.data_end: int | None = None  # where the record that ends the data section begins
        self._room_bytes = LARGEST_BYTES  # for schemas and channels
        self._same: dict[frozenset[int], frozenset[int]] = {}  # most sources hold the same channels

    def by_summary(self, summary: Summary) -> None:
        """Take the chunks that a complete summary knows, and walk between them."""
        index, counts, at = self.index, summary.statistics, len(MAGIC)
        assert counts is not None  # Summary.complete
        index.schemas, index.channels, index.compressions = summary.schemas, summary.channels, summary.compressions
        for chunk, end in summary.chunks:
            index.damage.bad_records += self._walk(at, chunk.offset) < chunk.offset
            index.sources.append(chunk)
            at = end
        index.damage.bad_records += self._walk(at, summary.data_end) < summary.data_end
        self.data_end = summary.data_end
        if self.file.head(self.data_end) != (Opcode.DATA_END, self.data_end + DATA_END_BYTES):
            index.damage.bad_records += 1
        index.counts = counts.channel_message_counts  # not what was counted between chunks
        index.span_ns = (counts.message_start_time, counts.message_end_time) if counts.message_count else None

    def by_records(self, summary: Summary | None) -> None:
        """Walk over all records; where that ends early, take the chunks behind that the summary knows."""
        file, index, damage = self.file, self.index, self.index.damage
        footer = file.size - FOOTER_BYTES - len(MAGIC)
        stop = footer if self.whole else file.size
        at = self._walk(len(MAGIC), stop)
        if self.data_end is None:
            damage.truncated_at_byte, index.unread_bytes = at, file.size - at
            for chunk, end in summary.chunks if summary else ():
                if at <= chunk.offset and end <= stop:
                    at = end
                    if fault := self._chunk(chunk.offset, chunk.size):
                        self._bad_chunk(chunk.offset, fault)
                    else:
                        index.unread_bytes -= chunk.size
            tail = max(len(MAGIC), stop - _TAIL_BYTES)  # the data's checksum is found even so
            if (found := file.at(tail).read(stop - tail).rfind(_DATA_END)) >= 0:
                self.data_end = tail + found
        elif not self.whole:
            while (head := file.head(at)) is not None and head[1] <= file.size:
                at = head[1]
            damage.truncated_at_byte, index.unread_bytes = at, file.size - at
        damage.bad_records += self.whole and summary is None  # it is damaged
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
        """Take the records up to `stop` or the data section's end; -> that end, or where a record begins that is not whole."""
        run = at  # from here on lie messages outside chunks that were not taken yet
        while at < stop and self.data_end is None:
            opcode, end = self._head(at, stop)
            if opcode != Opcode.MESSAGE or end - run > _RUN_BYTES:
                self._take_run(run, at)
                run = at if opcode == Opcode.MESSAGE else end
            if opcode == Opcode.CHUNK and (fault := self._chunk(at, end - at)):
                if not self._may_begin(end, stop):
                    return at
                self._bad_chunk(at, fault)
            elif opcode == Opcode.DATA_END and end - at == DATA_END_BYTES:
                self.data_end = at
            elif not opcode:
                return at
            elif opcode not in (Opcode.CHUNK, Opcode.MESSAGE) and not self._other(opcode, at + HEAD_BYTES, end):
                self.index.damage.bad_records += 1
            at = end
        self._take_run(run, at)
        return at

    def _head(self, at: int, stop: int) -> tuple[int, int]:
        """Opcode of the record at `at` and where it ends; 0 for one that is not whole, or whose length cannot be right."""
        opcode, end = self.file.head(at) or (0, at)
        # A chunk is proven by its content, other lengths by what follows.
        sound = end <= stop and (opcode == Opcode.CHUNK or self._may_begin(end, stop))
        return (opcode, end) if sound else (0, at)

    def _may_begin(self, at: int, stop: int) -> bool:
        """Whether a record may begin there."""
        head = self.file.head(at)
        if at == stop or head is None:
            return at == stop or not self.whole
        known = 0 < head[0] <= Opcode.DATA_END or head[0] >= _PRIVATE
        return known and (not self.whole or head[1] <= stop)

    def _chunk(self, at: int, size: int) -> str:
        """Take a chunk; -> what is wrong with it, where it is damaged."""
        try:
            chunk = read_chunk(self.file, at, size)
            self.index.compressions.add(chunk.compression)
            source = Source(at, size, True, chunk.uncompressed_crc != 0, chunk.uncompressed_size, (0, 0))
            self._take(source, content_of(chunk))
        except RecordError as error:
            return str(error)
        return ""

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
            log_ns, publish_ns = ([entry[time] for entry in messages] for time in (0, 1))
            source.log_ns, source.publish_ns = (min(log_ns), max(log_ns)), (min(publish_ns), max(publish_ns))
        else:
            source.publish_ns = (0, 0)
        channels = frozenset(entry[2] for entry in messages)
        source.channels, source.messages = self._same.setdefault(channels, channels), len(messages)
        index.sources.append(source)

    def _other(self, opcode: int, begin: int, end: int) -> bool:
        """Take a definition, pass over the rest; False for what is not the record that its opcode says."""
        content = Exactly(self.file.at(begin), end - begin)
        try:
            if opcode == Opcode.MESSAGE_INDEX:
                content.read2()  # channel
                return content.read4() == content.left
            if opcode == Opcode.ATTACHMENT:  # whose data may be larger than the memory
                content.read(16)  # times
                content.read_prefixed_string()
                content.read_prefixed_string()
                return content.read8() == content.left - 4
            record = content.parse(_KINDS.get(opcode, Chunk), whole=True)
        except ValueError:  # RecordError, or texts that are not in UTF-8
            return opcode >= _PRIVATE
        if isinstance(record, Schema | Channel):
            self._define([record])
        return not isinstance(record, Chunk)  # whose opcode is damaged

    def _define(self, definitions: Collection[Schema | Channel]) -> None:
        for one in definitions:
            known: dict[int, Any] = self.index.schemas if isinstance(one, Schema) else self.index.channels
            if one.id not in known:
                self._room_bytes -= len(str(one))
                if self._room_bytes < 0:
                    raise RecordError(f"expected schemas and channels of {LARGEST_BYTES} bytes in all, got more")
                known[one.id] = one
