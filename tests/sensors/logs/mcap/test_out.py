"""What the MCAP writer promises: whole or not at all, small chunks, one chunk lost at most, the same bytes each time."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mcap.exceptions import McapError
from mcap.reader import NonSeekingReader, make_reader
from mcap.records import Chunk, DataEnd, Footer, Message
from mcap.stream_reader import StreamReader, breakup_chunk

from sensors.logs.encode import EncodeError
from sensors.logs.log import LogError
from sensors.logs.mcap.out import CHUNK_BYTES, AtomicMcapWriter

# Writes until it is killed, and says after each message that the writer has taken it.
ENDLESS = """
import os, sys
from pathlib import Path
from sensors.logs.mcap.out import AtomicMcapWriter
from tests.sensors.logs.mcap.test_out import content
writer = AtomicMcapWriter(Path(sys.argv[1]))
channel = writer.add_channel("/a", encoding="x", schema_name="s", schema_encoding="", schema=b"")
for i in range(1_000_000):
    writer.write(channel, i, content(i))
    os.write(1, b".")
"""
KILLS = int(os.environ.get("ROBUSTBEV_KILLS", "5"))  # 50 take half a minute
ROOT = Path(__file__).resolve().parents[4]


def content(i: int) -> bytes:
    """Message i: 0 to 20 kB, now and then more than a chunk; does not compress."""
    size = 100_000 if i % 37 == 5 else i * 7919 % 20_000
    return random.Random(i).randbytes(size)


def channel_of(writer: AtomicMcapWriter, topic: str = "/a", schema: bytes = b"") -> int:
    return writer.add_channel(topic, encoding="x", schema_name="s", schema_encoding="", schema=schema)


def write(path: Path, count: int = 60) -> None:
    with AtomicMcapWriter(path) as writer:
        channel = channel_of(writer)
        for i in range(count):
            writer.write(channel, 1000 + i, content(i), publish_time_ns=i)


def readable(path: Path) -> list[Message]:
    """Every message before the place where the file ends, checksums held against the content."""
    found = []
    with path.open("rb") as file:
        try:
            for _, _, message in NonSeekingReader(file, validate_crcs=True).iter_messages(log_time_order=False):
                found.append(message)
        except (McapError, EOFError):
            pass
    return found


def kill_a_writer(folder: Path, seed: int) -> tuple[int, int, int]:
    """Kills a writer at some moment; the numbers of messages that it took, that can be read, and of bytes that are lost."""
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(folder / "out.mcap")], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.read(1) == b"."
    time.sleep(random.Random(seed).uniform(0, 0.15))
    process.send_signal(signal.SIGKILL)
    taken = 1 + len(process.stdout.read())
    process.wait()
    process.stdout.close()
    (left,) = folder.iterdir()
    assert left.name.startswith("out.mcap.")
    assert left.name.endswith(".partial")
    messages = readable(left)
    assert [m.data for m in messages] == [content(i) for i in range(len(messages))]
    lost = sum(len(content(i)) for i in range(len(messages), taken))
    return taken, len(messages), lost


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_writer_that_is_killed_loses_one_chunk_at_most(tmp_path: Path, seed: int) -> None:
    taken, read, lost_bytes = kill_a_writer(tmp_path / "here", seed)
    assert taken - read <= 1 or lost_bytes <= CHUNK_BYTES


def test_what_was_written_is_read_with_its_times_and_checksums(tmp_path: Path) -> None:
    write(tmp_path / "a.mcap")
    with (tmp_path / "a.mcap").open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        found = [message for _, _, message in reader.iter_messages(log_time_order=False)]
        summary = reader.get_summary()
    assert [(m.data, m.log_time, m.publish_time, m.sequence) for m in found] == [
        (content(i), 1000 + i, i, i + 1) for i in range(60)
    ]
    assert summary is not None
    assert summary.statistics is not None
    assert summary.statistics.message_count == 60
    with (tmp_path / "a.mcap").open("rb") as file:
        kinds = {type(record).__name__ for record in StreamReader(file, emit_chunks=True, validate_crcs=True).records}
    assert kinds == {
        "Header", "Chunk", "MessageIndex", "DataEnd", "Schema", "Channel", "Statistics", "ChunkIndex", "SummaryOffset", "Footer"
    }  # fmt: skip


def test_every_part_of_the_file_has_its_checksum(tmp_path: Path) -> None:
    write(tmp_path / "a.mcap")
    with (tmp_path / "a.mcap").open("rb") as file:
        records = list(StreamReader(file, emit_chunks=True, validate_crcs=True).records)
    assert all(record.uncompressed_crc for record in records if isinstance(record, Chunk))
    assert [record.data_section_crc != 0 for record in records if isinstance(record, DataEnd)] == [True]
    assert [record.summary_crc != 0 for record in records if isinstance(record, Footer)] == [True]


@pytest.mark.parametrize("chunk_bytes", [CHUNK_BYTES, 3000])
def test_chunks_hold_their_size_and_one_message_more_at_most(tmp_path: Path, chunk_bytes: int) -> None:
    with AtomicMcapWriter(tmp_path / "a.mcap", chunk_bytes=chunk_bytes) as writer:
        channel = channel_of(writer)
        for i in range(120):
            writer.write(channel, i, content(i))
    with (tmp_path / "a.mcap").open("rb") as file:
        chunks = [one for one in StreamReader(file, emit_chunks=True).records if isinstance(one, Chunk)]
    messages = [[one for one in breakup_chunk(chunk) if isinstance(one, Message)] for chunk in chunks]
    assert all(sum(len(one.data) for one in held[:-1]) < chunk_bytes for held in messages)
    assert sum(map(len, messages)) == 120
    assert {chunk.compression for chunk in chunks} == {"zstd"}


def test_equal_schemas_are_stored_once(tmp_path: Path) -> None:
    with AtomicMcapWriter(tmp_path / "a.mcap") as writer:
        for topic in ("/a", "/b"):
            writer.write(channel_of(writer, topic, b"schema"), 0, b"")
    with (tmp_path / "a.mcap").open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    assert (len(summary.schemas), len(summary.channels)) == (1, 2)


def test_the_same_calls_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mcap", "b.mcap"):
        write(tmp_path / name)
    assert (tmp_path / "a.mcap").read_bytes() == (tmp_path / "b.mcap").read_bytes()


def test_nothing_has_the_final_name_before_the_end(tmp_path: Path) -> None:
    writer = AtomicMcapWriter(tmp_path / "new" / "a.mcap")
    writer.write(channel_of(writer), 0, b"x")
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".partial"]
    writer.close()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mcap"]


def test_abort_and_exceptions_leave_nothing_behind(tmp_path: Path) -> None:
    def stopped() -> None:
        with AtomicMcapWriter(tmp_path / "a.mcap") as writer:
            writer.write(channel_of(writer), 0, b"x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert not list(tmp_path.iterdir())
    writer = AtomicMcapWriter(tmp_path / "a.mcap")
    writer.abort()
    writer.abort()  # once more does no harm
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_at_the_end_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    writer = AtomicMcapWriter(tmp_path / "a.mcap")
    writer.write(channel_of(writer), 0, b"x")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        writer.close()
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_replaced_only_when_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.mcap", 3)
    before = hashlib.sha256((tmp_path / "a.mcap").read_bytes()).digest()
    with pytest.raises(LogError, match=r"a\.mcap: exists already"):
        AtomicMcapWriter(tmp_path / "a.mcap")
    AtomicMcapWriter(tmp_path / "a.mcap", overwrite=True).abort()
    assert hashlib.sha256((tmp_path / "a.mcap").read_bytes()).digest() == before
    with AtomicMcapWriter(tmp_path / "a.mcap", overwrite=True) as writer:
        writer.write(channel_of(writer), 0, b"new")
    assert [m.data for m in readable(tmp_path / "a.mcap")] == [b"new"]


def test_a_file_that_comes_into_being_meanwhile_is_kept(tmp_path: Path) -> None:
    writer = AtomicMcapWriter(tmp_path / "a.mcap")
    (tmp_path / "a.mcap").write_bytes(b"somebody else's")
    with pytest.raises(LogError, match="exists already"):
        writer.close()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"somebody else's"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match=r"a\.mcap: cannot be written"):
        AtomicMcapWriter(tmp_path / "file" / "a.mcap")


def test_times_that_mcap_cannot_hold_are_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    with AtomicMcapWriter(tmp_path / "a.mcap") as writer:
        channel = channel_of(writer)
        for time_ns in (-1, 2**64):
            with pytest.raises(EncodeError, match="times of 0 to"):
                writer.write(channel, time_ns, b"x")
        writer.write(channel, 0, b"y")
    assert [m.data for m in readable(tmp_path / "a.mcap")] == [b"y"]


def test_without_mcap_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcap.writer", None)
    with pytest.raises(ImportError, match=r"pip install 'robustbev\[replay\]'"):
        AtomicMcapWriter(tmp_path / "a.mcap")
    assert not list(tmp_path.iterdir())
