"""A frame of readings is the replay's own; what is too old or cannot be placed is left out by name."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sensors.calibration import CalibrationError, transforms
from sensors.errors import SensorDataError
from sensors.frames import Lack, SensorFrame
from sensors.logs.messages import FrameTransforms
from sensors.motion.trajectory import Trajectory
from sensors.readings import CameraReading, LidarReading, RadarReading, Reading, frame_at
from sensors.replay.ticks import ticks
from tests.sensors.replay.drive import CHANNELS, CONFIG, MAPPING, MOUNTS, MemoryLog, drive

TIME_US = 10_000_000
MOUNTED = {channel: transforms([*place, *turn]) for channel, (place, turn) in MOUNTS.items()}
POINTS = np.ones((3, 5), np.float32)
PICTURE = np.zeros((4, 6, 3), np.uint8)
LIDAR = LidarReading("LIDAR_TOP", POINTS, TIME_US)


def at(x_m: float) -> Any:
    return transforms([x_m, 0, 0, 1, 0, 0, 0])


def ahead(speed_mps: float = 15.0) -> Trajectory:
    """A second before and after the frame's time."""
    times = range(TIME_US - 1_000_000, TIME_US + 1_000_001, 50_000)
    return Trajectory(times, [at(speed_mps * time / 1e6) for time in times])


def frame_of(*readings: Reading, trajectory: Trajectory | None = None, **settings: Any) -> SensorFrame:
    return frame_at(TIME_US, readings, MOUNTED, ahead() if trajectory is None else trajectory, **settings)


def readings_in(frame: SensorFrame) -> list[Reading]:
    """As they were before their poses were known."""
    cameras = [camera for camera in frame.cameras or () if camera is not None]
    return [
        *(CameraReading(c.channel, c.image, c.intrinsics, c.time_us) for c in cameras),
        *(LidarReading(s.channel, s.points, s.time_us) for s in frame.lidar or ()),
        *(RadarReading(s.channel, s.points, s.time_us) for s in frame.radar or ()),
    ]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_poses", [False, True])
def test_a_replays_tick_is_the_frame_of_its_readings(reverse: bool, with_poses: bool) -> None:
    """Ten ticks at 8 m/s, with older sweeps; and the same without any pose of the vehicle."""
    messages = drive(1.0)
    mapping = MAPPING if with_poses else MAPPING.model_copy(update={"global_frame": None})
    poses = {
        one.stamp_ns // 1000: transforms([*one.translation_m, *one.rotation_wxyz])
        for message in messages
        if isinstance(message.payload, FrameTransforms) and not message.payload.static
        for one in message.payload.transforms
    }
    trajectory = Trajectory(poses, poses.values()) if with_poses else None
    for tick in ticks(MemoryLog(messages), mapping, CHANNELS, CONFIG):
        readings = readings_in(tick.frame)
        frame = frame_at(tick.time_us, readings[::-1] if reverse else readings, MOUNTED, trajectory, token="t")
        assert not frame.absent
        np.testing.assert_allclose(frame.global_T_reference, tick.frame.global_T_reference, atol=1e-9)
        for part in ("cameras", "lidar", "radar"):
            ours, theirs = getattr(frame, part), [one for one in getattr(tick.frame, part) if one is not None]
            assert len(ours) == len(theirs)
            for mine, other in zip(sorted(ours, key=_key), sorted(theirs, key=_key), strict=True):
                assert (mine.channel, mine.time_us) == (other.channel, other.time_us)
                pose = f"reference_T_{part.removesuffix('s')}"
                np.testing.assert_allclose(getattr(mine, pose), getattr(other, pose), atol=1e-9)


def _key(reading: Any) -> tuple[str, int]:
    return reading.channel, -reading.time_us


def test_what_is_too_old_or_too_new_is_absent_and_named() -> None:
    for off_us, words in ((-150_001, "0.150 s older"), (150_001, "0.150 s newer"), (-3_000_000, "3.000 s older")):
        frame = frame_of(LIDAR, CameraReading("CAM_FRONT", PICTURE, np.eye(3), TIME_US + off_us))
        assert frame.cameras is None
        assert frame.lidar is not None
        assert list(frame.absent) == ["CAM_FRONT"]
        assert frame.absent["CAM_FRONT"].lack is Lack.STALE
        assert words in frame.absent["CAM_FRONT"].reason
        assert "max_age_s=0.15" in frame.absent["CAM_FRONT"].reason
    old = replace(LIDAR, time_us=TIME_US - 400_000)
    assert not frame_of(old, max_age_s=0.4).absent
    assert not frame_of(replace(LIDAR, time_us=TIME_US - 1_000_000), max_age_s=float("inf")).absent
    assert frame_of(replace(LIDAR, time_us=TIME_US + 150_000)).lidar is not None


def test_older_sweeps_come_along_newest_first_up_to_a_gap() -> None:
    ages_ms = [50, 0, 400, 100, 350]  # a gap of 250 ms after the third
    sweeps = [replace(LIDAR, time_us=TIME_US - 1000 * age) for age in ages_ms]
    frame = frame_of(*sweeps)
    assert frame.lidar is not None
    assert [(TIME_US - sweep.time_us) // 1000 for sweep in frame.lidar] == [0, 50, 100]
    mount_x = MOUNTED["LIDAR_TOP"][0, 3]
    np.testing.assert_allclose([s.reference_T_lidar[0, 3] - mount_x for s in frame.lidar], [0, -0.75, -1.5], atol=1e-9)


def test_what_comes_twice_with_one_time_counts_once_the_last_of_them() -> None:
    """A driver that sends again: as replays have it, no point is there twice, and no camera has too many pictures."""
    other, picture = replace(LIDAR, points=2 * POINTS), CameraReading("CAM_FRONT", PICTURE, np.eye(3), TIME_US)
    older = replace(LIDAR, time_us=TIME_US - 50_000)
    frame = frame_of(LIDAR, older, other, picture, picture)
    assert frame.cameras is not None
    assert frame.lidar is not None
    assert len(frame.cameras) == 1
    assert [sweep.points is one.points for sweep, one in zip(frame.lidar, (other, older), strict=True)] == [True, True]


def test_a_reading_of_a_time_without_a_pose_is_absent_and_named() -> None:
    late = Trajectory([TIME_US], [np.eye(4)], max_gap_s=0.05)
    for reading in (
        replace(LIDAR, time_us=TIME_US - 100_000),
        replace(LIDAR, point_times_us=np.array([TIME_US, TIME_US - 100_000, TIME_US])),
    ):
        frame = frame_of(reading, trajectory=late)
        assert frame.lidar is None
        assert frame.absent["LIDAR_TOP"].lack is Lack.UNPLACED
        assert "not known at 9.900 s: the nearest is 0.100 s newer" in frame.absent["LIDAR_TOP"].reason
    with pytest.raises(CalibrationError, match=r"frame at 10000000 us: the ego pose is not known .* trajectory=None"):
        frame_of(LIDAR, trajectory=Trajectory())


def test_without_a_trajectory_the_newest_of_each_is_taken_as_it_stands() -> None:
    older = replace(LIDAR, time_us=TIME_US - 50_000, point_times_us=np.full(3, TIME_US))
    frame = frame_at(TIME_US, [older, replace(older, time_us=TIME_US - 100_000)], MOUNTED, None)
    assert frame.lidar is not None
    assert len(frame.lidar) == 1
    np.testing.assert_array_equal(frame.lidar[0].reference_T_lidar, MOUNTED["LIDAR_TOP"])
    np.testing.assert_array_equal(frame.lidar[0].points, POINTS)
    np.testing.assert_array_equal(frame.global_T_reference, np.eye(4))


@pytest.mark.parametrize(
    ("change", "lack", "words"),
    [
        ({"time_us": 1.5}, Lack.MALFORMED, "LIDAR_TOP, time_us: expected whole microseconds"),
        ({"time_us": None}, Lack.MALFORMED, "expected whole microseconds"),
        (
            {"point_times_us": np.zeros(3)},
            Lack.MALFORMED,
            r"point_times_us: expected whole .* \[3\].*, got float64 \[3\]",
        ),
        ({"point_times_us": np.full(2, TIME_US)}, Lack.MALFORMED, r"got int64 \[2\]"),
        ({"point_times_us": [TIME_US] * 3}, Lack.MALFORMED, "got list"),
        ({"point_times_us": np.array([0, 5, 9])}, Lack.MALFORMED, "within 1 s of the sweep's 10000000 us, got 0 to 9"),
        ({"point_times_us": np.full(3, TIME_US), "points": None}, Lack.MALFORMED, "points: expected float32"),
    ],
)
def test_what_cannot_be_placed_costs_its_sensor_alone(change: dict[str, Any], lack: Lack, words: str) -> None:
    radar = RadarReading("RADAR_FRONT", np.ones((2, 6), np.float32), TIME_US)
    frame = frame_of(replace(LIDAR, **change), radar)
    assert frame.lidar is None
    assert frame.radar is not None
    absence = frame.absent["LIDAR_TOP"]
    assert absence.lack is lack
    assert re.search(words, absence.reason), absence.reason


@pytest.mark.parametrize(
    "mount", [None, np.eye(3), np.diag([1.0, -1, 1, 1]), np.eye(4, dtype=int), np.full((4, 4), np.nan)]
)
def test_a_mount_that_cannot_be_costs_its_sensor_alone(mount: Any) -> None:
    camera = CameraReading("CAM_FRONT", PICTURE, np.eye(3), TIME_US)
    frame = frame_at(TIME_US, [LIDAR, camera], MOUNTED | {"LIDAR_TOP": mount}, ahead())
    assert frame.absent["LIDAR_TOP"].lack is Lack.UNCALIBRATED
    assert frame.absent["LIDAR_TOP"].reason.startswith("LIDAR_TOP, ego_T_sensor: expected")
    assert frame.cameras is not None


def test_what_is_wrong_with_the_call_is_raised() -> None:
    with pytest.raises(ValueError, match="got none of ROOF; there are CAM_BACK, CAM_FRONT, LIDAR_TOP"):
        frame_of(replace(LIDAR, channel="ROOF"))
    with pytest.raises(SensorDataError, match="frame_at, time_us: expected whole microseconds"):
        frame_at(1.5, [LIDAR], MOUNTED, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected CameraReading, LidarReading or RadarReading, got ndarray"):
        frame_of(POINTS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_age_s: expected more than 0, got 0"):
        frame_of(LIDAR, max_age_s=0)
