"""A sweep whose points have times of their own is brought to its stamp by the ego motion; what says no time costs the sensor."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sensors.logs.mapping.mapping import LidarTopics
from sensors.logs.messages import FrameTransforms, LogMessage, PointCloud
from sensors.replay.tick import SensorState, Tick
from sensors.replay.ticks import ticks
from tests.sensors.replay.drive import CHANNELS, CONFIG, MAPPING, SPEED_MPS, TOPIC, MemoryLog, drive

WALL_M = 20.0  # ahead of the LiDAR at the sweep's stamp
COUNT = 11


def wall(offsets_s: Any, times: Any) -> Callable[[LogMessage], LogMessage]:
    """LiDAR messages that see points of a standing wall, each from where the LiDAR was; `times` as their field t."""
    points = np.zeros(COUNT, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "<f4"), ("t", times.dtype)])
    points["x"], points["y"], points["t"] = WALL_M - SPEED_MPS * offsets_s, np.arange(COUNT), times

    def seen(message: LogMessage) -> LogMessage:
        if message.topic != TOPIC["LIDAR_TOP"]:
            return message
        assert isinstance(message.payload, PointCloud)
        return dataclasses.replace(message, payload=dataclasses.replace(message.payload, points=points))

    return seen


def replayed(messages: list[LogMessage], **topics: Any) -> list[Tick]:
    lidar = LidarTopics(points=TOPIC["LIDAR_TOP"], **topics)
    return list(
        ticks(MemoryLog(messages), MAPPING.model_copy(update={"lidars": {"LIDAR_TOP": lidar}}), CHANNELS, CONFIG)
    )


AFTER_S, BEFORE_S = np.linspace(0, 0.1, COUNT), np.linspace(-0.1, 0, COUNT)


@pytest.mark.parametrize(
    ("offsets_s", "times", "scale_s"),
    [
        (AFTER_S, (AFTER_S * 1e9).astype(np.uint32), 1e-9),
        (BEFORE_S, BEFORE_S.astype(np.float32), 1.0),
        (BEFORE_S, (BEFORE_S * 1e6).astype(np.int32), 1e-6),
    ],
    ids=["Ouster's ns after", "Velodyne's s before", "us before"],
)
def test_a_standing_wall_is_flat_in_every_sweep(offsets_s: Any, times: Any, scale_s: float) -> None:
    messages = [wall(offsets_s, times)(message) for message in drive(1.0)]
    told = replayed(messages, time_field="t", time_scale_s=scale_s)
    assert len(told) == 11
    for tick in told[2:]:  # in the beginning there is no pose before the first sweep
        assert tick.sensors["LIDAR_TOP"].state is SensorState.OK
        assert tick.frame.lidar is not None
        assert len(tick.frame.lidar) == min(CONFIG.lidar_sweeps, tick.index + 1)
        for sweep in tick.frame.lidar:
            np.testing.assert_allclose(sweep.points[:, 0], WALL_M, atol=1e-3)
            np.testing.assert_array_equal(sweep.points[:, 1], np.arange(COUNT))
    bent = replayed(messages)[5].frame.lidar
    assert bent is not None
    assert np.ptp(bent[0].points[:, 0]) > 0.7  # without: 8 m/s for 0.1 s


def test_without_the_motion_within_a_sweep_its_points_stay_and_it_is_flagged() -> None:
    messages = [wall(BEFORE_S * 9, (BEFORE_S * 9).astype(np.float32))(message) for message in drive(0.3)]
    first = replayed(messages, time_field="t")[0]
    assert first.sensors["LIDAR_TOP"].state is SensorState.FLAGGED
    assert "no ego pose at the times of its points" in first.sensors["LIDAR_TOP"].detail
    still = [m for m in messages if not isinstance(m.payload, FrameTransforms) or m.payload.static]
    for tick in replayed(still, time_field="t"):  # of a log without any pose nothing is expected
        assert tick.sensors["LIDAR_TOP"].state is SensorState.OK
        assert tick.frame.lidar is not None
        assert len(tick.frame.lidar) == 1


@pytest.mark.parametrize(
    ("times", "topics", "words"),
    [
        (BEFORE_S, {"time_field": "time"}, "expected the field time .*, got x, y, z, intensity, t: correct `time_field`"),
        (BEFORE_S * 1e9, {"time_field": "t"}, "within 1 s of .* in the field t, got -1e.08 to 0 s: correct `time_scale_s`"),
        (BEFORE_S + 1.6e9, {"time_field": "t"}, "times of a clock are no offsets"),
        (BEFORE_S * np.nan, {"time_field": "t"}, "got nan to nan s"),
    ],
)  # fmt: skip
def test_what_says_no_time_makes_the_sweep_malformed(times: Any, topics: dict[str, Any], words: str) -> None:
    messages = [wall(BEFORE_S, times)(message) for message in drive(0.3)]
    status = replayed(messages, **topics)[-1].sensors["LIDAR_TOP"]
    assert status.state is SensorState.MALFORMED
    assert re.search(f"^/lidar_top: .*{words}", status.detail), status.detail
