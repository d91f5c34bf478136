"""Random edits of a sound log's file, of what is in its chunks, and of its messages with all checksums made right again."""

from __future__ import annotations

import random
import sqlite3
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from mcap.opcode import Opcode
from mcap.writer import CompressionType

from sensors.logs.mcap.file import HEAD_BYTES
from tests.sensors.logs.edits.members import INTS, leaves, other
from tests.sensors.logs.edits.sound_logs import Item, Sound, changed, mcap_of, packed, parsed
from tests.sensors.logs.mcap.mcap_files import MAGIC_BYTES, records

_CHUNK_HEAD_BYTES = HEAD_BYTES + 8 + 8 + 8 + 4 + 4 + 8  # of one that is not compressed
_THAT = "id = (SELECT id FROM messages ORDER BY timestamp, id LIMIT 1 OFFSET ?)"
_VALUES: dict[str, tuple[object, ...]] = {
    "timestamp": (*INTS[:15], -1, "noon", 0.5, b"\x00"),
    "topic_id": (0, -1, 99, "x", 2),
    "data": ("text", 3, b""),
}


@dataclass(frozen=True)
class Edited:
    """A file, and which of the sound log's messages it may give otherwise than they were."""

    what: str
    data: bytes
    touched: frozenset[int] = frozenset()
    copies: Mapping[int, int] = field(default_factory=dict)  # message -> how often it is there, where not once
    whole: bool = False  # every checksum and length is right: it may not be refused


def edit(log: Sound, rng: random.Random) -> Edited:
    """One random edit of a log."""
    sqlite = log.kind == "sqlite"
    file_edits: list[Callable[[Sound, random.Random], Edited]] = (
        [_sqlite_bytes] if sqlite else [_mcap_bytes, _content, _renumbered]
    )
    ways = [_message, _message, _message, _raw_payload, *file_edits, *file_edits, _reordered, _cut]
    return rng.choice(ways)(log, rng)


def _message(log: Sound, rng: random.Random) -> Edited:
    """One or two members of a message set to what they may not be, or may; all checksums are right."""
    number = rng.randrange(len(log.items))
    item = log.items[number]
    while True:
        message, names = parsed(item), []
        for _ in range(rng.choice((1, 1, 2))):
            leaf = rng.choice(list(leaves(message)))
            names.append(leaf.name)
            try:
                leaf.set(other(leaf.value, rng, free=item.encoding == "json"))
            except (TypeError, ValueError, AttributeError):  # not of the field's type
                continue
        try:
            data = packed(item, message)
        except Exception:  # beyond the field's range
            continue
        return _with(log, number, data, f"{item.type} {' '.join(names)}", rng)


def _raw_payload(log: Sound, rng: random.Random) -> Edited:
    """Bytes or lengths within a message; all checksums are right."""
    number = rng.randrange(len(log.items))
    data = bytearray(log.items[number].data)
    if rng.random() < 0.5 and len(data) > 12:
        at = 4 + 4 * rng.randrange((len(data) - 4) // 4)  # CDR aligns its lengths, behind a head of 4 bytes
        if rng.random() < 0.7:
            at = 4 + 4 * rng.randrange(min(40, (len(data) - 4) // 4))
        data[at : at + 4] = struct.pack("<I", rng.choice(INTS) & 0xFFFFFFFF)
        return _with(log, number, bytes(data), f"{log.items[number].type} word at {at}", rng)
    _bytes_edit(data, rng)
    return _with(log, number, bytes(data), f"{log.items[number].type} bytes", rng)


def _with(log: Sound, number: int, data: bytes, what: str, rng: random.Random) -> Edited:
    items = list(log.items)
    items[number] = replace(items[number], data=data)
    return Edited(what, _file_of(log, items, rng, number), frozenset([number]), whole=True)


def _file_of(log: Sound, items: Sequence[Item], rng: random.Random, *numbers: int) -> bytes:
    if log.kind != "sqlite":
        return _mcap(items, rng)
    return changed(log, *[(f"UPDATE messages SET data = ? WHERE {_THAT}", (items[n].data, n)) for n in numbers])


def _mcap(items: Sequence[Item], rng: random.Random) -> bytes:
    """In one of the ways in which files are written."""
    compression = rng.choice((CompressionType.ZSTD, CompressionType.NONE, CompressionType.LZ4))
    return mcap_of(items, compression=compression, chunked=rng.random() < 0.9, summary=rng.random() < 0.8)


def _bytes_edit(data: bytearray, rng: random.Random) -> tuple[int, int]:
    """Flip, insert, delete or overwrite somewhere; the span that is edited, its end the data's where what follows has moved."""
    begin = rng.randrange(max(1, len(data)))
    count = rng.choice((1, 1, 2, 4, 8, 30, 200))
    match rng.randrange(6):
        case 0 if begin < len(data):
            data[begin] ^= 1 << rng.randrange(8)
            return begin, begin + 1
        case 1:
            data[begin:begin] = rng.randbytes(count)
        case 2:
            del data[begin : begin + count]
        case 3:
            data[begin : begin + count] = rng.randbytes(len(data[begin : begin + count]))
            return begin, begin + count
        case 4:
            data[begin : begin + count] = rng.choice((b"\x00", b"\xff", b"\x7f")) * len(data[begin : begin + count])
            return begin, begin + count
        case _:
            here = data[begin : begin + 8]
            data[begin : begin + 8] = struct.pack("<Q", rng.choice(INTS) & (2**64 - 1))[: len(here)]
            return begin, begin + 8
    return begin, max(len(data), begin)


def _mcap_bytes(log: Sound, rng: random.Random) -> Edited:
    """Bytes and records anywhere in the file, checksums as they were: nothing may be given otherwise."""
    data = bytearray(_mcap(log.items, rng))
    spans = list(records(bytes(data)))
    match rng.randrange(5):
        case 0:
            opcode, begin, _ = rng.choice(spans)
            data[begin + 1 : begin + 9] = struct.pack("<Q", rng.choice(INTS) & (2**64 - 1))
            return Edited(f"length of record {opcode:#x}", bytes(data))
        case 1:
            opcode, begin, end = rng.choice(spans)
            data[begin:begin] = data[begin:end]
            return Edited(f"record {opcode:#x} twice", bytes(data))
        case 2:
            first, second = sorted(rng.sample(spans, 2), key=lambda span: span[1])
            moved = data[second[1] : second[2]] + data[first[2] : second[1]] + data[first[1] : first[2]]
            data[first[1] : second[2]] = moved
            return Edited(f"records {first[0]:#x} and {second[0]:#x} swapped", bytes(data))
        case _:
            for _ in range(rng.choice((1, 1, 1, 3))):
                _bytes_edit(data, rng)
            return Edited("bytes", bytes(data))


def _content(log: Sound, rng: random.Random) -> Edited:
    """The inside of a chunk, its checksum made right again, in a file without a summary."""
    data = mcap_of(log.items, compression=CompressionType.NONE, summary=False)
    spans = list(records(data))
    chosen = rng.choice([begin for opcode, begin, _ in spans if opcode == Opcode.CHUNK])
    place, out, touched = 0, bytearray(data[:MAGIC_BYTES]), frozenset[int]()
    for opcode, begin, end in spans:
        if opcode == Opcode.DATA_END:
            break
        record = data[begin:end]
        if opcode == Opcode.CHUNK:
            content = bytearray(record[_CHUNK_HEAD_BYTES:])
            inside = _message_spans(content)
            if begin == chosen:
                (first, last), framed = _content_edit(content, inside, rng)
                touched = frozenset(
                    n for n, span in enumerate(inside, place) if span[1] > first and (framed or span[0] < last)
                )
                if not any(begins <= first and last <= ends for begins, ends in inside):
                    touched = frozenset(range(len(log.items)))  # perhaps a channel or schema: whose, is not asked
                times = record[HEAD_BYTES : HEAD_BYTES + 16]
                record = times + struct.pack("<QIIQ", len(content), zlib.crc32(content), 0, len(content)) + content
                record = struct.pack("<BQ", Opcode.CHUNK, len(record)) + record
            place += len(inside)
        out += record
    out += (
        struct.pack("<BQI", Opcode.DATA_END, 4, 0)
        + struct.pack("<BQQQI", Opcode.FOOTER, 20, 0, 0, 0)
        + data[:MAGIC_BYTES]
    )
    return Edited("inside of a chunk", bytes(out), touched)


def _content_edit(
    content: bytearray, inside: list[tuple[int, int]], rng: random.Random
) -> tuple[tuple[int, int], bool]:
    """The span that was edited, and whether records from there on are framed otherwise."""
    begin, end = rng.choice(inside)
    match rng.randrange(3):
        case 0:  # how long a record is
            length = rng.choice((*INTS, end - begin - HEAD_BYTES + rng.randrange(-40, 40)))
            content[begin + 1 : begin + HEAD_BYTES] = struct.pack("<Q", length & (2**64 - 1))
            return (begin, end), True
        case 1:  # a message's channel, number or times
            at = begin + HEAD_BYTES + rng.choice((0, 2, 6, 14))
            content[at : at + 2] = rng.randbytes(2)
            return (begin, end), False
        case _:
            before = len(content)
            span = _bytes_edit(content, rng)
            heads = any(span[0] < first + HEAD_BYTES and span[1] > first for first, _ in inside)
            return span, heads or len(content) != before


def _message_spans(content: bytearray) -> list[tuple[int, int]]:
    around = bytes(MAGIC_BYTES)
    spans = records(around + bytes(content) + around)
    return [(begin - MAGIC_BYTES, end - MAGIC_BYTES) for opcode, begin, end in spans if opcode == Opcode.MESSAGE]


def _renumbered(log: Sound, rng: random.Random) -> Edited:
    """A message recorded far away in time."""
    number = rng.randrange(len(log.items))
    items = list(log.items)
    time_ns = rng.choice(
        (0, 1, 2**63 - 1, 2**63, 2**64 - 1, items[number].log_ns + rng.choice((-1, 1)) * 10 ** rng.randrange(9, 18))
    )
    items[number] = replace(items[number], log_ns=max(0, time_ns))
    return Edited(
        f"{items[number].type} recorded at {time_ns}", _file_of(log, items, rng), frozenset([number]), whole=True
    )


def _reordered(log: Sound, rng: random.Random) -> Edited:
    """Messages twice, or in another order, in a sound file: nothing is lost."""
    one, two = rng.sample(range(len(log.items)), 2)
    if log.kind == "sqlite":
        columns = "topic_id, timestamp, data"
        again = f"INSERT INTO messages({columns}) SELECT {columns} FROM messages WHERE {_THAT}"
        return Edited("a message twice", changed(log, (again, (one,))), copies={one: 2}, whole=True)
    items = list(log.items)
    if rng.random() < 0.5:
        items.insert(two, items[one])
        return Edited("a message twice", _file_of(log, items, rng), copies={one: 2}, whole=True)
    items[one], items[two] = items[two], items[one]
    return Edited("two messages swapped", _file_of(log, items, rng), whole=True)


def _cut(log: Sound, rng: random.Random) -> Edited:
    return Edited("cut off", log.data[: rng.randrange(len(log.data))])


def _sqlite_bytes(log: Sound, rng: random.Random) -> Edited:
    """Bytes, pages and values anywhere in a database, which has no checksums."""
    data, homes = bytearray(log.data), _homes(log.data)
    page_bytes = int.from_bytes(data[16:18], "big")
    pages = len(data) // page_bytes

    def touched(begin: int, end: int) -> frozenset[int]:
        span = range(begin // page_bytes, max(begin, end - 1) // page_bytes + 1)
        return frozenset(number for page in span for number in homes.get(page, ()))

    match rng.randrange(6):
        case 0:
            one, two = (page * page_bytes for page in rng.sample(range(pages), 2))
            here, there = data[one : one + page_bytes], data[two : two + page_bytes]
            data[one : one + page_bytes], data[two : two + page_bytes] = there, here
            return Edited("pages swapped", bytes(data), touched(one, one + 1) | touched(two, two + 1))
        case 1:
            column, number = rng.choice(list(_VALUES)), rng.randrange(len(log.items))
            value = rng.choice(_VALUES[column])
            statement = f"UPDATE messages SET {column} = ? WHERE {_THAT}"
            return Edited(f"{column} = {value!r}", changed(log, (statement, (value, number))), frozenset([number]))
        case _:
            before = len(data)
            begin, end = _bytes_edit(data, rng)
            return Edited("bytes", bytes(data), touched(begin, len(data) if len(data) != before else end))


@cache
def _homes(data: bytes) -> dict[int, frozenset[int]]:
    """Page (from 0) -> messages that an edit of it may change: those that it holds a part of, or all where it holds names or how
    texts are coded. Not among them are the index over times and what leads to messages."""
    database = sqlite3.connect(":memory:")
    database.deserialize(data)
    everything = frozenset(range(database.execute("SELECT COUNT(*) FROM messages").fetchone()[0]))
    try:
        pages = database.execute("SELECT name, path, pageno - 1, pagetype, ncell FROM dbstat ORDER BY path").fetchall()
    except sqlite3.OperationalError:  # this SQLite does not tell
        return dict.fromkeys(range(len(data)), everything)
    homes, first_of, first = {0: everything}, {}, 0
    for name, path, page, kind, cells in pages:
        if name in ("topics", "message_definitions"):
            homes[page] = everything
        elif name == "messages" and kind == "leaf":
            homes[page] = frozenset(range(first, first + cells))
            first_of[path], first = first, first + cells
    for name, path, page, kind, _ in pages:
        if name == "messages" and kind == "overflow":
            leaf, _, cell = path.partition("+")[0].rpartition("/")
            homes[page] = frozenset([first_of[leaf + "/"] + int(cell, 16)])
    return homes
