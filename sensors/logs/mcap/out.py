"""MCAP files that appear whole or not at all, and of which a killed writer loses one chunk at most."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sensors.logs.encode import EncodeError, MissingLogLibraryError
from sensors.logs.log import LogError

CHUNK_BYTES = 64 * 1024
LIBRARY = "robustbev"
_UINT64 = 2**64


class AtomicMcapWriter:
    """Writes `path` under a temporary name beside it and renames it at `close`; `abort` leaves nothing behind.

    A chunk ends with the message that makes it longer than `chunk_bytes`, zstd-compressed, with checksums, and is handed to the
    operating system at once. So a writer that is killed leaves `<name>.<letters>.partial`, an MCAP file without an end, in
    which all but the messages of the last chunk can be read. Equal calls give equal bytes.

    As a context manager it closes, or aborts when an exception passes.

    Raises:
        LogError: the target exists and `overwrite` is not set, or its folder cannot be written to.
        MissingLogLibraryError: mcap is not installed.
    """

    def __init__(
        self, path: Path, *, profile: str = "", overwrite: bool = False, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        try:
            from mcap.writer import CompressionType, Writer
        except ImportError as error:
            raise MissingLogLibraryError("mcap") from error
        self.path = path
        self.messages = 0
        self._overwrite = overwrite
        self._counts: dict[int, int] = {}
        self._schemas: dict[tuple[str, str, bytes], int] = {}
        check_target(path, overwrite=overwrite)
        self.partial_path = partial_name(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.partial_path.open("xb")
        except OSError as error:
            raise LogError(f"{path}: cannot be written: {error.strerror}. Give another place") from error
        self._writer: Any = Writer(
            self._file,
            chunk_size=chunk_bytes,
            compression=CompressionType.ZSTD,
            enable_crcs=True,
            enable_data_crcs=True,
        )
        self._writer.start(profile=profile, library=LIBRARY)
        self._file.flush()

    def add_channel(
        self,
        topic: str,
        *,
        encoding: str,
        schema_name: str,
        schema_encoding: str,
        schema: bytes,
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """The id to `write` a topic's messages with. Equal schemas are stored once."""
        key = (schema_name, schema_encoding, schema)
        if key not in self._schemas:
            self._schemas[key] = self._writer.register_schema(schema_name, schema_encoding, schema)
        channel: int = self._writer.register_channel(topic, encoding, self._schemas[key], dict(metadata or {}))
        self._counts[channel] = 0
        return channel

    def write(self, channel: int, log_time_ns: int, data: bytes, *, publish_time_ns: int | None = None) -> None:
        """One message; the time of publishing is that of recording where it is not given.

        Raises:
            EncodeError: a time that MCAP cannot hold. Nothing was written, and other messages can be.
        """
        publish_time_ns = log_time_ns if publish_time_ns is None else publish_time_ns
        if not (0 <= log_time_ns < _UINT64 and 0 <= publish_time_ns < _UINT64):
            raise EncodeError(
                f"expected times of 0 to 2^64 - 1 ns since 1970, as MCAP has them, got {log_time_ns} and {publish_time_ns}"
            )
        self._counts[channel] += 1
        self._writer.add_message(channel, log_time_ns, data, publish_time_ns, sequence=self._counts[channel])
        self._file.flush()  # whatever chunk has become full
        self.messages += 1

    def add_metadata(self, name: str, values: Mapping[str, str]) -> None:
        """A metadata record, after the chunk that is being filled."""
        self._writer.flush()
        self._writer.add_metadata(name, dict(values))

    def close(self) -> None:
        """Ends the file and gives it its name.

        Raises:
            LogError: the target has come into being meanwhile. Nothing is left behind.
        """
        try:
            self._writer.finish()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            check_target(self.path, overwrite=self._overwrite)
            self.partial_path.replace(self.path)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Gives up. Nothing under the final name is touched."""
        with contextlib.suppress(OSError):  # a full disk says so again when its last buffer is flushed
            self._file.close()
        self.partial_path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def check_target(path: Path, *, overwrite: bool) -> None:
    """LogError where something stands under this name and may not be replaced."""
    if path.exists() and not overwrite:
        raise LogError(f"{path}: exists already. Remove it, give another name, or allow it to be overwritten")


def partial_name(path: Path) -> Path:
    """A name beside `path` that nothing else has, to write under."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
