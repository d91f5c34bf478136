"""From a message's bytes to what it says. What cannot be read becomes `Malformed`, what is not known `Other`; nothing raises.

Letters: P points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sensors.logs.encode import MissingLogLibraryError
from sensors.logs.messages import CameraInfo, Malformed, Other, Payload, PointCloud, RawImage
from sensors.pictures.raw import rows_fault

DecodeOne: TypeAlias = Callable[[bytes, int], Payload]

CAMERA_INFO_TYPES = frozenset({"foxglove.CameraCalibration", "sensor_msgs/msg/CameraInfo"})
IMAGE_TYPES = frozenset(
    {"foxglove.CompressedImage", "foxglove.RawImage", "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image"}
)
POINT_TYPES = frozenset({"foxglove.PointCloud", "sensor_msgs/msg/PointCloud2"})
TRANSFORM_TYPES = frozenset({"foxglove.FrameTransform", "foxglove.FrameTransforms", "tf2_msgs/msg/TFMessage"})
BOX_TYPES = frozenset({"foxglove.SceneUpdate", "vision_msgs/msg/Detection3DArray"})

_NUMPY_KIND = {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
               "float32": "f4", "float64": "f8"}  # fmt: skip


class DecodeError(ValueError):
    """A message that makes no sense, as "expected ..., got ...". Never leaves `sensors.logs`."""


@dataclass(frozen=True)
class ChannelInfo:
    """A topic of one type within one file."""

    topic: str
    type: str  # ROS 2 types with /msg/
    encoding: str  # of the messages: "protobuf", "json", "cdr"
    schema: bytes = b""
    schema_encoding: str = ""
    count: int | None = None
    schema_lost: bool = False  # the log names a schema that is not in it


def is_transform(channel: ChannelInfo) -> bool:
    """Whether it carries transforms between frames."""
    return channel.type in TRANSFORM_TYPES


def is_camera_info(channel: ChannelInfo) -> bool:
    """Whether it carries cameras' calibrations."""
    return channel.type in CAMERA_INFO_TYPES


def is_static(topic: str) -> bool:
    """Whether transforms on this topic hold for all times: ROS' /tf_static, in any namespace."""
    return topic.rsplit("/", 1)[-1] == "tf_static"


class Decoder:
    """Decodes the messages of one file's channels."""

    def __init__(self, channels: Mapping[int, ChannelInfo]) -> None:
        self._channels = channels
        self._decoders: dict[int, DecodeOne | str] = {}

    def decode(self, channel: int, data: bytes, log_ns: int) -> Payload:
        """What the message says. `log_ns` stands in for the stamp of a message that holds nothing to carry one.

        Raises:
            MissingLogLibraryError: a library that this encoding needs is not installed.
        """
        info = self._channels[channel]
        if channel not in self._decoders:
            self._decoders[channel] = self._decoder(info)
        decoder = self._decoders[channel]
        if isinstance(decoder, str):
            return Malformed(info.type, decoder)
        try:
            return decoder(data, log_ns)
        except DecodeError as error:
            return Malformed(info.type, str(error))
        except Exception as error:  # libraries raise what they like for bytes that are no message of theirs
            return Malformed(
                info.type, f"expected a {info.encoding} message, got {len(data)} bytes that are none ({_brief(error)})"
            )

    def _decoder(self, info: ChannelInfo) -> DecodeOne | str:
        """How to decode a channel, or why that is not possible."""
        from sensors.logs.foxglove_decode import foxglove_decoder
        from sensors.logs.ros2_decode import ros2_decoder

        if info.schema_lost:
            return "expected the channel's schema in the log, got none: it was lost with a damaged chunk"
        try:
            if info.encoding in ("protobuf", "json") and info.type.startswith("foxglove."):
                found = foxglove_decoder(info)
            else:
                found = ros2_decoder(info) if info.encoding == "cdr" else None
        except MissingLogLibraryError:
            raise
        except ImportError as error:
            raise MissingLogLibraryError(error.name or info.encoding) from error
        except Exception as error:  # a schema is as foreign as a message
            return f"expected a schema of {info.type}, got one that makes no sense ({_brief(error)})"
        return found or (lambda data, _: Other(info.type, data))


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__


@dataclass(frozen=True)
class PointField:
    """A field of a point as a message describes it."""

    name: str
    kind: str  # "uint8", "float32", ...
    offset: int
    count: int = 1


def points_of(
    data: bytes, fields: Iterable[PointField], step: int, height: int, width: int, row_step: int, big_endian: bool
) -> NDArray[Any]:
    """[P] structured array of packed points, P = height x width; DecodeError where sizes and fields do not fit."""
    fields = tuple(fields)
    record = _record(fields, step, ">" if big_endian else "<")
    rows = width * step
    if height > 1 and row_step < rows:
        raise DecodeError(f"expected rows of at least {rows} bytes ({width} points of {step}), got row_step {row_step}")
    sizes = {rows, row_step} if height == 1 else {height * row_step}  # for one row drivers write what they like
    if len(data) not in sizes or len(data) < height * rows:
        wanted = height * (row_step if height > 1 else rows)
        raise DecodeError(f"expected {wanted} bytes ({height} x {width} points of {step}), got {len(data)}")
    if height > 1 and row_step > rows:
        packed = np.frombuffer(data, np.uint8).reshape(height, row_step)[:, :rows]
        data = packed.tobytes()
    points = np.frombuffer(data, record, count=height * width)
    if not big_endian:
        return points
    native = np.empty(len(points), _record(fields, step, "="))
    for name in record.names or ():  # numpy's own change of byte order passes over arrays within a field
        native[name] = points[name]
    return native


@lru_cache(maxsize=256)
def _record(fields: tuple[PointField, ...], step: int, order: str) -> np.dtype[Any]:
    named = [field for field in fields if field.name]  # a driver's padding has no name
    names = [field.name for field in named]
    if not named:
        raise DecodeError("expected points with fields, got none")
    if len(set(names)) < len(names):
        raise DecodeError(f"expected fields of different names, got {', '.join(names)}")
    formats: list[Any] = []
    for field in named:
        if field.kind not in _NUMPY_KIND:
            raise DecodeError(f"expected a number type for the field {field.name}, got {field.kind}")
        kind = np.dtype(order + _NUMPY_KIND[field.kind])
        end = field.offset + kind.itemsize * field.count
        if field.offset < 0 or field.count < 1 or end > step:
            raise DecodeError(
                f"expected the field {field.name} within a point of {step} bytes, got bytes {field.offset} to {end}"
            )
        formats.append(kind if field.count == 1 else (kind, (field.count,)))
    offsets = [field.offset for field in named]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": step})


def check_cloud(cloud: PointCloud) -> PointCloud:
    """The cloud, where it has places; DecodeError where it lacks x, y or z."""
    missing = [name for name in ("x", "y", "z") if name not in (cloud.points.dtype.names or ())]
    if missing:
        raise DecodeError(f"expected points with x, y, z, got {', '.join(cloud.points.dtype.names or ())}")
    return cloud


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
