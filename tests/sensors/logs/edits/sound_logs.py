"""Small sound logs of a simulated drive, of every kind that is read, and their messages as they are recorded."""

from __future__ import annotations

import base64
import json
import sqlite3
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from mcap.reader import make_reader
from mcap.records import Schema
from mcap.writer import CompressionType, IndexType, Writer
from mcap_protobuf.decoder import DecoderFactory

from sensors.logs.mapping.mapping import LogMapping
from sensors.logs.messages import CameraInfo, EncodedImage, LogMessage, RawImage, SceneBoxes, TruthBox
from sensors.logs.open import open_log
from sensors.logs.ros2.types import typestore
from sensors.logs.write import write_log
from tests.sensors.logs.made_log import sqlite_bag
from tests.sensors.replay.drive import HEIGHT_PX, MAPPING, START_NS, TOPIC, WIDTH_PX, MemoryLog, drive

KINDS = ("ros2", "protobuf", "json", "sqlite")  # the first three in MCAP files
_CHUNK_BYTES = 4096


@dataclass(frozen=True)
class Item:
    """A message as it is recorded."""

    topic: str
    type: str
    encoding: str
    schema: bytes
    schema_encoding: str
    log_ns: int
    publish_ns: int
    data: bytes


@dataclass(frozen=True)
class Sound:
    """A log with nothing wrong, as a file of its own and as messages."""

    kind: str
    suffix: str
    data: bytes
    items: tuple[Item, ...]
    keys: tuple[str, ...]  # `key` of each message


@cache
def sound(kind: str) -> Sound:
    """A log of a kind: two cameras, one of them not rectified and of raw pictures, a LiDAR, a radar, ego poses, boxes."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log, path = MemoryLog(_scene()), Path(folder) / "log"
        suffix = ".db3" if kind == "sqlite" else ".mcap"
        if kind == "sqlite":
            write_log(log, mcap := path.with_suffix(".mcap"), "ros2")
            (file,) = sqlite_bag(mcap, path).glob("*.db3")
            items, data = _rows(file), file.read_bytes()
        else:
            write_log(log, path.with_suffix(suffix), "ros2" if kind == "ros2" else "foxglove")
            items = [_as_json(item) if kind == "json" else item for item in _items(path.with_suffix(suffix))]
            data = mcap_of(items)
        (again := Path(folder) / f"again{suffix}").write_bytes(data)
        keys = tuple(key(message) for message in open_log(again).messages())
    assert len(set(keys)) == len(keys) == len(items)
    assert not any("Malformed" in one for one in keys)
    return Sound(kind, suffix, data, tuple(items), keys)


def mapping() -> LogMapping:
    """Of the sound logs."""
    back = MAPPING.cameras["CAM_BACK"].model_copy(update={"rectified": False})
    return MAPPING.model_copy(update={"cameras": {**MAPPING.cameras, "CAM_BACK": back}})


def _scene() -> list[LogMessage]:
    """The drive's messages. Log times all differ, so that there is one order."""
    lens = np.array([-0.2, 0.03, 1e-3, -1e-3, 0.0])
    pixels = np.random.default_rng(0).bytes(HEIGHT_PX * WIDTH_PX * 3)
    box = TruthBox("car-1", "car", (9.0, 1.0, 0.5), (1.9, 4.6, 1.7), (1.0, 0.0, 0.0, 0.0), (1.0, 0.0), "", 3)
    out = [LogMessage("/boxes", START_NS, START_NS, SceneBoxes(START_NS, "map", (box,)))]
    for message in drive(0.3):
        payload, time_ns = message.payload, message.log_time_ns + len(out)
        if isinstance(payload, CameraInfo) and payload.frame_id == "CAM_BACK":
            payload = replace(payload, D=lens)
        if isinstance(payload, EncodedImage) and message.topic == TOPIC["CAM_BACK"]:
            payload = RawImage(payload.stamp_ns, "CAM_BACK", "rgb8", HEIGHT_PX, WIDTH_PX, 3 * WIDTH_PX, pixels)
        out.append(LogMessage(message.topic, time_ns, time_ns, payload))
    return sorted(out, key=lambda message: message.log_time_ns)


def _items(path: Path) -> list[Item]:
    out = []
    with path.open("rb") as file:
        for schema, channel, message in make_reader(file).iter_messages():
            assert schema is not None
            words = channel.topic, schema.name, channel.message_encoding, schema.data, schema.encoding
            out.append(Item(*words, message.log_time, message.publish_time, message.data))
    return out


def _rows(path: Path) -> list[Item]:
    """As `SqliteLog` gives them: by time, then id."""
    with sqlite3.connect(path) as database:
        rows = database.execute(
            "SELECT t.name, t.type, m.timestamp, m.data FROM messages m JOIN topics t ON t.id = m.topic_id "
            "ORDER BY m.timestamp, m.id"
        ).fetchall()
    database.close()
    return [Item(topic, type_, "cdr", b"", "", time, time, data) for topic, type_, time, data in rows]


def _as_json(item: Item) -> Item:
    members = _members(parsed(item))
    if "timestamp" in members and "image" not in item.topic:  # there are two ways of writing times
        members["timestamp"] = {"sec": item.log_ns // 10**9, "nsec": max(0, item.log_ns % 10**9 - 5_000_000)}
    return replace(item, encoding="json", schema=b"{}", schema_encoding="jsonschema", data=json.dumps(members).encode())


def _members(value: Any) -> Any:
    """A protobuf message as Foxglove's JSON has it, what is not set among it."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, str | int | float):
        return value
    if hasattr(value, "ToJsonString"):
        return value.ToJsonString()
    if hasattr(value, "DESCRIPTOR"):
        return {field.name: _members(getattr(value, field.name)) for field in value.DESCRIPTOR.fields}
    return [_members(one) for one in value]


def parsed(item: Item) -> Any:
    """The message as an object whose fields can be set."""
    if item.encoding == "json":
        return json.loads(item.data)
    if item.encoding == "cdr":
        return typestore().deserialize_cdr(item.data, item.type)
    parse = DecoderFactory().decoder_for("protobuf", Schema(1, item.schema, "protobuf", item.type))
    assert parse is not None
    return parse(item.data)


def packed(item: Item, message: Any) -> bytes:
    """Its bytes again."""
    if item.encoding == "json":
        return json.dumps(message).encode()
    if item.encoding == "cdr":
        return bytes(typestore().serialize_cdr(message, item.type))
    return bytes(message.SerializeToString())


def mcap_of(
    items: Sequence[Item],
    *,
    compression: CompressionType = CompressionType.ZSTD,
    chunked: bool = True,
    summary: bool = True,
) -> bytes:
    """An MCAP file of these messages, with every checksum that there is."""
    file = BytesIO()
    writer: Any = Writer(
        file,
        chunk_size=_CHUNK_BYTES,
        compression=compression,
        use_chunking=chunked,
        enable_crcs=True,
        enable_data_crcs=True,
        repeat_channels=summary,
        repeat_schemas=summary,
        use_statistics=summary,
        use_summary_offsets=summary,
        index_types=IndexType.ALL if summary else IndexType.MESSAGE,
    )
    writer.start(profile="", library="test")
    schemas: dict[str, int] = {}
    channels: dict[tuple[str, str], int] = {}
    for item in items:
        if item.type not in schemas:
            schemas[item.type] = writer.register_schema(item.type, item.schema_encoding, item.schema)
        if (item.topic, item.type) not in channels:
            channels[item.topic, item.type] = writer.register_channel(item.topic, item.encoding, schemas[item.type])
        writer.add_message(channels[item.topic, item.type], item.log_ns, item.data, item.publish_ns)
    writer.finish()
    return file.getvalue()


def changed(log: Sound, *statements: tuple[str, Sequence[Any]]) -> bytes:
    """The database after these statements."""
    database = sqlite3.connect(":memory:")
    database.deserialize(log.data)
    for statement, values in statements:
        database.execute(statement, values)
    database.commit()
    data = database.serialize()
    database.close()
    return bytes(data)


def key(message: LogMessage) -> str:
    """Equal for messages that are equal to the bit."""
    return repr((message.topic, message.log_time_ns, message.publish_time_ns, _content_key(message.payload)))


def _content_key(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if is_dataclass(value):
        return type(value).__name__, *(_content_key(getattr(value, f.name)) for f in fields(value))
    return tuple(_content_key(one) for one in value) if isinstance(value, tuple) else value
