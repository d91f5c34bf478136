"""Foxglove's schemas, as protobuf or JSON: https://docs.foxglove.dev/docs/visualization/message-schemas.

Both encodings name their fields alike; JSON differs in times (sec and nsec, or text as of RFC 3339), bytes (base64) and what
may be missing.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np

from sensors.calibration import transforms
from sensors.documents import short
from sensors.logs.decode import (
    ChannelInfo,
    DecodeError,
    DecodeOne,
    camera_info,
    check_picture,
    check_raw,
    is_static,
)
from sensors.logs.messages import (
    CameraInfo,
    EncodedImage,
    FrameTransform,
    FrameTransforms,
    Payload,
    PointCloud,
    RawImage,
    SceneBoxes,
    TruthBox,
)
from sensors.logs.points import PointField, check_cloud, points_of

# PackedElementField.NumericType
_NUMERIC = ("unknown", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?([Zz]|[+-](\d\d):([0-5]\d))", re.ASCII
)
# An entity's id like "car-12" or "vehicle.car/7" tells its category; bare hashes and numbers do not.
_CATEGORY_IN_ID = re.compile(r"^([A-Za-z][A-Za-z_.]*[A-Za-z])[-/#: ]+\w+$")


def foxglove_decoder(info: ChannelInfo) -> DecodeOne | None:
    """Decodes a channel of one of Foxglove's types; None for a type that nothing here reads."""
    static = is_static(info.topic)
    readers: dict[str, Callable[[Any, int], Payload]] = {
        "foxglove.CompressedImage": _compressed_image,
        "foxglove.RawImage": _raw_image,
        "foxglove.CameraCalibration": _calibration,
        "foxglove.PointCloud": _point_cloud,
        "foxglove.FrameTransform": lambda message, _: FrameTransforms((_transform(message),), static),
        "foxglove.FrameTransforms": lambda message, _: FrameTransforms(
            tuple(_transform(one) for one in message.transforms), static
        ),
        "foxglove.SceneUpdate": _scene,
    }
    read = readers.get(info.type)
    if read is None:
        return None
    parse = _json_message if info.encoding == "json" else _protobuf_parser(info)
    return lambda data, log_ns: read(parse(data), log_ns)


def _protobuf_parser(info: ChannelInfo) -> Callable[[bytes], Any]:
    from mcap.records import Schema
    from mcap_protobuf.decoder import DecoderFactory

    schema = Schema(id=1, name=info.type, encoding="protobuf", data=info.schema)
    parse = DecoderFactory().decoder_for("protobuf", schema)
    assert parse is not None  # both encodings are protobuf
    return parse


class _JsonMessage:
    """A JSON object whose members are attributes, as a protobuf message's are; DecodeError for one that is missing."""

    def __init__(self, members: dict[str, Any]) -> None:
        self._members = members

    def __getattr__(self, name: str) -> Any:
        if name not in self._members:
            raise DecodeError(f"expected a member {name!r}, got only {', '.join(sorted(self._members)) or 'none'}")
        return _wrapped(self._members[name])

    def has(self, name: str) -> bool:
        return self._members.get(name) is not None


def _wrapped(value: Any) -> Any:
    if isinstance(value, dict):
        return _JsonMessage(value)
    return [_wrapped(one) for one in value] if isinstance(value, list) else value


def _json_message(data: bytes) -> _JsonMessage:
    message = json.loads(data)
    if not isinstance(message, dict):
        raise DecodeError(f"expected a JSON object, got {type(message).__name__}")
    return _JsonMessage(message)


def _has(message: Any, name: str) -> bool:
    return message.has(name) if isinstance(message, _JsonMessage) else bool(message.HasField(name))


def _many(message: Any, name: str) -> Any:
    """A repeated field, which JSON may leave out."""
    return [] if isinstance(message, _JsonMessage) and not message.has(name) else getattr(message, name)


def _text(message: Any, name: str) -> str:
    value = getattr(message, name)
    if not isinstance(value, str):
        raise DecodeError(f"expected text in {name}, got {_shown(value)}")
    return value


def _whole(message: Any, name: str) -> int:
    """A whole number, which JSON may write as 3.0 or, as protobuf's JSON does those of 64 bits, as "3"."""
    value = getattr(message, name)
    try:
        if not isinstance(value, bool) and (isinstance(value, str) or value == int(value)):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise DecodeError(f"expected a whole number in {name}, got {_shown(value)}")


def _float(message: Any, name: str) -> float:
    """A number, which protobuf's JSON may write as "NaN" or "Infinity"."""
    return _as_float(getattr(message, name), name)


def _floats(message: Any, name: str) -> list[float]:
    values = _many(message, name)
    if isinstance(message, _JsonMessage) and not isinstance(values, list):
        raise DecodeError(f"expected an array of numbers in {name}, got {_shown(values)}")
    return [_as_float(value, name) for value in values]


def _as_float(value: Any, name: str) -> float:
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise DecodeError(f"expected a number in {name}, got {_shown(value)}")


def _shown(value: Any) -> str:
    return "an object" if isinstance(value, _JsonMessage) else short(value, 60)


def _stamp_ns(message: Any) -> int:
    time = message.timestamp
    if isinstance(time, _JsonMessage):
        return _whole(time, "sec") * 1_000_000_000 + _whole(time, "nsec")
    if isinstance(message, _JsonMessage):
        return _text_ns(time)
    return int(time.seconds) * 1_000_000_000 + int(time.nanos)


def _text_ns(time: Any) -> int:
    """Nanoseconds since the Unix epoch of a time as in RFC 3339, 2024-01-01T00:00:00.5Z; what is finer is cut off."""
    fault = f"expected a time as sec and nsec, or as 2024-01-01T00:00:00.5Z, got {short(time, 60)}"
    told = _RFC3339.fullmatch(time) if isinstance(time, str) else None
    if told is None:
        raise DecodeError(fault)
    year, month, day, hour, minute, second = (int(part) for part in told.groups()[:6])
    fraction, zone, hours, minutes = told.groups()[6:]
    try:
        since = datetime(year, month, day, hour, minute, second, tzinfo=UTC) - _EPOCH
    except ValueError as error:
        raise DecodeError(f"{fault} ({error})") from error
    offset_s = 0 if zone in "Zz" else int(f"{zone[0]}1") * (int(hours) * 3600 + int(minutes) * 60)
    seconds = since.days * 86_400 + since.seconds - offset_s
    return seconds * 1_000_000_000 + int((fraction or "")[:9].ljust(9, "0"))


def _bytes(value: str | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise DecodeError(f"expected bytes in base64, got what is none ({error})") from error


def _xyz(vector: Any) -> tuple[float, float, float]:
    return _float(vector, "x"), _float(vector, "y"), _float(vector, "z")


def _wxyz(rotation: Any) -> tuple[float, float, float, float]:
    return _float(rotation, "w"), *_xyz(rotation)


def _compressed_image(message: Any, _: int) -> Payload:
    data = check_picture(_bytes(message.data))
    return EncodedImage(_stamp_ns(message), _text(message, "frame_id"), _text(message, "format").lower(), data)


def _raw_image(message: Any, _: int) -> Payload:
    height, width, step = (_whole(message, name) for name in ("height", "width", "step"))
    frame_id, encoding = _text(message, "frame_id"), _text(message, "encoding")
    return check_raw(RawImage(_stamp_ns(message), frame_id, encoding, height, width, step, _bytes(message.data)))


def _calibration(message: Any, _: int) -> Payload:
    width, height, model = _whole(message, "width"), _whole(message, "height"), _text(message, "distortion_model")
    D, empty = np.array(_floats(message, "D")), np.zeros(0)
    info = CameraInfo(_stamp_ns(message), _text(message, "frame_id"), width, height, model, D, empty, empty, empty)
    return camera_info(info, _floats(message, "K"), _floats(message, "R"), _floats(message, "P"))


def _transform(message: Any) -> FrameTransform:
    return FrameTransform(
        _stamp_ns(message),
        _text(message, "parent_frame_id"),
        _text(message, "child_frame_id"),
        _xyz(message.translation),
        _wxyz(message.rotation),
    )


def _point_cloud(message: Any, _: int) -> Payload:
    data, stride = _bytes(message.data), _whole(message, "point_stride")
    if stride <= 0 or len(data) % stride:
        raise DecodeError(f"expected whole points of point_stride {stride}, got {len(data)} bytes")
    fields = []
    for field in message.fields:
        number = _whole(field, "type")
        kind = _NUMERIC[number] if 0 <= number < len(_NUMERIC) else f"type {number}"
        fields.append(PointField(_text(field, "name"), kind, _whole(field, "offset")))
    points = points_of(data, fields, stride, 1, len(data) // stride, 0, big_endian=False)
    cloud = check_cloud(PointCloud(_stamp_ns(message), _text(message, "frame_id"), points))
    return _moved(cloud, message.pose) if _has(message, "pose") else cloud


def _moved(cloud: PointCloud, pose: Any) -> PointCloud:
    """The cloud in its frame's axes: `pose` is where its own origin stands in them."""
    translation = _xyz(pose.position) if _has(pose, "position") else (0.0, 0.0, 0.0)
    rotation = _wxyz(pose.orientation) if _has(pose, "orientation") else (1.0, 0.0, 0.0, 0.0)
    if rotation == (0.0, 0.0, 0.0, 0.0):
        rotation = (1.0, 0.0, 0.0, 0.0)
    if translation == (0.0, 0.0, 0.0) and rotation[1:] == (0.0, 0.0, 0.0):
        return cloud
    if not np.isfinite([*translation, *rotation]).all() or abs(np.linalg.norm(rotation) - 1) > 1e-3:
        raise DecodeError(f"expected a pose with a unit quaternion, got {translation}, (w, x, y, z) {rotation}")
    names = cloud.points.dtype.names or ()
    vectors = [name for name in names if (name.startswith(("v", "n")) and name[-1:] in "xyz") or "_comp" in name]
    if vectors and rotation[1:] != (0.0, 0.0, 0.0):
        raise DecodeError(f"expected a pose without rotation for points with vectors ({', '.join(vectors)})")
    matrix = transforms([*translation, *rotation])
    points = cloud.points.copy()
    xyz = np.stack([points[name].astype(np.float64) for name in "xyz"], axis=1) @ matrix[:3, :3].T + matrix[:3, 3]
    for column, name in enumerate("xyz"):
        points[name] = xyz[:, column]
    return PointCloud(cloud.stamp_ns, cloud.frame_id, points)


def _scene(message: Any, log_ns: int) -> Payload:
    """The cubes of a scene's entities as boxes; entities without any are left out."""
    entities = [entity for entity in _many(message, "entities") if _many(entity, "cubes")]
    frames = sorted({_text(entity, "frame_id") for entity in entities})
    if len(frames) > 1:
        raise DecodeError(f"expected the boxes of one instant in one frame, got {', '.join(frames)}")
    stamped = [*entities, *_many(message, "deletions")]
    boxes = tuple(
        _box(entity, cube, number) for entity in entities for number, cube in enumerate(_many(entity, "cubes"))
    )
    return SceneBoxes(_stamp_ns(stamped[0]) if stamped else log_ns, frames[0] if frames else "", boxes)


def _box(entity: Any, cube: Any, number: int) -> TruthBox:
    notes = {_text(note, "key"): _text(note, "value") for note in _many(entity, "metadata")}
    size_x, size_y, size_z = _xyz(cube.size)
    velocity = (_number(notes, "velocity_x"), _number(notes, "velocity_y"))
    count = _number(notes, "num_points")
    return TruthBox(
        id=_text(entity, "id") + f"#{number}" * (number > 0),
        category=_category(entity, notes),
        center_m=_xyz(cube.pose.position),
        size_m=(size_y, size_x, size_z),
        rotation_wxyz=_wxyz(cube.pose.orientation),
        velocity_mps=None if velocity[0] is None or velocity[1] is None else (velocity[0], velocity[1]),
        attribute=notes.get("attribute", notes.get("attributes", "")),
        num_points=None if count is None else int(count),
    )


def _category(entity: Any, notes: dict[str, str]) -> str:
    for key in ("category", "category_name", "class", "label"):
        if notes.get(key):
            return notes[key]
    match = _CATEGORY_IN_ID.match(_text(entity, "id"))
    return match.group(1) if match else ""


def _number(notes: dict[str, str], key: str) -> float | None:
    """A number among an entity's metadata; None where it is not given, or is NaN."""
    if not notes.get(key):
        return None
    try:
        value = float(notes[key])
    except ValueError as error:
        raise DecodeError(f"expected a number in the metadata {key}, got {notes[key]!r}") from error
    return value if np.isfinite(value) else None
