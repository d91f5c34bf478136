"""Missing is not empty: whatever way a sensor delivers nothing that can be used, it counts as absent and is told by name."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from robustbev import Detections, PerceptionModel, RigConfig, perceive_frame, preparation
from robustbev.inference import on_rig, without
from robustbev.results.ticks import tick_result
from sensors.calibration import transforms
from sensors.errors import SensorDataWarning
from sensors.frames import Lack, LidarSweep, RadarSweep, SensorFrame
from sensors.prepare import PreparedFrame, prepare
from sensors.replay.tick import GIVEN, SensorState, SensorStatus
from tests.small_replay import CAMERA_CHANNELS, RADAR_CHANNELS, noise_frame, noise_tick
from tests.tiny_model import tiny_config, tiny_model

RIG = RigConfig(
    camera_channels=CAMERA_CHANNELS,
    lidar_channels=("LIDAR_TOP",),
    radar_channels=RADAR_CHANNELS,
    lidar_sweeps=3,
    radar_sweeps=3,
)
FRAME = noise_frame(3)
WANTED = preparation(tiny_config(rig=RIG.model_dump()))
POSE = transforms([1.2, -0.3, 1.8, np.cos(0.6), 0.0, 0.0, np.sin(0.6)])
Cloud = NDArray[np.float32]


@pytest.fixture(scope="module")
def model() -> PerceptionModel:
    return tiny_model(rig=RIG.model_dump()).eval()


_COORDINATE = st.floats(-11, 11, width=32)
_NO_NUMBER = st.sampled_from([np.nan, np.inf, -np.inf])


@st.composite
def unusable_points(draw: st.DrawFn, columns: int, near_m: float) -> Cloud:
    """[P, columns] of which each is, in its own way, none that the tiny model's grid of 24.8 m could hold."""
    ways = ["no number", "far", "millimetres", "high", "vehicle", "zero"]
    rows = []
    for way in draw(st.lists(st.sampled_from(ways), max_size=12)):
        row = [draw(_COORDINATE) for _ in range(columns)]
        match way:
            case "no number":
                row[draw(st.integers(0, 3))] = draw(_NO_NUMBER)
            case "far":
                row[draw(st.integers(0, 1))] = draw(st.sampled_from([-1, 1])) * draw(st.floats(40, 1e9, width=32))
            case "millimetres":
                row[:3] = [1000 * draw(st.floats(1, 80)) * draw(st.sampled_from([-1, 1])) for _ in range(3)]
            case "high":
                row[2] = draw(st.sampled_from([-1, 1])) * draw(st.floats(30, 1e5, width=32))
            case "vehicle":
                row[:2] = [draw(st.floats(-near_m, near_m, width=32)) for _ in range(2)]
            case _:
                row = [0.0] * columns
        rows.append(row)
    return np.array(rows, np.float32).reshape(-1, columns)


@st.composite
def unusable_lidar(draw: st.DrawFn) -> tuple[LidarSweep, ...]:
    clouds = draw(st.lists(unusable_points(5, near_m=0.5), max_size=3))
    return tuple(LidarSweep("LIDAR_TOP", c, POSE, FRAME.time_us - 50_000 * i) for i, c in enumerate(clouds))


def assert_prepared_alike(frame: SensorFrame, without: SensorFrame) -> PreparedFrame:
    """What the model is given of two frames is the same, bit for bit."""
    got, expected = prepare(frame, WANTED), prepare(without, WANTED)
    assert got.items.keys() == expected.items.keys()
    for name, item in got.items.items():
        other = expected.items[name]
        assert (item is None) == (other is None), name
        for f in fields(item) if item is not None else ():
            np.testing.assert_array_equal(getattr(item, f.name), getattr(other, f.name), err_msg=f"{name}.{f.name}")
    return got


@settings(deadline=None, max_examples=50)
@given(lidar=unusable_lidar())
def test_a_lidar_without_a_usable_point_is_no_lidar(lidar: tuple[LidarSweep, ...]) -> None:
    prepared = assert_prepared_alike(replace(FRAME, lidar=lidar), replace(FRAME, lidar=None))
    assert list(prepared.absent) == ["LIDAR_TOP"]
    assert prepared.dropped.total == sum(len(sweep.points) for sweep in lidar)
    assert prepared.absent["LIDAR_TOP"].lack is (
        Lack.USABLE if prepared.dropped.total else Lack.RETURN if lidar else Lack.READING
    )


@settings(deadline=None, max_examples=50)
@given(clouds=st.lists(unusable_points(6, near_m=0.0625), min_size=1, max_size=3))
def test_a_radar_without_a_usable_point_is_no_radar(clouds: list[Cloud]) -> None:
    assert FRAME.radar is not None
    others = tuple(sweep for sweep in FRAME.radar if sweep.channel != "RADAR_2")
    dead = tuple(RadarSweep("RADAR_2", cloud, POSE, FRAME.time_us - i) for i, cloud in enumerate(clouds))
    prepared = assert_prepared_alike(replace(FRAME, radar=(*dead, *others)), replace(FRAME, radar=others))
    assert list(prepared.absent) == ["RADAR_2"]
    alone = prepare(replace(FRAME, radar=dead), WANTED)
    assert alone.items["radar"] is None
    assert list(alone.absent) == list(RADAR_CHANNELS)


@pytest.mark.parametrize("cameras", [(), (None,) * 6])
def test_no_picture_at_all_is_no_camera(cameras: tuple[None, ...]) -> None:
    prepared = assert_prepared_alike(replace(FRAME, cameras=cameras), replace(FRAME, cameras=None))
    assert list(prepared.absent) == list(CAMERA_CHANNELS)


def test_zeros_are_no_points_whatever_the_least_range() -> None:
    zeros = (LidarSweep("LIDAR_TOP", np.zeros((7, 5), np.float32), POSE, FRAME.time_us),)
    prepared = prepare(replace(FRAME, lidar=zeros), replace(WANTED, lidar_min_range_m=0.0))
    assert prepared.items["lidar"] is None
    assert prepared.dropped.lidar_near == 7


def test_one_usable_point_in_any_sweep_is_a_lidar() -> None:
    empty = LidarSweep("LIDAR_TOP", np.zeros((0, 5), np.float32), POSE, FRAME.time_us)
    older = replace(empty, points=np.array([[5, 1, 0, 20, 3]], np.float32), time_us=FRAME.time_us - 50_000)
    prepared = prepare(replace(FRAME, lidar=(empty, older)), WANTED)
    assert prepared.items["lidar"] is not None
    assert len(prepared.items["lidar"].points) == 1
    assert not prepared.absent


def reasons(seen: Detections) -> dict[str, str]:
    """Of the sensors that are absent."""
    return {channel: use.absence.reason for channel, use in seen.sensors.items() if use.absence is not None}


CLOUDS = {
    "no return in 1 sweep: a dead sensor looks like an empty world": np.zeros((0, 5), np.float32),
    "none of 9 points in 1 sweep is usable: 9 not finite": np.full((9, 5), np.nan, np.float32),
    "none of 3 points in 1 sweep is usable: 3 on the vehicle itself": np.zeros((3, 5), np.float32),
    "none of 2 points in 1 sweep is usable: 2 outside the grid or its heights": np.full((2, 5), 9000, np.float32),
}


@pytest.mark.parametrize(("reason", "points"), CLOUDS.items())
def test_it_is_told_by_name_with_counts_and_is_no_perception(
    model: PerceptionModel, reason: str, points: Cloud
) -> None:
    sweeps = (LidarSweep("LIDAR_TOP", points, np.eye(4), FRAME.time_us),)
    with pytest.warns(SensorDataWarning, match="LIDAR_TOP counts as absent"):
        seen = model.perceive(replace(FRAME, lidar=sweeps), min_score=0)
    assert reasons(seen) == {"LIDAR_TOP": reason}
    expected = model.perceive(replace(FRAME, lidar=None), min_score=0)
    for name in {f.name for f in fields(Detections)} - {"sensors"}:
        np.testing.assert_array_equal(getattr(seen, name), getattr(expected, name), err_msg=name)
    with pytest.warns(SensorDataWarning):
        alone = model.perceive(replace(FRAME, cameras=(), radar=(), lidar=sweeps))
    assert not alone.perceived
    assert not alone.coverage.any()
    assert set(reasons(alone)) == {*CAMERA_CHANNELS, "LIDAR_TOP", *RADAR_CHANNELS}


def test_a_sensor_that_is_not_given_is_named_without_a_warning(model: PerceptionModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = model.perceive(replace(FRAME, lidar=(), radar=None))
    assert set(reasons(seen)) == {"LIDAR_TOP", *RADAR_CHANNELS}
    assert set(reasons(seen).values()) == {"the frame holds nothing of it"}


def test_a_stream_of_them_is_warned_of_once(model: PerceptionModel) -> None:
    """Python's own way with warnings: once a place, for a text that does not change from frame to frame."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for count in (3, 4, 5):
            points = np.full((count, 5), np.nan, np.float32)
            model.perceive(replace(FRAME, lidar=(LidarSweep("LIDAR_TOP", points, np.eye(4), FRAME.time_us),)))
    assert len(told) == 1
    assert "LIDAR_TOP counts as absent: no usable point in this frame" in str(told[0].message)


@pytest.mark.parametrize(("reason", "points"), CLOUDS.items())
def test_replay_and_node_tell_it_as_the_sensors_state(model: PerceptionModel, reason: str, points: Cloud) -> None:
    tick = noise_tick(3)
    sweep = LidarSweep("LIDAR_TOP", points, np.eye(4), tick.frame.time_us)
    tick = replace(tick, frame=replace(tick.frame, lidar=(sweep,)))
    seen = perceive_frame(model, tick.frame, preparation(model.config))
    told = tick_result(tick, seen, model.config).tick.sensors
    state = SensorState.MISSING if not len(points) else SensorState.MALFORMED
    assert (told["LIDAR_TOP"].state, told["LIDAR_TOP"].detail) == (state, reason)
    assert all(status.state is SensorState.OK for channel, status in told.items() if channel != "LIDAR_TOP")
    assert seen.sensors is not None
    absence = seen.sensors["LIDAR_TOP"].absence
    assert absence is not None
    assert absence.lack is (Lack.USABLE if len(points) else Lack.RETURN)
    assert tick_result(tick, seen, model.config).sensors == seen.sensors  # one type for all, and here the same


@pytest.mark.parametrize("state", [state for state in SensorState if state not in GIVEN])
def test_a_tick_says_why_a_sensor_was_not_given_as_detections_would(model: PerceptionModel, state: SensorState) -> None:
    tick = noise_tick(3)
    status = SensorStatus("CAM_1", "camera", state, None, "fell off")
    tick = replace(tick, frame=without(tick.frame, "CAM_1"), sensors={**tick.sensors, "CAM_1": status})
    seen = perceive_frame(model, on_rig(tick.frame, RIG), preparation(model.config))
    used = tick_result(tick, seen, model.config).sensors
    absence = used["CAM_1"].absence
    assert absence is not None
    assert absence.reason == "fell off"
    expected = {SensorState.LATE: Lack.STALE, SensorState.MISSING: Lack.READING}.get(state, absence.lack)
    assert absence.lack is expected
    assert absence.lack.value == state.value or state in (SensorState.LATE, SensorState.MISSING)
    assert {c: use for c, use in used.items() if c != "CAM_1"} == {
        c: use for c, use in (seen.sensors or {}).items() if c != "CAM_1"
    }
