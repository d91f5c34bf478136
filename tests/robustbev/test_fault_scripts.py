"""The faults of a replay's scripts, met by a robot's own loop: whom a fault takes is as if it had given nothing, to the bit.

Replays look after their ticks themselves; here nothing but `frame_at` and `perceive` stands between a fault and the answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from typing import get_args

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbev import Detections
from sensors.corruptions import CORRUPTIONS, SEVERITIES
from sensors.errors import SensorDataWarning
from sensors.frames import Lack, SensorFrame
from sensors.logs.messages import LogMessage, PointCloud
from sensors.replay.faults.frames import FrameFaults
from sensors.replay.faults.kinds import Action
from sensors.replay.faults.messages import alter_messages
from sensors.replay.faults.script import parse_faults
from tests.robustbev.robot import CHANNEL_OF, RIG, Robot
from tests.sensors.replay.drive import MAPPING, MODALITY, START_NS, TOPIC, drive
from tests.tiny_model import tiny_model

MODEL = tiny_model(rig=RIG.model_dump())
NOW_S = 1.95
NOW_NS = START_NS + round(NOW_S * 1e9)


def noise(message: LogMessage) -> LogMessage:
    """A cloud of the drive with forty points all over the grid, others in each message."""
    if not isinstance(message.payload, PointCloud):
        return message
    random = np.random.default_rng(message.payload.stamp_ns)
    dtype = message.payload.points.dtype
    points = np.zeros(40, dtype)
    for name in dtype.names or ():
        points[name] = random.uniform(-10, 10, 40)
    points["z"] = random.uniform(-1, 1, 40)
    return replace(message, payload=replace(message.payload, points=points))


CLEAN_NS = NOW_NS - 500_000_000  # a keyframe before
DRIVE = [noise(message) for message in drive(2.5)]


CLEAN = Robot().take(DRIVE, CLEAN_NS).frame(CLEAN_NS // 1000)


def numbers(low: int, high: int, text: str) -> st.SearchStrategy[str]:
    return st.integers(low, high).map(text.format)


# At 1.95 s, with readings of at most 0.1 s and a tolerance of 0.15 s.
TAKES = {
    "drop": st.just("drop") | numbers(1, 17, "drop ..9s") | st.just("drop 1s.."),
    "flicker": numbers(1, 60, "flicker 1s {}%"),  # it is silent since 1.6 s at the latest
    "delay": numbers(280, 9_900, "delay {}ms"),
    "skew": numbers(500, 10**9, "skew {}ms") | numbers(500, 10**9, "skew -{}ms") | st.just("skew 1e9h"),
    "drift": numbers(200, 10**6, "drift {}ms/s") | numbers(200, 10**6, "drift -{}ms/s"),
    "rate": numbers(1, 9, "rate 0.{}hz"),
    "malformed": st.just("malformed") | st.just("malformed 1.7s.."),
}
LEAVES = {  # a robot cannot know, or need not
    "drop": st.just("drop ..1s") | st.just("drop 2.2s.."),
    "flicker": numbers(96, 99, "flicker 1s {}%"),
    "freeze": st.just("freeze") | st.just("freeze 1s.."),
    "delay": numbers(1, 20, "delay {}ms"),
    "skew": numbers(1, 20, "skew {}ms") | numbers(1, 20, "skew -{}ms"),
    "drift": numbers(1, 10, "drift {}ms/s"),
    "shift": numbers(1, 50, "shift {}cm 2deg"),
    "malformed": st.just("malformed ..1s"),
    "rate": numbers(20, 99, "rate {}hz"),
    "duplicate": st.just("duplicate"),
}


def corruptions(channel: str) -> st.SearchStrategy[str]:
    names = [name for name, operation in CORRUPTIONS.items() if MODALITY[channel] in operation.modalities]
    return st.builds("{}-{}".format, st.sampled_from(names), st.sampled_from(SEVERITIES))


def frame_through(lines: Sequence[str], without: Collection[str] = ()) -> SensorFrame:
    """What the robot makes of the drive behind these faults, of which some sensors' messages do not come."""
    faults = parse_faults(lines)
    altered = alter_messages(DRIVE, faults, MAPPING, START_NS)
    robot = Robot().take((m for m in altered if CHANNEL_OF.get(m.topic) not in without), NOW_NS)
    frame = robot.frame(NOW_NS // 1000)
    return FrameFaults(faults, MAPPING)(frame, lambda n: CLEAN if n == 1 else None, NOW_S)


def channels_of(frame: SensorFrame) -> set[str]:
    readings = (*(frame.cameras or ()), *(frame.lidar or ()), *(frame.radar or ()))
    return {reading.channel for reading in readings if reading is not None}


def perceive(frame: SensorFrame) -> tuple[Detections, str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        seen = MODEL.perceive(frame, min_score=0, on_bad_sensor="absent")
    assert all(warning.category is SensorDataWarning for warning in told)
    return seen, "\n".join(str(warning.message) for warning in told)


def assert_same(seen: Detections, expected: Detections) -> None:
    for name in {f.name for f in fields(Detections)} - {"sensors"}:
        np.testing.assert_array_equal(getattr(seen, name), getattr(expected, name), err_msg=name)


SILENT, _ = perceive(frame_through(["LIDAR_TOP: drop"]))


def test_every_action_of_a_script_is_among_them() -> None:
    drawn = {name.removesuffix("ed") for name in {*TAKES, *LEAVES}} | {"corruption"}
    assert drawn == {action.__name__.lower() for action in get_args(Action)}


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_whom_a_fault_takes_is_as_one_that_gave_nothing_to_the_bit(data: st.DataObject) -> None:
    """Whatever befalls the others at the same time."""
    lines, taken = [], set()
    for channel in sorted(data.draw(st.sets(st.sampled_from(sorted(TOPIC)), min_size=1), label="sensors")):
        takes = data.draw(st.booleans(), label=f"{channel} is taken")
        actions = st.one_of(*TAKES.values()) if takes else st.one_of(*LEAVES.values(), corruptions(channel))
        lines.append(f"{channel}: {data.draw(actions, label=channel)}")
        taken |= {channel} if takes else set()
    frame, left = frame_through(lines), frame_through(lines, taken)
    (seen, told), (expected, _) = perceive(frame), perceive(left)
    assert_same(seen, expected)
    for channel, use in seen.sensors.items():
        if channel not in taken:
            assert use == expected.sensors[channel]
            assert (use.absence is None) == (channel in channels_of(frame))
            continue
        assert use.absence is not None
        assert use.absence.lack in (Lack.READING, Lack.STALE, Lack.MALFORMED)
        assert use.absence.lack is Lack.READING or channel in use.absence.reason
        assert use.absence.lack is Lack.READING or f"{channel} counts as absent: {use.absence.lack}" in told
        assert (use.kept, use.coverage) == (0, 0)


@settings(deadline=None, max_examples=25)
@given(st.one_of(*LEAVES.values()))
def test_what_leaves_no_trace_in_one_frame_is_used(action: str) -> None:
    seen, _ = perceive(frame_through([f"LIDAR_TOP: {action}"]))
    assert seen.sensors["LIDAR_TOP"].absence is None
    assert not np.array_equal(seen.score, SILENT.score)  # or the test above would compare nothing with nothing
