"""Where the vehicle was when a sensor measured: poses over time, and what brings a measurement to the time of its frame.

Replays, the ROS node and `sensors.readings` share it; a data set knows the pose at each time.

Frames: `global` is any frame that stands still, `ego` moves with the vehicle, `reference` is the ego frame at the frame's time.

Letters: K poses, P points, C columns.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import CalibrationError, Float64, FloatArray, inverse_rigid, rigid_fault
from sensors.motion.poses import interpolate, pose_matrix, pose_row

SECOND_NS = 1_000_000_000
_BASELINE_NS = 100_000_000  # the velocity that a pose is carried on with is taken over about this time
_FOREVER_S = 1e12  # longer than any two stamps are apart
_KNOT_NS = 1_000_000  # within a sweep, poses are looked up so often; between them points move straight


@dataclass(eq=False)
class PoseTrack:
    """Pose rows over time, in whole nanoseconds, which may come in any order."""

    stamps_ns: list[int] = field(default_factory=list)  # ascending
    rows: list[Float64] = field(default_factory=list)

    def add(self, stamp_ns: int, row: Float64) -> bool:
        """Take in a row [7]; one of the same stamp is replaced, which gives False."""
        at = len(self.stamps_ns)
        if self.stamps_ns and stamp_ns <= self.stamps_ns[-1]:
            at = bisect_left(self.stamps_ns, stamp_ns)
            if self.stamps_ns[at] == stamp_ns:
                self.rows[at] = row
                return False
        self.stamps_ns.insert(at, stamp_ns)
        self.rows.insert(at, row)
        return True

    def forget_before(self, time_ns: int) -> None:
        """Drop rows that nothing from `time_ns` on needs."""
        # One row before the time to interpolate from, and two in all to carry on with.
        drop = min(bisect_left(self.stamps_ns, time_ns - _BASELINE_NS) - 1, len(self.rows) - 2)
        if drop > 0:
            del self.stamps_ns[:drop], self.rows[:drop]

    def at(self, time_ns: int, gap_ns: int) -> Float64 | None:
        """[4, 4] at a time: between two rows straight and at constant turn rate, outside carried on with the velocity there.

        None where the two are more than `gap_ns` apart, or the nearest is that far away.
        """
        stamps, after = self.stamps_ns, bisect_left(self.stamps_ns, time_ns)
        if after < len(stamps) and stamps[after] == time_ns:
            return pose_matrix(self.rows[after])
        if 0 < after < len(stamps) and stamps[after] - stamps[after - 1] <= gap_ns:
            before = after - 1
        else:
            near = self._nearest(time_ns)
            if near is None or abs(stamps[near] - time_ns) > gap_ns:
                return None
            before, after = self._carried_on(near, time_ns, gap_ns)
        if before == after:
            return pose_matrix(self.rows[before])
        share = (time_ns - stamps[before]) / (stamps[after] - stamps[before])
        return pose_matrix(interpolate(self.rows[before], self.rows[after], share))

    def why_not(self, time_ns: int, gap_ns: int) -> str:
        """Why `at` has nothing, for a person."""
        near = self._nearest(time_ns)
        if near is None:
            return f"is not known at {time_ns / SECOND_NS:.3f} s: there is no pose"
        off_ns = self.stamps_ns[near] - time_ns
        return (
            f"is not known at {time_ns / SECOND_NS:.3f} s: the nearest is {abs(off_ns) / SECOND_NS:.3f} s "
            f"{'older' if off_ns < 0 else 'newer'}, more than the {gap_ns / SECOND_NS:g} s that it is carried on or interpolated "
            "over"
        )

    def _nearest(self, time_ns: int) -> int | None:
        """The row whose stamp is nearest; of two equally near the older."""
        at = bisect_left(self.stamps_ns, time_ns)
        around = range(max(at - 1, 0), min(at + 1, len(self.stamps_ns)))
        return min(around, key=lambda i: abs(self.stamps_ns[i] - time_ns), default=None)

    def _carried_on(self, near: int, time_ns: int, gap_ns: int) -> tuple[int, int]:
        """The rows whose velocity carries row `near` to a time outside; equal where there is only one."""
        stamps, step = self.stamps_ns, -1 if time_ns > self.stamps_ns[near] else 1
        other = near
        while 0 <= other + step < len(stamps) and abs(stamps[other] - stamps[near]) < _BASELINE_NS:
            if abs(stamps[other + step] - stamps[near]) > gap_ns:
                break
            other += step
        return min(near, other), max(near, other)


class Trajectory:
    """Where the ego frame stood over time, by poses [4, 4] from odometry or a localisation; for one thread.

    Between two poses it moved straight and turned at a constant rate; before the first and after the last one it is carried on
    with the velocity that it had. Neither reaches over more than `max_gap_s`. One pose with `max_gap_s=math.inf` is a vehicle
    that stands still.

    Args:
        time_us: K times, whole microseconds of the clock of the sensors. More may come by `add`, in any order.
        global_T_ego: [K, 4, 4]; `global` may be any frame that stands still for some seconds, such as ROS's odom.

    Raises:
        CalibrationError: a pose that is no rigid transform.
        ValueError: not as many times as poses, a time that is no whole number, or `max_gap_s` is not positive.
    """

    def __init__(
        self,
        time_us: Iterable[int] = (),
        global_T_ego: Iterable[FloatArray] = (),
        *,
        max_gap_s: float = 0.5,
    ) -> None:
        if not max_gap_s > 0:
            raise ValueError(f"max_gap_s: expected more than 0, got {max_gap_s}")
        self._track, self._gap_ns = PoseTrack(), round(min(max_gap_s, _FOREVER_S) * SECOND_NS)
        for time, pose in zip(time_us, global_T_ego, strict=True):
            self.add(time, pose)

    def add(self, time_us: int, global_T_ego: FloatArray) -> None:
        """The pose [4, 4] at a time; one of the same time is replaced. Errors as the class."""
        if isinstance(time_us, bool) or not isinstance(time_us, int | np.integer):
            raise ValueError(
                f"trajectory: expected whole microseconds (int), got {type(time_us).__name__}. Convert seconds by "
                "round(time_s * 1e6)"
            )
        if fault := rigid_fault(global_T_ego):
            raise CalibrationError(f"trajectory, pose at {time_us} us: {fault}")
        self._track.add(int(time_us) * 1000, pose_row(global_T_ego))

    def forget_before(self, time_us: int) -> None:
        """Drop the poses that no time from `time_us` on needs, as a robot that drives for hours must."""
        self._track.forget_before(time_us * 1000)

    def pose(self, time_us: int) -> Float64 | None:
        """[4, 4] global_T_ego at a time; None where it is not known."""
        return self.pose_ns(time_us * 1000)

    def pose_ns(self, time_ns: int) -> Float64 | None:
        """`pose` at a time in nanoseconds."""
        return self._track.at(time_ns, self._gap_ns)

    def why_not(self, time_us: int) -> str:
        """Why `pose` has nothing, for a person."""
        return f"the ego pose {self._track.why_not(time_us * 1000, self._gap_ns)}"


@dataclass
class EgoMotion:
    """What lies between other times and that of a frame. Poses are looked up once a time.

    `pose_at`: nanoseconds -> [4, 4] global_T_ego, None where it is not known.
    """

    pose_at: Callable[[int], Float64 | None]
    reference_ns: int

    def __post_init__(self) -> None:
        self._poses: dict[int, Float64 | None] = {}
        self.global_T_reference = self._pose(self.reference_ns)
        self._reference_T_global = None if self.global_T_reference is None else inverse_rigid(self.global_T_reference)

    def reference_T_sensor(self, ego_T_sensor: FloatArray, time_ns: int) -> Float64 | None:  # noqa: N802
        """[4, 4] of a sensor that measured at a time; None where the motion between is not known."""
        pose = self._pose(time_ns)
        if pose is None or self._reference_T_global is None:
            return None
        out: Float64 = self._reference_T_global @ pose @ ego_T_sensor
        return out

    def _pose(self, time_ns: int) -> Float64 | None:
        if time_ns not in self._poses:
            self._poses[time_ns] = self.pose_at(time_ns)
        return self._poses[time_ns]


def deskewed(
    points: NDArray[np.float32],
    point_times_us: NDArray[np.int64],
    time_us: int,
    ego_T_sensor: FloatArray,
    motion: EgoMotion,
) -> NDArray[np.float32] | None:
    """Points [P, C] of a sweep, each measured at a time [P] of its own, as if all had been measured at `time_us`.

    The first three columns are x, y, z in the sensor's frame; the others stay. None where the motion is not known throughout.
    """
    if not len(points):
        return points
    first_ns, last_ns = int(point_times_us.min()) * 1000, int(point_times_us.max()) * 1000
    knots_ns = np.append(np.arange(first_ns, last_ns, _KNOT_NS), last_ns)
    poses = [motion.reference_T_sensor(ego_T_sensor, time) for time in (*knots_ns.tolist(), time_us * 1000)]
    known = [pose for pose in poses if pose is not None]
    if len(known) < len(poses):
        return None
    moves = inverse_rigid(known.pop()) @ np.stack(known)  # [K, 4, 4]: the sensor at a knot to the sensor at `time_us`
    at, knots = (point_times_us * 1000 - first_ns).astype(np.float64), (knots_ns - first_ns).astype(np.float64)
    xyz_m = points[:, :3].astype(np.float64).T
    out = points.copy()
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so, and is left out later
        for i in range(3):
            turned = sum(np.interp(at, knots, moves[:, i, j]) * xyz_m[j] for j in range(3))
            out[:, i] = turned + np.interp(at, knots, moves[:, i, 3])
    return out
