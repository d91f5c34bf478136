"""A walk over an MCAP file's records that finds its way past damage.

A source is a chunk, or a run of messages outside any chunk. The walk reads each chunk once and keeps none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sensors.logs.log import Damage
from sensors.logs.mcap.records import (
    ATTACHMENT,
    ATTACHMENT_INDEX,
    CHANNEL,
    CHUNK,
    CHUNK_INDEX,
    DATA_END,
    DATA_END_BYTES,
    FOOTER,
    FOOTER_BYTES,
    HEAD_BYTES,
    HEADER,
    MESSAGE,
    MESSAGE_INDEX,
    METADATA,
    METADATA_INDEX,
    SCHEMA,
    STATISTICS,
    SUMMARY_OFFSET,
    Channel,
    ChunkHead,
    Content,
    Fields,
    RandomFile,
    RecordError,
    Schema,
    crc_of,
    load_chunk,
    message_times,
    parse_channel,
    parse_chunk_head,
    parse_content,
    parse_schema,
)

_RUN_BYTES = 1 << 20  # messages outside chunks are read so many bytes at a time
_WINDOW_BYTES = 1 << 20
_MESSAGE_HEAD_BYTES = 22
_ONLY_IN_SUMMARY = frozenset({FOOTER, CHUNK_INDEX, STATISTICS, ATTACHMENT_INDEX, METADATA_INDEX, SUMMARY_OFFSET})
_PRIVATE = 0x80  # opcodes from here on are the writer's own, and no damage
# Where a chunk, a message or the data's end may begin: its opcode, and a length below 4 GiB.
_BEGINNING = re.compile(rb"(?=[\x05\x06\x0f].{4}\x00{4})", re.DOTALL)


@dataclass(slots=True)
class Source:
    """A chunk or a run of messages outside any, and what is known of it without reading it."""

    offset: int
    size: int
    start_ns: int
    end_ns: int
    head: ChunkHead | None  # None: a run
    channels: frozenset[int] | None = None  # None: not known
    publish_ns: tuple[int, int] | None = None  # first and last; None: not known
    messages: int = 0  # of a run

    def load(self, file: RandomFile) -> Content:
        """What it holds; RecordError where that is damaged."""
        if self.head is None:
            return parse_content(file.read(self.offset, self.size))
        return load_chunk(file, self.head)


@dataclass
class McapIndex:
    """What is in a file, and what is wrong with it as a whole. `damage` holds what the walk has met."""

    sources: list[Source] = field(default_factory=list)  # as in the file
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)  # messages of each channel
    span_ns: tuple[int, int] | None = None
    damage: Damage = field(default_factory=Damage)
    data_end: tuple[int, int] | None = None  # offset and checksum (0: not recorded) of the data section
    summary_damaged: bool = False
    _data_right: bool | None = None

    def data_right(self, file: RandomFile) -> bool:
        """Whether the data section's checksum is right or there is none. Reads the whole file, once."""
        if self._data_right is None:
            self._data_right = (
                self.data_end is None or not self.data_end[1] or crc_of(file, self.data_end[0]) == self.data_end[1]
            )
        return self._data_right


class Walker:
    """Walks records outside chunks, adds what they say to an index, and finds its way past damage."""

    def __init__(self, file: RandomFile, index: McapIndex, whole: bool) -> None:
        self.file, self.index, self.whole = file, index, whole
        self._run: Source | None = None
        self._met: set[int] = set()  # channels of messages outside chunks
        self._same: dict[frozenset[int], frozenset[int]] = {}  # most sources hold the same channels

    def walk_region(self, begin: int, end: int) -> None:
        """Walk between two chunks that the summary knows."""
        if begin < end and self.walk(begin, end) < end:
            self.index.damage.bad_records += 1

    def walk(self, at: int, stop: int) -> int:
        """Walk to `stop` or the data section's end; -> where it came to an end: a record begins there that is not whole."""
        while at < stop and self.index.data_end is None:
            following = self._record(at, stop)
            if following is None:
                following = self._recover(at, stop)
                if following is None:
                    break
            at = following
        self._run = None
        return at

    def _record(self, at: int, stop: int) -> int | None:
        """Take the record at `at`; -> where the next one begins, None where it is not sound."""
        head = self.file.head(at)
        if head is None or at + HEAD_BYTES + head[1] > stop:
            return None
        opcode, length = head
        end = at + HEAD_BYTES + length
        if opcode == MESSAGE:
            return end if self._message(at, length, stop) else None
        self._run = None
        if opcode == CHUNK:
            return self._chunk(at, stop)
        if opcode == DATA_END and self._sound(at, stop):
            self.index.data_end = (at, int.from_bytes(self.file.read(at + HEAD_BYTES, 4), "little"))
            return end
        if opcode in _ONLY_IN_SUMMARY and self._sound(at, stop) and self._plausible(end, stop):
            self.index.damage.bad_records += 1  # the record that ends the data section is lost
            self.index.data_end = (at, 0)
            return end
        if opcode in (SCHEMA, CHANNEL):
            return end if self._define(opcode, at, length) else None
        if self._hidden_chunk(at, stop):
            return end
        if opcode >= _PRIVATE and self._plausible(end, stop):
            return end
        return end if opcode in (HEADER, ATTACHMENT, METADATA, MESSAGE_INDEX) and self._sound(at, stop) else None

    def _define(self, opcode: int, at: int, length: int, exactly: bool = False) -> bool:
        """Take a schema's or a channel's definition; False where it is none, or with `exactly` where bytes are left over."""
        try:
            data = self.file.read(at + HEAD_BYTES, length)
            if opcode == SCHEMA:
                schema = parse_schema(data)
                self.index.schemas.setdefault(schema.id, schema)
            else:
                channel = parse_channel(data, exactly)
                self.index.channels.setdefault(channel.id, channel)
        except RecordError:
            return False
        return True

    def _message(self, at: int, length: int, stop: int) -> bool:
        """Take a message outside any chunk. A wrong length shows in what follows it."""
        end = at + HEAD_BYTES + length
        if length < _MESSAGE_HEAD_BYTES or not self._plausible(end, stop):
            return False
        channel, log_ns, publish_ns = message_times(self.file.read(at + HEAD_BYTES, _MESSAGE_HEAD_BYTES))
        if channel not in self._met:
            self._met.add(channel)
            if self._define(CHANNEL, at, length, exactly=True):  # one bit makes a message of a channel's definition
                self.index.damage.bad_records += 1
                return True
        if self._run is None or end - self._run.offset > _RUN_BYTES:
            self._run = Source(at, 0, log_ns, log_ns, None, channels=frozenset(), publish_ns=(publish_ns, publish_ns))
            self.index.sources.append(self._run)
        run = self._run
        assert run.channels is not None
        assert run.publish_ns is not None
        run.size, run.messages = end - run.offset, run.messages + 1
        run.start_ns, run.end_ns = min(run.start_ns, log_ns), max(run.end_ns, log_ns)
        run.publish_ns = (min(run.publish_ns[0], publish_ns), max(run.publish_ns[1], publish_ns))
        if channel not in run.channels:
            run.channels = self._shared(run.channels | {channel})
        self.index.counts[channel] = self.index.counts.get(channel, 0) + 1
        return True

    def _chunk(self, at: int, stop: int) -> int | None:
        """Take a chunk, or count it as bad where its content is damaged."""
        try:
            head = parse_chunk_head(self.file, at)
        except RecordError:
            return None
        try:
            self._take(head, load_chunk(self.file, head))
        except RecordError:
            self._bad_chunk(at)
            end = at + head.size
            return end if self._plausible(end, stop) else self._scan(at + 1, stop)
        return at + head.size

    def _hidden_chunk(self, at: int, stop: int) -> bool:
        """Take a chunk whose opcode alone is damaged."""
        try:
            head = parse_chunk_head(self.file, at)
            if at + head.size > stop or not head.crc:
                return False
            self._take(head, load_chunk(self.file, head))
        except RecordError:
            return False
        self.index.damage.bad_records += 1
        return True

    def _take(self, head: ChunkHead, content: Content) -> None:
        for schema in content.schemas:
            self.index.schemas.setdefault(schema.id, schema)
        for channel in content.channels:
            self.index.channels.setdefault(channel.id, channel)
        counts = self.index.counts
        for message in content.messages:
            counts[message.channel] = counts.get(message.channel, 0) + 1
        if content.messages:
            log = [message.log_ns for message in content.messages]
            publish = [message.publish_ns for message in content.messages]
            channels = self._shared(frozenset(message.channel for message in content.messages))
            self.index.sources.append(
                Source(
                    head.offset, head.size, min(log), max(log), head,
                    channels=channels, publish_ns=(min(publish), max(publish)),
                )
            )  # fmt: skip
        else:
            self.index.sources.append(Source(head.offset, head.size, 0, 0, head, channels=frozenset()))

    def _shared(self, channels: frozenset[int]) -> frozenset[int]:
        return self._same.setdefault(channels, channels)

    def _bad_chunk(self, at: int) -> None:
        self.index.damage.bad_chunks += 1
        self.index.damage.bad_chunk_offsets.append(at)

    def _recover(self, at: int, stop: int) -> int | None:
        """Where the next sound record begins after damage at `at`; None where the file simply ends there, or nothing follows."""
        head = self.file.head(at)
        is_chunk = head is not None and head[0] == CHUNK
        if is_chunk and not self.whole:
            try:
                if at + parse_chunk_head(self.file, at).size > stop:
                    return None  # two lengths agree on it: cut off
            except RecordError:
                pass
        following = self._scan(at + 1, stop)
        if is_chunk and (following is not None or self.whole):
            self._bad_chunk(at)
        elif following is not None:
            self.index.damage.bad_records += 1
        return following

    def _scan(self, at: int, stop: int) -> int | None:
        while at < stop:
            window = self.file.read(at, min(_WINDOW_BYTES + HEAD_BYTES, stop - at))
            for match in _BEGINNING.finditer(window):
                if self._begins_anew(at + match.start(), stop):
                    return at + match.start()
            at += _WINDOW_BYTES
        return None

    def _begins_anew(self, at: int, stop: int) -> bool:
        """Whether records begin there: a chunk whose lengths agree, or a chain of three that are sound."""
        for _ in range(3):
            if at == stop:
                return True
            head = self.file.head(at)
            if head is None or not self._sound(at, stop):
                return False
            end = at + HEAD_BYTES + head[1]
            if head[0] == CHUNK:
                return self._plausible(end, stop)
            if head[0] == DATA_END:
                return True
            at = end
        return True

    def _unchunked(self) -> bool:
        """Whether the file keeps its messages outside chunks, as far as it was walked."""
        sources = self.index.sources
        return bool(sources) and not self.index.damage.bad_chunks and all(source.head is None for source in sources)

    def _plausible(self, at: int, stop: int) -> bool:
        """Whether a record may begin there."""
        if at == stop:
            return True
        head = self.file.head(at)
        if head is None:
            return not self.whole and at < stop
        known = 0 < head[0] <= DATA_END or head[0] >= _PRIVATE
        return known and head[1] < 1 << 40 and (not self.whole or at + HEAD_BYTES + head[1] <= stop)

    def _sound(self, at: int, stop: int) -> bool:
        """Whether the record there has the structure that its opcode asks for."""
        head = self.file.head(at)
        if head is None or at + HEAD_BYTES + head[1] > stop:
            return False
        try:
            return self._structured(*head, at)
        except RecordError:
            return False

    def _structured(self, opcode: int, length: int, at: int) -> bool:
        if opcode == CHUNK:
            return parse_chunk_head(self.file, at).compression in ("", "lz4", "zstd")
        if opcode == MESSAGE:
            data = self.file.read(at + HEAD_BYTES, _MESSAGE_HEAD_BYTES)
            return length >= _MESSAGE_HEAD_BYTES and message_times(data)[0] in self.index.channels and self._unchunked()
        if opcode in (DATA_END, FOOTER):
            return length == (DATA_END_BYTES if opcode == DATA_END else FOOTER_BYTES) - HEAD_BYTES
        fields = Fields(self.file.read(at + HEAD_BYTES, length if opcode == METADATA else min(length, 1 << 16)))
        if opcode == MESSAGE_INDEX:
            fields.number(2)
            return fields.number(4) == length - 6
        if opcode == ATTACHMENT:
            fields.take(16)
            fields.text()
            fields.text()
            return fields.number(8) == length - fields.position - 4
        if opcode == METADATA:
            fields.text()
            fields.sized()
            return not fields.more
        if opcode == HEADER:
            fields.text()
            fields.text()
        return 0 < opcode <= DATA_END
