"""Payloads of a log as the library's own readings: pictures, intrinsics, points.

Letters: H and W pixels, P points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import Float64
from sensors.errors import SensorDataError
from sensors.images import DecodeSize, decode_jpeg
from sensors.logs.messages import CameraInfo, EncodedImage, PointCloud, RawImage

LIDAR_FIELDS = ("x", "y", "z", "intensity", "ring")
RADAR_FIELDS = ("x", "y", "z", "rcs", "vx_comp", "vy_comp")
_LIDAR_DEFAULTS = {"intensity": 0.0, "ring": -1.0}
_RADAR_DEFAULTS = {"z": 0.0}
_CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1, "rgba8": 4, "bgra8": 4}
# ROS names a Bayer pattern by its first row; OpenCV by the second and third pixel of the second row.
_BAYER = {"bayer_rggb8": "BG", "bayer_bggr8": "RG", "bayer_gbrg8": "GR", "bayer_grbg8": "GB"}


@dataclass(frozen=True)
class Picture:
    """A decoded picture."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB
    scale: float  # of `image` against the full picture: 1, 1/2, 1/4 or 1/8


def needed(module: str) -> Any:
    """An optional library; ImportError that names the extra where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"replaying this log needs the library {module}, which is not installed: pip install 'robustbev[replay]'"
        ) from error


def picture_size_px(payload: EncodedImage | RawImage) -> tuple[int, int]:
    """(height, width) of the full picture, without decoding it where the format allows.

    Raises:
        SensorDataError: neither a JPEG nor a PNG, or damaged.
    """
    if isinstance(payload, RawImage):
        return payload.height_px, payload.width_px
    data = payload.data
    if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    try:
        height, width, _, _ = needed("simplejpeg").decode_jpeg_header(data)
    except ValueError as error:
        raise SensorDataError(_no_picture(payload, str(error))) from error
    return int(height), int(width)


def decode_picture(payload: EncodedImage | RawImage, decode: DecodeSize | None = None) -> Picture:
    """The picture in RGB; a JPEG perhaps at a reduced scale.

    Raises:
        SensorDataError: neither a JPEG nor a PNG, damaged, or pixels of a layout that is not known.
        ImportError: OpenCV, for PNG and Bayer patterns, or simplejpeg is not installed.
    """
    if isinstance(payload, RawImage):
        return Picture(_raw(payload), 1.0)
    if payload.data.startswith(b"\x89PNG"):
        cv2 = needed("cv2")
        pixels = cv2.imdecode(np.frombuffer(payload.data, np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            raise SensorDataError(_no_picture(payload, "OpenCV cannot decode the PNG"))
        return Picture(np.ascontiguousarray(pixels[..., ::-1]), 1.0)
    needed("simplejpeg")
    try:
        image, scale, _ = decode_jpeg(payload.data, decode)
    except ValueError as error:
        raise SensorDataError(_no_picture(payload, str(error))) from error
    return Picture(image, scale)


def lidar_points(
    cloud: PointCloud, fields: Mapping[str, str], intensity_scale: float
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Points [P, 5] float32 as `sensors.frames.LidarSweep` has them, and what of them is doubtful.

    `fields` maps x, y, z, intensity, ring to the log's names where they differ. Without a ring it is -1, without an intensity 0.

    Raises:
        SensorDataError: x, y or z is not among the fields.
    """
    points = _columns(cloud, LIDAR_FIELDS, fields, _LIDAR_DEFAULTS, "LiDAR")
    points[:, 3] *= intensity_scale
    lacking = fields.get("intensity", "intensity") not in (cloud.points.dtype.names or ())
    return points, ("the points have no intensity: 0 is used",) if lacking else ()


def radar_points(cloud: PointCloud, fields: Mapping[str, str]) -> NDArray[np.float32]:
    """Points [P, 6] float32 as `sensors.frames.RadarSweep` has them. Without a z it is 0.

    Raises:
        SensorDataError: x, y, rcs, vx_comp or vy_comp is not among the fields; `fields` may name the log's for each.
    """
    return _columns(cloud, RADAR_FIELDS, fields, _RADAR_DEFAULTS, "radar")


def rectified_intrinsics(info: CameraInfo) -> Float64:
    """[3, 3] px of the rectified picture at full size: P's first three columns, or K where P is all 0."""
    return np.array(info.P[:, :3] if info.P.any() else info.K, np.float64)


def frame_T_camera(info: CameraInfo) -> Float64:  # noqa: N802
    """[4, 4] from the axes in which the rectified intrinsics hold to `CameraInfo.frame_id`.

    A point X of the frame projects as P [R X; 1] = K' (R X + K'^-1 p), where P = [K' | p]: R turns the axes, p shifts them
    (https://docs.ros.org/en/api/sensor_msgs/html/msg/CameraInfo.html). R all 0, as unset messages have it, is no turn.
    """
    rotation = np.array(info.R, np.float64) if info.R.any() else np.eye(3)
    shift = np.linalg.solve(info.P[:, :3], info.P[:, 3]) if info.P.any() else np.zeros(3)
    out = np.eye(4)
    out[:3, :3] = rotation.T
    out[:3, 3] = -rotation.T @ shift
    return out


def _columns(
    cloud: PointCloud, wanted: tuple[str, ...], fields: Mapping[str, str], defaults: Mapping[str, float], what: str
) -> NDArray[np.float32]:
    names = cloud.points.dtype.names or ()
    out = np.empty((len(cloud.points), len(wanted)), np.float32)
    missing = []
    for column, name in enumerate(wanted):
        theirs = fields.get(name, name)
        if theirs in names:
            with np.errstate(
                over="ignore", invalid="ignore"
            ):  # what float32 cannot hold is infinite, and left out later
                out[:, column] = cloud.points[theirs]
        elif name in defaults and name not in fields:
            out[:, column] = defaults[name]
        else:
            missing.append(name if theirs == name else f"{theirs} (for {name})")
    if missing:
        raise SensorDataError(
            f"expected {what} points with the fields {', '.join(wanted)}, got {', '.join(names) or 'none'}: no "
            f"{', '.join(missing)}. Name the log's own in `fields` of the mapping"
        )
    return out


def _raw(payload: RawImage) -> NDArray[np.uint8]:
    height, width, step = payload.height_px, payload.width_px, payload.step_bytes
    encoding = {"8uc3": "bgr8", "8uc1": "mono8"}.get(payload.encoding.lower(), payload.encoding.lower())
    channels = _CHANNELS.get(encoding, 1)
    if encoding not in _CHANNELS and encoding not in _BAYER:
        raise SensorDataError(
            f"expected pixels as {', '.join((*_CHANNELS, *_BAYER))}, got {payload.encoding!r}. Record the picture in one of these"
        )
    if min(height, width) <= 0 or step < width * channels or len(payload.data) < step * height:
        raise SensorDataError(
            f"expected {height} rows of {step} bytes for {width} x {height} px of {encoding}, got {len(payload.data)} bytes"
        )
    rows = np.frombuffer(payload.data, np.uint8, count=step * height).reshape(height, step)
    pixels = rows[:, : width * channels].reshape(height, width, channels)
    if encoding in _BAYER:
        cv2 = needed("cv2")
        mosaic = np.ascontiguousarray(pixels[..., 0])
        return np.asarray(cv2.cvtColor(mosaic, getattr(cv2, f"COLOR_Bayer{_BAYER[encoding]}2RGB")), np.uint8)
    if encoding == "mono8":
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., 2::-1] if encoding.startswith("bgr") else pixels[..., :3])


def _no_picture(payload: EncodedImage, why: str) -> str:
    return (
        f"expected a whole JPEG or PNG, got {len(payload.data)} bytes that the log calls {payload.format!r} "
        f"and that begin with {payload.data[:4].hex(' ') or 'nothing'}: {why}"
    )
