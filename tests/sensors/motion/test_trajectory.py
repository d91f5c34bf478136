"""Where the vehicle was, between the poses that came, and a sweep as if all its points had been measured at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.calibration import CalibrationError, apply, inverse_rigid
from sensors.motion.poses import pose
from sensors.motion.trajectory import EgoMotion, Trajectory, deskewed

SPEED, TURN = st.floats(-30, 30), st.floats(-1, 1)
MOUNT = pose((0.9, 0.2, 1.8), wxyz=(np.cos(0.7), 0.0, 0.0, np.sin(0.7)))


def driven(time_us: int, speed_mps: float, turn_rad_s: float) -> Any:
    """[4, 4] global_T_ego of steady motion on a circle, far from the origin; straight where nothing turns."""
    time_s = time_us / 1e6
    yaw = turn_rad_s * time_s
    share = np.sinc(yaw / 2 / np.pi)  # of the arc that the chord is
    along = speed_mps * time_s * share * np.array([np.cos(yaw / 2), np.sin(yaw / 2), 0])
    return pose(along + np.array([500, 900, 3]), wxyz=(np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)))


def trajectory(speed_mps: float, turn_rad_s: float, **limits: float) -> Trajectory:
    """50 poses a second, for a second."""
    times = range(0, 1_000_001, 20_000)
    return Trajectory(times, [driven(time, speed_mps, turn_rad_s) for time in times], **limits)


@given(SPEED, TURN, st.integers(-100_000, 1_100_000))
def test_steady_motion_is_met_between_the_poses_and_beyond_them(speed: float, turn: float, time_us: int) -> None:
    got = trajectory(speed, turn).pose(time_us)
    assert got is not None
    # Within 20 ms an arc is a chord; carried on for 100 ms with 100 ms' velocity it is off by v w t^2 = 0.3 m at the worst.
    inside = 0 <= time_us <= 1_000_000
    np.testing.assert_allclose(got, driven(time_us, speed, turn), atol=2e-3 if inside else 0.3)
    np.testing.assert_allclose(got[:3, :3], driven(time_us, speed, turn)[:3, :3], atol=1e-9)


def test_poses_reach_no_further_than_max_gap_s() -> None:
    moved = Trajectory([0, 2_000_000], [np.eye(4), pose((2, 0, 0), wxyz=(1, 0, 0, 0))], max_gap_s=0.5)
    assert moved.pose(500_000) is not None  # the last one, held: one pose has no velocity
    assert moved.pose(1_000_000) is None
    assert moved.why_not(1_000_000) == (
        "the ego pose is not known at 1.000 s: the nearest is 1.000 s older, more than the 0.5 s that it is carried on or "
        "interpolated over"
    )
    assert Trajectory([0, 2_000_000], [np.eye(4)] * 2, max_gap_s=3).pose(1_000_000) is not None
    parked = Trajectory([0], [np.eye(4)], max_gap_s=math.inf).pose(2**62 // 1000)
    np.testing.assert_array_equal(parked, np.eye(4))  # type: ignore[arg-type]  # which is known
    assert Trajectory().pose(0) is None
    assert Trajectory().why_not(0).endswith("there is no pose")


def test_what_is_forgotten_is_what_no_later_time_needs() -> None:
    whole, cut = trajectory(15, 0.3), trajectory(15, 0.3)
    cut.forget_before(500_000)
    assert cut.pose(-200_000) is None
    for time_us in range(500_000, 1_100_000, 7_000):
        got, expected = cut.pose(time_us), whole.pose(time_us)
        assert got is not None
        assert expected is not None
        np.testing.assert_array_equal(got, expected)


def test_what_is_no_pose_or_time_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"trajectory, pose at 5 us: expected .* a reflection"):
        Trajectory().add(5, np.diag([1.0, 1, -1, 1]))
    for time in (1.5, True):
        with pytest.raises(ValueError, match="expected whole microseconds"):
            Trajectory().add(time, np.eye(4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_gap_s: expected more than 0, got 0"):
        Trajectory(max_gap_s=0)
    with pytest.raises(ValueError, match="shorter"):
        Trajectory([0, 1], [np.eye(4)])


@given(SPEED, TURN, st.integers(0, 3), st.data())
def test_a_sweep_of_a_moving_sensor_becomes_that_of_one_instant(
    speed: float, turn: float, tenths: int, data: st.DataObject
) -> None:
    """Still points, each measured from where the sensor was; the stamp of the sweep is anywhere in it."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    random, begin_us = np.random.default_rng(seed), 300_000 + 100_000 * tenths
    world = random.uniform(-50, 50, (40, 3)) + np.array([500, 900, 0])
    times = random.integers(begin_us, begin_us + 100_000, 40)
    stamp_us = int(random.integers(begin_us, begin_us + 100_001))
    moving = trajectory(speed, turn)
    motion = EgoMotion(moving.pose_ns, 0)

    def seen(points: Any, time_us: int) -> Any:
        return apply(inverse_rigid(driven(time_us, speed, turn) @ MOUNT), points)

    skewed = np.stack([seen(point[None], int(time))[0] for point, time in zip(world, times, strict=True)])
    sweep = np.column_stack([skewed, np.full((40, 2), 7)]).astype(np.float32)
    before = sweep.copy()
    points = deskewed(sweep, times, stamp_us, MOUNT, motion)
    assert points is not None
    np.testing.assert_allclose(points[:, :3], seen(world, stamp_us), atol=4e-3)  # a chord of 20 ms
    np.testing.assert_array_equal(points[:, 3:], 7)
    np.testing.assert_array_equal(sweep, before)


def test_points_of_times_that_the_trajectory_does_not_know_are_not_moved() -> None:
    points = np.ones((2, 5), np.float32)
    motion = EgoMotion(trajectory(15, 0.3).pose_ns, 0)
    assert deskewed(points, np.array([900_000, 1_600_000]), 900_000, MOUNT, motion) is None
    assert deskewed(points[:0], np.array([], np.int64), 900_000, MOUNT, motion) is not None
    holes = np.array([[np.nan, 1, 1, 0, 0], [np.inf, 1, 1, 0, 0]], np.float32)
    moved = deskewed(holes, np.array([800_000, 900_000]), 850_000, MOUNT, motion)
    assert moved is not None
    assert not np.isfinite(moved[:, 0]).any()
