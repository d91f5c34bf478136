"""MCAP files of some kilobytes that hold, or claim, more than a machine has: chunks are left out, and told."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import pytest

from sensors.logs.log import Log, LogWarning
from sensors.logs.open import open_log
from tests.hostile.files import MAX_MIB, MAX_SECONDS, measured

MAGIC = b"\x89MCAP0\r\n"
BLOCK = bytes(2**24)


def record(opcode: int, data: bytes) -> bytes:
    return struct.pack("<BQ", opcode, len(data)) + data


def text(word: bytes) -> bytes:
    return struct.pack("<I", len(word)) + word


def message(log_ns: int, payload_bytes: int = 0) -> bytes:
    """Without its payload, which is to follow."""
    return struct.pack("<BQHIQQ", 5, 22 + payload_bytes, 1, 0, log_ns, log_ns)


def chunk(content: bytes, blocks: int = 0, compression: str = "zstd") -> bytes:
    """`content`, and so many blocks of zeros."""
    size = len(content) + blocks * len(BLOCK)
    if compression == "zstd":
        writer = pytest.importorskip("zstandard").ZstdCompressor().compressobj(size=size)
        begin = b""
    else:
        writer = pytest.importorskip("lz4.frame").LZ4FrameCompressor()
        begin = writer.begin()
    packed = begin + writer.compress(content) + b"".join(writer.compress(BLOCK) for _ in range(blocks)) + writer.flush()
    head = struct.pack("<QQQI", 0, 1000, size, 0) + text(compression.encode())
    return record(6, head + struct.pack("<Q", len(packed)) + packed)


CHANNEL = record(4, struct.pack("<HH", 1, 0) + text(b"/t") + text(b"raw") + bytes(4))
START = MAGIC + record(1, bytes(8))


def big_chunk() -> bytes:
    """100 MB from time 0 to time 1000, in some kilobytes."""
    return chunk(CHANNEL + message(0) + message(1000, 6 * len(BLOCK)), blocks=6)


def with_summary(chunks: list[bytes], claimed_bytes: int) -> bytes:
    """A file whose index says that each of its chunks, of two messages, has so many bytes."""
    data, index = START, b""
    for one in chunks:
        times = struct.pack("<QQQQ", 0, 1000, len(data), len(one)) + struct.pack("<IHQQ", 10, 1, 0, 0)
        index += record(8, times + text(b"zstd") + struct.pack("<QQ", 0, claimed_bytes))
        data += one
    count = len(chunks)
    counts = struct.pack("<QHIIIIQQ", 2 * count, 0, 1, 0, 0, count, 0, 1000) + struct.pack("<IHQ", 10, 1, 2 * count)
    data += record(15, bytes(4))
    summary = CHANNEL + record(11, counts) + index
    footer = struct.pack("<BQQQ", 2, 20, len(data), 0)
    return data + summary + footer + struct.pack("<I", zlib.crc32(summary + footer)) + MAGIC


def read(path: Path) -> tuple[Log, int]:
    """A log and how many messages it gave; what is told of its damage is not looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = open_log(path)
        return log, sum(1 for _ in log.messages())


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_chunk_that_would_fill_the_memory_is_left_out(compression: str, tmp_path: Path) -> None:
    """1.5 GiB of zeros in some kilobytes, in a log without a summary, which is read as far as it is whole."""
    file = tmp_path / "bomb.mcap"
    file.write_bytes(START + chunk(b"", 96, compression))
    with measured() as cost:
        log, messages = read(file)
    assert messages == 0
    assert log.damage.bad_chunks == 1
    assert cost.seconds < MAX_SECONDS
    assert cost.mib < MAX_MIB


@pytest.mark.parametrize("count", [990_000, 3_000_000])
def test_a_chunk_of_millions_of_empty_messages_is_left_out(count: int, tmp_path: Path) -> None:
    """It is small beside what its messages would take in memory and time."""
    file = tmp_path / "many.mcap"
    file.write_bytes(START + chunk(CHANNEL + message(0) * count))
    with measured() as cost, pytest.warns(LogWarning, match="expected at most [0-9]+ messages"):
        assert not list(open_log(file).messages())
    assert cost.seconds < MAX_SECONDS
    assert cost.mib < MAX_MIB


def test_chunks_that_overlap_share_one_budget_whatever_the_index_says_and_in_however_many_files(tmp_path: Path) -> None:
    chunks = [big_chunk()] * 16
    (tmp_path / "one.mcap").write_bytes(with_summary(chunks, 6 * len(BLOCK) + len(CHANNEL) + 62))
    (tmp_path / "lied.mcap").write_bytes(with_summary(chunks, 4))
    folder = tmp_path / "bag"
    folder.mkdir()
    for number in range(8):
        (folder / f"bag_{number}.mcap").write_bytes(START + big_chunk())
    for path, whole, left_out in ((tmp_path / "one.mcap", 1, 15), (tmp_path / "lied.mcap", 0, 16), (folder, 1, 7)):
        with measured() as cost:
            log, messages = read(path)
        assert (messages, log.damage.bad_chunks) == (2 * whole, left_out), path
        assert cost.seconds < MAX_SECONDS
        assert cost.mib < MAX_MIB


def test_damaged_files_take_time_by_their_bytes(tmp_path: Path) -> None:
    """Chunks that overlap, every other one damaged."""
    sound = chunk(CHANNEL + message(0) + message(1000))
    damaged = bytearray(sound)
    damaged[len(sound) // 2] ^= 1
    seconds = []
    for mib in (1, 4):
        file = tmp_path / "damaged.mcap"
        file.write_bytes(START + (sound + damaged) * (mib * 2**20 // (2 * len(sound))))
        with measured() as cost:
            log, messages = read(file)
        assert messages == 2 * log.damage.bad_chunks > 9_000 * mib
        assert cost.mib < MAX_MIB
        seconds.append(cost.seconds)
    assert seconds[1] < 8 * seconds[0]
