"""MCAP at the level of its records: framing, chunks and their checksums, with every length checked.

A record is an opcode (1 byte), a length (8 bytes) and so many bytes of content, little endian. Messages lie in chunks, whose
CRC-32 covers the uncompressed content, or outside any chunk, where only the checksum of the whole data section (often not
recorded) covers them. Format: https://mcap.dev/spec.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from sys import intern

from sensors.logs.log import LogError

MAGIC = b"\x89MCAP0\r\n"
HEAD_BYTES = 9
FOOTER_BYTES = HEAD_BYTES + 20
DATA_END_BYTES = HEAD_BYTES + 4

HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, CHUNK_INDEX = range(0x01, 0x09)
ATTACHMENT, ATTACHMENT_INDEX, STATISTICS, METADATA, METADATA_INDEX, SUMMARY_OFFSET, DATA_END = range(0x09, 0x10)

_HEAD = struct.Struct("<BQ")
_CHUNK = struct.Struct("<QQQII")  # start, end, uncompressed size, CRC, length of the compression's name
_MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_LONGEST_NAME = 32  # of a compression
_LARGEST_CHUNK_BYTES = 256 * 2**20  # once decompressed; a few kilobytes can claim any number


class RecordError(ValueError):
    """Bytes that are not the record they claim to be. Never leaves `sensors.logs`."""


@dataclass(frozen=True)
class Schema:
    """How the messages of some channels are laid out."""

    id: int
    name: str
    encoding: str
    data: bytes


@dataclass(frozen=True)
class Channel:
    """A topic, by the number that messages refer to it with."""

    id: int
    schema_id: int
    topic: str
    encoding: str


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """A chunk record before its data. `offset` is where the record begins in the file, `size` how long it is with its head."""

    offset: int
    size: int
    start_ns: int
    end_ns: int
    uncompressed_bytes: int
    crc: int  # 0: not recorded
    compression: str
    data_offset: int
    data_bytes: int


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """A message by where its payload lies in its chunk's content."""

    log_ns: int
    publish_ns: int
    channel: int
    begin: int
    end: int


@dataclass
class Content:
    """What a chunk, or a run of records outside any, holds."""

    data: bytes
    schemas: list[Schema] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)
    messages: list[MessageRecord] = field(default_factory=list)


class RandomFile:
    """A file read at offsets; it keeps no position, and holds nothing in memory."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes: fewer at the file's end only."""
        parts = []
        while count > 0:
            try:
                part = os.pread(self._descriptor, count, offset)
            except OSError as error:
                raise LogError(f"{self.path}: cannot be read at byte {offset}: {error}. Copy the file again") from error
            if not part:
                break
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def head(self, offset: int) -> tuple[int, int] | None:
        """Opcode and length of the record there; None where the file ends before."""
        data = self.read(offset, HEAD_BYTES)
        return None if len(data) < HEAD_BYTES else _HEAD.unpack(data)


@contextmanager
def random_file(path: Path) -> Iterator[RandomFile]:
    """The file, open for reading; LogError where it cannot be."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise LogError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        yield RandomFile(path, descriptor)
    finally:
        os.close(descriptor)


class Fields:
    """Takes fields from a record's content in order; RecordError where it is too short."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise RecordError(f"expected {count} bytes at {self.position}, got {len(self.data) - self.position}")
        part = self.data[self.position : end]
        self.position = end
        return part

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def text(self) -> str:
        try:
            return self.take(self.number(4)).decode()
        except UnicodeDecodeError as error:
            raise RecordError(f"expected UTF-8 text, got {error}") from error

    def sized(self) -> Fields:
        """The content of a map or array, which a length of 4 bytes precedes."""
        return Fields(self.take(self.number(4)))

    @property
    def more(self) -> bool:
        return self.position < len(self.data)


def parse_schema(data: bytes) -> Schema:
    """A schema record's content; RecordError where it is none."""
    fields = Fields(data)
    number, name, encoding = fields.number(2), fields.text(), fields.text()
    return Schema(number, name, encoding, fields.take(fields.number(4)))


def parse_channel(data: bytes, exactly: bool = False) -> Channel:
    """A channel record's content; RecordError where it is none, or with `exactly` where bytes are left over."""
    fields = Fields(data)
    channel = Channel(fields.number(2), fields.number(2), fields.text(), fields.text())
    metadata = fields.sized()
    while metadata.more:
        metadata.text()
        metadata.text()
    if exactly and fields.more:
        raise RecordError(f"expected a channel of {fields.position} bytes, got {len(data)}")
    return channel


def parse_chunk_head(file: RandomFile, offset: int, length: int | None = None) -> ChunkHead:
    """The chunk whose record begins at `offset`; RecordError unless its own lengths agree with the record's.

    `length` is that of the record where an index knows it, and the record's own may be damaged.
    """
    data = file.read(offset, HEAD_BYTES + _CHUNK.size + _LONGEST_NAME + 8)
    if len(data) < HEAD_BYTES + _CHUNK.size:
        raise RecordError("the file ends within the chunk's head")
    length = _HEAD.unpack_from(data)[1] if length is None else length
    start, end, uncompressed, crc, name_bytes = _CHUNK.unpack_from(data, HEAD_BYTES)
    at = HEAD_BYTES + _CHUNK.size
    if name_bytes > _LONGEST_NAME or len(data) < at + name_bytes + 8:
        raise RecordError(f"expected the name of a compression, got one of {name_bytes} bytes")
    compression = intern(data[at : at + name_bytes].decode("latin-1"))
    stored = int.from_bytes(data[at + name_bytes : at + name_bytes + 8], "little")
    before = _CHUNK.size + name_bytes + 8
    if stored != length - before:
        raise RecordError(f"expected {length - before} bytes of data in a chunk record of {length}, got {stored}")
    return ChunkHead(
        offset, HEAD_BYTES + length, start, end, uncompressed, crc, compression, offset + HEAD_BYTES + before, stored
    )


def load_chunk(file: RandomFile, head: ChunkHead) -> Content:
    """The chunk's content; RecordError where it is cut off, does not decompress, or its checksum is wrong."""
    if head.uncompressed_bytes > _LARGEST_CHUNK_BYTES:
        raise RecordError(
            f"expected a chunk of at most {_LARGEST_CHUNK_BYTES} bytes, got one of {head.uncompressed_bytes}"
        )
    stored = file.read(head.data_offset, head.data_bytes)
    if len(stored) < head.data_bytes:
        raise RecordError(f"expected {head.data_bytes} bytes, got {len(stored)}: the file ends within the chunk")
    data = decompress(stored, head.compression, head.uncompressed_bytes)
    if head.crc and zlib.crc32(data) != head.crc:
        raise RecordError(f"expected the checksum {head.crc:#010x}, got {zlib.crc32(data):#010x}")
    return parse_content(data)


def decompress(data: bytes, compression: str, size: int) -> bytes:
    """The uncompressed data, exactly `size` bytes; RecordError where it is not."""
    try:
        if compression == "":
            out = data
        elif compression == "zstd":
            out = _decompress_zstd(data, size)
        elif compression == "lz4":
            out = _decompress_lz4(data, size)
        else:
            raise RecordError(f"expected a compression of '', 'lz4', 'zstd', got {compression!r}")
    except ImportError as error:
        raise LogError(
            f"{compression} chunks need the library {error.name}: pip install 'robustbev[replay]'"
        ) from error
    if len(out) != size:
        raise RecordError(f"expected {size} bytes after decompression, got {len(out)}")
    return out


def _decompress_zstd(data: bytes, size: int) -> bytes:
    import zstandard

    try:
        # The frame's own size decides what is allocated, and a flipped bit can make it any number.
        stated = zstandard.frame_content_size(data)
        if stated >= 0:
            if stated != size:
                raise RecordError(f"expected a zstd frame of {size} bytes, got one of {stated}")
            return zstandard.ZstdDecompressor().decompress(data)
        parts, left = [], size + 1
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            while left > 0 and (part := reader.read(min(left, 1 << 20))):
                parts.append(part)
                left -= len(part)
        return b"".join(parts)
    except (zstandard.ZstdError, MemoryError) as error:
        raise RecordError(f"expected zstd data, got what does not decompress ({error})") from error


def _decompress_lz4(data: bytes, size: int) -> bytes:
    frame = import_module("lz4.frame")  # it has no type information
    try:
        reader = frame.LZ4FrameDecompressor()
        parts, left = [], size + 1
        part = reader.decompress(data, max_length=min(left, 1 << 24))
        while part and left > 0:
            parts.append(part)
            left -= len(part)
            if reader.eof or left <= 0:
                break
            part = reader.decompress(b"", max_length=min(left, 1 << 24))
    except (RuntimeError, EOFError, ValueError, OverflowError, MemoryError) as error:
        raise RecordError(f"expected lz4 data, got what does not decompress ({error})") from error
    if not reader.eof:
        raise RecordError("expected a whole lz4 frame, got one that does not end")
    return b"".join(parts)


def parse_content(data: bytes) -> Content:
    """The records of uncompressed data; RecordError where they do not fill it exactly."""
    content = Content(data)
    at, total = 0, len(data)
    while at < total:
        if at + HEAD_BYTES > total:
            raise RecordError(f"expected a record at byte {at} of the content, got {total - at} bytes")
        opcode, length = _HEAD.unpack_from(data, at)
        begin, end = at + HEAD_BYTES, at + HEAD_BYTES + length
        if end > total:
            raise RecordError(f"expected a record of {length} bytes at byte {at} of the content, got {total - begin}")
        if not opcode:  # the format has none such; a length that is wrong leads into zeros
            raise RecordError(f"expected a record at byte {at} of the content, got zeros")
        if opcode == MESSAGE:
            if length < _MESSAGE.size:
                raise RecordError(f"expected a message of at least {_MESSAGE.size} bytes, got {length}")
            channel, _, log_ns, publish_ns = _MESSAGE.unpack_from(data, begin)
            content.messages.append(MessageRecord(log_ns, publish_ns, channel, begin + _MESSAGE.size, end))
        elif opcode == SCHEMA:
            content.schemas.append(parse_schema(data[begin:end]))
        elif opcode == CHANNEL:
            content.channels.append(parse_channel(data[begin:end]))
        at = end
    return content


def message_times(data: bytes) -> tuple[int, int, int]:
    """Channel, log time and publish time from the first bytes of a message record's content."""
    channel, _, log_ns, publish_ns = _MESSAGE.unpack_from(data)
    return channel, log_ns, publish_ns


def crc_of(file: RandomFile, end: int, begin: int = 0) -> int:
    """CRC-32 of the file's bytes from `begin` to `end`, read in pieces."""
    crc = 0
    while begin < end:
        part = file.read(begin, min(end - begin, 1 << 20))
        if not part:
            break
        crc = zlib.crc32(part, crc)
        begin += len(part)
    return crc
