"""The summary at an MCAP file's end: what is in it and where, protected by a checksum of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from sys import intern

from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, ChunkIndex, Footer, Schema, Statistics

from sensors.logs.mcap.file import HEAD_BYTES, MAGIC, RandomFile, RecordError
from sensors.logs.mcap.records import Content, Exactly, content_of, parse_content, split

FOOTER_BYTES = HEAD_BYTES + 20
DATA_END_BYTES = HEAD_BYTES + 4


@dataclass(slots=True)
class Source:
    """A chunk or a run of messages outside any, and what is known of it without reading it."""

    offset: int
    size: int  # of the record with its head
    chunk: bool
    checked: bool  # by a checksum of its own
    content_bytes: int  # uncompressed
    log_ns: tuple[int, int]  # first and last
    channels: frozenset[int] | None = None  # None: not known
    messages: int | None = None  # None: not known

    def load(self, file: RandomFile) -> Content:
        """What it holds; RecordError where that is damaged."""
        if self.chunk:
            chunk = read_chunk(file, self.offset, self.size)
            if chunk.uncompressed_size != self.content_bytes:
                raise RecordError(f"expected {self.content_bytes} bytes by the index, got {chunk.uncompressed_size}")
            return content_of(chunk)
        return parse_content(Exactly(file.at(self.offset), self.size).read(self.size), self.size)


def read_chunk(file: RandomFile, offset: int, size: int) -> Chunk:
    """The chunk's record; RecordError where it is none of this size."""
    return Exactly(file.at(offset + HEAD_BYTES), size - HEAD_BYTES).parse(Chunk, whole=True)


@dataclass
class Summary:
    """The summary section. `checked`: its checksum was recorded and is right; a wrong one makes no Summary at all."""

    data_end: int  # where the record that ends the data section begins
    checked: bool
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    chunks: list[Source] = field(default_factory=list)
    compressions: set[str] = field(default_factory=set)
    statistics: Statistics | None = None

    def complete(self) -> bool:
        """Whether the file can be read by this summary alone: it knows every chunk, channel and schema."""
        counts, expected = self.statistics, (len(self.chunks), len(self.channels), len(self.schemas))
        begins = [*(chunk.offset for chunk in self.chunks), self.data_end]
        ends = [len(MAGIC), *(chunk.offset + chunk.size for chunk in self.chunks)]
        return (
            self.checked
            and counts is not None
            and (counts.chunk_count, counts.channel_count, counts.schema_count) == expected
            and {channel.schema_id for channel in self.channels.values()} <= {0, *self.schemas}
            and all((chunk.channels or set()) <= self.channels.keys() for chunk in self.chunks)
            and all(end <= begin for end, begin in zip(ends, begins, strict=True))
        )


def read_summary(file: RandomFile) -> Summary | None:
    """The summary, an empty one where the file has none; None where it is damaged or cut off."""
    footer = file.size - len(MAGIC) - FOOTER_BYTES
    if footer < len(MAGIC) or not file.ends_whole() or file.head(footer) != (Opcode.FOOTER, footer + FOOTER_BYTES):
        return None
    footer_record = Exactly(file, FOOTER_BYTES - HEAD_BYTES).parse(Footer)
    start, crc = footer_record.summary_start, footer_record.summary_crc
    if not start:
        return Summary(footer - DATA_END_BYTES, checked=False)
    right = len(MAGIC) + DATA_END_BYTES <= start < footer
    if not right or (crc and file.crc(start, footer + FOOTER_BYTES - 4) != crc):
        return None
    summary = Summary(start - DATA_END_BYTES, checked=crc != 0)
    same: dict[frozenset[int], frozenset[int]] = {}  # most chunks hold the same channels
    try:
        data = Exactly(file.at(start), footer - start).read(footer - start)
        for opcode, begin, end in split(data):
            content = Exactly(BytesIO(data[begin:end]), end - begin)
            if opcode == Opcode.SCHEMA:
                schema = content.parse(Schema)
                summary.schemas[schema.id] = schema
            elif opcode == Opcode.CHANNEL:
                channel = content.parse(Channel)
                summary.channels[channel.id] = channel
            elif opcode == Opcode.STATISTICS:
                summary.statistics = content.parse(Statistics)
            elif opcode == Opcode.CHUNK_INDEX:
                chunk = content.parse(ChunkIndex)
                numbers = frozenset(chunk.message_index_offsets)
                at, size = chunk.chunk_start_offset, chunk.chunk_length
                source = Source(
                    at,
                    size,
                    chunk=True,
                    checked=any(file.at(at + HEAD_BYTES + 24).read(4)),
                    content_bytes=chunk.uncompressed_size,
                    log_ns=(chunk.message_start_time, chunk.message_end_time),
                    channels=same.setdefault(numbers, numbers) or None,
                )
                summary.chunks.append(source)
                summary.compressions.add(intern(chunk.compression))
    except RecordError:
        return None
    summary.chunks.sort(key=lambda chunk: chunk.offset)
    return summary
