"""Payloads of a log as the library's own readings: pictures, intrinsics, points.

Letters: H and W pixels, P points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import Float64
from sensors.camera.images import DecodeSize
from sensors.camera.picture_files import decode_file, file_size_px
from sensors.camera.rectification import Lens
from sensors.checks.frame import MAX_AHEAD_S
from sensors.errors import PictureError, SensorDataError
from sensors.logs.messages import CameraInfo, EncodedImage, PointCloud, RawImage
from sensors.logs.pixels import decode_raw

LIDAR_FIELDS = ("x", "y", "z", "intensity", "ring")
RADAR_FIELDS = ("x", "y", "z", "rcs", "vx_comp", "vy_comp")
_LIDAR_DEFAULTS = {"intensity": 0.0, "ring": -1.0}
_RADAR_DEFAULTS = {"z": 0.0}


@dataclass(frozen=True)
class Picture:
    """A decoded picture."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB
    scale: float  # of `image` against the full picture: 1, 1/2, 1/4 or 1/8
    lens: Lens | None = None  # by which it was rectified here


def picture_size_px(payload: EncodedImage | RawImage) -> tuple[int, int]:
    """(height, width) of the full picture, without decoding it.

    Raises:
        SensorDataError: its header makes no sense.
        ImportError: simplejpeg, for JPEG, is not installed.
    """
    with _named(payload):
        return (payload.height_px, payload.width_px) if isinstance(payload, RawImage) else file_size_px(payload.data)


def decode_picture(payload: EncodedImage | RawImage, decode: DecodeSize | None = None) -> Picture:
    """The picture in RGB; a JPEG perhaps at a reduced scale. Its size is to be checked before, by `picture_size_px`.

    Raises:
        SensorDataError: none of the formats and layouts of `picture_files` and `pixels`, or damaged.
        ImportError: simplejpeg, for JPEG, or OpenCV, for all else, is not installed.
    """
    with _named(payload):
        if isinstance(payload, RawImage):
            return Picture(decode_raw(payload), 1.0)
        return Picture(*decode_file(payload.data, decode))


@contextmanager
def _named(payload: EncodedImage | RawImage) -> Iterator[None]:
    """Errors of the decoders with the log's word for the picture, or with the extra that brings what is missing."""
    try:
        yield
    except PictureError as error:
        called = f"; the log calls it {payload.format[:40]!r}" if isinstance(payload, EncodedImage) else ""
        raise SensorDataError(f"{error}{called}") from error
    except ImportError as error:
        raise ImportError(
            f"replaying this log needs the library {error.name}, which is not installed: pip install 'robustbev[replay]'"
        ) from error


def lidar_points(
    cloud: PointCloud, fields: Mapping[str, str], intensity_scale: float
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Points [P, 5] float32 as `sensors.frames.LidarSweep` has them, and what of them is doubtful.

    `fields` maps x, y, z, intensity, ring to the log's names where they differ. Without a ring it is -1, without an intensity 0.

    Raises:
        SensorDataError: x, y or z is not among the fields, or a field holds several numbers.
    """
    points = _columns(cloud, LIDAR_FIELDS, fields, _LIDAR_DEFAULTS, "LiDAR")
    points[:, 3] *= intensity_scale
    lacking = fields.get("intensity", "intensity") not in (cloud.points.dtype.names or ())
    return points, ("the points have no intensity: 0 is used",) if lacking else ()


def point_offsets_us(cloud: PointCloud, time_field: str, scale_s: float) -> NDArray[np.int64]:
    """[P] microseconds after the message's stamp at which each point was measured, by a field in units of `scale_s` seconds.

    Raises:
        SensorDataError: there is no such field of one number, or it holds what is no time within a second of the stamp.
    """
    names = cloud.points.dtype.names or ()
    if time_field not in names or cloud.points.dtype[time_field].shape:
        raise SensorDataError(
            f"expected the field {time_field} with a time for each point, got {', '.join(names) or 'none'}: correct "
            "`time_field` of the mapping"
        )
    offsets_us = cloud.points[time_field].astype(np.float64) * (scale_s * 1e6)
    if not (np.abs(offsets_us) <= MAX_AHEAD_S * 1e6).all():  # NaN neither
        got = f"{offsets_us.min() / 1e6:g} to {offsets_us.max() / 1e6:g} s"
        raise SensorDataError(
            f"expected times within {MAX_AHEAD_S:g} s of the message's stamp in the field {time_field}, got {got}: correct "
            "`time_scale_s` of the mapping; times of a clock are no offsets"
        )
    return np.round(offsets_us).astype(np.int64)


def radar_points(cloud: PointCloud, fields: Mapping[str, str]) -> NDArray[np.float32]:
    """Points [P, 6] float32 as `sensors.frames.RadarSweep` has them. Without a z it is 0.

    Raises:
        SensorDataError: x, y, rcs, vx_comp or vy_comp is not among the fields (`fields` may name the log's for each), or a field
            holds several numbers.
    """
    return _columns(cloud, RADAR_FIELDS, fields, _RADAR_DEFAULTS, "radar")


def unrectified(info: CameraInfo) -> CameraInfo:
    """The calibration of pictures that are not rectified: K and D hold, and the axes are those of `CameraInfo.frame_id`."""
    return replace(info, R=np.eye(3), P=np.zeros((3, 4)))


def lens_of(info: CameraInfo) -> Lens | None:
    """By what pictures that are not rectified are; None where they are a pinhole's.

    Raises:
        CalibrationError: K, D or the distortion model cannot be.
    """
    return Lens.of(info.distortion_model, info.D, info.K, (info.height_px, info.width_px))


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
            if shape := cloud.points.dtype[theirs].shape:
                raise SensorDataError(f"expected one number in the field {theirs}, got {shape[0]}")
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
