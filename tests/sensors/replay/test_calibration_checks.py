"""Every fault of a calibration is refused or flagged by name, as a replay meets it; a sound rig is left alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sensors.calibration import transforms
from sensors.camera.rectification import Lens
from sensors.checks.calibration import Findings, check_mount, check_rig
from sensors.frames import CameraImage
from sensors.logs.mapping.mapping import CameraTopics, LidarTopics, LogMapping
from sensors.logs.messages import (
    CameraInfo,
    EncodedImage,
    FrameTransform,
    FrameTransforms,
    LogMessage,
    Malformed,
    RawImage,
)
from sensors.replay.calibration_checks import check_camera_info
from sensors.replay.tick import SensorState, SensorStatus
from sensors.replay.ticks import ticks
from sensors.simulation.sensing.rig import SENSORS
from tests.sensors.replay.drive import (
    BACK,
    CHANNELS,
    CONFIG,
    FRONT,
    INFO,
    MAPPING,
    MOUNTS,
    START_NS,
    TOPIC,
    MemoryLog,
    camera_info,
    drive,
    since_s,
)

Messages = list[LogMessage]
Change = Callable[[Messages], Messages]
REFUSED, FLAGGED = SensorState.UNCALIBRATED, SensorState.FLAGGED
UNIT = (1.0, 0.0, 0.0, 0.0)
K = np.array([[50.0, 0, 32], [0, 50, 18], [0, 0, 1]])
Z = np.zeros((3, 1))
UPSIDE_DOWN = (0.5, 0.5, 0.5, 0.5)  # looks ahead, its y axis up


def info(channel: str = "CAM_FRONT", after_s: float = -1.0, **changes: Any) -> Change:
    """The camera's calibration with these fields, told again at a time of the drive where one is given."""

    def change(messages: Messages) -> Messages:
        new = camera_info(channel, **changes)
        if after_s < 0:
            return [replaced(m, new) if m.topic == INFO[channel] else m for m in messages]
        at = START_NS + round(after_s * 1e9)
        return placed(messages, LogMessage(INFO[channel], at, at, new))

    return change


def intrinsics(**changes: Any) -> Change:
    """K and P alike."""
    matrix = K.copy()
    for place, value in changes.items():
        matrix[int(place[1]), int(place[2])] = value
    return info(K=matrix, P=np.hstack([matrix, Z]))


def mount(channel: str, translation: Any = None, rotation: Any = None, parent: str = "base_link") -> Change:
    """Another place or direction of a sensor."""
    there, turned = MOUNTS[channel]

    def moved(t: FrameTransform) -> FrameTransform:
        if t.child != channel:
            return t
        return dataclasses.replace(
            t, parent=parent, translation_m=translation or there, rotation_wxyz=rotation or turned
        )

    return transforms_changed(lambda links: tuple(moved(t) for t in links))


def transforms_changed(change: Callable[[tuple[FrameTransform, ...]], tuple[FrameTransform, ...]]) -> Change:
    def changed(messages: Messages) -> Messages:
        return [
            replaced(m, FrameTransforms(change(m.payload.transforms), static=True))
            if isinstance(m.payload, FrameTransforms) and m.payload.static
            else m
            for m in messages
        ]

    return changed


def without(child: str) -> Change:
    return transforms_changed(lambda links: tuple(t for t in links if t.child != child))


def linked(*more: FrameTransform, instead_of: str = "") -> Change:
    return transforms_changed(lambda links: (*(t for t in links if t.child != instead_of), *more))


def link(parent: str, child: str, translation: Any = (1.0, 0.0, 1.0), rotation: Any = UNIT) -> FrameTransform:
    return FrameTransform(START_NS, parent, child, translation, rotation)


def told_later(transform: FrameTransform) -> Change:
    at = START_NS + 150_000_000
    return lambda ms: placed(ms, LogMessage("/tf_static", at, at, FrameTransforms((transform,), static=True)))


def frame_ids(**of: str) -> Change:
    """Other frame ids in the pictures of cameras."""

    def change(message: LogMessage) -> LogMessage:
        payload = message.payload
        if isinstance(payload, EncodedImage) and payload.frame_id in of:
            return replaced(message, dataclasses.replace(payload, frame_id=of[payload.frame_id]))
        return message

    return lambda messages: [change(m) for m in messages]


def both(*changes: Change) -> Change:
    def change(messages: Messages) -> Messages:
        for one in changes:
            messages = one(messages)
        return messages

    return change


def without_info(messages: Messages) -> Messages:
    """The calibration comes after everything else."""
    infos = [m for m in messages if m.topic == INFO["CAM_FRONT"]]
    return [*(m for m in messages if m.topic != INFO["CAM_FRONT"]), *infos]


def broken_info(messages: Messages) -> Messages:
    return [replaced(m, Malformed("CameraInfo", "expected 9 numbers in K, got 8")) if m.topic == INFO["CAM_FRONT"] else m
            for m in messages]  # fmt: skip


def raw_pictures(messages: Messages) -> Messages:
    small = bytes(8 * 8 * 3)
    return [
        replaced(m, RawImage(m.payload.stamp_ns, "CAM_FRONT", "rgb8", 8, 8, 24, small))
        if isinstance(m.payload, EncodedImage) and m.topic == TOPIC["CAM_FRONT"]
        else m
        for m in messages
    ]


def replaced(message: LogMessage, payload: Any) -> LogMessage:
    return dataclasses.replace(message, payload=payload)


def placed(messages: Messages, message: LogMessage) -> Messages:
    at = next(n for n, m in enumerate(messages) if n > 3 and m.log_time_ns >= message.log_time_ns)
    return [*messages[:at], message, *messages[at:]]


def turned(matrix: Any) -> Any:
    """R as no rotation is."""
    return info(R=np.asarray(matrix, float))


UNKNOWN_FRAME = MAPPING.model_copy(update={"lidars": {"LIDAR_TOP": LidarTopics(points="/lidar_top", frame="velodyne")}})
UNKNOWN_EGO = MAPPING.model_copy(update={"ego_frame": "car"})

# name -> channel, what is done to the drive, how the sensor stands, what is said of it; the mapping where it is another one
FAULTS: dict[str, tuple[Any, ...]] = {
    # transforms
    "quaternion of norm 2": ("LIDAR_TOP", mount("LIDAR_TOP", None, (2.0, 0, 0, 0)), REFUSED, "norm 1, got .* of norm 2"),
    "quaternion of norm 0.99": ("CAM_FRONT", mount("CAM_FRONT", None, (0.495, -0.495, 0.495, -0.495)), REFUSED, "norm 0.99"),
    "zero quaternion": ("LIDAR_TOP", mount("LIDAR_TOP", None, (0.0, 0, 0, 0)), REFUSED, "zero quaternion"),
    "NaN in a quaternion": ("RADAR_FRONT", mount("RADAR_FRONT", None, (np.nan, 0, 0, 1)), REFUSED, "finite numbers"),
    "NaN in a translation": ("LIDAR_TOP", mount("LIDAR_TOP", (np.nan, 0, 0)), REFUSED, "finite numbers"),
    "infinite translation": ("LIDAR_TOP", mount("LIDAR_TOP", (np.inf, 0, 0)), REFUSED, "finite numbers"),
    "LiDAR in millimetres": ("LIDAR_TOP", mount("LIDAR_TOP", (943.0, 0.0, 1840.0)), REFUSED, r"2067.* m \(millimetres\?\)"),
    "camera in millimetres": ("CAM_FRONT", mount("CAM_FRONT", (1700.0, 15.0, 1510.0)), REFUSED, "millimetres"),
    "radar in centimetres": ("RADAR_FRONT", mount("RADAR_FRONT", (341.2, 0.0, 50.0)), REFUSED, "within 20 m of the ego"),
    "sensor in the global frame": ("LIDAR_TOP", mount("LIDAR_TOP", (500.0, 900.0, 2.0)), REFUSED, "within 20 m"),
    "no transform": ("LIDAR_TOP", without("LIDAR_TOP"), REFUSED, "'LIDAR_TOP' is in no transform. Frames known: CAM_BACK"),
    "no transform for a camera": ("CAM_FRONT", without("CAM_FRONT"), REFUSED, "'CAM_FRONT' is in no transform"),
    "two trees": ("LIDAR_TOP", mount("LIDAR_TOP", parent="rig"), REFUSED, "not connected; .* 'LIDAR_TOP' on 'rig'"),
    "two parents": ("LIDAR_TOP", linked(link("rig", "LIDAR_TOP")), FLAGGED, "two parents, 'base_link' and 'rig'"),
    "loop of two": (
        "LIDAR_TOP", linked(link("LIDAR_TOP", "a"), link("a", "LIDAR_TOP"), instead_of="LIDAR_TOP"), REFUSED, "transforms loop"),
    "loop of three": (
        "LIDAR_TOP", linked(link("a", "LIDAR_TOP"), link("b", "a"), link("LIDAR_TOP", "b"), instead_of="LIDAR_TOP"),
        REFUSED, "transforms loop"),
    "transform to itself": ("LIDAR_TOP", linked(link("LIDAR_TOP", "LIDAR_TOP")), REFUSED, "to itself"),
    "empty frame id": ("LIDAR_TOP", linked(link("", "LIDAR_TOP"), instead_of="LIDAR_TOP"), REFUSED, "empty one"),
    "the mapping's frame is unknown": ("LIDAR_TOP", both(), REFUSED, "'velodyne' is in no transform", UNKNOWN_FRAME),
    "the mapping's ego frame is unknown": ("LIDAR_TOP", both(), REFUSED, "'car' is in no transform", UNKNOWN_EGO),
    "mounting that changes": ("LIDAR_TOP", told_later(link("base_link", "LIDAR_TOP")), FLAGGED, r"changed by 0\.8"),
    "mounting that goes bad": (
        "LIDAR_TOP", told_later(link("base_link", "LIDAR_TOP", (1, 0, 1), (0, 0, 0, 0))), REFUSED, "zero quaternion"),
    "below the road": ("LIDAR_TOP", mount("LIDAR_TOP", (0.9, 0.0, -1.8)), FLAGGED, "1.80 m below"),
    "LiDAR upside down": ("LIDAR_TOP", mount("LIDAR_TOP", None, (0.0, 1.0, 0.0, 0.0)), FLAGGED, "upside down"),
    # where a camera looks
    "front camera looks back": ("CAM_FRONT", mount("CAM_FRONT", None, BACK), REFUSED, "backwards, against its name"),
    "back camera looks ahead": ("CAM_BACK", mount("CAM_BACK", None, FRONT), REFUSED, "forwards, against its name"),
    "mountings swapped": (
        "CAM_FRONT", both(mount("CAM_FRONT", None, BACK), mount("CAM_BACK", None, FRONT)), REFUSED, "cameras swapped"),
    "front camera looks aside": (
        "CAM_FRONT", mount("CAM_FRONT", None, (2**-0.5, -(2**-0.5), 0, 0)),
        FLAGGED, "azimuth 90 .*straight ahead$"),
    "camera upside down": ("CAM_FRONT", mount("CAM_FRONT", None, UPSIDE_DOWN), FLAGGED, "its y axis points up"),
    "frame that is not optical": (
        "CAM_FRONT", mount("CAM_FRONT", None, UNIT),
        FLAGGED, "looks up by 90 deg: is its frame optical",
    ),
    "camera that looks down": ("CAM_FRONT", mount("CAM_FRONT", None, (0.0, 1.0, 0, 0)), FLAGGED, "looks down"),
    "two cameras in one place": (
        "CAM_FRONT", both(mount("CAM_FRONT", (1, 0, 1), (0.5**0.5, -(0.5**0.5), 0, 0)),
                          mount("CAM_BACK", (1, 0, 1), (0.5**0.5, -(0.5**0.5), 0, 0))), FLAGGED, "same pose as CAM_BACK"),
    "pictures swapped": (
        "CAM_FRONT", frame_ids(CAM_FRONT="CAM_BACK", CAM_BACK="CAM_FRONT"), REFUSED, "'CAM_BACK', which is CAM_BACK's"),
    "calibrations swapped": (
        "CAM_FRONT", both(info(frame_id="CAM_BACK"), info("CAM_BACK", frame_id="CAM_FRONT")), REFUSED, "swapped"),
    "pictures of an unknown frame": (
        "CAM_FRONT", frame_ids(CAM_FRONT="camera"), FLAGGED,
        "'camera', its calibration 'CAM_FRONT'",
    ),
    # intrinsics
    "no calibration": ("CAM_FRONT", without_info, REFUSED, "no calibration on /cam_front/camera_info: none came so far"),
    "calibration that cannot be read": ("CAM_FRONT", broken_info, REFUSED, "expected 9 numbers in K, got 8"),
    "K and P all 0": ("CAM_FRONT", info(K=np.zeros((3, 3)), P=np.zeros((3, 4))), REFUSED, "not calibrated"),
    "singular P": ("CAM_FRONT", intrinsics(m00=0.0, m11=0.0), REFUSED, "invertible"),
    "singular K without P": (
        "CAM_FRONT", info(K=np.diag([50.0, 0, 1]), P=np.zeros((3, 4))),
        REFUSED, "K: expected an invertible",
    ),
    "NaN in K": ("CAM_FRONT", info(K=K * np.nan), REFUSED, "finite numbers in K"),
    "infinity in P": ("CAM_FRONT", info(P=np.hstack([K, Z + np.inf])), REFUSED, "finite numbers in P"),
    "NaN in D": ("CAM_FRONT", info(D=np.array([np.nan])), REFUSED, "finite numbers in D"),
    "K of 2 x 3": ("CAM_FRONT", info(K=K[:2]), REFUSED, r"K of 3 x 3, got shape \(2, 3\)"),
    "third row of K": ("CAM_FRONT", intrinsics(m22=2.0), REFUSED, "third row of 0 0 1"),
    "negative focal length": ("CAM_FRONT", intrinsics(m00=-50.0), REFUSED, "positive focal lengths, got -50"),
    "negative focal lengths both": ("CAM_FRONT", intrinsics(m00=-50.0, m11=-50.0), REFUSED, "positive focal lengths"),
    "P of another picture size than K": (
        "CAM_FRONT", info(P=np.hstack([np.diag([4.0, 4, 1]) @ K, Z])),
        REFUSED, "near the picture|disagree",
    ),
    "P of another focal length": (
        "CAM_FRONT", info(P=np.hstack([K + np.diag([80.0, 80, 0]), Z])),
        REFUSED, "P and K disagree: focal",
    ),
    "P a little off K": (
        "CAM_FRONT", info(P=np.hstack([K + np.diag([3.0, 3, 0]), Z])),
        FLAGGED, "P and K disagree without distortion",
    ),
    "baseline in millimetres": ("CAM_FRONT", info(P=np.hstack([K, [[-27000.0], [0], [0]]])), REFUSED, "540 m .millimetres"),
    "R no rotation": ("CAM_FRONT", turned(2 * np.eye(3)), REFUSED, "R: expected a rotation"),
    "R a reflection": ("CAM_FRONT", turned(np.diag([1, 1, -1])), REFUSED, "R: expected a right-handed"),
    "NaN in R": ("CAM_FRONT", turned(np.eye(3) * np.nan), REFUSED, "finite numbers in R"),
    "R all 0": ("CAM_FRONT", turned(np.zeros((3, 3))), FLAGGED, "R is all 0"),
    "no size": ("CAM_FRONT", info(width_px=0, height_px=0), REFUSED, "got 0 x 0 px"),
    "another size": ("CAM_FRONT", info(width_px=128, height_px=72), REFUSED, "128 x 72 px .*, got 64 x 36 px"),
    "width and height exchanged": ("CAM_FRONT", info(width_px=36, height_px=64), REFUSED, "36 x 64 px .*, got 64 x 36"),
    "raw pictures of another size": ("CAM_FRONT", raw_pictures, REFUSED, "64 x 36 px .*, got 8 x 8"),
    "principal point far away": ("CAM_FRONT", intrinsics(m02=320.0, m12=180.0), REFUSED, "principal point near"),
    "K of half the resolution": (
        "CAM_FRONT", intrinsics(m00=25.0, m11=25.0, m02=16.0, m12=9.0),
        FLAGGED, "that of a picture of 33 x 19 px, not of 64 x 36",
    ),
    "inverse extrinsics": (
        "LIDAR_TOP", mount("LIDAR_TOP", (-0.9, 0.0, -1.8)),
        FLAGGED, "1.80 m below .*the inverse would be sound: is it sensor_T_ego",
    ),
    "principal point outside": ("CAM_FRONT", intrinsics(m02=70.0), FLAGGED, "lies outside"),
    "focal length in metres": ("CAM_FRONT", intrinsics(m00=0.005, m11=0.005), FLAGGED, "makes little sense"),
    "focal length of the moon": ("CAM_FRONT", intrinsics(m00=9e3, m11=9e3), FLAGGED, "makes little sense"),
    "pixels far from square": ("CAM_FRONT", intrinsics(m00=50.0, m11=150.0), FLAGGED, "not nearly square"),
    "skew": ("CAM_FRONT", intrinsics(m01=9.0), FLAGGED, "skew of 9"),
    "calibration that changes": (
        "CAM_FRONT", info(after_s=0.15, K=1.1 * K - np.diag([0, 0, 0.1]), P=np.zeros((3, 4))), FLAGGED,
        r"changed during the drive \(K, P\)"),
}  # fmt: skip


def stands(change: Change, channel: str, mapping: LogMapping = MAPPING) -> SensorStatus:
    """How a sensor stands at the last tick of a short drive."""
    messages = change(drive(0.3))
    at = -2 if change is without_info else -1  # before the calibration came
    return list(ticks(MemoryLog(messages), mapping, CHANNELS, CONFIG))[at].sensors[channel]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_calibration_is_refused_or_flagged_by_name(name: str) -> None:
    channel, change, state, says, *mapping = FAULTS[name]
    status = stands(change, channel, *mapping)
    assert status.state is state, status
    assert re.search(says, status.detail), status.detail
    assert "\n" not in status.detail
    assert status.given == (state is FLAGGED)


def test_there_are_forty_of_them() -> None:
    assert len(FAULTS) >= 40


def raw_camera(topic: str, rectified: bool | None = None, **changes: Any) -> tuple[SensorStatus, CameraImage | None]:
    """How the front camera stands whose pictures come on this topic, and what of it is given."""
    messages = info(**changes)(drive(0.3))
    renamed = [dataclasses.replace(m, topic=topic) if m.topic == TOPIC["CAM_FRONT"] else m for m in messages]
    camera = CameraTopics(image=topic, info=INFO["CAM_FRONT"], rectified=rectified)
    mapping = MAPPING.model_copy(update={"cameras": {**MAPPING.cameras, "CAM_FRONT": camera}})
    tick = list(ticks(MemoryLog(renamed), mapping, CHANNELS, CONFIG))[-1]
    assert tick.frame.cameras is not None
    return tick.sensors["CAM_FRONT"], tick.frame.cameras[0]


RAW_TOPICS = [
    "/cam_front/image", "/direct/image_raw", "/image_unrectified", "/front/image_non_rectified", "/front/imageNotRectified",
    "/image/rect_false/not_rectified", "/image_un_rect", "/pre_rect/image",
]  # fmt: skip
RECTIFIED_TOPICS = ["/cam_front/image_rect", "/image_rect_color/compressed", "/front/imageRect", "/undistorted/image"]
DISTORTED = np.array([-0.3, 0.1, 0, 0, 0])


@pytest.mark.parametrize("topic", RAW_TOPICS)
def test_a_topic_that_is_not_called_rectified_is_rectified_by_k_and_d_whatever_r_and_p(topic: str) -> None:
    odd_p = np.hstack([2 * K, np.array([[-25.0], [0], [0]])])
    status, camera = raw_camera(topic, D=DISTORTED, R=np.diag([1.0, -1, -1]), P=odd_p)
    lens = Lens.of("plumb_bob", DISTORTED, K, (36, 64))
    assert camera is not None
    assert lens is not None
    np.testing.assert_array_equal(camera.intrinsics, lens.intrinsics)
    assert camera.image.shape[:2] == lens.rectified_size_px
    np.testing.assert_allclose(camera.reference_T_camera[:3, :3], transforms([0, 0, 0, *FRONT])[:3, :3], atol=1e-12)
    assert status.state is SensorState.OK
    height, width = lens.rectified_size_px
    assert status.detail == f"rectified here by plumb_bob, {width} x {height} of 64 x 36 px"


@pytest.mark.parametrize("topic", RECTIFIED_TOPICS)
def test_pictures_that_are_called_rectified_stay_as_they_are(topic: str) -> None:
    status, camera = raw_camera(topic, D=DISTORTED, distortion_model="whatever")
    assert camera is not None
    np.testing.assert_array_equal(camera.intrinsics, K)
    assert camera.image.shape[:2] == (36, 64)
    assert (status.state, status.detail) == (SensorState.OK, "")


def test_the_mapping_says_of_either_name_whether_pictures_are_rectified() -> None:
    _, camera = raw_camera("/cam_front/image", True, D=DISTORTED)
    assert camera is not None
    np.testing.assert_array_equal(camera.intrinsics, K)
    status, camera = raw_camera("/cam_front/image_rect", False, D=DISTORTED)
    assert camera is not None
    assert camera.intrinsics[0, 0] < K[0, 0]
    assert "rectified here" in status.detail
    _, camera = raw_camera("/cam_front/image_raw", False, P=np.hstack([1.5 * K, Z]))  # no lens, and still not P
    assert camera is not None
    np.testing.assert_array_equal(camera.intrinsics, K)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distortion_model": "thin_prism"}, r"expected one of .*plumb_bob.*kannala_brandt, got 'thin_prism'"),
        ({"distortion_model": "", "D": np.full(6, 0.1)}, r"D: expected 8 or 12 or 14 distortion coefficients .* got 6"),
        (
            {"D": np.array([0.1, 0.2])},
            r"D: expected 4 or 5 .* of plumb_bob, got 2.* Correct D, or set `rectified: true`",
        ),
        ({"D": np.array([np.nan] * 5)}, r"expected finite numbers in D"),
        (
            {"D": np.array([-90.0, 0, 0, 0, 0])},
            r"a quarter .* can be rectified .* of 64 x 36 px .* D .* K .*rectified: true",
        ),
        ({"K": np.zeros((3, 3))}, r"expected K of pictures that are not rectified, got all 0. .*rectified: true"),
    ],
)
def test_a_lens_that_cannot_be_makes_a_camera_uncalibrated(changes: dict[str, Any], words: str) -> None:
    status, camera = raw_camera("/cam_front/image_raw", **({"D": DISTORTED} | changes))
    assert camera is None
    assert status.state is REFUSED
    assert re.search(f"^/cam_front/camera_info: .*{words}", status.detail), status.detail


@pytest.mark.parametrize("model", ["", "  "])
def test_a_lens_without_a_models_name_has_that_of_so_many_coefficients(model: str) -> None:
    status, camera = raw_camera("/cam_front/image_raw", D=DISTORTED, distortion_model=model)
    assert camera is not None
    assert status.state is SensorState.OK
    assert re.fullmatch(
        r"rectified here by plumb_bob \(the model of 5 coefficients: none is named\), \d+ x \d+ .*", status.detail
    )
    assert raw_camera("/cam_front/image_raw", D=np.zeros(5), distortion_model=model)[0].detail == ""


def test_pictures_called_rectified_whose_p_is_all_0_are_flagged() -> None:
    for topic, rectified in (("/cam_front/image_rect", None), ("/cam_front/image", True)):
        status, camera = raw_camera(topic, rectified, D=DISTORTED, P=np.zeros((3, 4)))
        assert camera is not None
        assert status.state is FLAGGED
        assert "P is all 0 and D is not: K, which holds before rectification, is used" in status.detail
    assert raw_camera("/cam_front/image_rect", D=np.zeros(5), P=np.zeros((3, 4)))[0].state is SensorState.OK


@pytest.mark.parametrize("size", [0, 4])
def test_an_unknown_model_without_coefficients_is_doubted_unless_it_is_called_rectified(size: int) -> None:
    odd: dict[str, Any] = {
        "distortion_model": "ocam",
        "D": np.zeros(size),
        "P": np.hstack([K + np.diag([3.0, 3, 0]), Z]),
    }
    status, camera = raw_camera("/cam_front/image_raw", **odd)
    assert camera is not None
    np.testing.assert_array_equal(camera.intrinsics, K + np.diag([3.0, 3, 0]))
    assert status.state is FLAGGED
    assert "the model is ocam and its coefficients are all 0, and it is none of plumb_bob, " in status.detail
    assert "ocam" not in raw_camera("/cam_front/image_rect", **odd)[0].detail
    assert "ocam" not in raw_camera("/cam_front/image_raw", True, **odd)[0].detail


def test_a_fisheye_without_coefficients_is_doubted_unless_it_is_called_rectified() -> None:
    zeros: dict[str, Any] = {"distortion_model": "equidistant", "D": np.zeros(4)}
    status, camera = raw_camera("/cam_front/image_raw", **zeros)
    assert camera is not None
    assert status.state is FLAGGED
    assert "a fisheye still: pictures are taken to be rectified" in status.detail
    assert raw_camera("/cam_front/image_rect", **zeros)[0].state is SensorState.OK
    assert raw_camera("/cam_front/image_raw", True, **zeros)[0].state is SensorState.OK


def test_a_picture_that_two_calibrations_show_is_rectified_by_each() -> None:
    messages = info(D=DISTORTED)(drive(0.3))
    topic, changed = "/cam_front/image", info(after_s=0.12, D=DISTORTED / 2)(messages)
    renamed = [dataclasses.replace(m, topic=topic) if m.topic == TOPIC["CAM_FRONT"] else m for m in changed]
    camera = CameraTopics(image=topic, info=INFO["CAM_FRONT"])
    mapping = MAPPING.model_copy(update={"cameras": {**MAPPING.cameras, "CAM_FRONT": camera}})
    fast = CONFIG.model_copy(update={"tick_hz": 40.0})
    seen = set()
    for tick in ticks(MemoryLog(renamed), mapping, CHANNELS, fast):
        assert tick.frame.cameras is not None
        if (camera_image := tick.frame.cameras[0]) is not None:
            lenses = [Lens.of("plumb_bob", share * DISTORTED, K, (36, 64)) for share in (1, 0.5)]
            (lens,) = [one for one in lenses if one and np.array_equal(one.intrinsics, camera_image.intrinsics)]
            assert camera_image.image.shape[:2] == lens.rectified_size_px
            seen.add(lens)
    assert len(seen) == 2


def test_a_fault_of_one_sensor_leaves_the_others_alone() -> None:
    messages = mount("LIDAR_TOP", None, (0.0, 0, 0, 0))(drive(0.5))
    for tick in ticks(MemoryLog(messages), MAPPING, CHANNELS, CONFIG):
        assert tick.frame.lidar is None
        assert tick.frame.cameras is not None
        assert all(
            tick.sensors[channel].state is SensorState.OK for channel in ("CAM_FRONT", "CAM_BACK", "RADAR_FRONT")
        )


def test_a_calibration_that_comes_later_is_used_from_then_on() -> None:
    whole = drive(1.0)
    late = [m for m in whole if m.topic != INFO["CAM_FRONT"]]
    at = START_NS + 450_000_000
    messages = placed(late, LogMessage(INFO["CAM_FRONT"], at, at, camera_info("CAM_FRONT")))
    out = list(ticks(MemoryLog(messages), MAPPING, CHANNELS, CONFIG))
    assert [tick.sensors["CAM_FRONT"].given for tick in out] == [False] * 5 + [True] * 6
    assert since_s(messages[-1]) > 1


def test_the_rig_of_nuscenes_is_sound() -> None:
    mounts = {s.channel: transforms([*s.translation_m, *s.rotation_wxyz]) for s in SENSORS}
    for sensor in SENSORS:
        found = check_mount(sensor.channel, sensor.modality, mounts[sensor.channel])
        assert not found.refused, found
        assert not found.flagged, found
    assert not check_rig({s.channel: mounts[s.channel] for s in SENSORS if s.modality == "camera"})


@given(st.permutations([s for s in SENSORS if s.modality == "camera"]))
def test_swapped_cameras_are_noticed_where_a_side_is_wrong(order: list[Any]) -> None:
    cameras = [s for s in SENSORS if s.modality == "camera"]
    for name, sensor in zip(cameras, order, strict=True):
        found = check_mount(name.channel, "camera", transforms([*sensor.translation_m, *sensor.rotation_wxyz]))
        if name is sensor:
            assert found.refused == found.flagged == ()
        ahead = transforms([*sensor.translation_m, *sensor.rotation_wxyz])[:3, 2]
        words = name.channel.split("_")
        wrong = ("FRONT" in words and ahead[0] < -0.25) or ("BACK" in words and ahead[0] > 0.25)
        wrong = wrong or ("LEFT" in words and ahead[1] < -0.25) or ("RIGHT" in words and ahead[1] > 0.25)
        assert bool(found.refused) == wrong


@given(st.floats(-0.15, 0.15), st.floats(-0.15, 0.15), st.floats(-0.15, 0.15))
def test_a_camera_that_is_a_little_off_is_left_alone(roll: float, pitch: float, yaw: float) -> None:
    turn = Rotation.from_euler("xyz", [roll, pitch, yaw])
    pose = transforms([1.7, 0, 1.5, *FRONT])
    pose[:3, :3] = turn.as_matrix() @ pose[:3, :3]
    found = check_mount("CAM_FRONT", "camera", pose)
    assert found.refused == found.flagged == ()


def test_camera_infos_are_looked_at_once_while_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def counted(info: CameraInfo, topic: str, picture_px: tuple[int, int] | None, *, rectified: bool) -> Findings:
        nonlocal count
        count += 1
        return check_camera_info(info, topic, picture_px, rectified=rectified)

    monkeypatch.setattr("sensors.replay.rig.check_camera_info", counted)
    messages = drive(2.0)
    infos = [
        LogMessage(INFO[c], START_NS + n * 100_000_000, START_NS, camera_info(c)) for n in range(1, 20) for c in INFO
    ]
    both_sorted = sorted([*messages[3:], *infos], key=lambda m: m.log_time_ns)
    list(ticks(MemoryLog([*messages[:3], *both_sorted]), MAPPING, CHANNELS, CONFIG))
    assert count == len(INFO)
