"""The summary at an MCAP file's end: what is in it and where, protected by a checksum of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from sys import intern

from sensors.logs.mcap.records import (
    CHANNEL,
    CHUNK_INDEX,
    DATA_END_BYTES,
    FOOTER,
    FOOTER_BYTES,
    HEAD_BYTES,
    MAGIC,
    SCHEMA,
    STATISTICS,
    Channel,
    Fields,
    RandomFile,
    RecordError,
    Schema,
    crc_of,
    parse_channel,
    parse_schema,
)


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """A chunk as the summary knows it."""

    offset: int
    size: int  # of the record with its head
    index_bytes: int  # of the message indexes after it
    start_ns: int
    end_ns: int
    channels: frozenset[int] | None  # None: it has no message indexes
    compression: str
    compressed_bytes: int
    uncompressed_bytes: int


@dataclass(frozen=True)
class Statistics:
    """Counts over the whole file."""

    messages: int
    schemas: int
    channels: int
    chunks: int
    start_ns: int
    end_ns: int
    per_channel: dict[int, int]


@dataclass
class Summary:
    """The summary section. `checked`: its checksum was recorded and is right; a wrong one makes no Summary at all."""

    start: int
    checked: bool
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    chunks: list[ChunkIndex] = field(default_factory=list)
    statistics: Statistics | None = None

    @property
    def data_end(self) -> int:
        """Where the record that ends the data section begins."""
        return self.start - DATA_END_BYTES

    def complete(self) -> bool:
        """Whether the file can be read by this summary alone: it knows every chunk, channel and schema."""
        counts = self.statistics
        if not self.checked or counts is None or counts.chunks != len(self.chunks):
            return False
        if counts.channels != len(self.channels) or counts.schemas != len(self.schemas):
            return False
        known = {0, *self.schemas}
        if any(channel.schema_id not in known for channel in self.channels.values()):
            return False
        at = len(MAGIC)
        for chunk in self.chunks:
            if chunk.offset < at or (chunk.channels is not None and not chunk.channels <= self.channels.keys()):
                return False
            at = chunk.offset + chunk.size + chunk.index_bytes
        return at <= self.data_end


def ends_whole(file: RandomFile) -> bool:
    """Whether the file ends as a finished one does."""
    return file.size >= 2 * len(MAGIC) and file.read(file.size - len(MAGIC), len(MAGIC)) == MAGIC


def read_summary(file: RandomFile) -> Summary | None:
    """The summary; None where there is none, or it is damaged or cut off."""
    footer = file.size - len(MAGIC) - FOOTER_BYTES
    if footer < len(MAGIC) or not ends_whole(file) or file.head(footer) != (FOOTER, FOOTER_BYTES - HEAD_BYTES):
        return None
    fields = Fields(file.read(footer + HEAD_BYTES, FOOTER_BYTES - HEAD_BYTES))
    start, _, crc = fields.number(8), fields.number(8), fields.number(4)
    if not len(MAGIC) + DATA_END_BYTES <= start < footer:
        return None
    if crc and crc_of(file, footer + FOOTER_BYTES - 4, start) != crc:
        return None
    summary = Summary(start, checked=crc != 0)
    try:
        _fill(summary, file.read(start, footer - start))
    except RecordError:
        return None
    return summary


def _fill(summary: Summary, data: bytes) -> None:
    records = Fields(data)
    same: dict[frozenset[int], frozenset[int]] = {}  # most chunks hold the same channels
    while records.more:
        opcode = records.number(1)
        content = records.take(records.number(8))
        if opcode == SCHEMA:
            schema = parse_schema(content)
            summary.schemas[schema.id] = schema
        elif opcode == CHANNEL:
            channel = parse_channel(content)
            summary.channels[channel.id] = channel
        elif opcode == CHUNK_INDEX:
            summary.chunks.append(_chunk_index(Fields(content), same))
        elif opcode == STATISTICS:
            summary.statistics = _statistics(Fields(content))
    summary.chunks.sort(key=lambda chunk: chunk.offset)


def _chunk_index(fields: Fields, same: dict[frozenset[int], frozenset[int]]) -> ChunkIndex:
    start, end, offset, size = (fields.number(8) for _ in range(4))
    entries = fields.sized()
    numbers = set()
    while entries.more:
        numbers.add(entries.number(2))
        entries.number(8)
    channels = same.setdefault(frozenset(numbers), frozenset(numbers)) if numbers else None
    index_bytes, compression = fields.number(8), fields.text()
    compressed, uncompressed = fields.number(8), fields.number(8)
    return ChunkIndex(offset, size, index_bytes, start, end, channels, intern(compression), compressed, uncompressed)


def _statistics(fields: Fields) -> Statistics:
    messages, schemas = fields.number(8), fields.number(2)
    channels, _, _, chunks = (fields.number(4) for _ in range(4))
    start, end = fields.number(8), fields.number(8)
    entries, counts = fields.sized(), {}
    while entries.more:
        channel = entries.number(2)
        counts[channel] = entries.number(8)
    return Statistics(messages, schemas, channels, chunks, start, end, counts)
