"""Records of MCAP files, parsed by the mcap library, with every length checked.

A record is an opcode (1 byte), a length (8 bytes) and so many bytes of content, little endian. Messages lie in chunks, whose
CRC-32 covers the uncompressed content, or outside any chunk, where only the checksum of the whole data section (often not
recorded) covers them. Format: https://mcap.dev/spec.

The library's own `breakup_chunk` trusts what it reads: it decompresses whatever is claimed, and gives less than a length says
without a word. So the content of chunks is bounded, decompressed and split here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from io import BytesIO
from typing import Any, TypeAlias, TypeVar

import zstandard
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, McapRecord, Schema

from sensors.logs.mcap.file import HEAD, HEAD_BYTES, RandomFile, RecordError

_lz4: Any = import_module("lz4.frame")  # it has no type information

LARGEST_BYTES = 128 * 2**20  # of a record, and of a chunk once decompressed; a few kilobytes can claim any number
MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_MOST_MESSAGES = 1_000_000  # of a chunk; each costs some 200 bytes beside its own
_FREE_MESSAGES = 1000  # beyond them each is a byte of the file at least: two that differ by their time are several
_MOST_DEFINED_BYTES = 16 * 2**20  # of a chunk's schemas and channels
COMPRESSIONS = ("", "lz4", "zstd")

Entry: TypeAlias = tuple[int, int, int, int, int]  # log time, publish time, channel, begin and end of the payload
Record = TypeVar("Record", bound=McapRecord)


@dataclass
class Content:
    """What a chunk, or a run of records outside any, holds."""

    data: bytes
    definitions: list[Schema | Channel] = field(default_factory=list)
    messages: list[Entry] = field(default_factory=list)


class Exactly(ReadDataStream):
    """The content of one record; to read beyond it is an error, where the library would give less than was asked for."""

    def __init__(self, source: RandomFile | BytesIO, length: int) -> None:
        super().__init__(source)  # type: ignore[arg-type] # which is only read from
        self._source, self._length, self.left = source, length, length

    @property
    def count(self) -> int:
        return self._length - self.left

    def read(self, length: int) -> bytes:
        data = self._source.read(length) if 0 <= length <= self.left and length <= LARGEST_BYTES else b""
        if len(data) != length:
            raise RecordError(f"expected {length} bytes, got {self.left}, or more than {LARGEST_BYTES}")
        self.left -= length
        return data

    def parse(self, kind: type[Record], *, whole: bool = False) -> Record:
        """A record of this kind; RecordError where it is none, or where with `whole` bytes are left over."""
        try:
            record: Record = kind.read(self)  # type: ignore[attr-defined] # the base class lacks it
        except (RecordError, UnicodeDecodeError) as error:
            raise RecordError(f"expected a {kind.__name__} record, got bytes that are none: {error}") from error
        if whole and self.left:
            raise RecordError(f"expected a {kind.__name__} record, got one and {self.left} bytes more")
        return record


def split(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(opcode, begin and end of the content) of each record; RecordError where they do not fill the data exactly."""
    at, total = 0, len(data)
    while at < total:
        opcode, length = HEAD.unpack_from(data, at) if at + HEAD_BYTES <= total else (0, 0)
        begin, end = at + HEAD_BYTES, at + HEAD_BYTES + length
        if not opcode or end > total:  # the format has no opcode 0; a length that is wrong leads into zeros
            raise RecordError(f"expected a whole record at byte {at} of {total}, got opcode {opcode}, {length} bytes")
        yield opcode, begin, end
        at = end


def parse_content(data: bytes, packed_bytes: int) -> Content:
    """The records of data that take `packed_bytes` in the file; RecordError where they are none."""
    content, defined = Content(data), 0
    most = min(_MOST_MESSAGES, _FREE_MESSAGES + packed_bytes)
    for opcode, begin, end in split(data):
        if opcode == Opcode.MESSAGE:
            if end - begin < MESSAGE_HEAD.size or len(content.messages) == most:
                raise RecordError(f"expected at most {most} messages of {MESSAGE_HEAD.size} bytes or more")
            channel, _, log_ns, publish_ns = MESSAGE_HEAD.unpack_from(data, begin)
            content.messages.append((log_ns, publish_ns, channel, begin + MESSAGE_HEAD.size, end))
        elif opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
            defined += end - begin
            if defined > _MOST_DEFINED_BYTES:
                raise RecordError(f"expected schemas and channels of at most {_MOST_DEFINED_BYTES} bytes, got more")
            kind: type[Schema | Channel] = Schema if opcode == Opcode.SCHEMA else Channel
            content.definitions.append(Exactly(BytesIO(data[begin:end]), end - begin).parse(kind))
    return content


def content_of(chunk: Chunk) -> Content:
    """What a chunk holds; RecordError where it is too large, does not decompress, or its checksum is wrong."""
    size = chunk.uncompressed_size
    if size > LARGEST_BYTES:
        raise RecordError(f"expected a chunk of at most {LARGEST_BYTES} bytes, got one of {size}")
    if chunk.compression not in COMPRESSIONS:
        raise RecordError(f"expected a compression of '', 'lz4', 'zstd', got {chunk.compression!r}")
    try:
        data = chunk.data
        if chunk.compression == "zstd":
            # What the frame itself states decides what is allocated; -1: it does not say.
            if (stated := zstandard.frame_content_size(data)) not in (-1, size):
                raise zstandard.ZstdError(f"its frame states {stated} bytes, the chunk {size}")
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
        elif chunk.compression == "lz4":
            data = _lz4.LZ4FrameDecompressor().decompress(data, max_length=size + 1)
    except (zstandard.ZstdError, RuntimeError, EOFError, ValueError, OverflowError, MemoryError) as error:
        raise RecordError(f"expected {chunk.compression} data, got what does not decompress ({error})") from error
    if len(data) != size:
        raise RecordError(f"expected {size} bytes after decompression, got {len(data)}")
    if chunk.uncompressed_crc and zlib.crc32(data) != chunk.uncompressed_crc:
        raise RecordError(f"expected the checksum {chunk.uncompressed_crc:#010x}, got {zlib.crc32(data):#010x}")
    return parse_content(data, len(chunk.data))
