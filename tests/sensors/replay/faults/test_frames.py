"""Corruptions as faults: on the sensors and at the times that they name, and on nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from sensors.corruptions import Corruption, corrupt
from sensors.frames import SensorFrame
from sensors.logs.mapping.mapping import CameraTopics, LidarTopics, LogMapping, RadarTopics
from sensors.replay.faults.frames import FrameFaults, keyframes
from sensors.replay.faults.kinds import Fault, FaultError
from sensors.replay.faults.messages import unused
from sensors.replay.faults.script import parse_faults
from tests.sensors.health.failing_rig import KEYFRAME_US, arrays, no_past, past_of, rig_frame

MAPPING = LogMapping(
    cameras={f"CAM_{n}": CameraTopics(image=f"/cam_{n}/image", info=f"/cam_{n}/info") for n in range(3)},
    lidars={"LIDAR_TOP": LidarTopics(points="/lidar_top")},
    radars={f"RADAR_{n}": RadarTopics(points=f"/radar_{n}") for n in range(5)},
)
CHANNELS = [*MAPPING.cameras, *MAPPING.lidars, *MAPPING.radars]


def faults(*lines: str) -> FrameFaults:
    return FrameFaults(parse_faults(lines), MAPPING)


def readings(frame: SensorFrame) -> dict[str, object]:
    return {
        **{camera.channel: camera for camera in frame.cameras or () if camera is not None},
        **{sweep.channel: sweep for sweep in frame.lidar or ()},
        **{sweep.channel: sweep for sweep in frame.radar or ()},
    }


def changed_channels(before: SensorFrame, after: SensorFrame) -> set[str]:
    old, new = readings(before), readings(after)
    return {channel for channel in CHANNELS if old.get(channel) is not new.get(channel)}


@pytest.mark.parametrize(
    ("line", "channels"),
    [
        ("all: fog-3", {"CAM_0", "CAM_1", "CAM_2", "LIDAR_TOP"}),
        ("camera: fog-3", {"CAM_0", "CAM_1", "CAM_2"}),
        ("lidar: fog-3", {"LIDAR_TOP"}),
        ("/lidar_top: fog-3", {"LIDAR_TOP"}),
        ("cam_1: dark-4", {"CAM_1"}),
        ("cam_2: single_camera_lost-1", {"CAM_2"}),
        ("radar_3: radar_lost-5", {"RADAR_3"}),
        ("radar: radar_clutter-2", {f"RADAR_{n}" for n in range(5)}),
        ("all: fog-3 10s..", set()),
        ("all: fog-3 ..5s", set()),
    ],
)
def test_a_corruption_acts_on_its_target_and_in_its_window_only(line: str, channels: set[str]) -> None:
    frame = rig_frame()
    assert changed_channels(frame, faults(line)(frame, past_of(frame), 5.0)) == channels


def test_on_all_sensors_it_is_the_corruption_of_that_name() -> None:
    frame = rig_frame()
    mine = faults("all: snow-4")(frame, no_past, 0.0)
    expected = corrupt(frame, Corruption("snow", 4), no_past)
    assert all(np.array_equal(a, b) for a, b in zip(arrays(mine), arrays(expected), strict=True))


def test_fog_on_cameras_alone_still_knows_the_depth_that_the_lidar_measures() -> None:
    frame = rig_frame()
    alone, both = (faults(f"{target}: fog-3")(frame, no_past, 0.0) for target in ("camera", "all"))
    assert alone.cameras is not None
    assert both.cameras is not None
    for a, b in zip(alone.cameras, both.cameras, strict=True):
        assert a is not None
        assert b is not None
        assert np.array_equal(a.image, b.image)


def test_a_camera_that_is_lost_is_none_in_its_place_and_the_last_one_takes_the_modality_with_it() -> None:
    frame = rig_frame()
    one = faults("cam_1: missing_camera-5")
    lost = [one(rig_frame(n), no_past, 0.0).cameras for n in range(8)]
    assert {tuple(camera is None for camera in cameras or ()) for cameras in lost} <= {
        (False,) * 3,
        (False, True, False),
    }
    assert (False, True, False) in {tuple(camera is None for camera in cameras or ()) for cameras in lost}
    every = [f"cam_{n}: single_camera_lost-1" for n in range(3)]
    assert faults(*every)(frame, no_past, 0.0).cameras is None


def test_lost_radars_leave_the_others_and_the_last_one_takes_the_modality_with_it() -> None:
    frame = rig_frame(radars=2)
    one = faults("radar_0: radar_lost-5")(frame, no_past, 0.0)
    assert [sweep.channel for sweep in one.radar or ()] == ["RADAR_1"]
    assert faults("radar_0: radar_lost-5", "radar_1: radar_lost-5")(frame, no_past, 0.0).radar is None


def test_lag_counts_keyframes_of_half_a_second_whatever_the_ticks_are() -> None:
    """At 10 ticks a second, camera_lagging-1 shows what was seen 0.5 s ago, not 0.1 s."""
    ticks = [replace(rig_frame(n), time_us=n * KEYFRAME_US // 5) for n in range(8)]
    lagging = faults("cam_0: camera_lagging-1")(ticks[7], lambda n: ticks[7 - n] if n <= 7 else None, 0.7)
    assert lagging.cameras is not None
    assert lagging.cameras[0] is not None
    expected = ticks[2].cameras
    assert expected is not None
    assert expected[0] is not None
    assert np.array_equal(lagging.cameras[0].image, expected[0].image)


def test_keyframes_are_none_where_no_tick_is_near() -> None:
    ticks = [rig_frame(n) for n in (9, 8, 4)]  # 0.5 s apart, and a gap of two seconds
    history = keyframes(lambda n: ticks[n - 1] if n <= len(ticks) else None, 10 * KEYFRAME_US)
    found = [history(n) for n in range(1, 8)]
    assert [None if f is None else f.time_us // KEYFRAME_US for f in found] == [9, 8, None, None, None, 4, None]


def test_what_comes_from_the_past_has_gone_through_the_faults_before_it() -> None:
    frame = rig_frame()
    both = faults("cam_0: camera_black-5", "cam_0: camera_lagging-1")(frame, past_of(frame), 5.0)
    black = faults("cam_0: camera_black-5")(rig_frame(4), past_of(rig_frame(4)), 4.5)
    assert both.cameras is not None
    assert black.cameras is not None
    assert both.cameras[0] is not None
    assert black.cameras[0] is not None
    assert np.array_equal(both.cameras[0].image, black.cameras[0].image)


def test_a_frame_in_which_there_is_nothing_to_corrupt_passes_and_the_fault_is_told_as_unused() -> None:
    lines = ["lidar: lidar_noise-3", "camera: dark-2", "all: fog-1 60s.."]
    parsed, touched = parse_faults(lines), Counter[Fault]()
    blind = rig_frame(points=-1)
    FrameFaults(parsed, MAPPING, touched=touched)(blind, no_past, 0.0)
    assert unused(parsed, touched) == (parsed[0], parsed[2])


def test_dead_sectors_of_one_of_two_lidars_are_not_those_of_the_other() -> None:
    frame = rig_frame()
    assert frame.lidar is not None
    (sweep,) = frame.lidar
    two = replace(frame, lidar=(sweep, replace(sweep, channel="LIDAR_REAR")))
    lidars = {channel: LidarTopics(points=f"/{channel.lower()}") for channel in ("LIDAR_TOP", "LIDAR_REAR")}
    mapping = MAPPING.model_copy(update={"lidars": lidars})
    dead = FrameFaults(parse_faults(["lidar_rear: lidar_sectors-3"]), mapping)(two, no_past, 0.0)
    assert dead.lidar is not None
    assert dead.lidar[0] is sweep
    assert len(dead.lidar[1].points) < len(sweep.points)
    assert dead.lidar_sectors is None
    both = FrameFaults(parse_faults(["lidar: lidar_sectors-3"]), mapping)(two, no_past, 0.0)
    assert both.lidar_sectors is not None


def test_faults_on_messages_are_passed_over() -> None:
    frame = rig_frame()
    only_messages = faults("lidar: drop", "all: delay 1s")
    assert not only_messages
    assert only_messages(frame, no_past, 0.0) is frame


def test_a_corruption_on_sensors_that_it_does_not_act_on_is_refused() -> None:
    with pytest.raises(FaultError, match="radar_lost acts on radar, got a target of camera"):
        faults("cam_0: radar_lost-3")
