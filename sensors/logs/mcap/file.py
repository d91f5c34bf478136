"""A file that is read at offsets, for MCAP. It needs no library."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from sensors.logs.log import LogError

MAGIC = b"\x89MCAP0\r\n"
HEAD = struct.Struct("<BQ")  # of a record: opcode, length of its content
HEAD_BYTES = HEAD.size


class RecordError(ValueError):
    """Bytes that are not the record they claim to be. Never leaves `sensors.logs`."""


class RandomFile:
    """A file, open for reading until it is closed; LogError where it cannot be opened or read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._stream = path.open("rb")
        except OSError as error:
            raise LogError(f"{path}: cannot be opened: {error.strerror}") from error
        self.size = os.fstat(self._stream.fileno()).st_size

    def close(self) -> None:
        self._stream.close()

    def at(self, offset: int) -> RandomFile:
        """Itself, where the next `read` begins at `offset`."""
        self._stream.seek(min(offset, self.size))
        return self

    def read(self, count: int) -> bytes:
        """Up to `count` bytes: fewer at the file's end only."""
        try:
            return self._stream.read(count)
        except OSError as error:
            raise LogError(f"{self.path}: cannot be read: {error}. Copy the file again") from error

    def head(self, offset: int) -> tuple[int, int] | None:
        """Opcode of the record there and where it ends, `read` begins at its content; None where the file ends before that."""
        data = self.at(offset).read(HEAD_BYTES)
        if len(data) < HEAD_BYTES:
            return None
        opcode, length = HEAD.unpack(data)
        return opcode, offset + HEAD_BYTES + length

    def crc(self, begin: int, end: int) -> int:
        """CRC-32 of the bytes from `begin` to `end`, read in pieces."""
        crc = 0
        for at in range(begin, end, 1 << 20):
            crc = zlib.crc32(self.at(at).read(min(end - at, 1 << 20)), crc)
        return crc

    def ends_whole(self) -> bool:
        """Whether it ends as a finished MCAP file does."""
        return self.size >= 2 * len(MAGIC) and self.at(self.size - len(MAGIC)).read(len(MAGIC)) == MAGIC
