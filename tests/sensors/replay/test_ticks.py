"""A replay gives one tick after another: what is in them, when they are ready, and how each sensor stands."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import re
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sensors.camera.images import DecodeSize
from sensors.frames import CameraImage, LidarSweep, RadarSweep
from sensors.logs.log import LogError, LogWarning
from sensors.logs.mapping.mapping import CameraTopics, LidarTopics
from sensors.logs.messages import (
    EncodedImage,
    FrameTransform,
    FrameTransforms,
    LogMessage,
    Malformed,
    Other,
    PointCloud,
    RawImage,
)
from sensors.logs.nuscenes.log import NuScenesLog, mapping_of_nuscenes
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.reader import NuScenesReader
from sensors.replay.channels import Channels
from sensors.replay.config import ReplayConfig, Tolerances
from sensors.replay.readings import Picture, decode_picture
from sensors.replay.synchroniser import Reading, SensorQueue
from sensors.replay.tick import SensorState, Tick
from sensors.replay.ticks import MissingPoses, ticks
from tests.sensors.replay.drive import (
    CHANNELS,
    CONFIG,
    MAPPING,
    MODALITY,
    MS,
    SPEED_MPS,
    START_NS,
    TOPIC,
    MemoryLog,
    altered,
    drive,
    later,
    since_s,
)
from tests.small_nuscenes import SmallNuScenes

SUBSETS = [
    set(subset) for n in (1, 2, 3) for subset in itertools.combinations(("camera", "lidar", "radar"), n)
]  # the seven that can be lost
WHEN: dict[str, Callable[[float], bool]] = {
    "start": lambda s: s < 1.0,
    "middle": lambda s: 1.0 <= s < 2.0,
    "end": lambda s: s >= 2.0,
    "flickering": lambda s: int(s / 0.5) % 2 == 1,
}


def replay(messages: list[LogMessage], config: ReplayConfig = CONFIG, **more: object) -> list[Tick]:
    return list(ticks(MemoryLog(messages), MAPPING, CHANNELS, config, **more))  # type: ignore[arg-type]


def states(tick: Tick) -> dict[str, SensorState]:
    return {channel: status.state for channel, status in tick.sensors.items()}


def same_reading(a: CameraImage | LidarSweep | RadarSweep, b: CameraImage | LidarSweep | RadarSweep) -> None:
    assert (a.channel, a.time_us) == (b.channel, b.time_us)
    for field in dataclasses.fields(a):
        if field.name in ("image", "points"):
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
        elif field.name not in ("channel", "time_us"):
            np.testing.assert_allclose(getattr(a, field.name), getattr(b, field.name), atol=1e-6)


def same_frames(config: NuScenesConfig, split: str) -> int:
    """Hold every keyframe of a split's first scene, replayed at 2 Hz, to the reader's; the number of them."""
    reader = NuScenesReader(config, split)
    scene = reader.scene_name(0)
    replayed = ticks(
        NuScenesLog(config, scene),
        mapping_of_nuscenes(config),
        Channels(config.camera_channels, config.lidar_channels, config.radar_channels),
        ReplayConfig(tick_hz=2, lidar_sweeps=config.lidar_sweeps, radar_sweeps=config.radar_sweeps),
    )
    rows = [i for i in range(len(reader)) if reader.scene_name(i) == scene]
    for tick, i in zip(replayed, rows, strict=True):
        ours, theirs = tick.frame, reader.frame(i)
        assert tick.ego_pose_known
        assert tick.time_us == ours.time_us == theirs.time_us
        np.testing.assert_allclose(ours.global_T_reference, theirs.global_T_reference, atol=1e-6)
        for mine, yours in ((ours.cameras, theirs.cameras), (ours.lidar, theirs.lidar), (ours.radar, theirs.radar)):
            assert (mine is None) == (yours is None)
            for a, b in zip(mine or (), yours or (), strict=True):
                assert (a is None) == (b is None)
                if a is not None and b is not None:
                    same_reading(a, b)
    return len(rows)


def test_a_replayed_scene_is_the_readers_own_frames(small_nuscenes: SmallNuScenes) -> None:
    assert same_frames(small_nuscenes.config, "small_train") == 3


def test_a_replayed_simulated_drive_is_the_readers_own_frames() -> None:
    root = Path(__file__).parents[3] / "data" / "sim"
    if not (root / "v1.0-sim" / "sample.json").is_file():
        pytest.skip("no simulated drives in data/sim: `make demo` writes them")
    config = NuScenesConfig(
        root=root, version="v1.0-sim", train_split="sim_train", val_split="sim_val", lidar_sweeps=4, radar_sweeps=3
    )
    assert same_frames(config, "sim_val") == 8


def test_the_real_keyframe_is_the_readers_own_frame(real_config: NuScenesConfig) -> None:
    config = real_config.model_copy(update={"lidar_sweeps": 1, "radar_sweeps": 1})
    assert same_frames(config, "mini_train") == 1


def test_every_tick_has_every_sensor_in_time() -> None:
    out = replay(drive(3.0))
    assert [tick.index for tick in out] == list(range(31))
    assert [tick.time_us for tick in out] == [START_NS // 1000 + 100_000 * i for i in range(31)]
    assert [tick.frame.token for tick in out[:2]] == ["tick-000000", "tick-000001"]
    for tick in out:
        assert set(states(tick).values()) == {SensorState.OK}
        assert 0 <= tick.ready_us - tick.time_us <= 100_000
        assert tick.sensors["CAM_FRONT"].age_us == 30_000
        assert tick.sensors["RADAR_FRONT"].age_us == -14_000
        assert not tick.reset
    # The radar is the last: 14 ms after the tick, and 5 ms on its way.
    assert {tick.ready_us - tick.time_us for tick in out[2:]} == {19_000}


def test_sweeps_are_brought_to_the_tick_by_ego_motion() -> None:
    tick = replay(drive(1.0))[5]
    assert tick.frame.lidar is not None
    assert tick.frame.radar is not None
    assert [round(0.5 - float(sweep.points[0, 0]), 3) for sweep in tick.frame.lidar] == [0.0, 0.1, 0.2]
    for k, sweep in enumerate(tick.frame.lidar):  # older sweeps stand further back
        np.testing.assert_allclose(sweep.reference_T_lidar[:3, 3], [0.9 - 0.1 * k * SPEED_MPS, 0, 1.8], atol=1e-6)
    radar = tick.frame.radar[0]
    np.testing.assert_allclose(radar.reference_T_radar[:3, 3], [3.4 + 0.014 * SPEED_MPS, 0, 0.5], atol=1e-6)
    np.testing.assert_allclose(tick.frame.global_T_reference[:3, 3], [500 + 0.5 * SPEED_MPS, 900, 0], atol=1e-6)


def test_without_ego_motion_nothing_is_compensated_and_older_sweeps_are_left_out() -> None:
    tick = replay([message for message in drive(2.0) if message.topic != "/tf"])[15]
    assert not tick.ego_pose_known
    assert tick.frame.lidar is not None
    assert len(tick.frame.lidar) == 1
    np.testing.assert_allclose(tick.frame.lidar[0].reference_T_lidar[:3, 3], [0.9, 0, 1.8])
    np.testing.assert_array_equal(tick.frame.global_T_reference, np.eye(4))


def test_ego_poses_that_stop_are_carried_on_for_a_while() -> None:
    messages = [message for message in drive(3.0) if message.topic != "/tf" or since_s(message) < 1.0]
    out = replay(messages)
    known = [tick.ego_pose_known for tick in out]
    assert known[:15] == [True] * 15  # with the velocity that it had
    assert known[16:] == [False] * 15
    np.testing.assert_allclose(out[13].frame.global_T_reference[0, 3], 500 + 1.3 * SPEED_MPS, atol=1e-6)


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("lost", SUBSETS, ids=lambda lost: "+".join(sorted(lost)))
@pytest.mark.parametrize("way", ["altered", "recorded"])
def test_lost_sensors_are_absent_within_a_tick_and_the_ticks_go_on(lost: set[str], when: str, way: str) -> None:
    gone = WHEN[when]
    channels = {channel for channel, modality in MODALITY.items() if modality in lost}
    topics = {TOPIC[channel] for channel in channels}

    def kept(message: LogMessage) -> bool:
        return message.topic not in topics or not gone(since_s(message))

    if way == "altered":
        out = replay(drive(3.0), alter_messages=lambda stream: filter(kept, stream))
        assert [tick.time_us for tick in out] == [tick.time_us for tick in replay(drive(3.0))]
    else:
        out = replay([message for message in drive(3.0) if kept(message)])
    times = [tick.time_us for tick in out]
    assert times == list(range(times[0], times[-1] + 1, 100_000))
    assert [tick.index for tick in out] == list(range(len(out)))
    for tick in out:
        assert 0 <= tick.ready_us - tick.time_us <= 100_000
        since = tick.time_us / 1e6 - START_NS / 1e9
        for channel, status in tick.sensors.items():
            here = {round(since + shift, 3) for shift in (-0.1, 0.0, 0.1)}
            if channel not in channels or not any(gone(s) for s in here):
                assert status.given, (since, status)
            elif all(gone(s) for s in here) and status.given:  # within its tolerance, the one before still counts
                assert status.age_us is not None
                assert abs(status.age_us) <= 150_000
            if not status.given:
                assert status.state in (SensorState.MISSING, SensorState.STALE)
        frame = tick.frame
        for absent, modality in ((frame.cameras is None, "camera"), (frame.lidar is None, "lidar")):
            mine = [status.given for status in tick.sensors.values() if status.modality == modality]
            assert absent == (not any(mine))
        assert (frame.radar is None) == (not tick.sensors["RADAR_FRONT"].given)


def test_a_silent_sensor_is_stale_and_then_missing_and_then_back() -> None:
    gone = altered(drive(4.0), ["LIDAR_TOP"], lambda m: None if 1.01 < since_s(m) < 3.0 else m)
    out = [states(tick)["LIDAR_TOP"] for tick in replay(gone)]
    assert out[:12] == [SensorState.OK] * 12  # the last one is within its tolerance for one tick more
    assert out[12:21] == [SensorState.STALE] * 9
    assert out[21:30] == [SensorState.MISSING] * 9
    assert all(state in (SensorState.OK, SensorState.RATE_LOW) for state in out[30:])


def test_a_sensor_that_comes_too_late_is_late() -> None:
    slow = altered(drive(3.0), ["CAM_FRONT"], lambda m: later(m, 600 * MS, 0))
    out = replay(slow)
    assert {states(tick)["CAM_FRONT"] for tick in out[8:]} == {SensorState.LATE}
    assert "0.605 s after its stamps" in out[10].sensors["CAM_FRONT"].detail
    assert out[10].frame.cameras is not None
    assert out[10].frame.cameras[0] is None
    assert out[10].frame.cameras[1] is not None


def test_a_tick_waits_for_what_is_on_its_way_no_longer_than_the_time_out() -> None:
    slow = altered(drive(3.0), ["LIDAR_TOP"], lambda m: later(m, 60 * MS, 0))
    out = replay(slow)
    assert {tick.ready_us - tick.time_us for tick in out[2:-1]} == {65_000}
    assert {tick.sensors["LIDAR_TOP"].age_us for tick in out[1:-1]} == {0}


def test_a_rate_that_falls_is_told_and_the_sensor_still_given() -> None:
    count = itertools.count()
    thin = altered(drive(8.0), ["RADAR_FRONT"], lambda m: None if since_s(m) > 3 and next(count) % 2 else m)
    config = CONFIG.model_copy(update={"tolerance_s": Tolerances(radar=0.25)})
    out = replay(thin, config)
    assert states(out[25])["RADAR_FRONT"] is SensorState.OK
    assert states(out[60])["RADAR_FRONT"] is SensorState.RATE_LOW
    assert out[60].sensors["RADAR_FRONT"].given
    assert "known to send 20" in out[60].sensors["RADAR_FRONT"].detail


def broken(message: LogMessage) -> LogMessage:
    return dataclasses.replace(message, payload=Malformed("PointCloud", "expected 4 fields, got 3"))


def cut(message: LogMessage) -> LogMessage:
    assert isinstance(message.payload, EncodedImage)
    return dataclasses.replace(
        message,
        payload=dataclasses.replace(message.payload, data=message.payload.data[: len(message.payload.data) // 2]),
    )


@pytest.mark.parametrize(
    ("channel", "change", "says"),
    [
        ("LIDAR_TOP", broken, "expected 4 fields, got 3"),
        ("CAM_FRONT", broken, "expected 4 fields, got 3"),
        ("CAM_FRONT", cut, "expected a whole JPEG"),
        (
            "RADAR_FRONT",
            lambda m: dataclasses.replace(m, payload=Other("std_msgs/msg/String", b"")),
            "std_msgs/msg/String",
        ),
        (
            "RADAR_FRONT",
            lambda m: dataclasses.replace(
                m, payload=dataclasses.replace(m.payload, points=m.payload.points[["x", "y"]])
            ),
            "rcs",
        ),
        (
            "LIDAR_TOP",
            lambda m: dataclasses.replace(m, payload=EncodedImage(m.payload.stamp_ns, "", "jpeg", b"")),
            "PointCloud",
        ),
    ],
)
def test_what_cannot_be_read_is_malformed_at_its_tick_alone(
    channel: str, change: Callable[[LogMessage], LogMessage], says: str
) -> None:
    messages = altered(drive(2.0), [channel], lambda m: change(m) if 0.96 < since_s(m) < 1.05 else m)
    out = replay(messages)
    assert states(out[10])[channel] is SensorState.MALFORMED
    assert says in out[10].sensors[channel].detail
    for tick in (*out[:10], *out[11:]):
        assert tick.sensors[channel].given


def test_channels_that_the_log_lacks_are_missing_at_every_tick() -> None:
    channels = Channels(("CAM_LEFT", "CAM_FRONT"), ("LIDAR_TOP",), ("RADAR_BACK",))
    out = list(ticks(MemoryLog(drive(1.0)), MAPPING, channels, CONFIG))
    for tick in out:
        assert tick.sensors["RADAR_BACK"].state is SensorState.MISSING
        assert tick.sensors["CAM_LEFT"].detail == "not in this log"
        assert tick.frame.radar is None
        assert tick.frame.cameras is not None
        assert tick.frame.cameras[0] is None
        assert "CAM_BACK" not in tick.sensors


def test_two_replays_are_equal() -> None:
    for a, b in zip(replay(drive(2.0)), replay(drive(2.0)), strict=True):
        assert (a.index, a.time_us, a.ready_us, a.sensors, a.reset) == (
            b.index,
            b.time_us,
            b.ready_us,
            b.sensors,
            b.reset,
        )
        assert a.frame.lidar is not None
        assert b.frame.lidar is not None
        for x, y in zip(a.frame.lidar, b.frame.lidar, strict=True):
            assert x.reference_T_lidar.tobytes() == y.reference_T_lidar.tobytes()


@pytest.mark.parametrize("cut_s", [0.31, 0.5, 0.777, 1.014, 1.5])
def test_nothing_depends_on_what_comes_later(cut_s: float) -> None:
    whole, head = replay(drive(2.0)), replay([m for m in drive(2.0) if since_s(m) < cut_s])
    ready = [
        tick for tick in whole if tick.ready_us / 1e6 - START_NS / 1e9 < cut_s - 0.026
    ]  # by when a message is sure to come
    assert len(ready) > 1
    for a, b in zip(ready, head, strict=False):
        assert (a.time_us, a.ready_us, a.sensors) == (b.time_us, b.ready_us, b.sensors)
        np.testing.assert_array_equal(a.frame.global_T_reference, b.frame.global_T_reference)


def test_a_second_pass_is_the_first_again_after_one_reset() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a pass that was asked for is nothing to warn of
        out = replay(drive(2.0), loop=2)
    first, second = out[:21], out[21:]
    assert [tick.index for tick in out] == list(range(42))
    assert [tick.reset for tick in out] == [False] * 21 + [True] + [False] * 20
    for a, b in zip(first, second, strict=True):
        assert (a.time_us, a.ready_us, a.sensors) == (b.time_us, b.ready_us, b.sensors)


def test_a_part_of_the_log() -> None:
    whole = replay(drive(4.0))
    part = replay(drive(4.0), start_s=1.035, duration_s=1.0)  # the log begins with the static transforms' time - 25 ms
    assert [tick.time_us for tick in part] == [tick.time_us for tick in whole[part_begin(whole, part) :][: len(part)]]
    assert 9 <= len(part) <= 11
    assert all(status.given for status in part[3].sensors.values())
    with pytest.raises(LogError, match=r"start between 0 and 4\.0"):
        replay(drive(4.0), start_s=99)


def part_begin(whole: list[Tick], part: list[Tick]) -> int:
    return next(i for i, tick in enumerate(whole) if tick.time_us == part[0].time_us)


def test_a_sensor_whose_clock_is_slow_is_put_right_by_its_offset() -> None:
    slow = altered(drive(2.0), ["LIDAR_TOP"], lambda m: later(m, 0, -20 * MS))
    mapping = MAPPING.model_copy(update={"lidars": {"LIDAR_TOP": LidarTopics(points="/lidar_top", offset_s=0.02)}})
    out = list(ticks(MemoryLog(slow), mapping, CHANNELS, CONFIG))
    for tick, right in zip(out, replay(drive(2.0)), strict=True):
        assert tick.time_us == right.time_us
        assert tick.sensors == right.sensors


def test_the_tick_rate_is_that_of_the_slowest_sensor() -> None:
    count = itertools.count()
    messages = altered(drive(3.0), ["CAM_BACK"], lambda m: m if next(count) % 2 == 0 else None)
    config = CONFIG.model_copy(update={"tick_hz": None})
    out = replay(messages, config)
    assert [tick.time_us - out[0].time_us for tick in out] == [200_000 * i for i in range(len(out))]


def test_a_single_instant_is_one_tick() -> None:
    config = CONFIG.model_copy(update={"tick_hz": None})
    (tick,) = replay(drive(0.0), config)
    assert tick.sensors["LIDAR_TOP"].state == SensorState.OK


def test_what_a_fault_delays_past_the_end_adds_no_tick() -> None:
    def delayed(stream: Iterator[LogMessage]) -> Iterator[LogMessage]:
        whole = [later(m, 700 * MS, 0) if m.topic == "/lidar_top" else m for m in stream]
        yield from sorted(whole, key=lambda m: m.log_time_ns)

    out = replay(drive(2.0), alter_messages=delayed)
    assert [tick.time_us for tick in out] == [tick.time_us for tick in replay(drive(2.0))]


def test_time_goes_on_where_a_fault_takes_everything_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a silence of seven seconds in the log itself would be a jump
        warnings.filterwarnings("ignore", message=".*no ego pose")  # that is taken out as well
        out = replay(drive(10.0), alter_messages=lambda stream: (m for m in stream if not 1.0 < since_s(m) < 8.0))
    assert [tick.time_us for tick in out] == [tick.time_us for tick in replay(drive(10.0))]
    assert not any(tick.reset for tick in out)
    assert set(states(out[50]).values()) == {SensorState.MISSING}
    assert (out[50].frame.cameras, out[50].frame.lidar, out[50].frame.radar) == (None, None, None)


def test_everything_taken_out_of_a_drive_leaves_its_ticks() -> None:
    out = replay(drive(2.0), alter_messages=lambda stream: (m for m in stream if m is None))
    assert [tick.time_us for tick in out] == [tick.time_us for tick in replay(drive(2.0))]
    assert {state for tick in out for state in states(tick).values()} == {SensorState.MISSING}


def test_a_clock_that_a_fault_lets_jump_is_reset_once() -> None:
    def jumping(stream: Iterator[LogMessage]) -> Iterator[LogMessage]:
        return (later(m, 3_600_000 * MS, 3_600_000 * MS) if since_s(m) > 1.0 else m for m in stream)

    with pytest.warns(LogWarning, match="forward by 3600"):
        out = replay(drive(2.0), alter_messages=jumping)
    assert sum(tick.reset for tick in out) == 1
    assert len(out) == pytest.approx(21, abs=1)


def transformed(
    messages: list[LogMessage], change: Callable[[FrameTransform], tuple[FrameTransform, ...]]
) -> list[LogMessage]:
    """The drive with other transforms of the ego; a message that is left without any does not come."""
    out = []
    for message in messages:
        if message.topic == "/tf":
            assert isinstance(message.payload, FrameTransforms)
            links = tuple(link for transform in message.payload.transforms for link in change(transform))
            message = dataclasses.replace(message, payload=dataclasses.replace(message.payload, transforms=links))
        out.append(message)
    return [m for m in out if not isinstance(m.payload, FrameTransforms) or m.payload.transforms]


def other(transform: FrameTransform, parent: str, child: str, sign: float = 1.0) -> FrameTransform:
    x, y, z = transform.translation_m
    return dataclasses.replace(transform, parent=parent, child=child, translation_m=(sign * x, sign * y, sign * z))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: (other(t, "base_link", "map", -1.0),),  # the drive does not turn
        lambda t: (t, other(t, "odom", "base_link", 3.0)),
        lambda t: (other(t, "odom", "base_link", 3.0), t),
        lambda t: (other(t, "odom", "map", 0.0), other(t, "odom", "base_link")),
    ],
    ids=["map below the ego", "two parents", "two parents, the other one first", "map and ego below odom"],
)
def test_ego_poses_are_found_in_whatever_tree_they_are_sent(
    change: Callable[[FrameTransform], tuple[FrameTransform, ...]],
) -> None:
    messages = drive(1.0)
    poses = MissingPoses()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*two parents")
        out = replay(transformed(messages, change), poses=poses)
    assert poses == MissingPoses(0, "")
    for ours, plain in zip(out, replay(messages), strict=True):
        np.testing.assert_allclose(ours.frame.global_T_reference, plain.frame.global_T_reference, atol=1e-6)
        assert states(ours) == states(plain)


@pytest.mark.parametrize(
    ("change", "missing", "why"),
    [
        (lambda t: (), 31, r"'map' is in no transform"),
        (lambda t: (other(t, "odom", "base_link"),), 31, r"'map' is in no transform. Frames known: .*odom"),
        (lambda t: (t,) if (t.stamp_ns - START_NS) % (1000 * MS) == 0 else (), None, r"more than the 0.25 s"),
        (lambda t: (t, other(t, "base_link", "map")), 31, r"two ways between 'map' and 'base_link' differ by"),
    ],
    ids=["none", "of another frame", "at 1 Hz", "two that disagree"],
)
def test_ticks_without_an_ego_pose_are_told_once_with_their_reason(
    change: Callable[[FrameTransform], tuple[FrameTransform, ...]], missing: int | None, why: str
) -> None:
    poses, config = MissingPoses(), CONFIG.model_copy(update={"ego_pose_gap_s": 0.25})
    with pytest.warns(LogWarning, match="no ego pose at tick") as told:
        out = replay(transformed(drive(3.0), change), config, poses=poses)
    assert len(told) == 1
    assert re.search(why, poses.why)
    assert str(told[0].message).endswith(f"{poses.why}. {MissingPoses.ADVICE}")
    assert poses.ticks == sum(not tick.ego_pose_known for tick in out) > 0
    assert missing in (None, poses.ticks)
    seldom = dataclasses.replace(poses)
    if missing is None:  # with a gap that is long enough there are none missing
        replay(transformed(drive(3.0), change), CONFIG.model_copy(update={"ego_pose_gap_s": 1.5}), poses=seldom)
        assert seldom == poses


def test_poses_that_cannot_be_are_left_out_told_at_the_first_and_counted() -> None:
    def broken(transform: FrameTransform) -> tuple[FrameTransform, ...]:
        bad = 1000 * MS <= transform.stamp_ns - START_NS < 1200 * MS
        return (dataclasses.replace(transform, translation_m=(np.nan, 0.0, 0.0)) if bad else transform,)

    messages = transformed(drive(2.0), broken)
    number = sum("nan" in repr(m.payload) for m in messages if isinstance(m.payload, FrameTransforms))
    poses = MissingPoses()
    with pytest.warns(LogWarning, match="such poses are left out") as told:
        out = replay(messages, poses=poses)
    assert len(told) == 1
    assert poses.left_out == {"'map' -> 'base_link'": number}
    assert number > 1
    assert all(tick.ego_pose_known for tick in out)


def test_a_field_of_several_numbers_where_one_is_needed_makes_its_sensor_malformed() -> None:
    def arrays(message: LogMessage) -> LogMessage:
        assert isinstance(message.payload, PointCloud)
        kind = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("intensity", "f4", (2,)), ("echoes", "f4", (3,))])
        return dataclasses.replace(message, payload=dataclasses.replace(message.payload, points=np.zeros(4, kind)))

    messages = altered(drive(0.5), {"LIDAR_TOP"}, arrays)
    status = replay(messages)[-1].sensors["LIDAR_TOP"]
    assert (status.state, status.detail) == (
        SensorState.MALFORMED,
        "/lidar_top: expected one number in the field intensity, got 2",
    )
    needed = MAPPING.model_copy(
        update={"lidars": {"LIDAR_TOP": LidarTopics(points="/lidar_top", fields={"intensity": "x"})}}
    )
    assert all(tick.sensors["LIDAR_TOP"].given for tick in ticks(MemoryLog(messages), needed, CHANNELS, CONFIG))


def test_a_mapping_without_a_global_frame_has_no_poses_to_miss() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapping = MAPPING.model_copy(update={"global_frame": None})
        out = list(ticks(MemoryLog(transformed(drive(0.5), lambda _: ())), mapping, CHANNELS, CONFIG))
    assert not any(tick.ego_pose_known for tick in out)


def test_a_tolerance_for_a_channel_that_is_not_there_is_refused() -> None:
    with pytest.raises(LogError, match="CAM_FORNT is none of the model's channels CAM_FRONT, CAM_BACK"):
        replay(drive(1.0), CONFIG.model_copy(update={"tolerance_of_channel_s": {"CAM_FORNT": 0.2}}))


def kept_bytes() -> int:
    """What Python holds; a collection drops the freed tuples that it keeps for use again, up to 2000 of each length."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def test_memory_stays_flat_over_a_long_drive() -> None:
    run = ticks(MemoryLog(drive(2.0)), MAPPING, CHANNELS, CONFIG, loop=20)
    tracemalloc.start()
    sizes = [kept_bytes() for n, _ in enumerate(run) if n % 52 == 51]
    tracemalloc.stop()
    assert max(sizes[4:]) < 1.05 * max(sizes[1:4])


def test_a_mapping_that_names_a_topic_that_is_not_there_lists_those_that_are() -> None:
    mapping = MAPPING.model_copy(update={"cameras": {"CAM_FRONT": CameraTopics(image="/cam", info="/info")}})
    with pytest.raises(LogError, match=r"cameras.CAM_FRONT.image: no topic '/cam' .*/lidar_top") as error:
        list(ticks(MemoryLog(drive(1.0)), mapping, CHANNELS, CONFIG))
    assert "\n" not in str(error.value)


def test_an_empty_log_is_said_to_be_empty() -> None:
    with pytest.raises(LogError, match="no messages"):
        list(ticks(MemoryLog([]), MAPPING, CHANNELS, CONFIG))


def test_pictures_that_no_tick_uses_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 0

    def counted(payload: EncodedImage | RawImage, decode: DecodeSize | None) -> Picture:
        nonlocal decoded
        decoded += 1
        return decode_picture(payload, decode)

    monkeypatch.setattr("sensors.replay.assembly.decode_picture", counted)
    out = replay(drive(2.0), CONFIG.model_copy(update={"tick_hz": 2.0}))
    assert decoded == 2 * len(out)
    decoded = 0
    assert len(replay(drive(2.0), CONFIG.model_copy(update={"tick_hz": 20.0}))) == 41
    assert decoded <= 2 * 21  # used at two ticks, decoded once


def test_buffers_hold_what_a_tick_can_need_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    real = SensorQueue.add

    def watched(self: SensorQueue, reading: Reading, *, next_tick_ns: int) -> None:
        nonlocal most
        real(self, reading, next_tick_ns=next_tick_ns)
        most = max(most, len(self._readings))

    monkeypatch.setattr(SensorQueue, "add", watched)
    replay(drive(20.0), CONFIG.model_copy(update={"tick_hz": 0.5}))
    assert most <= CONFIG.lidar_sweeps + 3  # those, and what comes between a tick and its time-out
