"""Damaged logs of any size, and the time that reading what is left of them takes: `python -m tests.hostile.recovery`."""

from __future__ import annotations

import random
import sqlite3
import struct
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mcap.writer import CompressionType

from sensors.logs.open import open_log
from tests.sensors.logs.mcap.mcap_files import Written, some_messages, write_mcap

MESSAGE_BYTES = 400  # on average, with what a record has beside its payload
mcap = partial(write_mcap, compression=CompressionType.NONE)


def messages(megabytes: float) -> list[Written]:
    return some_messages(int(megabytes * 1e6 / MESSAGE_BYTES), longest_bytes=700)


def chunks(data: bytearray, opcode: int = 6) -> list[int]:
    """Where the records of an opcode begin."""
    at, found = 8, []
    while at + 9 <= len(data):
        code, length = struct.unpack_from("<BQ", data, at)
        if code == opcode:
            found.append(at)
        at += 9 + length
    return found


def cut_off(path: Path, megabytes: float) -> None:
    data = mcap(messages(megabytes))
    path.write_bytes(data[: len(data) * 9 // 10])


def outside_chunks(path: Path, megabytes: float) -> None:
    data = mcap(messages(megabytes), use_chunking=False)
    path.write_bytes(data[: len(data) * 9 // 10])


def damaged_chunks(path: Path, megabytes: float) -> None:
    """Every third one."""
    data = bytearray(mcap(messages(megabytes)))
    for at in chunks(data)[::3]:
        data[at + 200] ^= 1
    path.write_bytes(data)


def damaged_opcodes(path: Path, megabytes: float) -> None:
    data = bytearray(mcap(messages(megabytes), summary=False))
    for at in chunks(data)[::3]:
        data[at] = 7
    path.write_bytes(data)


def damaged_lengths(path: Path, megabytes: float) -> None:
    """The summary leads to what lies behind."""
    data = bytearray(mcap(messages(megabytes)))
    for at in chunks(data)[5::10]:
        data[at + 1 : at + 9] = struct.pack("<Q", 2**40)
    path.write_bytes(data)


def times_at_random(path: Path, megabytes: float) -> None:
    """Chunks that all overlap, and no summary."""
    shuffled = messages(megabytes)
    random.Random(0).shuffle(shuffled)
    path.write_bytes(mcap(shuffled, summary=False))


def noise(path: Path, megabytes: float) -> None:
    path.write_bytes(b"\x89MCAP0\r\n" + random.Random(0).randbytes(int(megabytes * 1e6)))


def empty_records(path: Path, megabytes: float) -> None:
    """Of an opcode that means nothing."""
    path.write_bytes(b"\x89MCAP0\r\n" + struct.pack("<BQ", 0x90, 0) * int(megabytes * 1e6 / 9))


def words_for_data(path: Path, megabytes: float) -> None:
    """A SQLite bag in which every other message is text."""
    with closing(sqlite3.connect(path)) as file:
        file.executescript(
            "CREATE TABLE topics(id INTEGER PRIMARY KEY, name, type, serialization_format);"
            "INSERT INTO topics VALUES (1, '/words', 'a/msg/Words', 'cdr');"
            "CREATE TABLE messages(id INTEGER PRIMARY KEY, timestamp, topic_id, data);"
        )
        rows = (
            (k, k, 1, bytes(MESSAGE_BYTES) if k % 2 else "x" * MESSAGE_BYTES) for k in range(int(megabytes * 1e6 / 400))
        )
        file.executemany("INSERT INTO messages VALUES (?, ?, ?, ?)", rows)
        file.commit()


DAMAGES: dict[str, Callable[[Path, float], None]] = {
    "cut off": cut_off, "cut off, messages outside chunks": outside_chunks, "damaged chunks": damaged_chunks,
    "damaged opcodes": damaged_opcodes, "damaged lengths": damaged_lengths, "chunks that overlap": times_at_random,
    "noise": noise, "empty records": empty_records, "words for data": words_for_data,
}  # fmt: skip


def seconds(name: str, megabytes: float) -> float:
    """Processor time of opening a damaged log and reading all that is left of it."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / ("drive.db3" if name == "words for data" else "drive.mcap")
        DAMAGES[name](path, megabytes)
        began = time.process_time()
        for _ in open_log(path).messages():
            pass
        return time.process_time() - began


if __name__ == "__main__":
    for damage in DAMAGES:
        print(f"{damage:<34}" + "".join(f"{seconds(damage, size):8.2f} s" for size in (2, 4, 8, 16)), flush=True)
