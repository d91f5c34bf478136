"""What a log holds, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sensors.camera.picture_files import check_whole
from sensors.errors import PictureError
from sensors.logs.log import Damage, Log
from sensors.logs.mapping.propose import Proposal, propose_mapping
from sensors.logs.messages import EncodedImage, FrameTransforms, Malformed, Payload, RawImage
from sensors.logs.pixels import unknown_encoding

_SECOND_NS = 1_000_000_000


@dataclass
class TopicSummary:
    """A topic's messages, by the times at which they were recorded."""

    name: str
    type: str = ""
    encoding: str = ""
    count: int = 0
    malformed: int = 0  # or pictures that nothing here reads
    reason: str = ""  # what is wrong with the first of these; "" for none
    first_ns: int | None = None  # None: no message
    last_ns: int | None = None
    largest_gap_s: float | None = None  # None: fewer than two messages

    @property
    def rate_hz(self) -> float | None:
        """Mean rate; None for fewer than two messages, or all at one time."""
        if self.first_ns is None or self.last_ns is None or self.last_ns <= self.first_ns:
            return None
        return (self.count - 1) * _SECOND_NS / (self.last_ns - self.first_ns)

    def add(self, time_ns: int, fault: str) -> None:
        """Count a message, and why it cannot be read, "" where it can."""
        if self.last_ns is None:
            self.first_ns = time_ns
        else:
            self.largest_gap_s = max(self.largest_gap_s or 0.0, (time_ns - self.last_ns) / _SECOND_NS)
        self.last_ns = time_ns
        self.count += 1
        self.malformed += bool(fault)
        self.reason = self.reason or fault


@dataclass(frozen=True)
class FrameSummary:
    """An edge of the tree of frames."""

    parent: str
    child: str
    static: bool
    count: int


@dataclass(frozen=True)
class LogSummary:
    """A log at a glance."""

    path: Path
    storage: str  # format, chunks and compression; empty where the log does not say
    topics: tuple[TopicSummary, ...]
    span_ns: tuple[int, int] | None
    damage: Damage
    frames: tuple[FrameSummary, ...]
    proposal: Proposal

    @property
    def duration_s(self) -> float:
        return 0.0 if self.span_ns is None else (self.span_ns[1] - self.span_ns[0]) / _SECOND_NS

    def tree(self) -> Iterator[tuple[int, str, str]]:
        """(depth, frame, "static", "moving" or "root") from the roots down; frames in a loop come as roots of their own.

        A frame of several parents comes below each, and what stands in it below the first of them.
        """
        children: dict[str, dict[str, FrameSummary]] = {}
        for edge in self.frames:
            children.setdefault(edge.parent, {}).setdefault(edge.child, edge)
        below = {edge.child for edge in self.frames}
        names = sorted({edge.parent for edge in self.frames} | below, key=lambda name: (name in below, name))
        done: set[str] = set()
        for name in names:
            stack = [] if name in done else [(0, name, "root")]
            while stack:
                depth, frame, kind = stack.pop()
                yield depth, frame, kind
                if frame in done:
                    continue
                done.add(frame)
                for _, edge in sorted(children.get(frame, {}).items(), reverse=True):
                    stack.append((depth + 1, edge.child, "static" if edge.static else "moving"))

    def several_parents(self) -> dict[str, list[str]]:
        """Frame -> its parents, of those that have more than one."""
        parents: dict[str, list[str]] = {}
        for edge in self.frames:
            if edge.parent not in (above := parents.setdefault(edge.child, [])):
                above.append(edge.parent)
        return {child: above for child, above in parents.items() if len(above) > 1}


def inspect_log(log: Log) -> LogSummary:
    """Read the whole log once, decode every message, and say what is there. Memory does not grow with its length."""
    topics = {topic.name: TopicSummary(topic.name, topic.type, topic.encoding) for topic in log.topics()}
    edges: dict[tuple[str, str, bool], int] = {}
    span: tuple[int, int] | None = None
    for message in log.messages():
        payload, time_ns = message.payload, message.log_time_ns
        topics.setdefault(message.topic, TopicSummary(message.topic)).add(time_ns, _fault(payload))
        span = (time_ns if span is None else span[0], time_ns)
        if isinstance(payload, FrameTransforms):
            for transform in payload.transforms:
                edge = (transform.parent, transform.child, payload.static)
                edges[edge] = edges.get(edge, 0) + 1
    damage = log.damage
    frames = tuple(FrameSummary(*edge, count) for edge, count in sorted(edges.items()))
    listed = tuple(topic for _, topic in sorted(topics.items()))
    return LogSummary(log.path, str(getattr(log, "storage", "")), listed, span, damage, frames, propose_mapping(log))


def _fault(payload: Payload) -> str:
    """Why a message cannot be read; "" where nothing speaks against it before its pixels are decoded."""
    match payload:
        case Malformed():
            return payload.reason
        case RawImage():
            return unknown_encoding(payload.encoding)
        case EncodedImage():
            try:
                check_whole(payload.data)
            except PictureError as error:
                return f"{error}; the log calls it {payload.format[:40]!r}"
    return ""
