"""Where an MCAP file's messages lie: by its summary where that is sound, else by walking every record."""

from __future__ import annotations

from sensors.logs.mcap.records import (
    DATA_END,
    DATA_END_BYTES,
    FOOTER,
    FOOTER_BYTES,
    HEAD_BYTES,
    MAGIC,
    ChunkHead,
    RandomFile,
)
from sensors.logs.mcap.summary import ChunkIndex, Summary, ends_whole, read_summary
from sensors.logs.mcap.walk import McapIndex, Source, Walker


def build_index(file: RandomFile) -> McapIndex:
    """The index of an MCAP file, damaged or not."""
    summary = read_summary(file)
    index = _from_summary(file, summary) if summary and summary.complete() else _from_walk(file, summary)
    if file.read(0, len(MAGIC)) != MAGIC:
        index.damage.bad_records += 1
    runs = [source for source in index.sources if source.head is None]
    chunked = index.damage.bad_chunks or len(runs) < len(index.sources)
    by_summary = (
        summary is not None and summary.complete() and not (index.damage.bad_chunks or index.damage.bad_records)
    )
    proven = index.data_end is not None and index.data_end[1] and index.data_right(file)
    if runs and chunked and not by_summary and not proven:
        _refuse(
            index, runs
        )  # more likely the inside of a damaged chunk, or a damaged index, than messages of their own
    unprotected = [source for source in index.sources if source.head is None or not source.head.crc]
    if (unprotected or not (summary and summary.complete())) and not index.data_right(file):
        index.damage.bad_records += 1
        _refuse(index, unprotected)  # nothing tells which of them was altered
    return index


def _refuse(index: McapIndex, unprotected: list[Source]) -> None:
    """Leave out and count."""
    for source in unprotected:
        if source.head is None:
            index.damage.bad_records += source.messages
        else:
            index.damage.bad_chunks += 1
            index.damage.bad_chunk_offsets.append(source.offset)
    offsets = {source.offset for source in unprotected}
    index.sources = [source for source in index.sources if source.offset not in offsets]


def _from_summary(file: RandomFile, summary: Summary) -> McapIndex:
    counts = summary.statistics
    assert counts is not None  # Summary.complete
    index = McapIndex(schemas=dict(summary.schemas), channels=dict(summary.channels))
    index.span_ns = (counts.start_ns, counts.end_ns) if counts.messages else None
    walker = Walker(file, index, whole=True)
    at = len(MAGIC)
    for chunk in summary.chunks:
        walker.walk_region(at, chunk.offset)
        index.sources.append(_indexed(file, chunk))
        at = chunk.offset + chunk.size + chunk.index_bytes
    walker.walk_region(at, summary.data_end)
    if file.head(summary.data_end) != (DATA_END, DATA_END_BYTES - HEAD_BYTES):
        index.damage.bad_records += 1
    crc = int.from_bytes(file.read(summary.data_end + HEAD_BYTES, 4), "little")
    index.data_end = (summary.data_end, crc)
    index.counts = dict(counts.per_channel)  # not what the walker has counted between chunks
    return index


def _indexed(file: RandomFile, chunk: ChunkIndex) -> Source:
    """The chunk's place by the summary alone, but for its checksum: what its own head says may be damaged."""
    crc = int.from_bytes(file.read(chunk.offset + HEAD_BYTES + 24, 4), "little")
    data_offset = chunk.offset + chunk.size - chunk.compressed_bytes
    head = ChunkHead(
        chunk.offset, chunk.size, chunk.start_ns, chunk.end_ns, chunk.uncompressed_bytes, crc, chunk.compression,
        data_offset, chunk.compressed_bytes,
    )  # fmt: skip
    return Source(chunk.offset, chunk.size, chunk.start_ns, chunk.end_ns, head, chunk.channels)


def _from_walk(file: RandomFile, summary: Summary | None) -> McapIndex:
    index, whole = McapIndex(), ends_whole(file)
    walker = Walker(file, index, whole)
    stopped = walker.walk(len(MAGIC), file.size - (FOOTER_BYTES + len(MAGIC) if whole else 0))
    if index.data_end is None:
        if whole:
            index.damage.bad_records += 1
            index.data_end = _data_end(file, summary)
        else:
            index.damage.truncated_at_byte = stopped
    else:
        _check_tail(file, index, index.data_end[0] + DATA_END_BYTES, whole)
        if whole and summary is None:
            index.damage.bad_records += _has_summary(file)
    if summary is not None:  # sound, but without a checksum, or without all that it takes
        for number, schema in summary.schemas.items():
            index.schemas.setdefault(number, schema)
        for number, channel in summary.channels.items():
            index.channels.setdefault(number, channel)
    times = [(source.start_ns, source.end_ns) for source in index.sources if source.channels]
    index.span_ns = (min(start for start, _ in times), max(end for _, end in times)) if times else None
    return index


def _data_end(file: RandomFile, summary: Summary | None) -> tuple[int, int] | None:
    """The data section's end and checksum by counting back from the file's end, where the walk has lost its way."""
    at = summary.data_end if summary else file.size - len(MAGIC) - FOOTER_BYTES - DATA_END_BYTES
    if file.head(at) != (DATA_END, DATA_END_BYTES - HEAD_BYTES):
        return None
    return at, int.from_bytes(file.read(at + HEAD_BYTES, 4), "little")


def _has_summary(file: RandomFile) -> bool:
    footer = file.size - len(MAGIC) - FOOTER_BYTES
    return file.head(footer) != (FOOTER, FOOTER_BYTES - HEAD_BYTES) or any(file.read(footer + HEAD_BYTES, 8))


def _check_tail(file: RandomFile, index: McapIndex, at: int, whole: bool) -> None:
    """Whether what follows the data section ends in a footer."""
    footer = False
    while not footer and (head := file.head(at)) is not None and at + HEAD_BYTES + head[1] <= file.size:
        footer = head[0] == FOOTER
        at += HEAD_BYTES + head[1]
    if whole:
        return
    if footer and at + len(MAGIC) <= file.size:
        index.damage.bad_records += 1  # all is there, but the last bytes are not what they should be
    else:
        index.damage.truncated_at_byte = min(at, file.size)
