"""What one sensor gives that cannot be costs this sensor its place and nothing else, where `on_bad_sensor="absent"` says so."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbev import Detections, PerceptionModel
from robustbev.inference import without
from sensors.calibration import CalibrationError
from sensors.errors import SensorDataError, SensorDataWarning
from sensors.frames import Absence, Lack, SensorFrame
from sensors.points import SensorUse
from tests.robustbev.test_bad_input import FRAME, OF_FRAME, RIG, changed
from tests.small_replay import CAMERA_CHANNELS, RADAR_CHANNELS
from tests.tiny_model import tiny_model

MODEL = tiny_model(rig=RIG.model_dump())
PART = {
    **{channel: ("cameras", i) for i, channel in enumerate(CAMERA_CHANNELS)},
    "LIDAR_TOP": ("lidar", 0),
    **{channel: ("radar", i) for i, channel in enumerate(RADAR_CHANNELS)},
}
OF_READING = re.compile(r"(cameras|lidar|radar)\.\d(?!\.channel)(.*)")
FAULTS: dict[str, list[tuple[str, Callable[[Any], Any]]]] = {"cameras": [], "lidar": [], "radar": []}
for _path, _change, _ in OF_FRAME:
    if _of := OF_READING.fullmatch(_path):
        FAULTS[_of[1]].append((_of[2], _change))
TWICE = ("", lambda reading: reading)


def spoiled(frame: SensorFrame, channel: str, rest: str, change: Callable[[Any], Any]) -> SensorFrame:
    """The frame with a fault in this sensor's reading; `TWICE`: it comes once more."""
    part, i = PART[channel]
    if change is TWICE[1]:
        twice: SensorFrame = changed(frame, part, lambda readings: (*readings, readings[i]))
        return twice
    bad: SensorFrame = changed(frame, f"{part}.{i}{rest}", change)
    return bad


def perceive(frame: SensorFrame, model: PerceptionModel = MODEL) -> tuple[Detections, list[str]]:
    """What is seen, and the warnings."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        seen = model.perceive(frame, min_score=0, on_bad_sensor="absent")
    assert all(warning.category is SensorDataWarning for warning in told)
    return seen, [str(warning.message) for warning in told]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_bad_sensor_is_as_one_that_gave_nothing_to_the_bit(data: st.DataObject) -> None:
    frame = left = FRAME
    bad = data.draw(st.sets(st.sampled_from(sorted(PART)), min_size=1))
    for channel in bad:
        rest, change = data.draw(st.sampled_from([*FAULTS[PART[channel][0]], TWICE]), label=channel)
        frame, left = spoiled(frame, channel, rest, change), without(left, channel)
    (seen, told), (expected, silent) = perceive(frame), perceive(left)
    for name in {f.name for f in fields(Detections)} - {"sensors"}:
        np.testing.assert_array_equal(getattr(seen, name), getattr(expected, name), err_msg=name)
    assert not silent
    assert len(told) == len(bad)
    for channel, use in seen.sensors.items():
        if channel not in bad:
            assert use == expected.sensors[channel]
            continue
        assert use.absence is not None
        assert use.absence.lack in (Lack.MALFORMED, Lack.UNCALIBRATED)
        assert channel in use.absence.reason
        assert replace(use, absence=None) == replace(expected.sensors[channel], absence=None)
        assert f"{channel} counts as absent: {use.absence.lack} in this frame" in " ".join(told)


@pytest.mark.parametrize(
    ("channel", "rest", "lack", "reason"),
    [
        ("CAM_1", ".image", Lack.MALFORMED, "expected uint8"),
        ("CAM_1", ".intrinsics", Lack.UNCALIBRATED, "of floats, got NoneType"),
        ("LIDAR_TOP", ".reference_T_lidar", Lack.UNCALIBRATED, "of floats, got NoneType"),
        ("RADAR_3", ".time_us", Lack.MALFORMED, "expected whole microseconds"),
    ],
)
def test_it_is_named_with_the_reason_and_by_default_raised(channel: str, rest: str, lack: Lack, reason: str) -> None:
    frame = spoiled(FRAME, channel, rest, lambda _: None)
    absence = perceive(frame)[0].sensors[channel].absence
    assert absence is not None
    assert absence.lack is lack
    assert reason in absence.reason
    with pytest.raises(SensorDataError, match=reason) as caught:
        MODEL.perceive(frame)
    assert caught.value.channel == channel


@pytest.mark.parametrize("lack", [Lack.STALE, Lack.UNPLACED, Lack.MALFORMED, Lack.UNCALIBRATED])
def test_whom_the_frame_names_as_absent_is_absent_with_its_reason(lack: Lack) -> None:
    """As `sensors.readings.frame_at` names it. What cannot be is raised, as if the frame held it; what is late never is."""
    absent = {
        "CAM_1": Absence(lack, "CAM_1: of old"),
        "LIDAR_TOP": Absence(Lack.STALE, "there is a sweep all the same"),
    }
    left = without(FRAME, "CAM_1")
    frame = replace(left, absent=absent)
    (seen, told), (expected, _) = perceive(frame), perceive(left)
    np.testing.assert_array_equal(seen.score, expected.score)
    assert seen.sensors == {**expected.sensors, "CAM_1": SensorUse(absent["CAM_1"])}
    assert [line.partition(" (")[0] for line in told] == [f"CAM_1 counts as absent: {lack} in this frame"]
    if lack in (Lack.STALE, Lack.UNPLACED):
        assert MODEL.perceive(frame).sensors["CAM_1"].absence == absent["CAM_1"]
        return
    with pytest.raises(SensorDataError, match="CAM_1: of old") as caught:
        MODEL.perceive(frame)
    assert caught.value.channel == "CAM_1"
    assert isinstance(caught.value, CalibrationError) == (lack is Lack.UNCALIBRATED)


def test_more_than_the_rig_says_is_of_one_sensor() -> None:
    absence = perceive(spoiled(FRAME, "LIDAR_TOP", *TWICE))[0].sensors["LIDAR_TOP"].absence
    assert absence is not None
    assert "expected at most 1 sweep" in absence.reason


@pytest.mark.parametrize(
    ("path", "change", "message"), [fault for fault in OF_FRAME if not OF_READING.fullmatch(fault[0])]
)
def test_what_is_wrong_with_the_frame_is_raised_in_any_case(
    path: str, change: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        perceive(changed(FRAME, path, change))


def test_what_is_wrong_with_the_call_is_raised_in_any_case() -> None:
    """A LiDAR by a camera's name, too, is no sensor of the rig; the camera itself must not go in its place."""
    for channel in ("ROOF", "CAM_1"):
        malformed = changed(FRAME, "lidar.0.points", lambda _: None)
        stranger = changed(malformed, "lidar.0.channel", {"LIDAR_TOP": channel}.get)
        with pytest.raises(ValueError, match=f"LiDAR {channel} is not of this model's rig"):
            perceive(stranger)
    with pytest.raises(ValueError, match="training mode"):
        perceive(FRAME, tiny_model(rig=RIG.model_dump()).train())
    with pytest.raises(ValueError, match="on_bad_sensor: expected 'raise' or 'absent', got 'ignore'"):
        MODEL.perceive(FRAME, on_bad_sensor="ignore")  # type: ignore[arg-type]


def test_with_every_sensor_bad_nothing_is_perceived() -> None:
    frame = FRAME
    for channel in PART:
        frame = spoiled(frame, channel, ".time_us", float)
    seen, told = perceive(frame)
    assert not seen.perceived
    assert len(told) == len(PART)
