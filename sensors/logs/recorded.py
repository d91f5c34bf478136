"""What logs of recorded messages have in common, whatever their files: order, seeking, decoding and counting."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, Protocol

from sensors.logs.decode import ChannelInfo, Decoder, is_camera_info, is_transform
from sensors.logs.log import Damage, Order, TopicInfo
from sensors.logs.messages import FrameTransform, FrameTransforms, LogMessage, Malformed


class RawMessage(NamedTuple):
    """A message as its bytes, with the number of its channel within its file."""

    log_ns: int
    publish_ns: int
    channel: int
    data: bytes


@dataclass(frozen=True)
class Query:
    """Which messages to read, and in what order. The span is half open, in the time that they are ordered by."""

    channels: frozenset[int] | None
    start_ns: int | None
    end_ns: int | None
    order: Order

    def key(self, message: RawMessage) -> int:
        return message.log_ns if self.order == "log" else message.publish_ns


class RecordedFile(Protocol):
    """One file of a log."""

    @property
    def channels(self) -> dict[int, ChannelInfo]: ...

    def span_ns(self) -> tuple[int, int] | None: ...

    def new_damage(self) -> Damage:
        """What is known to be damaged before any message is read; `read` counts on in it."""
        ...

    def read(self, query: Query, damage: Damage) -> Iterator[RawMessage]:
        """Messages in order; equal times as in the file. What is damaged is left out and counted."""
        ...

    def storage(self) -> str:
        """Chunks and compression, or whatever there is to say, for people."""
        ...


class RecordedLog:
    """A log in one file or several; implements `sensors.logs.log.Log`.

    Reading never raises for damage within: it is left out, counted in `damage`, and told once as a LogWarning.
    A seek reads the transforms and calibrations before `start_ns`, and decompresses the chunks that hold them.
    """

    def __init__(self, path: Path, files: Sequence[RecordedFile]) -> None:
        self._path = path
        self._files = tuple(files)
        self._counts = [file.new_damage() for file in self._files]
        self._malformed: dict[str, int] = {}
        self._decoders = [Decoder(file.channels) for file in self._files]

    @property
    def path(self) -> Path:
        return self._path

    @property
    def damage(self) -> Damage:
        """Of the last reading; before any, what opening the log has shown."""
        total = Damage(malformed=dict(self._malformed))
        for count in self._counts:
            if total.truncated_at_byte is None:
                total.truncated_at_byte = count.truncated_at_byte
            total.bad_chunks += count.bad_chunks
            total.bad_chunk_offsets += count.bad_chunk_offsets
            total.bad_records += count.bad_records
        return total

    @property
    def storage(self) -> str:
        """How the log is stored, for people."""
        return "; ".join(file.storage() for file in self._files)

    def topics(self) -> tuple[TopicInfo, ...]:
        """All topics by name; one that comes with several types is listed with the first."""
        topics: dict[str, TopicInfo] = {}
        for file in self._files:
            for channel in file.channels.values():
                known = topics.get(channel.topic)
                count = channel.count
                if known is not None:
                    count = None if known.count is None or count is None else known.count + count
                    topics[channel.topic] = TopicInfo(known.name, known.type, known.encoding, count)
                else:
                    topics[channel.topic] = TopicInfo(channel.topic, channel.type, channel.encoding, count)
        return tuple(sorted(topics.values(), key=attrgetter("name")))

    def span_ns(self) -> tuple[int, int] | None:
        spans = [span for file in self._files if (span := file.span_ns()) is not None]
        return (min(start for start, _ in spans), max(end for _, end in spans)) if spans else None

    def messages(
        self,
        *,
        topics: Collection[str] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        order: Order = "log",
    ) -> Iterator[LogMessage]:
        """The messages in order; see `sensors.logs.log.Log`.

        Before `start_ns`, each pair of frames' last transform comes too where its topic is not static: what was sent once, or
        seldom, holds on. In publish order a file is read twice, the first time for its chunks' times.
        """
        wanted = None if topics is None else frozenset(topics)
        counts = self._counts = [file.new_damage() for file in self._files]
        self._malformed = {}
        if start_ns is not None:
            yield from self._latched(wanted, start_ns, order, counts)
        for number, raw in self._raw(wanted, start_ns, end_ns, order, counts):
            yield self._message(number, raw)

    def _raw(
        self,
        topics: frozenset[str] | None,
        start_ns: int | None,
        end_ns: int | None,
        order: Order,
        counts: Sequence[Damage],
        only_latched: bool = False,
    ) -> Iterator[tuple[int, RawMessage]]:
        """(file, message) of all files, in order."""
        streams = []
        for number, (file, damage) in enumerate(zip(self._files, counts, strict=True)):
            keys = [
                key
                for key, channel in file.channels.items()
                if (topics is None or channel.topic in topics)
                and (not only_latched or is_transform(channel) or is_camera_info(channel))
            ]
            everything = topics is None and not only_latched
            query = Query(None if everything else frozenset(keys), start_ns, end_ns, order)
            streams.append(_numbered(number, file.read(query, damage)))
        if len(streams) == 1:
            return streams[0]
        by_publish = order == "publish"
        return heapq.merge(*streams, key=lambda pair: pair[1].publish_ns if by_publish else pair[1].log_ns)

    def _latched(
        self, topics: frozenset[str] | None, start_ns: int, order: Order, counts: Sequence[Damage]
    ) -> Iterator[LogMessage]:
        """What holds from before the start: static transforms, each pair's last transform, each camera's last calibration."""
        calibrations: dict[str, tuple[int, int, RawMessage]] = {}  # topic -> place, file, message
        transforms: dict[tuple[bool, str, str], tuple[int, LogMessage, FrameTransform]] = {}
        for place, (number, raw) in enumerate(self._raw(topics, None, start_ns, order, counts, only_latched=True)):
            channel = self._files[number].channels[raw.channel]
            if is_camera_info(channel):
                calibrations[channel.topic] = (place, number, raw)
                continue
            message = self._message(number, raw)
            if isinstance(message.payload, FrameTransforms):
                for transform in message.payload.transforms:
                    pair = (message.payload.static, transform.parent, transform.child)
                    transforms[pair] = (place, message, transform)
        latched = {place: self._message(number, raw) for place, number, raw in calibrations.values()}
        held: dict[int, list[FrameTransform]] = {}
        for place, message, transform in transforms.values():
            latched[place] = message
            held.setdefault(place, []).append(transform)
        for place in sorted(latched):
            message = latched[place]
            if isinstance(message.payload, FrameTransforms):
                message = replace(message, payload=replace(message.payload, transforms=tuple(held[place])))
            yield message

    def _message(self, number: int, raw: RawMessage) -> LogMessage:
        channel = self._files[number].channels[raw.channel]
        payload = self._decoders[number].decode(raw.channel, raw.data, raw.log_ns)
        if isinstance(payload, Malformed):
            self._malformed[channel.topic] = self._malformed.get(channel.topic, 0) + 1
        return LogMessage(channel.topic, raw.log_ns, raw.publish_ns, payload)


def _numbered(number: int, messages: Iterator[RawMessage]) -> Iterator[tuple[int, RawMessage]]:
    for message in messages:
        yield number, message
