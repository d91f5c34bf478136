"""What every drive log can do, whatever its format."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sensors.logs.messages import LogMessage


class LogError(ValueError):
    """A log that cannot be read at all: missing, empty, of no known format, or without what was asked for."""


class LogWarning(UserWarning):
    """A log that is damaged in part, and is read all the same."""


@dataclass(frozen=True)
class TopicInfo:
    """A topic as the log's own index or headers describe it."""

    name: str
    type: str  # schema or message type: "foxglove.CompressedImage", "sensor_msgs/msg/PointCloud2"
    encoding: str  # "protobuf", "json", "cdr", "nuscenes"
    count: int  # of its messages


@dataclass
class Damage:
    """What could not be read, counted while `Log.messages` runs."""

    truncated_at_byte: int | None = None  # offset in the file of the first byte that belongs to nothing whole
    bad_chunks: int = 0  # left out: their checksum is wrong, or they do not decompress
    bad_chunk_offsets: list[int] = field(default_factory=list)
    bad_records: int = 0  # left out: records outside any chunk, or metadata, that make no sense
    bad_files: int = 0  # left out: they cannot be opened, of a log in several
    malformed: dict[str, int] = field(default_factory=dict)  # topic -> messages that came whole and make no sense
    _offsets: set[int] = field(default_factory=set, init=False, repr=False, compare=False)  # of bad chunks

    def add_bad_chunk(self, offset: int) -> None:
        """Counts a chunk as bad, once."""
        if offset not in self._offsets:
            self._offsets.add(offset)
            self.bad_chunks += 1
            self.bad_chunk_offsets.append(offset)

    def __bool__(self) -> bool:
        left_out = self.bad_chunks or self.bad_records or self.bad_files or self.malformed
        return bool(self.truncated_at_byte is not None or left_out)


class Log(Protocol):
    """A drive log, open for reading. Reading it twice gives the same messages."""

    @property
    def path(self) -> Path: ...

    @property
    def damage(self) -> Damage: ...  # of the last full reading so far

    def topics(self) -> tuple[TopicInfo, ...]: ...

    def span_ns(self) -> tuple[int, int] | None:
        """First and last log time; None for a log without messages."""
        ...

    def messages(
        self,
        *,
        topics: Collection[str] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
    ) -> Iterator[LogMessage]:
        """The messages in order of `log_time_ns`; equal times keep the file's order.

        From `start_ns` on and before `end_ns`. Before the first of them come, with their own times, what was latched before
        `start_ns`: every static transform, and each camera's last calibration.
        """
        ...
