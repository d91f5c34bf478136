"""ROS 2 messages in CDR, decoded without ROS by the rosbags library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

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
from sensors.logs.pixels import little_endian
from sensors.logs.points import PointField, check_cloud, points_of
from sensors.logs.ros2.types import typestore

# sensor_msgs/PointField's constants
_DATATYPES = ("none", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")
_DETECTIONS = "vision_msgs/msg/Detection3DArray"
# Of a definition in a log, from which rosbags makes code; those of vision_msgs have some 10,000 bytes and 150 members.
_MOST_DEFINED_BYTES, _MOST_MEMBERS = 2**15, 1000


def ros2_decoder(info: ChannelInfo) -> DecodeOne | None:
    """Decodes a channel of one of the types of sensors, transforms and boxes; None for another.

    The types of sensors and transforms are those of `sensors.logs.ros2.types`, whatever the log says of them; boxes
    (vision_msgs, whose layout has changed over the years) are laid out as the log's own schema says, if it has one in .msg
    form; else as those of version 4.
    """
    static = is_static(info.topic)
    readers: dict[str, Callable[[Any], Payload]] = {
        "sensor_msgs/msg/CompressedImage": _compressed_image,
        "sensor_msgs/msg/Image": _raw_image,
        "sensor_msgs/msg/CameraInfo": _camera_info,
        "sensor_msgs/msg/PointCloud2": _point_cloud,
        "tf2_msgs/msg/TFMessage": lambda message: FrameTransforms(
            tuple(_transform(one) for one in message.transforms), static
        ),
        _DETECTIONS: _detections,
    }
    read = readers.get(info.type)
    if read is None:
        return None
    own = info.type == _DETECTIONS and info.schema and not info.schema_encoding.endswith("idl")
    store = _own_types(info.type, info.schema) if own else typestore()
    return lambda data, _: read(store.deserialize_cdr(data, info.type))


@lru_cache(maxsize=8)
def _own_types(name: str, schema: bytes) -> Any:
    """A typestore that knows a type by the log's own definition of it; DecodeError where that is more than one of a message."""
    from rosbags.interfaces import Nodetype
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    if len(schema) > _MOST_DEFINED_BYTES:
        raise DecodeError(f"expected a definition of at most {_MOST_DEFINED_BYTES} bytes, got {len(schema)}")
    types = get_types_from_msg(schema.decode(), name)
    layouts = [[layout for _, layout in fields] for _, fields in types.values()]
    arrays = [layout[1][1] for fields in layouts for layout in fields if layout[0] == Nodetype.ARRAY]
    members = sum(map(len, layouts)) + sum(arrays)  # one line of code each
    # What takes no bytes could come any number of times in a message of a few.
    if not all(layouts) or min(arrays, default=1) < 1 or members > _MOST_MEMBERS:
        raise DecodeError(
            f"expected types of 1 to {_MOST_MEMBERS} members, arrays' included, got {members}, or one of none"
        )
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register({name: ([], fields) for name, (_, fields) in types.items() if name not in store.fielddefs})
    return store


def _stamp_ns(header: Any) -> int:
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def _xyz(vector: Any) -> tuple[float, float, float]:
    return float(vector.x), float(vector.y), float(vector.z)


def _wxyz(rotation: Any) -> tuple[float, float, float, float]:
    return float(rotation.w), float(rotation.x), float(rotation.y), float(rotation.z)


def _compressed_image(message: Any) -> Payload:
    header = message.header
    return EncodedImage(_stamp_ns(header), header.frame_id, message.format.lower(), check_picture(bytes(message.data)))


def _raw_image(message: Any) -> Payload:
    header, encoding, height, step = message.header, message.encoding, int(message.height), int(message.step)
    data = bytes(message.data)
    if message.is_bigendian:
        data = little_endian(data, encoding, height, step)
    return check_raw(RawImage(_stamp_ns(header), header.frame_id, encoding, height, int(message.width), step, data))


def _camera_info(message: Any) -> Payload:
    """The calibration of the pictures as they come: a region of interest, binned, of what K, P, width and height are told of.

    c' = (c - offset) / binning, as ROS' image_geometry reads the message, of raw and of rectified pictures and whatever
    do_rectify says: image_proc's rectified pictures are as large as the raw region.
    """
    header, empty, width, height = message.header, np.zeros(0), int(message.width), int(message.height)
    across, down = max(int(message.binning_x), 1), max(int(message.binning_y), 1)
    left, top, wide, tall = (int(getattr(message.roi, name)) for name in ("x_offset", "y_offset", "width", "height"))
    if left or top or wide or tall:
        if not (0 < wide <= width - left and 0 < tall <= height - top):
            got = f"{wide} x {tall} px at ({left}, {top})"
            raise DecodeError(f"expected a roi within width x height of {width} x {height} px, got {got}")
        width, height = wide, tall
    if across > width > 0 or down > height > 0:
        got = f"binning_x {across} and binning_y {down}"
        raise DecodeError(f"expected a binning that leaves a pixel of {width} x {height} px, got {got}")
    info = CameraInfo(
        _stamp_ns(header),
        header.frame_id,
        width // across,
        height // down,
        message.distortion_model,
        np.array(message.d, np.float64),
        empty,
        empty,
        empty,
    )
    info = camera_info(info, message.k, message.r, message.p)
    if (left, top, across, down) == (0, 0, 1, 1):
        return info
    delivered = np.array([[1 / across, 0, -left / across], [0, 1 / down, -top / down], [0, 0, 1]])
    return replace(info, K=delivered @ info.K, P=delivered @ info.P)


def _point_cloud(message: Any) -> Payload:
    fields = [
        PointField(
            field.name,
            _DATATYPES[kind] if 0 <= (kind := int(field.datatype)) < len(_DATATYPES) else f"type {kind}",
            int(field.offset),
            int(field.count),
        )
        for field in message.fields
    ]
    points = points_of(
        message.data.tobytes(),
        fields,
        int(message.point_step),
        int(message.height),
        int(message.width),
        int(message.row_step),
        bool(message.is_bigendian),
    )
    return check_cloud(PointCloud(_stamp_ns(message.header), message.header.frame_id, points))


def _transform(message: Any) -> FrameTransform:
    return FrameTransform(
        _stamp_ns(message.header),
        message.header.frame_id,
        message.child_frame_id,
        _xyz(message.transform.translation),
        _wxyz(message.transform.rotation),
    )


def _detections(message: Any) -> Payload:
    frames = {detection.header.frame_id for detection in message.detections} - {message.header.frame_id, ""}
    if frames:
        raise DecodeError(f"expected boxes in the frame {message.header.frame_id}, got {', '.join(sorted(frames))}")
    boxes = tuple(_box(detection, number) for number, detection in enumerate(message.detections))
    return SceneBoxes(_stamp_ns(message.header), message.header.frame_id, boxes)


def _box(detection: Any, number: int) -> TruthBox:
    """A box by its likeliest class; vision_msgs knows no velocity."""
    length, width, height = _xyz(detection.bbox.size)
    hypotheses = [result.hypothesis for result in detection.results]
    best = max(hypotheses, key=lambda hypothesis: hypothesis.score, default=None)
    return TruthBox(
        id=getattr(detection, "id", "") or str(number),
        category=str(best.class_id) if best is not None else "",
        center_m=_xyz(detection.bbox.center.position),
        size_m=(width, length, height),
        rotation_wxyz=_wxyz(detection.bbox.center.orientation),
    )
