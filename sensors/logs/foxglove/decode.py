"""Foxglove's schemas, as protobuf or JSON: https://docs.foxglove.dev/docs/visualization/message-schemas.

JSON becomes protobuf first, by protobuf's own reader of JSON: https://protobuf.dev/programming-guides/json. Foxglove's differs
from that in times, which may be sec and nsec.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from sensors.calibration import transforms
from sensors.documents import check_memory
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
    parse = _parser(info)
    return lambda data, log_ns: read(parse(data), log_ns)


def _parser(info: ChannelInfo) -> Callable[[bytes], Any]:
    """From bytes to a protobuf message; of JSON by Foxglove's published schema."""
    from mcap.records import Schema
    from mcap_protobuf.decoder import DecoderFactory

    definition = info.schema
    if info.encoding == "json":
        from foxglove import messages
        from google.protobuf.json_format import ParseDict

        definition = getattr(messages, info.type.removeprefix("foxglove.")).get_schema().data
    parse = DecoderFactory().decoder_for("protobuf", Schema(1, definition, "protobuf", info.type))
    assert parse is not None  # both encodings are protobuf
    if info.encoding != "json":
        return parse

    def parse_text(data: bytes) -> Any:
        check_memory(data)
        return ParseDict(json.loads(data, object_hook=_with_text_times), parse(b""), ignore_unknown_fields=True)

    return parse_text


def _with_text_times(members: dict[str, Any]) -> dict[str, Any]:
    """The members of a JSON object, a time as protobuf's JSON has it."""
    from google.protobuf.timestamp_pb2 import Timestamp

    members.pop("lifetime", None)  # of an entity: another pair of sec and nsec, not looked at
    time = members.get("timestamp")
    if isinstance(time, dict):
        members["timestamp"] = Timestamp(seconds=time["sec"], nanos=time["nsec"]).ToJsonString()
    return members


def _stamp_ns(message: Any) -> int:
    return int(message.timestamp.seconds) * 1_000_000_000 + int(message.timestamp.nanos)


def _xyz(vector: Any) -> tuple[float, float, float]:
    return vector.x, vector.y, vector.z


def _wxyz(rotation: Any) -> tuple[float, float, float, float]:
    return rotation.w, rotation.x, rotation.y, rotation.z


def _compressed_image(message: Any, _: int) -> Payload:
    return EncodedImage(_stamp_ns(message), message.frame_id, message.format.lower(), check_picture(message.data))


def _raw_image(message: Any, _: int) -> Payload:
    shape = message.height, message.width, message.step
    return check_raw(RawImage(_stamp_ns(message), message.frame_id, message.encoding, *shape, message.data))


def _calibration(message: Any, _: int) -> Payload:
    size, model, empty = (message.width, message.height), message.distortion_model, np.zeros(0)
    info = CameraInfo(_stamp_ns(message), message.frame_id, *size, model, np.array(message.D), empty, empty, empty)
    return camera_info(info, message.K, message.R, message.P)


def _transform(message: Any) -> FrameTransform:
    return FrameTransform(
        _stamp_ns(message),
        message.parent_frame_id,
        message.child_frame_id,
        _xyz(message.translation),
        _wxyz(message.rotation),
    )


def _point_cloud(message: Any, _: int) -> Payload:
    data, stride = message.data, message.point_stride
    if stride <= 0 or len(data) % stride:
        raise DecodeError(f"expected whole points of point_stride {stride}, got {len(data)} bytes")
    fields = []
    for field in message.fields:
        kind = _NUMERIC[field.type] if 0 <= field.type < len(_NUMERIC) else f"type {field.type}"
        fields.append(PointField(field.name, kind, field.offset))
    points = points_of(data, fields, stride, 1, len(data) // stride, 0, big_endian=False)
    cloud = check_cloud(PointCloud(_stamp_ns(message), message.frame_id, points))
    return _moved(cloud, message.pose) if message.HasField("pose") else cloud


def _moved(cloud: PointCloud, pose: Any) -> PointCloud:
    """The cloud in its frame's axes: `pose` is where its own origin stands in them."""
    translation = _xyz(pose.position) if pose.HasField("position") else (0.0, 0.0, 0.0)
    rotation = _wxyz(pose.orientation) if pose.HasField("orientation") else (1.0, 0.0, 0.0, 0.0)
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
    entities = [entity for entity in message.entities if entity.cubes]
    frames = sorted({entity.frame_id for entity in entities})
    if len(frames) > 1:
        raise DecodeError(f"expected the boxes of one instant in one frame, got {', '.join(frames)}")
    stamped = [*entities, *message.deletions]
    boxes = tuple(_box(entity, cube, number) for entity in entities for number, cube in enumerate(entity.cubes))
    return SceneBoxes(_stamp_ns(stamped[0]) if stamped else log_ns, frames[0] if frames else "", boxes)


def _box(entity: Any, cube: Any, number: int) -> TruthBox:
    notes = {note.key: note.value for note in entity.metadata}
    size_x, size_y, size_z = _xyz(cube.size)
    velocity = (_number(notes, "velocity_x"), _number(notes, "velocity_y"))
    count = _number(notes, "num_points")
    return TruthBox(
        id=entity.id + f"#{number}" * (number > 0),
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
    match = _CATEGORY_IN_ID.match(entity.id)
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
