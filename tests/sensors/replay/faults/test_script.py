"""Faults as text: read as they are meant, refused with one line that says what was expected."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.corruptions import Corruption
from sensors.replay.faults.kinds import (
    Delay,
    Drift,
    Drop,
    Duplicate,
    Fault,
    FaultError,
    FaultScript,
    Flicker,
    Freeze,
    Malform,
    Rate,
    Shift,
    Skew,
)
from sensors.replay.faults.script import parse_fault, parse_faults, read_fault_scripts

S, MS = 10**9, 10**6


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("lidar_top: drop 5s..9s", Fault("lidar_top", Drop(), 5 * S, 9 * S)),
        ("CAM_FRONT: drop ..300ms", Fault("CAM_FRONT", Drop(), None, 300 * MS)),
        ("/lidar_top:freeze 1.5s..", Fault("/lidar_top", Freeze(), 1500 * MS)),
        ("all: duplicate", Fault("all", Duplicate())),
        ("radar: malformed 1min..2min", Fault("radar", Malform(), 60 * S, 120 * S)),
        ("camera: flicker 0.5s", Fault("camera", Flicker(500 * MS))),
        ("camera: flicker 0.5s 70% 2s..4s", Fault("camera", Flicker(500 * MS, 70.0), 2 * S, 4 * S)),
        ("lidar: delay 300ms", Fault("lidar", Delay(300 * MS))),
        ("lidar: skew -1s", Fault("lidar", Skew(-S))),
        ("lidar: drift 1ms/s", Fault("lidar", Drift(MS))),
        ("lidar: shift 0.2m 2deg", Fault("lidar", Shift(0.2, 2.0))),
        ("lidar: shift 3deg 5cm", Fault("lidar", Shift(0.05, 3.0))),
        ("lidar: rate 2Hz 0s..1h", Fault("lidar", Rate(2.0), 0, 3600 * S)),
        ("camera: Fog-3 2s..", Fault("camera", Corruption("fog", 3), 2 * S)),
    ],
)
def test_a_line_says_target_action_and_window(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault
    assert str(parse_fault(text)) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected TARGET: ACTION"),
        ("lidar_top drop", "expected TARGET: ACTION"),
        ("lidar_top:", "expected TARGET: ACTION"),
        ("lidar top: drop", "expected TARGET: ACTION"),
        ("lidar: dorp 1s..2s", "unknown action 'dorp'; did you mean 'drop'?"),
        ("lidar: fgo-3", "did you mean 'fog'?"),
        ("lidar: explode", "Actions are drop, flicker"),
        ("lidar: fog", "expected fog with a severity from 1 to 5, as fog-3, got 'fog'"),
        ("lidar: fog-6", "expected fog with a severity from 1 to 5, as fog-3, got 'fog-6'"),
        ("lidar: fog-3 hard", "fog-3 takes no arguments, got 'hard'"),
        ("lidar: drop 5..9", "'5': expected a time after the log's beginning with a unit"),
        ("lidar: drop 5s..9parsec", "'9parsec'"),
        ("lidar: drop 9s..5s", "ends 5s, not after its start 9s"),
        ("lidar: drop 5s..5s", "not after its start 5s"),
        ("lidar: drop ..0s", "not after its start 0s"),
        ("lidar: drop -1s..5s", "start -1s: expected a time after the log's beginning"),
        ("lidar: drop ..", "neither start nor end"),
        ("lidar: drop 5s", "expected drop, got 'drop 5s'"),
        ("lidar: delay", "expected delay TIME, as delay 300ms"),
        ("lidar: delay -3s", "'-3s': expected a delay above 0"),
        ("lidar: delay 1min", "expected at most 10s"),
        ("lidar: flicker 0s", "expected a period above 0"),
        ("lidar: flicker 1s 100%", "on-share 100%: expected more than 0% and less than 100%"),
        ("lidar: flicker 1s half", "on-share half"),
        ("lidar: drift 1ms", "expected drift TIME/s"),
        ("lidar: shift 1deg 2deg", "expected shift LENGTH ANGLE"),
        ("lidar: shift 0m", "expected shift LENGTH ANGLE"),
        ("lidar: rate 0hz", "expected a frequency above 0"),
        ("lidar: rate 1e999hz", "expected a frequency above 0"),
        ("lidar: skew 1e999s", "expected a time with a unit"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused_with_what_was_expected(text: str, told: str) -> None:
    with pytest.raises(FaultError) as error:
        parse_fault(text)
    assert told in str(error.value)
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


@given(
    st.text(max_size=40)
    | st.tuples(st.sampled_from(["drop", "flicker", "shift", "delay"]), st.text(max_size=20)).map(": ".join)
)
def test_no_text_ends_in_anything_but_a_fault_or_a_fault_error(text: str) -> None:
    for line in (text, f"all: {text}"):
        with contextlib.suppress(FaultError):
            parse_fault(line)


def test_a_file_holds_several_scripts_written_in_two_ways(tmp_path: Path) -> None:
    path = tmp_path / "night.yaml"
    path.write_text('scripts:\n  clean: []\n  blind:\n    - "lidar_top: drop 5s..9s"\n    - cam_front: flicker 0.5s\n')
    lines = ["lidar_top: drop 5s..9s", "cam_front: flicker 0.5s"]
    assert read_fault_scripts(path) == (FaultScript("clean", ()), FaultScript("blind", parse_faults(lines)))
    path.write_text("- lidar_top: drop\n")
    assert read_fault_scripts(path) == (FaultScript("night", parse_faults(["lidar_top: drop"])),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected a list of faults"),
        ("scripts: {}", "expected a list of faults"),
        ("script: []", "expected a list of faults, or 'scripts:'"),
        ("scripts: {night: drop}", "script night: expected a list of faults"),
        ("scripts: {night: [3]}", "script night, number 1: fault 3: expected TARGET"),
        ("scripts: {night: ['all: drop', 'all: dorp']}", "script night, number 2: fault 'all: dorp': unknown action"),
        ("[{target: all, action: drop}]", "expected TARGET"),
        ("[{all: 3}]", "expected TARGET"),
        ("[a: b: c]", "no valid YAML"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_its_name(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "night.yaml"
    path.write_text(text)
    with pytest.raises(FaultError) as error:
        read_fault_scripts(path)
    assert told in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(FaultError, match="No such file"):
        read_fault_scripts(tmp_path / "none.yaml")
