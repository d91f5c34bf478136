"""MCAP files read at the level of their records, so that damage costs no more than the chunk that it is in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

from sensors.logs.decode import ChannelInfo
from sensors.logs.log import Damage, LogError
from sensors.logs.mcap.index import build_index
from sensors.logs.mcap.records import (
    MAGIC,
    Content,
    MessageRecord,
    RandomFile,
    RecordError,
    parse_chunk_head,
    random_file,
)
from sensors.logs.mcap.walk import McapIndex, Source
from sensors.logs.recorded import RecordedLog
from sensors.logs.recorded_file import Notices, Query, RawMessage, merge_due

_COMPRESSIONS = ("", "lz4", "zstd")
_DIFFERENT_BYTES = 2  # a magic number that differs in so many is taken to be a damaged one


def looks_like_mcap(path: Path) -> bool:
    """Whether the file begins or ends as an MCAP file does, one damaged end allowed."""
    with random_file(path) as file:
        begins = file.read(0, len(MAGIC))
        ends = file.read(max(0, file.size - len(MAGIC)), len(MAGIC))
    if MAGIC in (begins, ends):
        return True
    same = sum(a == b for a, b in zip(begins, MAGIC, strict=False))
    return len(MAGIC) - same <= _DIFFERENT_BYTES


class McapLog(RecordedLog):
    """A drive log in one MCAP file, whole or damaged; implements `sensors.logs.log.Log`.

    Every message of every chunk that is whole is given. A chunk whose checksum is wrong, or that does not decompress, is left
    out and counted; a file that was cut off, or whose writer was killed, gives one LogWarning with the offset. Messages outside
    chunks are covered by the data section's checksum alone: where that is wrong all of them are refused, and where it was
    not recorded, or is cut off, an altered payload among them cannot be told; altered lengths mostly can. The same holds for
    chunks written without a checksum. In a damaged file that has chunks too, messages outside them are refused, because the
    inside of a broken chunk looks like them. Messages whose channel is lost count as bad records.

    With a sound summary opening costs a few reads; without one (cut off, damaged, or never checksummed) the file is read
    once. Reading holds the chunks that overlap in time, no more.

    Raises:
        LogError: missing, empty, no MCAP file, or of a compression that nothing here reads.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, [path], McapFile)


class McapFile:
    """One MCAP file; implements `sensors.logs.recorded_file.RecordedFile`."""

    def __init__(self, path: Path, notices: Notices | None = None) -> None:
        self.path = path
        self._notices = notices or Notices()
        if not path.is_file():
            raise LogError(f"{path}: expected an MCAP file, got {'a folder' if path.is_dir() else 'nothing there'}")
        if not looks_like_mcap(path):
            raise LogError(
                f"{path}: expected an MCAP file, got one that begins otherwise ({path.stat().st_size} bytes)"
            )
        with random_file(path) as file:
            self._index = build_index(file)
            self._check_compression(file)
        self._channels = _channel_infos(self._index)
        self._tell()

    @property
    def channels(self) -> dict[int, ChannelInfo]:
        return self._channels

    def counts(self) -> dict[int, int]:
        return self._index.counts

    def span_ns(self) -> tuple[int, int] | None:
        return self._index.span_ns

    def publish_span_ns(self) -> tuple[int, int] | None:
        self._find_publish_times()
        spans = [source.publish_ns for source in self._index.sources if source.publish_ns is not None]
        return (min(first for first, _ in spans), max(last for _, last in spans)) if spans else None

    def new_damage(self) -> Damage:
        return deepcopy(self._index.damage)

    def storage(self) -> str:
        chunks = [source.head for source in self._index.sources if source.head is not None]
        names = sorted({head.compression or "none" for head in chunks})
        return f"MCAP, {len(chunks)} chunks, compression {', '.join(names)}" if chunks else "MCAP without chunks"

    def read(self, query: Query, damage: Damage) -> Iterator[RawMessage]:
        """Messages in order. Chunks are loaded when the first of their messages is due, and dropped after their last."""
        if query.order == "publish":
            self._find_publish_times()
        sources = self._index.sources

        def begin(number: int) -> Iterator[RawMessage]:
            return self._messages(sources[number], query, damage)

        return merge_due(((first_ns, number, begin) for first_ns, number in self._waiting(query)), query.key)

    def _waiting(self, query: Query) -> list[tuple[int, int]]:
        """(first time, place in the file) of the sources that may hold messages that are asked for, by time."""
        waiting = []
        for number, source in enumerate(self._index.sources):
            if query.channels is not None and source.channels is not None and not source.channels & query.channels:
                continue
            span = (source.start_ns, source.end_ns) if query.order == "log" else source.publish_ns
            if span is None:
                continue  # damaged; counted when its times were looked for
            if not query.misses(span):
                waiting.append((span[0], number))
        waiting.sort()
        return waiting

    def _messages(self, source: Source, query: Query, damage: Damage) -> Iterator[RawMessage]:
        content = self._load(source, damage)
        if content is None:
            return
        by_publish = query.order == "publish"
        records = [record for record in content.messages if _asked(record, query)]
        records.sort(key=lambda record: record.publish_ns if by_publish else record.log_ns)
        known = self._channels
        for record in records:
            if record.channel in known:
                yield RawMessage(
                    record.log_ns, record.publish_ns, record.channel, content.data[record.begin : record.end]
                )
            else:
                damage.bad_records += 1

    def _load(self, source: Source, damage: Damage) -> Content | None:
        """The source's content; None, counted, where it is damaged."""
        try:
            with random_file(self.path) as file:  # anew for each: many files that overlap hold no descriptors
                return source.load(file)
        except RecordError as error:
            if source.offset not in damage.bad_chunk_offsets:
                damage.bad_chunks += 1
                damage.bad_chunk_offsets.append(source.offset)
            self._notices.tell(f"{self.path}: the chunk at byte {source.offset} is left out: {error}")
            return None

    def _find_publish_times(self) -> None:
        with random_file(self.path) as file:
            for source in self._index.sources:
                if source.publish_ns is None:
                    try:
                        times = [message.publish_ns for message in source.load(file).messages]
                    except RecordError:
                        times = [source.start_ns, source.end_ns]  # read again in its turn, and counted then
                    source.publish_ns = (min(times), max(times)) if times else (0, 0)

    def _check_compression(self, file: RandomFile) -> None:
        heads = [source.head for source in self._index.sources if source.head is not None]
        if not heads:
            with contextlib.suppress(RecordError):
                heads = [parse_chunk_head(file, offset) for offset in self._index.damage.bad_chunk_offsets]
        names = {head.compression for head in heads}
        if names and not names & set(_COMPRESSIONS):
            raise LogError(
                f"{self.path}: expected chunks of compression lz4, zstd or none, got {', '.join(sorted(names))}. "
                "Convert it: mcap compress"
            )

    def _tell(self) -> None:
        """One warning for what opening the file has shown."""
        damage = self._index.damage
        parts: Sequence[str] = [
            f"it ends at byte {damage.truncated_at_byte}, unfinished" if damage.truncated_at_byte is not None else "",
            f"{damage.bad_chunks} damaged chunks are left out" if damage.bad_chunks else "",
            f"{damage.bad_records} records make no sense" if damage.bad_records else "",
        ]
        if damage:
            self._notices.tell(f"{self.path}: {'; '.join(part for part in parts if part)}; what is whole is read")


def _asked(record: MessageRecord, query: Query) -> bool:
    if query.channels is not None and record.channel not in query.channels:
        return False
    time = record.log_ns if query.order == "log" else record.publish_ns
    return (query.start_ns is None or time >= query.start_ns) and (query.end_ns is None or time < query.end_ns)


def _channel_infos(index: McapIndex) -> dict[int, ChannelInfo]:
    infos = {}
    for number, channel in index.channels.items():
        schema = index.schemas.get(channel.schema_id)
        infos[number] = ChannelInfo(
            channel.topic,
            schema.name if schema else "",
            channel.encoding,
            schema.data if schema else b"",
            schema.encoding if schema else "",
            schema_lost=schema is None and channel.schema_id != 0,
        )
    return infos
