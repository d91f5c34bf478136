"""From a message's bytes to what it says. What cannot be read becomes `Malformed`, what is not known `Other`; nothing raises."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from sensors.logs.messages import CameraInfo, Payload, RawImage
from sensors.logs.pixels import rows_fault

DecodeOne: TypeAlias = Callable[[bytes, int], Payload]

CAMERA_INFO_TYPES = frozenset({"foxglove.CameraCalibration", "sensor_msgs/msg/CameraInfo"})
IMAGE_TYPES = frozenset(
    {"foxglove.CompressedImage", "foxglove.RawImage", "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image"}
)
POINT_TYPES = frozenset({"foxglove.PointCloud", "sensor_msgs/msg/PointCloud2"})
TRANSFORM_TYPES = frozenset({"foxglove.FrameTransform", "foxglove.FrameTransforms", "tf2_msgs/msg/TFMessage"})
BOX_TYPES = frozenset({"foxglove.SceneUpdate", "vision_msgs/msg/Detection3DArray"})

# Films: known so that they can be refused by name.
VIDEO_TYPES = frozenset({"foxglove.CompressedVideo", "foxglove_msgs/msg/CompressedVideo"})
_READ_TYPES = CAMERA_INFO_TYPES | IMAGE_TYPES | POINT_TYPES | TRANSFORM_TYPES | BOX_TYPES
_DDS_TYPE = re.compile(r"(\w+)(?:::msg)?::(?:dds_::)?(\w+?)_?")  # sensor_msgs::msg::dds_::Image_
_ROS_TYPE = re.compile(r"(\w+)/(\w+)")  # sensor_msgs/Image


class DecodeError(ValueError):
    """A message that makes no sense, as "expected ..., got ...". Never leaves `sensors.logs`."""


@dataclass(frozen=True)
class ChannelInfo:
    """A topic of one type within one file."""

    topic: str
    type: str  # ROS types that are read as pkg/msg/Type, however the log spells them
    encoding: str  # of the messages: "protobuf", "json", "cdr"
    schema: bytes = b""
    schema_encoding: str = ""
    schema_lost: bool = False  # the log names a schema that is not in it

    def __post_init__(self) -> None:
        spelt = _DDS_TYPE.fullmatch(self.type) or _ROS_TYPE.fullmatch(self.type)
        if spelt and (name := f"{spelt[1]}/msg/{spelt[2]}") in _READ_TYPES | VIDEO_TYPES:
            object.__setattr__(self, "type", name)


def is_transform(channel: ChannelInfo) -> bool:
    """Whether it carries transforms between frames."""
    return channel.type in TRANSFORM_TYPES


def is_camera_info(channel: ChannelInfo) -> bool:
    """Whether it carries cameras' calibrations."""
    return channel.type in CAMERA_INFO_TYPES


def is_static(topic: str) -> bool:
    """Whether transforms on this topic hold for all times: ROS' /tf_static, in any namespace."""
    return topic.rsplit("/", 1)[-1] == "tf_static"


def unread(type_: str, encoding: str) -> str:
    """Why messages of a type that is known are not read, as "expected ..., got ..."; "" where they are, or it is not known."""
    if type_ in VIDEO_TYPES:
        return (
            f"expected single pictures (CompressedImage), got parts of a film ({type_}), of which most cannot be read alone. "
            "Record the camera as JPEG, or decode the film into a new log"
        )
    spoken = ("protobuf", "json") if type_.startswith("foxglove.") else ("cdr",)
    if type_ not in _READ_TYPES or encoding in spoken:
        return ""
    if encoding == "ros1":
        return (
            "expected ROS 2 messages (cdr), got ROS 1 messages (encoding ros1). Convert the bag that they come from: "
            "rosbags-convert --src IN.bag --dst OUT"
        )
    return f"expected {type_} in {' or '.join(spoken)}, got the encoding {encoding[:40]!r}. Convert the log"


def camera_info(info: CameraInfo, K: Iterable[float], R: Iterable[float], P: Iterable[float]) -> CameraInfo:
    """`info` with its matrices; DecodeError where a length is wrong. R and P may be left empty."""
    shapes = {"K": (3, 3), "R": (3, 3), "P": (3, 4)}
    matrices = {}
    for (name, shape), values in zip(shapes.items(), (K, R, P), strict=True):
        flat = np.asarray(list(values), np.float64)
        if flat.size == 0 and name != "K":
            flat = np.eye(3).ravel() if name == "R" else np.zeros(12)
        if flat.size != math.prod(shape):
            raise DecodeError(f"expected {math.prod(shape)} numbers in {name}, got {flat.size}")
        matrices[name] = flat.reshape(shape)
    return replace(info, K=matrices["K"], R=matrices["R"], P=matrices["P"])


def check_picture(data: bytes) -> bytes:
    """A compressed picture's bytes; DecodeError where there are none."""
    if not data:
        raise DecodeError("expected a compressed picture, got 0 bytes")
    return data


def check_raw(image: RawImage) -> RawImage:
    """The raw picture; DecodeError where its bytes are not its rows. Its encoding may be one that nothing here reads."""
    if fault := rows_fault(image):
        raise DecodeError(fault)
    return image
