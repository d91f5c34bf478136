"""Drives in MCAP: their order, seeking, and what is left of them after damage.

The full figures (500 cuts of two chunk sizes, 1,000 flipped bits) are those of `CUTS` and `FLIPS` raised by the environment
variable ROBUSTBEV_FULL_LOG_TESTS=1.
"""

from __future__ import annotations

import io
import os
import random
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcap.data_stream import ReadDataStream
from mcap.records import Chunk, Message
from mcap.stream_reader import breakup_chunk
from mcap.writer import CompressionType, Writer

from sensors.errors import MissingExtraError
from sensors.logs.log import LogError, LogWarning
from sensors.logs.mcap import log as log_module
from sensors.logs.mcap.log import McapLog
from sensors.logs.messages import Malformed, Other
from tests.sensors.logs.mcap.mcap_files import CHUNK, MESSAGE, Written, by_time, records, some_messages, write_mcap

FULL = bool(os.environ.get("ROBUSTBEV_FULL_LOG_TESTS"))
CUTS = 500 if FULL else 25
FLIPS = 1000 if FULL else 50
COMPRESSIONS = [CompressionType.ZSTD, CompressionType.LZ4, CompressionType.NONE]


def read(path: Path, **asked: Any) -> tuple[McapLog, list[Written], list[str]]:
    """(log, messages, warnings) of a file; messages whose schema was lost hold b""."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log = McapLog(path)
        messages = []
        for message in log.messages(**asked):
            payload = message.payload
            if isinstance(payload, Malformed):
                assert "it was lost with a damaged chunk" in payload.reason
            else:
                assert isinstance(payload, Other)
            data = payload.data if isinstance(payload, Other) else b""
            messages.append(Written(message.topic, message.log_time_ns, message.publish_time_ns, data))
    assert all(issubclass(one.category, LogWarning) for one in caught)
    return log, messages, [str(one.message) for one in caught]


def chunks(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(begin, end, messages) of each chunk, by the mcap library."""
    for opcode, begin, end in records(data):
        if opcode == CHUNK:
            chunk = Chunk.read(ReadDataStream(io.BytesIO(data[begin + 9 : end])))
            yield begin, end, sum(isinstance(record, Message) for record in breakup_chunk(chunk))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "drive.mcap"


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("options", [{}, {"summary": False}, {"crcs": False}, {"use_chunking": False}])
def test_a_whole_file_gives_every_message_by_log_time(
    file: Path, compression: CompressionType, options: dict[str, Any]
) -> None:
    messages = some_messages()
    file.write_bytes(write_mcap(messages, compression=compression, **options))
    log, got, warned = read(file)
    assert got == by_time(messages)  # equal times in the order of writing
    assert not warned
    assert not log.damage
    assert log.span_ns() == (min(m.log_ns for m in messages), max(m.log_ns for m in messages))
    assert [(topic.name, topic.type, topic.count) for topic in log.topics()] == [
        (f"/topic_{n}", "test.Bytes", sum(m.topic == f"/topic_{n}" for m in messages)) for n in range(3)
    ]
    assert read(file)[1] == got  # and again the same


@pytest.mark.parametrize("summary", [True, False])
def test_chunks_that_overlap_in_time_are_merged(file: Path, summary: bool) -> None:
    rng = random.Random(3)
    messages = [Written(f"/t{n % 2}", time := rng.randrange(50), time, struct.pack("<I", n)) for n in range(500)]
    file.write_bytes(write_mcap(messages, chunk_bytes=300, summary=summary))
    assert read(file)[1] == by_time(messages)


@pytest.mark.parametrize("options", [{}, {"summary": False}, {"use_chunking": False}])
def test_spans_and_topics_select(file: Path, options: dict[str, Any]) -> None:
    messages = some_messages()
    file.write_bytes(write_mcap(messages, **options))
    wanted = [m for m in by_time(messages) if m.topic == "/topic_1" and 1_200 <= m.log_ns < 1_500]
    assert read(file, topics=["/topic_1"], start_ns=1_200, end_ns=1_500)[1] == wanted
    assert read(file, topics=["/none"])[1] == []
    assert read(file, topics=[])[1] == []


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("chunk_bytes", [1 << 16, 1 << 20] if FULL else [2048, 8192])
def test_every_complete_chunk_before_a_cut_is_given(file: Path, chunk_bytes: int, compression: CompressionType) -> None:
    messages = some_messages(1500, longest_bytes=8000) if FULL else some_messages(300)
    data = write_mcap(messages, chunk_bytes=chunk_bytes, compression=compression)
    complete: list[tuple[int, int]] = []  # end of a chunk, messages up to it
    for _, end, count in chunks(data):
        complete.append((end, (complete[-1][1] if complete else 0) + count))
    assert complete[-1][1] == len(messages)
    ends = [begin + shift for _, begin, _ in records(data) for shift in (-1, 0, 1, 8, 9)]
    rng = random.Random(chunk_bytes)
    offsets = {len(data) - 20, len(data) - 1}  # within the footer, and the last byte
    offsets |= {*rng.sample(ends, min(len(ends), CUTS // 4)), *(rng.randrange(8, len(data)) for _ in range(CUTS))}
    for offset in sorted(offset for offset in offsets if 8 <= offset < len(data)):
        file.write_bytes(data[:offset])
        log, got, warned = read(file)
        whole = max((count for end, count in complete if end <= offset), default=0)
        assert got == by_time(messages[:whole]), offset
        assert len(warned) == 1, warned
        assert log.damage.truncated_at_byte is not None
        assert log.damage.truncated_at_byte <= offset
        assert f"byte {log.damage.truncated_at_byte}" in warned[0]
        assert (log.damage.bad_chunks, log.damage.bad_records) == (0, 0), offset


@pytest.mark.parametrize(
    "options",
    [
        {"compression": CompressionType.ZSTD},
        {"compression": CompressionType.LZ4},
        {"compression": CompressionType.NONE},
        {"compression": CompressionType.NONE, "summary": False},
        {"compression": CompressionType.NONE, "use_chunking": False, "data_crcs": True},
        {"compression": CompressionType.NONE, "use_chunking": False, "data_crcs": True, "summary": False},
        {"compression": CompressionType.ZSTD, "crcs": False, "data_crcs": True},
    ],
    ids=str,
)
def test_a_flipped_bit_never_alters_a_message(file: Path, options: dict[str, Any]) -> None:
    messages = some_messages(200)
    data = write_mcap(messages, **options)
    written = set(messages)
    rng = random.Random(7)
    for _ in range(FLIPS):
        bit = rng.randrange(8 * len(data))
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        log, got, warned = read(file)
        assert set(got) <= written, bit
        assert got == [message for message in by_time(messages) if message in set(got)], bit
        assert len(got) == len(messages) or (log.damage and warned), bit  # nothing is lost in silence
        assert log.damage.bad_chunks == len(log.damage.bad_chunk_offsets)


def test_a_damaged_chunk_costs_its_own_messages_and_no_others(file: Path) -> None:
    messages = some_messages(300)
    data = bytearray(write_mcap(messages))
    places = list(chunks(bytes(data)))
    begin, end, count = places[3]
    data[(begin + end) // 2] ^= 1
    file.write_bytes(data)
    log, got, warned = read(file)
    before = sum(count for _, _, count in places[:3])
    assert got == by_time([*messages[:before], *messages[before + count :]])
    assert (log.damage.bad_chunks, log.damage.bad_chunk_offsets) == (1, [begin])
    assert len(warned) == 1
    assert f"byte {begin} is left out: expected " in warned[0]


@pytest.mark.parametrize("summary", [True, False])
def test_behind_a_wrong_length_only_the_summary_leads_on(file: Path, summary: bool) -> None:
    messages = some_messages(300)
    data = bytearray(write_mcap(messages, summary=summary))
    places = list(chunks(bytes(data)))
    begin = places[3][0]
    data[begin + 3] ^= 0x40  # of the record's length: 4 MB more
    file.write_bytes(data)
    log, got, warned = read(file)
    if summary:  # nothing else is asked for lengths
        assert (got, bool(log.damage), warned) == (by_time(messages), False, [])
        return
    assert got == by_time(messages[: sum(count for _, _, count in places[:3])])
    assert log.damage.truncated_at_byte == begin
    (text,) = warned
    assert f"nothing whole follows from byte {begin} on, {len(data) - begin} bytes are not read" in text


def test_chunks_that_overlap_are_held_up_to_a_limit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond it is left out and told, the rest is read; chunks one after another need little."""
    monkeypatch.setattr(log_module, "_OPEN_BYTES", 100_000)
    one = [Written("/t", 10 * n, 10 * n, bytes([n % 256]) * 1_000) for n in range(1_000)]
    file.write_bytes(write_mcap(one, chunk_bytes=20_000))
    assert read(file)[1:] == (one, [])
    overlapping = [Written("/t", n % 20, n % 20, bytes([n % 256]) * 1_000) for n in range(1_000)]
    file.write_bytes(write_mcap(overlapping, chunk_bytes=20_000))
    log, got, warned = read(file)
    assert 0 < len(got) < len(overlapping)
    assert got == by_time([message for message in overlapping if message in set(got)])
    assert log.damage.bad_chunks == len(set(log.damage.bad_chunk_offsets)) == (len(overlapping) - len(got)) // 20
    (text,) = warned
    assert "overlap in time" in text
    assert "mcap sort" in text


def test_channels_lost_with_a_chunk_are_taken_from_the_summary(file: Path) -> None:
    messages = some_messages(300)
    for summary in (True, False):
        data = bytearray(write_mcap(messages, summary=summary))
        _, end, count = next(chunks(bytes(data)))
        data[end - 1] ^= 1
        file.write_bytes(data)
        log, got, _ = read(file)
        assert got == (by_time(messages[count:]) if summary else [])
        assert log.damage.bad_records == (0 if summary else len(messages) - count)


def test_messages_outside_chunks_are_refused_where_the_data_checksum_is_wrong(file: Path) -> None:
    messages = some_messages(50)
    for checked in (True, False):
        data = bytearray(write_mcap(messages, use_chunking=False, data_crcs=checked))
        place = data.index(messages[20].data) + 4
        data[place] ^= 1
        file.write_bytes(data)
        log, got, _ = read(file)
        assert len(got) == (0 if checked else len(messages))  # without a checksum nothing tells
        assert log.damage.bad_records >= (len(messages) if checked else 0)


def test_the_inside_of_a_damaged_chunk_is_not_taken_for_messages(file: Path) -> None:
    """Without compression a chunk's content looks like records outside chunks, and one bit makes a message of an index."""
    messages = some_messages(100)
    data = write_mcap(messages, compression=CompressionType.NONE, summary=False)
    begin, end, count = list(chunks(data))[2]
    before = messages[: sum(count for _, _, count in list(chunks(data))[:2])]
    inside = data.index(struct.pack("<BQ", MESSAGE, 22 + len(messages[len(before) + 1].data)), begin)
    wrong = struct.pack("<Q", inside - begin - 9)  # the chunk seems to end before its second message
    file.write_bytes(data[: begin + 1] + wrong + data[begin + 9 :])
    log, got, _ = read(file)
    assert got == by_time([*before, *messages[len(before) + count :]])
    assert log.damage.bad_chunks == 1
    assert log.damage.bad_records >= count - 1
    index = bytearray(data)
    assert index[end] == 0x07
    index[end] = MESSAGE
    file.write_bytes(index)
    log, got, _ = read(file)
    assert got == by_time(messages)
    assert log.damage.bad_records


@pytest.mark.parametrize("opcode", [0x07, 0x09, 0x0C, 0x86])
def test_a_chunk_under_another_opcode_is_not_lost_in_silence(file: Path, opcode: int) -> None:
    messages = some_messages(100)
    data = bytearray(write_mcap(messages, summary=False))
    begin, _, count = list(chunks(bytes(data)))[2]
    before = sum(count for _, _, count in list(chunks(bytes(data)))[:2])
    data[begin] = opcode
    file.write_bytes(data)
    log, got, warned = read(file)
    assert got == by_time([*messages[:before], *messages[before + count :]])
    assert log.damage.bad_records == 1
    assert len(warned) == 1


def test_an_unchunked_file_that_was_cut_off_gives_its_whole_messages(file: Path) -> None:
    messages = some_messages(50)
    data = write_mcap(messages, use_chunking=False)
    file.write_bytes(data[: data.index(messages[30].data) + 5])
    log, got, warned = read(file)
    assert got == by_time(messages[:30])
    assert log.damage.truncated_at_byte == data.index(messages[30].data) - 31
    assert len(warned) == 1


def test_a_lost_schema_makes_messages_malformed_and_keeps_the_rest(file: Path) -> None:
    buffer = io.BytesIO()
    writer: Any = Writer(buffer)
    writer.start("", "")
    lost = writer.register_channel("/lost", "protobuf", 77)  # no schema of this number is written
    kept = writer.register_channel("/kept", "raw", 0)
    writer.add_message(lost, 1, b"a", 1)
    writer.add_message(kept, 2, b"b", 2)
    writer.finish()
    file.write_bytes(buffer.getvalue())
    log = McapLog(file)
    first, second = log.messages()
    assert isinstance(first.payload, Malformed)
    assert "schema" in first.payload.reason
    assert second.payload == Other("", b"b")
    assert log.damage.malformed == {"/lost": 1}


def test_a_chunk_whose_records_lead_into_zeros_is_left_out(file: Path) -> None:
    """Its checksum is right, and one length is not: a walk through zeros as through records would lose a message in silence."""
    messages = [Written("/zeros", time, time, bytes(90)) for time in range(4)]
    data = bytearray(write_mcap(messages, compression=CompressionType.NONE, crcs=False, summary=False))
    at = data.index(struct.pack("<BQ", MESSAGE, 22 + 90))
    data[at + 1 : at + 9] = struct.pack("<Q", 22)  # none of the 90 zeros, which are ten heads of records of no length
    file.write_bytes(data)
    log, got, _ = read(file)
    assert got == []
    assert log.damage.bad_chunks == 1


def test_an_unknown_compression_is_refused_by_name(file: Path) -> None:
    data = write_mcap(some_messages(50))
    file.write_bytes(data.replace(b"zstd", b"brot"))
    with pytest.raises(LogError, match="brot"):
        McapLog(file)


@given(seed=st.integers(0, 2**32 - 1), damages=st.integers(1, 6), summary=st.booleans(), chunked=st.booleans())
def test_whatever_the_damage_reading_ends_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, seed: int, damages: int, summary: bool, chunked: bool
) -> None:
    rng = random.Random(seed)
    data = bytearray(write_mcap(some_messages(60), chunk_bytes=700, summary=summary, use_chunking=chunked))
    for _ in range(damages):
        begin = rng.randrange(8, len(data))
        match rng.randrange(4):
            case 0:
                data[begin] ^= 1 << rng.randrange(8)
            case 1:
                data[begin : begin + rng.randrange(64)] = b""
            case 2:
                data[begin:begin] = rng.randbytes(rng.randrange(1, 64))
            case _:
                data[begin : begin + 40] = bytes(40)
    path = tmp_path_factory.mktemp("damaged") / "drive.mcap"
    path.write_bytes(data)
    _, got, _ = read(path)
    assert [m.log_ns for m in got] == sorted(m.log_ns for m in got)


def test_a_missing_library_is_named_with_its_extra(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(write_mcap(some_messages(5)))
    for name in ("index", "records", "summary"):
        monkeypatch.delitem(sys.modules, f"sensors.logs.mcap.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "mcap.opcode", None)
    with pytest.raises(MissingExtraError, match=r"mcap.*robustbev\[replay\]"):
        McapLog(file)


def test_two_readings_at_once_do_not_disturb_each_other(file: Path) -> None:
    messages = some_messages()
    file.write_bytes(write_mcap(messages))
    log = McapLog(file)
    pairs = list(zip(log.messages(), log.messages(), strict=True))
    assert all(one == other for one, other in pairs)
    assert len(pairs) == len(messages)
