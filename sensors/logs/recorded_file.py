"""One file of recorded messages: what a log asks of it, whatever its format."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from sensors.logs.decode import ChannelInfo
from sensors.logs.log import Damage, LogWarning

Item = TypeVar("Item")


class RawMessage(NamedTuple):
    """A message as its bytes, with the number of its channel within its file."""

    log_ns: int
    publish_ns: int
    channel: int
    data: bytes


@dataclass
class Held:
    """Bytes that a reading holds at present, in all of the log's files together."""

    bytes: int = 0


@dataclass(frozen=True)
class Query:
    """Which messages to read; the span is half open, in log time."""

    channels: frozenset[int] | None
    start_ns: int | None
    end_ns: int | None
    held: Held = field(default_factory=Held)

    def misses(self, span_ns: tuple[int, int]) -> bool:
        """Whether nothing from the first to the last of these times is asked for."""
        before = self.start_ns is not None and span_ns[1] < self.start_ns
        return before or (self.end_ns is not None and span_ns[0] >= self.end_ns)


class Notices:
    """LogWarnings about one file: one of each kind, however often it is opened."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def tell(self, text: str, kind: str = "damage") -> None:
        if kind not in self._given:
            self._given.add(kind)
            warnings.warn(text, LogWarning, stacklevel=3)


class RecordedFile(Protocol):
    """One file of a log; it holds no descriptor but while it is read, and what it keeps in memory may grow with the file."""

    @property
    def channels(self) -> dict[int, ChannelInfo]: ...

    def counts(self) -> dict[int, int]:
        """Messages of each channel that has any."""
        ...

    def span_ns(self) -> tuple[int, int] | None:
        """First and last log time; None: no messages, or not known."""
        ...

    def new_damage(self) -> Damage:
        """What is known to be damaged before any message is read; `read` counts on in it."""
        ...

    def read(self, query: Query, damage: Damage) -> Iterator[RawMessage]:
        """Messages in order of log time; equal times as in the file. What is damaged is left out and counted."""
        ...

    def storage(self) -> str:
        """Chunks and compression, or whatever there is to say, for people."""
        ...


OpenFile: TypeAlias = Callable[[Path, Notices], RecordedFile]


def merge_due(
    waiting: Iterable[tuple[int, int, Callable[[int], Iterator[Item]]]], time_of: Callable[[Item], int]
) -> Iterator[Item]:
    """Items of several streams in order; each stream is begun when the first of its items is due, dropped after its last.

    `waiting` gives (time of the first item, number, how to begin) by time and number; equal times come by number. A stream
    whose items are earlier than it says gives them late.
    """
    cursors: list[tuple[int, int, Item, Iterator[Item]]] = []
    ahead = iter(waiting)
    coming = next(ahead, None)
    while cursors or coming is not None:
        while coming is not None and (not cursors or coming[0] <= cursors[0][0]):
            _, number, begin = coming
            stream = begin(number)
            if (first := next(stream, None)) is not None:
                heapq.heappush(cursors, (time_of(first), number, first, stream))
            coming = next(ahead, None)
        if not cursors:
            continue
        _, number, item, stream = cursors[0]
        yield item
        following = next(stream, None)
        if following is None:
            heapq.heappop(cursors)
        else:
            heapq.heapreplace(cursors, (time_of(following), number, following, stream))
