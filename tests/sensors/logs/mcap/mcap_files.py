"""MCAP files written by the mcap library, and what was put into them."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mcap.writer import CompressionType, IndexType, Writer

MAGIC_BYTES = 8
CHUNK, MESSAGE = 0x06, 0x05


@dataclass(frozen=True)
class Written:
    """A message as it was written."""

    topic: str
    log_ns: int
    publish_ns: int
    data: bytes


def some_messages(count: int = 400, seed: int = 0, longest_bytes: int = 200) -> list[Written]:
    """Messages on three topics in the order of writing: log times repeat and go back a little, payloads differ."""
    rng = random.Random(seed)
    messages = []
    for number in range(count):
        log_ns = 1_000 + (number // 3) * 10 - rng.choice((0, 0, 15))
        topic = f"/topic_{number % 3}"
        data = struct.pack("<I", number) + rng.randbytes(rng.randrange(20, longest_bytes))
        messages.append(Written(topic, log_ns, log_ns - rng.randrange(5), data))
    return messages


def write_mcap(
    messages: list[Written],
    *,
    chunk_bytes: int = 2048,
    compression: CompressionType = CompressionType.ZSTD,
    use_chunking: bool = True,
    crcs: bool = True,
    data_crcs: bool = False,
    summary: bool = True,
) -> bytes:
    """The bytes of an MCAP file that holds `messages` in this order."""
    file = io.BytesIO()
    writer: Any = Writer(
        file, chunk_size=chunk_bytes, compression=compression, use_chunking=use_chunking, enable_crcs=crcs,
        enable_data_crcs=data_crcs, repeat_channels=summary, repeat_schemas=summary, use_statistics=summary,
        use_summary_offsets=summary, index_types=IndexType.ALL if summary else IndexType.MESSAGE,
    )  # fmt: skip
    writer.start(profile="", library="test")
    schema = writer.register_schema(name="test.Bytes", encoding="none", data=b"layout")
    channels: dict[str, int] = {}
    for number, message in enumerate(messages):
        if message.topic not in channels:
            channels[message.topic] = writer.register_channel(message.topic, "raw", schema)
        writer.add_message(channels[message.topic], message.log_ns, message.data, message.publish_ns, number)
    writer.finish()
    return file.getvalue()


def records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(opcode, begin, end) of every record of a whole file, chunks not opened."""
    at = MAGIC_BYTES
    while at + 9 <= len(data) - MAGIC_BYTES:
        opcode, length = struct.unpack_from("<BQ", data, at)
        yield opcode, at, at + 9 + length
        at += 9 + length


def by_time(messages: list[Written]) -> list[Written]:
    """In the order in which a log gives them: by log time, equal times as written."""
    return sorted(messages, key=lambda message: message.log_ns)
