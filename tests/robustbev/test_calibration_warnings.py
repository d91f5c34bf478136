"""What is odd in a sensor's calibration is told at the first frame of `perceive` in which it is used, once and by name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from robustbev import PerceptionModel, RigConfig
from sensors.calibration import inverse_rigid
from sensors.checks.calibration import check_frame_calibration
from sensors.errors import SensorDataWarning
from sensors.frames import CameraImage, LidarSweep, RadarSweep, SensorFrame
from sensors.motion.poses import LINK_T_OPTICAL, pose
from sensors.simulation.sensing.rig import CAMERAS, LIDAR, RADARS, SENSORS
from tests.robustbev.robot import RIG as ROBOTS_RIG
from tests.robustbev.robot import Robot
from tests.sensors.replay.drive import START_NS, drive
from tests.sensors.replay.test_calibration_checks import FAULTS as REPLAYS_FAULTS
from tests.tiny_model import tiny_model

RIG = RigConfig(
    camera_channels=tuple(mount.channel for mount in CAMERAS),
    lidar_channels=(LIDAR.channel,),
    radar_channels=tuple(mount.channel for mount in RADARS),
)
WIDTH_PX, HEIGHT_PX = 160, 90
TIME_US = 1_000_000
MOUNTED = {m.channel: pose(m.translation_m, wxyz=m.rotation_wxyz) for m in SENSORS}
K_OF = {mount.channel: mount.intrinsic(WIDTH_PX, HEIGHT_PX) for mount in CAMERAS}


def frame(ego_T_sensor: dict[str, Any], intrinsics: dict[str, Any], time_us: int = TIME_US) -> SensorFrame:
    """nuScenes' rig, with these extrinsics and intrinsics instead of its own."""
    at, k = MOUNTED | ego_T_sensor, K_OF | intrinsics
    image = np.full((HEIGHT_PX, WIDTH_PX, 3), 90, np.uint8)
    points = np.array([[5.0, 5, 0, 9, 1], [-5, 5, 0, 9, 1]], np.float32)
    echo = np.array([[6.0, 0.5, 0, 3, 1, 0]], np.float32)
    return SensorFrame(
        "now",
        TIME_US,
        tuple(CameraImage(m.channel, image, k[m.channel], at[m.channel], time_us) for m in CAMERAS),
        (LidarSweep("LIDAR_TOP", points, at["LIDAR_TOP"], time_us),),
        tuple(RadarSweep(m.channel, echo, at[m.channel], time_us) for m in RADARS),
        np.eye(4),
    )


def told(model: PerceptionModel, shown: SensorFrame) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.perceive(shown, on_bad_sensor="absent")
    assert all(one.category is SensorDataWarning and one.filename == __file__ for one in caught)
    return [text for one in caught if "counts as absent" not in (text := str(one.message))]


def moved(channel: str, change: Callable[[Any], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {channel: change(MOUNTED[channel].copy())}, {}


def millimetres(matrix: Any) -> Any:
    matrix[:3, 3] *= 1000
    return matrix


def scaled(channel: str, factor: float) -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {channel: np.diag([factor, factor, 1]) @ K_OF[channel]}


def swapped(a: str, b: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return {a: MOUNTED[b], b: MOUNTED[a]}, {}


def without_optical(matrix: Any) -> Any:
    return matrix @ inverse_rigid(LINK_T_OPTICAL)


FAULTS = {  # name -> what is wrong, channel -> what is told of it
    "inverse of the LiDAR": (moved("LIDAR_TOP", inverse_rigid), {"LIDAR_TOP": "m below .*is it sensor_T_ego"}),
    "inverse of a camera": (moved("CAM_FRONT", inverse_rigid), {"CAM_FRONT": "below .*is it sensor_T_ego"}),
    "inverse of a camera aside": (moved("CAM_FRONT_LEFT", inverse_rigid), {"CAM_FRONT_LEFT": "is it sensor_T_ego"}),
    "axes that are not optical": (moved("CAM_BACK", without_optical), {"CAM_BACK": "LINK_T_OPTICAL"}),
    "LiDAR in millimetres": (moved("LIDAR_TOP", millimetres), {"LIDAR_TOP": "within 20 m .*millimetres"}),
    "camera in millimetres": (moved("CAM_FRONT", millimetres), {"CAM_FRONT": "millimetres"}),
    "radar in millimetres": (moved("RADAR_FRONT", millimetres), {"RADAR_FRONT": "millimetres"}),
    "left and right swapped": (
        swapped("CAM_FRONT_LEFT", "CAM_FRONT_RIGHT"),
        {
            "CAM_FRONT_LEFT": "to the right, against its name .cameras swapped",
            "CAM_FRONT_RIGHT": "to the left, against",
        },
    ),
    "front and back swapped": (swapped("CAM_FRONT", "CAM_BACK"), {"CAM_FRONT": "backwards", "CAM_BACK": "forwards"}),
    "two in one place": (
        ({"CAM_BACK": MOUNTED["CAM_BACK_LEFT"]}, {}),
        {"CAM_BACK": "same pose as CAM_BACK_LEFT", "CAM_BACK_LEFT": "same pose as CAM_BACK"},
    ),
    "K of nuScenes' full size": (scaled("CAM_FRONT", 10), {"CAM_FRONT": "expected a principal point near the picture"}),
    "K of twice the size": (scaled("CAM_FRONT", 2), {"CAM_FRONT": r"of a picture of 32\d x 19\d px, not of 160 x 90"}),
    "K of half the size": (scaled("CAM_FRONT", 0.5), {"CAM_FRONT": r"of a picture of \d+ x \d+ px, not of 160 x 90"}),
    "K of 4 to 5": (scaled("CAM_FRONT", 0.8), {"CAM_FRONT": "another resolution"}),
    "K of 5 to 4": (scaled("CAM_FRONT", 1.25), {"CAM_FRONT": "another resolution"}),
    "focal length in metres": (
        ({}, {"CAM_FRONT": np.array([[0.005, 0, 80], [0, 0.005, 45], [0, 0, 1]])}),
        {"CAM_FRONT": "makes little sense"},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_calibration_is_found_by_name(name: str) -> None:
    (extrinsics, intrinsics), expected = FAULTS[name]
    found = {c: f for c, f in check_frame_calibration(frame(extrinsics, intrinsics), set(MOUNTED)).items() if f}
    assert set(found) == set(expected)
    for channel, words in expected.items():
        texts = (*found[channel].refused, *found[channel].flagged)
        assert any(re.search(f"^{channel}: .*{words}", text) for text in texts), texts


def test_nuscenes_own_rig_is_sound_and_so_it_is_on_the_move() -> None:
    backwards = pose((-4.5, 0.1, 0), wxyz=(np.cos(0.03), 0, 0, np.sin(0.03)))  # 30 m/s for 0.15 s
    for motion, age_us in ((np.eye(4), 0), (backwards, 150_000)):
        shown = frame({c: motion @ at for c, at in MOUNTED.items()}, {}, TIME_US - age_us)
        found = check_frame_calibration(shown, set(MOUNTED))
        assert set(found) == set(MOUNTED)
        assert not any(found.values()), found


def test_perceive_tells_it_once_of_each_sensor_when_that_first_gives_something() -> None:
    """Of one that is absent or malformed there is nothing to look at, and an old pose holds more motion than mount."""
    model = tiny_model(rig=RIG.model_dump())
    bad = frame(*moved("LIDAR_TOP", millimetres))
    assert bad.lidar is not None
    assert told(model, replace(bad, lidar=None)) == []
    assert told(model, replace(bad, lidar=(replace(bad.lidar[0], points=None),))) == []  # type: ignore[arg-type]
    assert told(model, replace(bad, lidar=(replace(bad.lidar[0], time_us=TIME_US - 500_000),))) == []
    (line,) = told(model, bad)  # none of its points is in reach, and this is why
    assert re.search(r"^LIDAR_TOP: .*got 206\d.* m \(millimetres\?\): taken as it is, and told once$", line)
    assert told(model, bad) == []
    assert len(told(tiny_model(rig=RIG.model_dump()), bad)) == 1


# Faults of what a robot does not hand to `frame_at` and `perceive`, which take a mount [4, 4], intrinsics [3, 3] and a picture.
NOT_HANDED_OVER = {
    # Trees of frames, which tf2 has.
    *("two trees", "two parents", "loop of two", "loop of three", "transform to itself", "empty frame id"),
    # Mappings and frame ids.
    *("the mapping's frame is unknown", "the mapping's ego frame is unknown"),
    *("pictures swapped", "calibrations swapped", "pictures of an unknown frame"),
    # The size that a CameraInfo names, P's fourth column, and one of two matrices that disagree.
    *("no size", "another size", "width and height exchanged"),
    *("infinity in P", "baseline in millimetres"),
    *("P of another focal length", "P a little off K"),
    # A pose holds motion, and only first calibrations are looked at.
    *("mounting that changes", "calibration that changes"),
}


@pytest.mark.parametrize("name", REPLAYS_FAULTS)
def test_what_a_replay_tells_of_a_calibration_is_told_by_name_here_too(name: str) -> None:
    channel, change, *_ = REPLAYS_FAULTS[name]
    robot = Robot().take(change(drive(0.3)), START_NS + 310_000_000)
    model = tiny_model(rig=ROBOTS_RIG.model_dump())
    told = [text for of, text in robot.refused.items() if of == channel]
    try:
        frame = robot.frame(START_NS // 1000 + 300_000)
    except ValueError as error:  # a sensor that has no mount
        told.append(str(error))
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.perceive(frame, on_bad_sensor="absent")
        told += [str(one.message) for one in caught if str(one.message).startswith(channel)]
    assert bool(told) == (name not in NOT_HANDED_OVER), told
    assert all(channel in text for text in told)


def test_48_of_the_68_faults_that_a_replay_tells_can_be_handed_over() -> None:
    assert set(REPLAYS_FAULTS) >= NOT_HANDED_OVER
    assert (len(REPLAYS_FAULTS), len(REPLAYS_FAULTS) - len(NOT_HANDED_OVER)) == (68, 48)


def test_the_robots_own_calibrations_are_sound() -> None:
    robot = Robot().take(drive(0.3), START_NS + 310_000_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_model(rig=ROBOTS_RIG.model_dump()).perceive(robot.frame(START_NS // 1000 + 300_000))
    assert not robot.refused
