"""From what a robot's sensors gave, each at its own time, to one frame: mounts, the vehicle's motion, what is too old.

Letters: P points, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import CalibrationError, Float64, FloatArray, check_rigid
from sensors.checks.frame import LIDAR_COLUMNS, MAX_AHEAD_S, check_matrix, check_mounts, check_points, check_time
from sensors.errors import SensorDataError
from sensors.frames import Absence, CameraImage, Lack, LidarSweep, RadarSweep, SensorFrame
from sensors.motion.trajectory import EgoMotion, Trajectory, deskewed

TOLERANCE_S = 0.15  # between a measurement and the frame that it is used in


@dataclass(frozen=True)
class CameraReading:
    """One picture, as `sensors.frames.CameraImage` has it."""

    channel: str
    image: NDArray[np.uint8]  # [H, W, 3] RGB
    intrinsics: FloatArray  # [3, 3] px, at the size of `image`
    time_us: int  # of its exposure


@dataclass(frozen=True)
class LidarReading:
    """One sweep, its points [P, 5] float32 as `sensors.frames.LidarSweep` has them, in the sensor's frame."""

    channel: str
    points: NDArray[np.float32]
    time_us: int
    point_times_us: NDArray[np.int64] | None = None
    """[P] when each point was measured, on the clock of `time_us`; None: all at `time_us`, or brought there by the driver."""


@dataclass(frozen=True)
class RadarReading:
    """One sweep, its points [P, 6] float32 as `sensors.frames.RadarSweep` has them: velocities are over ground."""

    channel: str
    points: NDArray[np.float32]
    time_us: int


Reading = CameraReading | LidarReading | RadarReading
_Placed = CameraImage | LidarSweep | RadarSweep


def frame_at(
    time_us: int,
    readings: Iterable[Reading],
    ego_T_sensor: Mapping[str, FloatArray],
    trajectory: Trajectory | None,
    *,
    token: str | None = None,
    max_age_s: float = TOLERANCE_S,
) -> SensorFrame:
    """The frame of an instant, of readings that were measured around it: each is brought to the ego frame at `time_us`.

    Motion is what this adds: the vehicle's between a reading's time and the frame's, and within a LiDAR sweep whose points have
    times. What moves by itself stays where it was measured. Replays and the ROS node use the same poses and the same geometry.

    A sensor of which nothing can be used is left out, and `SensorFrame.absent` says why: its readings are further than
    `max_age_s` from the frame's time, the ego pose at its time is not known, or its times or its mount cannot be. What else may
    be wrong with a reading `PerceptionModel.perceive` looks at.

    Args:
        time_us: of the frame, whole microseconds of the clock that all times are of. Best that of the newest LiDAR sweep.
        readings: of any sensors in any order; of a LiDAR or radar several sweeps, where the model takes several. What comes
            twice with one time counts once.
        ego_T_sensor: [4, 4] by channel, where each sensor is mounted: its points to the ego frame. No motion is in it.
        trajectory: where the vehicle was. None: it is not known. Then, as in a replay without poses, the newest reading of each
            sensor is taken as if the vehicle stood still, and older sweeps are left out.
        token: the frame's name in errors and results; None: its time.
        max_age_s: how much older or newer than the frame a sensor's newest reading may be, and how much older a sweep than the
            next newer one.

    Raises:
        CalibrationError: the ego pose at the frame's own time is not known.
        SensorDataError: `time_us` is no whole number of microseconds.
        ValueError: what is no reading, or one of a sensor whose mount is not given, or `max_age_s` is not positive.
    """
    check_time(time_us, "frame_at, time_us")
    if not max_age_s > 0:
        raise ValueError(f"max_age_s: expected more than 0, got {max_age_s}")
    motion = EgoMotion(_still if trajectory is None else trajectory.pose_ns, int(time_us) * 1000)
    if motion.global_T_reference is None:
        assert trajectory is not None  # which says nothing of this time
        raise CalibrationError(
            f"frame at {time_us} us: {trajectory.why_not(time_us)}. Add poses to the trajectory, or go on without motion by "
            "trajectory=None"
        )
    of_channel: dict[str, list[Reading]] = {}
    for reading in readings:
        if not isinstance(reading, Reading):
            raise ValueError(
                f"readings: expected CameraReading, LidarReading or RadarReading, got {type(reading).__name__}: make one of it"
            )
        of_channel.setdefault(reading.channel, []).append(reading)
    check_mounts(of_channel.keys(), ego_T_sensor)
    placed: list[_Placed] = []
    absent: dict[str, Absence] = {}
    for channel, mine in of_channel.items():
        try:
            got = _of_sensor(mine, ego_T_sensor[channel], motion, trajectory, round(min(max_age_s, 1e9) * 1e6))
        except SensorDataError as error:
            got = Absence.of(error)
        if isinstance(got, Absence):
            absent[channel] = got
        else:
            placed += got
    return SensorFrame(
        token=str(time_us) if token is None else token,
        time_us=time_us,
        cameras=tuple(one for one in placed if isinstance(one, CameraImage)) or None,
        lidar=tuple(one for one in placed if isinstance(one, LidarSweep)) or None,
        radar=tuple(one for one in placed if isinstance(one, RadarSweep)) or None,
        global_T_reference=motion.global_T_reference,
        absent=absent,
    )


def _of_sensor(
    readings: Sequence[Reading],
    ego_T_sensor: FloatArray,
    motion: EgoMotion,
    trajectory: Trajectory | None,
    max_age_us: int,
) -> list[_Placed] | Absence:
    """What of one sensor can be used, newest first; SensorDataError where a time or the mount cannot be."""
    where = readings[0].channel
    for reading in readings:
        check_time(reading.time_us, f"{where}, time_us")
    check_matrix(ego_T_sensor, f"{where}, ego_T_sensor", "a 4 x 4 pose")
    check_rigid(ego_T_sensor, f"{where}, ego_T_sensor")
    fresh = _fresh(readings, motion.reference_ns // 1000, max_age_us)
    if isinstance(fresh, Absence):
        return fresh
    placed: list[_Placed] = []
    for reading in fresh if trajectory is not None else fresh[:1]:
        moved = _moved(reading, ego_T_sensor, motion)
        if moved is None:
            break
        pose, points = moved
        if isinstance(reading, CameraReading):
            placed.append(CameraImage(where, reading.image, reading.intrinsics, pose, reading.time_us))
        else:
            sweep = LidarSweep if isinstance(reading, LidarReading) else RadarSweep
            placed.append(sweep(where, points, pose, reading.time_us))
    if placed:
        return placed
    assert trajectory is not None  # without one nothing moves
    return Absence(Lack.UNPLACED, f"{where}: {_why_not_moved(fresh[0], trajectory)}")


def _fresh(readings: Sequence[Reading], time_us: int, max_age_us: int) -> list[Reading] | Absence:
    """Newest first, up to the first that is too old; or why that is none. Of those of one time it is the last, as in a replay."""
    fresh: list[Reading] = []
    newer_us = time_us
    at_time = {(type(one), one.time_us): one for one in readings}
    for reading in sorted(at_time.values(), key=lambda one: one.time_us, reverse=True):
        if newer_us - reading.time_us > max_age_us:
            break
        if reading.time_us - time_us <= max_age_us:
            fresh.append(reading)
            newer_us = reading.time_us
    if fresh:
        return fresh
    age_s = min((time_us - one.time_us for one in readings), key=abs) / 1e6
    return Absence(
        Lack.STALE,
        f"{readings[0].channel}: its nearest reading is {abs(age_s):.3f} s {'older' if age_s > 0 else 'newer'} than the frame, "
        f"more than max_age_s={max_age_us / 1e6:g}",
    )


def _moved(reading: Reading, ego_T_sensor: FloatArray, motion: EgoMotion) -> tuple[Float64, Any] | None:
    """reference_T_sensor [4, 4] at the reading's time, and its points as they were then; None where the motion is not known."""
    pose = motion.reference_T_sensor(ego_T_sensor, int(reading.time_us) * 1000)
    if pose is None:
        return None
    points = None if isinstance(reading, CameraReading) else reading.points
    if isinstance(reading, LidarReading) and reading.point_times_us is not None:
        _check_point_times(reading)
        points = deskewed(reading.points, reading.point_times_us, reading.time_us, ego_T_sensor, motion)
        if points is None:
            return None
    return pose, points


def _why_not_moved(reading: Reading, trajectory: Trajectory) -> str:
    times = [int(reading.time_us)]
    if isinstance(reading, LidarReading) and reading.point_times_us is not None and len(reading.point_times_us):
        times += [int(reading.point_times_us.min()), int(reading.point_times_us.max())]
    return trajectory.why_not(next((time for time in times if trajectory.pose(time) is None), times[0]))


def _check_point_times(reading: LidarReading) -> None:
    """Of a sweep whose points are to be moved; SensorDataError where they or their times cannot be."""
    where, times = reading.channel, reading.point_times_us
    check_points(reading.points, where, LIDAR_COLUMNS)
    whole = isinstance(times, np.ndarray) and np.issubdtype(times.dtype, np.integer)
    if times is None or not whole or times.shape != reading.points.shape[:1]:
        got = f"{times.dtype} {list(times.shape)}" if isinstance(times, np.ndarray) else type(times).__name__
        raise SensorDataError(
            f"{where}, point_times_us: expected whole microseconds [{len(reading.points)}], one a point, got {got}. Add the "
            "driver's offsets to time_us, in microseconds"
        )
    if (
        len(times)
        and max(abs(int(end) - int(reading.time_us)) for end in (times.min(), times.max())) > MAX_AHEAD_S * 1e6
    ):
        raise SensorDataError(
            f"{where}, point_times_us: expected times within {MAX_AHEAD_S:g} s of the sweep's {reading.time_us} us, got "
            f"{times.min()} to {times.max()}. Add the driver's offsets to time_us, in microseconds"
        )


def _still(_: int) -> Float64:
    """A vehicle of which nothing is known."""
    return np.eye(4)
