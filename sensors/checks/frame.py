"""Whether a `SensorFrame` is one: what a robot, a log or a data set hands over is looked at before anything is computed.

Letters: P points, S azimuth sectors, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from sensors.calibration import CalibrationError, FloatArray, are_rigid, check_intrinsics, check_rigid
from sensors.errors import SensorDataError, naming
from sensors.frames import SECTORS, CameraImage, LidarSweep, RadarSweep, SensorFrame

MAX_AHEAD_S = (
    1.0  # of a reading after its frame's time: clocks differ a little, and a picture may follow its LiDAR sweep
)
MAX_AGE_S = 60.0  # of a reading; one that is older was stamped by another clock or in another unit
LIDAR_COLUMNS = "x_m, y_m, z_m, intensity, ring"
_RADAR_COLUMNS = "x_m, y_m, z_m, rcs_dbsm, vx_mps, vy_mps"
_Reading = CameraImage | LidarSweep | RadarSweep


def check_frame(frame: SensorFrame) -> None:
    """What every sound frame is; what it need not hold (which cameras, how many) is the caller's to say.

    Raises:
        SensorDataError: of one sensor, its `channel`: a picture that is not uint8 [H, W, 3], points of another dtype or number of
            columns, a time that is no whole number or not near the frame's.
        CalibrationError: intrinsics that are singular, negative or not finite, a pose that is no rigid transform, or one of
            another shape or dtype; of one sensor, its `channel`, or the frame's own pose.
        ValueError: of the frame itself: no tuples of readings, sectors that are not bool [S], a time that is none.
    """
    readings = readings_of(frame)
    where = f"sample {frame.token}"
    check_time(frame.time_us, f"{where}, time_us")
    if frame.lidar_sectors is not None:
        _check_sectors(frame.lidar_sectors, where)
    check_matrix(frame.global_T_reference, f"{where}, global_T_reference", "a 4 x 4 pose")
    for reading in readings:
        with naming(reading.channel):
            _check_reading(reading, f"{where}, {reading.channel}", frame.time_us)
    if are_rigid([*(pose_of(reading) for reading in readings), frame.global_T_reference]):
        return
    check_rigid(frame.global_T_reference, f"{where}, global_T_reference")
    for reading in readings:
        with naming(reading.channel):
            check_rigid(pose_of(reading), f"{where}, {reading.channel}")


def readings_of(frame: SensorFrame) -> list[_Reading]:
    """Everything that a frame holds of any sensor; ValueError where it is no frame, or holds what is no reading."""
    if not isinstance(frame, SensorFrame):
        raise ValueError(
            f"frame: expected a sensors.frames.SensorFrame, got {_kind(frame)}: put the sensors' data into one"
        )
    if not isinstance(frame.absent, Mapping):
        raise ValueError(
            f"sample {frame.token}, absent: expected a mapping from channels to sensors.frames.Absence, got "
            f"{_kind(frame.absent)}: leave it out where nothing is known"
        )
    found: list[_Reading] = []
    for name, kind in (("cameras", CameraImage), ("lidar", LidarSweep), ("radar", RadarSweep)):
        given = getattr(frame, name)
        if given is None:
            continue
        may_be = f"{kind.__name__} or None" if name == "cameras" else kind.__name__
        if not isinstance(given, tuple | list):
            raise ValueError(
                f"sample {frame.token}, {name}: expected a tuple of {may_be}, or None where the modality is absent, got "
                f"{_kind(given)}: write {name}=(...,)"
            )
        for i, reading in enumerate(given):
            if reading is None and name == "cameras":
                continue
            if not isinstance(reading, kind):
                raise ValueError(
                    f"sample {frame.token}, {name}[{i}]: expected {may_be}, got {_kind(reading)}: make a {kind.__name__} of it, "
                    "or leave it out"
                )
            if not isinstance(reading.channel, str):
                raise ValueError(
                    f"sample {frame.token}, {name}[{i}]: expected a channel that is a str, got {_kind(reading.channel)}: give "
                    "the sensor's name"
                )
            found.append(reading)
    return found


def check_mounts(channels: Set[str], ego_T_sensor: Mapping[str, FloatArray]) -> None:
    """ValueError where one of the channels has no mount."""
    if strangers := sorted(channels - ego_T_sensor.keys()):
        raise ValueError(
            f"ego_T_sensor: expected a mount of every sensor that gave something, got none of {strangers[0]}; there are "
            f"{', '.join(sorted(ego_T_sensor)) or 'none'}"
        )


def pose_of(reading: _Reading) -> Any:
    """reference_T_sensor of a reading of any kind."""
    if isinstance(reading, CameraImage):
        return reading.reference_T_camera
    return reading.reference_T_lidar if isinstance(reading, LidarSweep) else reading.reference_T_radar


def _check_reading(reading: _Reading, where: str, now_us: int) -> None:
    check_time(reading.time_us, f"{where}, time_us")
    _check_age((int(now_us) - int(reading.time_us)) / 1e6, where)
    if isinstance(reading, CameraImage):
        _check_image(reading.image, where)
        check_matrix(reading.intrinsics, where, "a 3 x 3 intrinsic matrix")
        check_intrinsics(reading.intrinsics, where)
        focal_px = reading.intrinsics[0, 0], reading.intrinsics[1, 1]
        if min(focal_px) <= 0:
            raise CalibrationError(
                f"{where}: expected positive focal lengths in the intrinsics, got {focal_px[0]:g} and {focal_px[1]:g} px. "
                "Correct the calibration; a mirrored picture is to be turned over first"
            )
    elif isinstance(reading, LidarSweep):
        check_points(reading.points, where, LIDAR_COLUMNS)
    else:
        check_points(reading.points, where, _RADAR_COLUMNS)
    check_matrix(pose_of(reading), where, "a 4 x 4 pose")


def _check_image(image: Any, where: str) -> None:
    if (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and image.size
    ):
        return
    if not isinstance(image, np.ndarray):
        action = "Give the decoded picture as a numpy array"
    elif image.dtype != np.uint8:
        action = "Values are 0 to 255: convert them, from 0 to 1 by (255 * image).astype(np.uint8)"
    elif image.ndim == 2:
        action = "Repeat a grey picture three times: np.repeat(image[:, :, None], 3, axis=2)"
    elif image.ndim == 3 and image.shape[0] == 3 and image.size:
        action = "Colours come last: image.transpose(1, 2, 0)"
    elif image.size == 0:
        action = "A camera that gave no picture is None in its place"
    else:
        action = "Give its red, green and blue alone, in this order"
    raise SensorDataError(
        f"{where}, image: expected uint8 [H, W, 3] RGB with at least one pixel, got {_kind(image)}. {action}"
    )


def check_points(points: Any, where: str, columns: str) -> None:
    """SensorDataError, with `where` in front, for points that are not floats [P, columns]."""
    count = columns.count(",") + 1
    if isinstance(points, np.ndarray) and np.issubdtype(points.dtype, np.floating) and points.ndim == 2:
        if points.shape[1] == count:
            return
        action = f"The columns are {columns}; no points are np.zeros((0, {count}), np.float32)"
    else:
        action = f"One row a point, of {columns}: np.asarray(points, np.float32)"
    raise SensorDataError(f"{where}, points: expected float32 [P, {count}], got {_kind(points)}. {action}")


def check_matrix(matrix: Any, where: str, what: str) -> None:
    """CalibrationError, with `where` in front, for what is no array of floats; which ones `sensors.calibration` judges."""
    if not (isinstance(matrix, np.ndarray) and np.issubdtype(matrix.dtype, np.floating)):
        raise CalibrationError(
            f"{where}: expected {what} of floats, got {_kind(matrix)}. Convert it with np.asarray(matrix, np.float64)"
        )


def check_time(time_us: Any, where: str) -> None:
    """SensorDataError, with `where` in front, for a time that is no whole number of 64 bits."""
    if isinstance(time_us, bool | np.bool_) or not isinstance(time_us, int | np.integer):
        raise SensorDataError(
            f"{where}: expected whole microseconds (int), got {_kind(time_us)}. Convert seconds by round(time_s * 1e6)"
        )
    if not -(2**63) <= time_us < 2**63:
        raise SensorDataError(f"{where}: expected microseconds within 64 bits, got {time_us}. Convert the clock's unit")


def _check_age(age_s: float, where: str) -> None:
    if -MAX_AHEAD_S <= age_s <= MAX_AGE_S:
        return
    said = f"{age_s:.3f} s before" if age_s > 0 else f"{-age_s:.3f} s after"
    raise SensorDataError(
        f"{where}, time_us: expected at most {MAX_AGE_S:g} s before and {MAX_AHEAD_S:g} s after the frame's time, got {said}. "
        "All times are microseconds of one clock; a sensor that fell silent is left out"
    )


def _check_sectors(sectors: Any, where: str) -> None:
    if not (isinstance(sectors, np.ndarray) and sectors.dtype == np.bool_ and sectors.shape == (SECTORS,)):
        got = f"shape {list(sectors.shape)}" if getattr(sectors, "dtype", None) == np.bool_ else _kind(sectors)
        raise ValueError(
            f"{where}, lidar_sectors: expected [{SECTORS}] bool, got {got}; None says that all of them work"
        )


def _kind(value: Any) -> str:
    """What stands there instead: dtype and shape of an array, else its type."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
