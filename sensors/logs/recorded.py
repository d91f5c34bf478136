"""What logs of recorded messages have in common, whatever their files: order, seeking, decoding and counting."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from sensors.logs.decode import is_camera_info, is_transform
from sensors.logs.decoder import Decoder
from sensors.logs.log import Damage, LogError, TopicInfo
from sensors.logs.messages import FrameTransform, FrameTransforms, LogMessage, Malformed
from sensors.logs.recorded_file import Notices, OpenFile, Query, RawMessage, RecordedFile, merge_due


@dataclass
class _Part:
    """A file of the log and what is kept of it while it is closed."""

    path: Path
    notices: Notices = field(default_factory=Notices)
    span_ns: tuple[int, int] | None = None  # None: not known, or no messages
    damage: Damage = field(default_factory=Damage)  # what opening it has shown


class _Due(NamedTuple):
    message: RawMessage
    decoder: Decoder


class RecordedLog:
    """A log in one file or several; implements `sensors.logs.log.Log`.

    Reading never raises for damage within: it is left out, counted in `damage`, and told once as a LogWarning.
    A seek reads the transforms and calibrations before `start_ns`, and decompresses the chunks that hold them.

    Of several files each is looked at once for its times, opened when the first of its messages is due and closed after its
    last, so that neither memory nor descriptors grow with their number, but with how many overlap in time. Of several files,
    one that cannot be opened is left out as damage.

    Raises:
        LogError: not one of the files can be opened.
    """

    def __init__(self, path: Path, files: Sequence[Path], open_file: OpenFile) -> None:
        self._path = path
        self._open_file = open_file
        self._parts = [_Part(file) for file in files]
        self._only: RecordedFile | None = None  # a log's only file keeps its index
        self._decoder: Decoder | None = None
        self._storage = ""
        self._malformed: dict[str, int] = {}
        self._topics = self._look()
        self._damages = [part.damage for part in self._parts]

    @property
    def path(self) -> Path:
        return self._path

    @property
    def damage(self) -> Damage:
        """Of the last reading; before any, what opening the log has shown."""
        total = Damage(malformed=dict(self._malformed))
        for damage in self._damages:
            if total.truncated_at_byte is None:
                total.truncated_at_byte = damage.truncated_at_byte
            total.bad_chunks += damage.bad_chunks
            total.bad_chunk_offsets += damage.bad_chunk_offsets
            total.bad_records += damage.bad_records
            total.bad_files += damage.bad_files
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
    ) -> Iterator[LogMessage]:
        """The messages in order; see `sensors.logs.log.Log`.

        Before `start_ns`, each pair of frames' last transform comes too where its topic is not static: what was sent once, or
        seldom, holds on.
        """
        selected = None if topics is None else frozenset(topics)
        damages = self._damages = [deepcopy(part.damage) for part in self._parts]
        self._malformed = {}
        if start_ns is not None:
            yield from self._latched(selected, start_ns, damages)
        for due in self._raw(selected, Query(None, start_ns, end_ns), damages):
            yield self._message(due)

    def _raw(
        self, topics: frozenset[str] | None, query: Query, damages: Sequence[Damage], only_latched: bool = False
    ) -> Iterator[_Due]:
        """The messages of all files, in order."""
        waiting = []
        for number, part in enumerate(self._parts):
            span = part.span_ns
            if span is None or not query.misses(span):
                # One whose times are not known is begun at once: its messages wait for their turn.
                waiting.append((-(2**63) if span is None else span[0], number))

        def begin(number: int) -> Iterator[_Due]:
            return self._stream(self._parts[number], topics, query, damages[number], only_latched)

        streams = ((start, number, begin) for start, number in sorted(waiting))
        return merge_due(streams, lambda due: due.message.log_ns)

    def _stream(
        self, part: _Part, topics: frozenset[str] | None, query: Query, damage: Damage, only_latched: bool
    ) -> Iterator[_Due]:
        """The messages of one file, which is closed and forgotten after its last."""
        file = self._open(part)
        if file is None:
            return
        if self._decoder is None or self._decoder.channels != file.channels:  # to make one takes time
            self._decoder = Decoder(file.channels)
        decoder = self._decoder
        if topics is not None or only_latched:
            keys = [
                key
                for key, channel in decoder.channels.items()
                if (topics is None or channel.topic in topics)
                and (not only_latched or is_transform(channel) or is_camera_info(channel))
            ]
            query = replace(query, channels=frozenset(keys))
        for message in file.read(query, damage):
            yield _Due(message, decoder)

    def _latched(self, topics: frozenset[str] | None, start_ns: int, damages: Sequence[Damage]) -> Iterator[LogMessage]:
        """What holds from before the start: static transforms, each pair's last transform, each camera's last calibration."""
        calibrations: dict[str, tuple[int, _Due]] = {}  # topic -> place, message
        transforms: dict[tuple[bool, str, str], tuple[int, LogMessage, FrameTransform]] = {}
        query = Query(None, None, start_ns)
        for place, due in enumerate(self._raw(topics, query, damages, only_latched=True)):
            channel = due.decoder.channels[due.message.channel]
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
        raw, topic = due.message, due.decoder.channels[due.message.channel].topic
        payload = due.decoder.decode(raw.channel, raw.data, raw.log_ns)
        if isinstance(payload, Malformed):
            self._malformed[topic] = self._malformed.get(topic, 0) + 1
        return LogMessage(topic, raw.log_ns, raw.publish_ns, payload)

    def _look(self) -> tuple[TopicInfo, ...]:
        """Open each file once, for its span and its topics."""
        topics: dict[str, TopicInfo] = {}
        for part in self._parts:
            file = self._open(part)
            if file is None:
                continue
            part.span_ns, part.damage = file.span_ns(), file.new_damage()
            self._storage = self._storage or file.storage()
            counts = file.counts()
            for number, channel in file.channels.items():
                known = topics.setdefault(channel.topic, TopicInfo(channel.topic, channel.type, channel.encoding, 0))
                topics[channel.topic] = replace(known, count=known.count + counts.get(number, 0))
        if all(part.damage.bad_files for part in self._parts):
            self._open_new(self._parts[0])  # raises as it did before
        return tuple(sorted(topics.values(), key=attrgetter("name")))

    def _open(self, part: _Part) -> RecordedFile | None:
        """The file; None, told, where one of several cannot be opened."""
        if self._only is not None or part.damage.bad_files:
            return self._only
        try:
            file = self._open_new(part)
        except LogError as error:
            if len(self._parts) == 1:
                raise
            part.notices.tell(f"{error}. This file of {self._path} is left out")
            part.damage = Damage(bad_files=1)
            return None
        if len(self._parts) == 1:
            self._only = file
        return file

    def _open_new(self, part: _Part) -> RecordedFile:
        try:
            return self._open_file(part.path, part.notices)
        except OSError as error:
            raise LogError(f"{part.path}: cannot be read: {error.strerror}") from error
