"""What a drive log says, in one set of types whatever it was written with: MCAP with Foxglove's schemas, ROS 2, nuScenes.

Times are whole nanoseconds since the Unix epoch. `stamp_ns` is when the sensor measured; `log_time_ns` when the recorder got the
message; `publish_time_ns` when it was sent. Letters: P points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class EncodedImage:
    """A picture as bytes of a file: JPEG, PNG or WebP."""

    stamp_ns: int
    frame_id: str
    format: str  # as the log says, lower case: "jpeg", "png", "rgb8; jpeg compressed bgr8", ...
    data: bytes


@dataclass(frozen=True)
class RawImage:
    """Pixels as ROS and Foxglove name their layout: rgb8, bayer_rggb16, nv12 ...; numbers of several bytes in little endian."""

    stamp_ns: int
    frame_id: str
    encoding: str
    height_px: int
    width_px: int
    step_bytes: int
    data: bytes


@dataclass(frozen=True)
class CameraInfo:
    """A camera's calibration, in ROS' letters, of the pictures as they come: roi and binning are applied.

    In rectified pictures pixel = P [R X; 1] for X in `frame_id`. In others K and D hold, and R and P play no part.
    """

    stamp_ns: int
    frame_id: str
    width_px: int
    height_px: int
    distortion_model: str
    D: Float64  # [any]
    K: Float64  # [3, 3] of the picture before rectification
    R: Float64  # [3, 3] rectified axes from the camera's
    P: Float64  # [3, 4] of the rectified picture; all 0 where the log does not say


@dataclass(frozen=True)
class PointCloud:
    """Points of a LiDAR or a radar with the fields that the log names, as a structured array."""

    stamp_ns: int
    frame_id: str
    points: NDArray[Any]  # [P], fields as the log names them, native types and byte order


@dataclass(frozen=True)
class FrameTransform:
    """Where `child` stands in `parent` at a time: a point of `child` goes to `parent` by rotation, then translation."""

    stamp_ns: int
    parent: str
    child: str
    translation_m: tuple[float, float, float]
    rotation_wxyz: tuple[
        float, float, float, float
    ]  # unchecked: `sensors.replay.transforms` refuses what is no rotation


@dataclass(frozen=True)
class FrameTransforms:
    """Transforms sent together. `static` ones hold for all times (ROS' /tf_static)."""

    transforms: tuple[FrameTransform, ...]
    static: bool


@dataclass(frozen=True)
class TruthBox:
    """An annotated object, upright or not, in `SceneBoxes.frame_id`."""

    id: str  # the same object over time
    category: str
    center_m: tuple[float, float, float]
    size_m: tuple[float, float, float]  # width, length, height as nuScenes
    rotation_wxyz: tuple[float, float, float, float]
    velocity_mps: tuple[float, float] | None = None  # x, y of `frame_id`; None: the log does not say
    attribute: str = ""
    num_points: int | None = None  # LiDAR and radar points in it; None: the log does not say


@dataclass(frozen=True)
class SceneBoxes:
    """All annotated objects of one instant."""

    stamp_ns: int
    frame_id: str
    boxes: tuple[TruthBox, ...]


@dataclass(frozen=True)
class Other:
    """A message of a type that nothing here reads, as its bytes."""

    type: str
    data: bytes


@dataclass(frozen=True)
class Malformed:
    """A message that came whole by its checksum, or in a log without any, and yet cannot be read."""

    type: str
    reason: str  # expected ..., got ...


Payload: TypeAlias = (
    EncodedImage | RawImage | CameraInfo | PointCloud | FrameTransforms | SceneBoxes | Other | Malformed
)


@dataclass(frozen=True)
class LogMessage:
    """One message of a log."""

    topic: str
    log_time_ns: int
    publish_time_ns: int
    payload: Payload
