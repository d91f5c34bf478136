"""What logs of recorded messages have in common, whatever their files: order, seeking, decoding and counting."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from sensors.logs.decode import ChannelInfo, is_camera_info, is_transform
from sensors.logs.decoder import Decoder
from sensors.logs.log import Damage, LogError, Order, TopicInfo
from sensors.logs.messages import FrameTransform, FrameTransforms, LogMessage, Malformed
from sensors.logs.recorded_file import Notices, OpenFile, Query, RawMessage, RecordedFile, merge_due

_CHECKED_FILES = 8  # so many of an index's promises are held against the files before it is believed


@dataclass(frozen=True)
class Promise:
    """What a log's own index says of its files without one of them being opened."""

    spans_ns: tuple[tuple[int, int], ...]  # first and last log time of each file
    topics: tuple[TopicInfo, ...]


@dataclass
class _Part:
    """A file of the log and what is kept of it while it is closed."""

    path: Path
    notices: Notices = field(default_factory=Notices)
    span_ns: tuple[int, int] | None = None  # as promised until it is opened; None: not known, or no messages
    publish_ns: tuple[int, int] | None = None
    damage: Damage | None = None  # None: whole, as far as is known
    opened: bool = False  # once, at least, or it cannot be


@dataclass(frozen=True)
class _Channels:
    """How the messages of a file, or of several alike, are decoded."""

    infos: dict[int, ChannelInfo]
    decoder: Decoder


class _Due(NamedTuple):
    message: RawMessage
    part: int
    channels: _Channels


class RecordedLog:
    """A log in one file or several; implements `sensors.logs.log.Log`.

    Reading never raises for damage within: it is left out, counted in `damage`, and told once as a LogWarning.
    A seek reads the transforms and calibrations before `start_ns`, and decompresses the chunks that hold them.

    Of several files each is opened when the first of its messages is due and closed after its last, so that neither memory nor
    descriptors grow with their number, but with how many overlap in time. When that is says each file's own index, looked at
    once, or a `promise`, of which a few are checked. Messages earlier than was promised come late, with a LogWarning, and in
    their place from the next reading on; files that are promised to begin after `end_ns` are opened only until one of them
    does. Of several files, one that cannot be opened is left out as damage.

    Raises:
        LogError: not one of the files can be opened.
    """

    def __init__(self, path: Path, files: Sequence[Path], open_file: OpenFile, promise: Promise | None = None) -> None:
        self._path = path
        self._open_file = open_file
        self._parts = [_Part(file) for file in files]
        self._only: RecordedFile | None = None  # a log's only file keeps its index
        self._promised: frozenset[tuple[str, str, str]] | None = None  # topics that are believed
        self._known: _Channels | None = None
        self._storage = ""
        self._malformed: dict[str, int] = {}
        if promise is None or len(files) == 1 or not self._keeps(promise):
            self._topics = self._look()
        else:
            self._topics = promise.topics
        self._counts = self._damages()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def damage(self) -> Damage:
        """Of the last reading; before any, what opening the log has shown."""
        total = Damage(malformed=dict(self._malformed))
        for _, count in sorted(self._counts.items()):
            if total.truncated_at_byte is None:
                total.truncated_at_byte = count.truncated_at_byte
            total.bad_chunks += count.bad_chunks
            total.bad_chunk_offsets += count.bad_chunk_offsets
            total.bad_records += count.bad_records
            total.bad_files += count.bad_files
        return total

    @property
    def storage(self) -> str:
        """How the log is stored, for people."""
        return self._storage if len(self._parts) == 1 else f"{len(self._parts)} files, the first: {self._storage}"

    def topics(self) -> tuple[TopicInfo, ...]:
        """All topics by name; one that comes with several types is listed with the first."""
        return self._topics

    def span_ns(self) -> tuple[int, int] | None:
        spans = [part.span_ns for part in self._parts if part.span_ns is not None]
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
        seldom, holds on. In publish order a file is read twice, the first time for its chunks' times, and thrice where it is
        one of several.
        """
        selected = None if topics is None else frozenset(topics)
        counts = self._counts = self._damages()
        self._malformed = {}
        if start_ns is not None:
            yield from self._latched(selected, start_ns, order, counts)
        for due in self._raw(selected, Query(None, start_ns, end_ns, order), counts):
            yield self._message(due)

    def _raw(
        self, topics: frozenset[str] | None, query: Query, counts: dict[int, Damage], only_latched: bool = False
    ) -> Iterator[_Due]:
        """The messages of all files, in order."""
        if query.order == "log" and query.end_ns is not None:
            self._look_behind(query.end_ns)
        waiting = []
        for number, part in enumerate(self._parts):
            if query.order == "publish" and len(self._parts) > 1 and part.publish_ns is None:
                file = self._open(part)
                part.publish_ns = None if file is None else file.publish_span_ns()
            span = part.span_ns if query.order == "log" else part.publish_ns
            if span is None or not query.misses(span):
                # One whose times are not known is begun at once: its messages wait for their turn.
                waiting.append((-(2**63) if span is None else span[0], number))

        def begin(number: int) -> Iterator[_Due]:
            return self._stream(number, topics, query, counts, only_latched)

        last_ns: int | None = None
        streams = ((start, number, begin) for start, number in sorted(waiting))
        for due in merge_due(streams, lambda due: query.key(due.message)):
            time_ns = query.key(due.message)
            if last_ns is not None and time_ns < last_ns:
                part = self._parts[due.part]
                part.notices.tell(
                    f"{part.path}: expected no message before {last_ns} ns any more, as the log's index says, got one of "
                    f"{time_ns} ns: this file's come late. Let the index be written anew (ros2 bag reindex, mcap recover)",
                    "late",
                )
            else:
                last_ns = time_ns
            yield due

    def _stream(
        self, number: int, topics: frozenset[str] | None, query: Query, counts: dict[int, Damage], only_latched: bool
    ) -> Iterator[_Due]:
        """The messages of one file, which is closed and forgotten after its last."""
        part = self._parts[number]
        file = self._open(part)
        if file is None:
            assert part.damage is not None
            counts[number] = part.damage
            return
        channels = self._channels(file)
        if self._promised is not None and (others := _topics(file) - self._promised):
            name, type_, _ = min(others)
            part.notices.tell(
                f"{part.path}: expected topics and types as the log's index says, got others too: {name} of type {type_}. "
                "Let the index be written anew (ros2 bag reindex)",
                "topics",
            )
        if topics is not None or only_latched:
            keys = [
                key
                for key, channel in channels.infos.items()
                if (topics is None or channel.topic in topics)
                and (not only_latched or is_transform(channel) or is_camera_info(channel))
            ]
            query = replace(query, channels=frozenset(keys))
        damage = counts.setdefault(number, file.new_damage())
        for message in file.read(query, damage):
            yield _Due(message, number, channels)
        if not damage:
            del counts[number]

    def _latched(
        self, topics: frozenset[str] | None, start_ns: int, order: Order, counts: dict[int, Damage]
    ) -> Iterator[LogMessage]:
        """What holds from before the start: static transforms, each pair's last transform, each camera's last calibration."""
        calibrations: dict[str, tuple[int, _Due]] = {}  # topic -> place, message
        transforms: dict[tuple[bool, str, str], tuple[int, LogMessage, FrameTransform]] = {}
        query = Query(None, None, start_ns, order)
        for place, due in enumerate(self._raw(topics, query, counts, only_latched=True)):
            channel = due.channels.infos[due.message.channel]
            if is_camera_info(channel):
                calibrations[channel.topic] = (place, due)
                continue
            message = self._message(due)
            if isinstance(message.payload, FrameTransforms):
                for transform in message.payload.transforms:
                    pair = (message.payload.static, transform.parent, transform.child)
                    transforms[pair] = (place, message, transform)
        latched = {place: self._message(due) for place, due in calibrations.values()}
        held: dict[int, list[FrameTransform]] = {}
        for place, message, transform in transforms.values():
            latched[place] = message
            held.setdefault(place, []).append(transform)
        for place in sorted(latched):
            message = latched[place]
            if isinstance(message.payload, FrameTransforms):
                message = replace(message, payload=replace(message.payload, transforms=tuple(held[place])))
            yield message

    def _message(self, due: _Due) -> LogMessage:
        raw, topic = due.message, due.channels.infos[due.message.channel].topic
        payload = due.channels.decoder.decode(raw.channel, raw.data, raw.log_ns)
        if isinstance(payload, Malformed):
            self._malformed[topic] = self._malformed.get(topic, 0) + 1
        return LogMessage(topic, raw.log_ns, raw.publish_ns, payload)

    def _look_behind(self, end_ns: int) -> None:
        """Open the files that are promised to begin after the end, in turn, until one does: those before may hold more."""
        spans = [(part.span_ns[0], number) for number, part in enumerate(self._parts) if part.span_ns is not None]
        for promised_ns, number in sorted(span for span in spans if span[0] >= end_ns):
            part = self._parts[number]
            if not part.opened:
                self._open(part)
            if part.span_ns is not None and part.span_ns[0] >= promised_ns:
                return

    def _keeps(self, promise: Promise) -> bool:
        """Whether the first and the last file, and some between, hold what was promised: the rest is then taken from it."""
        spans = promise.spans_ns
        found: frozenset[tuple[str, str, str]] = frozenset()
        topics = frozenset((topic.name, topic.type, topic.encoding) for topic in promise.topics)
        for part, span in zip(self._parts, spans, strict=True):
            part.span_ns = span
        numbers = range(len(spans))
        first, last = min(numbers, key=lambda n: spans[n][0]), max(numbers, key=lambda n: spans[n][1])
        for number in sorted({first, last, *numbers[:: max(1, len(spans) // _CHECKED_FILES)]}):
            part = self._parts[number]
            file = self._open(part)
            span = part.span_ns
            if file is None or span is None or span[0] < spans[number][0] or span[1] > spans[number][1]:
                return False
            found |= _topics(file)
        self._promised = topics if found == topics else None
        return found == topics

    def _look(self) -> tuple[TopicInfo, ...]:
        """Open each file once, for its span and its topics."""
        topics: dict[str, TopicInfo] = {}
        opened = False
        for part in self._parts:
            file = self._open(part)
            if file is None:
                continue
            opened = True
            counts = file.counts()
            for number, channel in file.channels.items():
                count = None if counts is None else counts.get(number, 0)
                known = topics.setdefault(channel.topic, TopicInfo(channel.topic, channel.type, channel.encoding, 0))
                total = None if known.count is None or count is None else known.count + count
                topics[channel.topic] = replace(known, count=total)
        if not opened:
            self._open_new(self._parts[0])  # raises as it did before
        return tuple(sorted(topics.values(), key=attrgetter("name")))

    def _open(self, part: _Part) -> RecordedFile | None:
        """The file, its span now known to be what it says itself; None, told, where one of several cannot be opened."""
        if self._only is not None:
            return self._only
        part.opened = True
        try:
            file = self._open_new(part)
        except LogError as error:
            if len(self._parts) == 1:
                raise
            part.notices.tell(f"{error}. This file of {self._path} is left out")
            part.span_ns, part.damage = None, Damage(bad_files=1)
            return None
        part.span_ns = file.span_ns()
        part.damage = file.new_damage() or None
        self._storage = self._storage or file.storage()
        if len(self._parts) == 1:
            self._only = file
        return file

    def _open_new(self, part: _Part) -> RecordedFile:
        try:
            return self._open_file(part.path, part.notices)
        except OSError as error:
            raise LogError(f"{part.path}: cannot be read: {error.strerror}") from error

    def _channels(self, file: RecordedFile) -> _Channels:
        """The file's channels with a decoder, which files of the same channels share: to make one takes time."""
        if self._known is None or self._known.infos != file.channels:
            self._known = _Channels(file.channels, Decoder(file.channels))
        return self._known

    def _damages(self) -> dict[int, Damage]:
        """Part -> what is known to be damaged before any message is read; parts that are whole are not in it."""
        return {number: deepcopy(part.damage) for number, part in enumerate(self._parts) if part.damage is not None}


def _topics(file: RecordedFile) -> frozenset[tuple[str, str, str]]:
    """(name, type, encoding) of each."""
    return frozenset((channel.topic, channel.type, channel.encoding) for channel in file.channels.values())
