"""Mappings: proposed from a log, read from YAML, held against a log; and the summary of a log."""

from __future__ import annotations

import dataclasses
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sensors.logs.log import Damage, LogError, TopicInfo
from sensors.logs.mapping.file import check_mapping, dump_mapping, load_mapping
from sensors.logs.mapping.inspect import inspect_log
from sensors.logs.mapping.mapping import CameraTopics, LidarTopics, LogMapping, RadarTopics
from sensors.logs.mapping.propose import propose_mapping
from sensors.logs.messages import (
    CameraInfo,
    EncodedImage,
    FrameTransform,
    FrameTransforms,
    LogMessage,
    Malformed,
    Other,
    Payload,
    PointCloud,
    RawImage,
    SceneBoxes,
    TruthBox,
)
from tests.sensors.replay.drive import MemoryLog
from training.replay.log_inspect import print_log_summary

SECOND = 1_000_000_000
BOX = TruthBox("a", "car", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0, 0.0))


class ListedLog(MemoryLog):
    """A log of given messages; types are the payloads' names, as in nuScenes logs, or their own words."""

    def __init__(
        self, listed: Sequence[LogMessage], silent: tuple[TopicInfo, ...] = (), damage: Damage | None = None
    ) -> None:
        super().__init__(listed)
        self._silent, self.damage = silent, damage or Damage()

    def topics(self) -> tuple[TopicInfo, ...]:
        kinds = {m.topic: getattr(m.payload, "type", type(m.payload).__name__) for m in reversed(self._messages)}
        counts = Counter(message.topic for message in self._messages)
        listed = (TopicInfo(name, kind, "nuscenes", counts[name]) for name, kind in sorted(kinds.items()))
        return (*listed, *self._silent)


def listed(*said: tuple[str, Payload]) -> ListedLog:
    return ListedLog([LogMessage(topic, n * SECOND // 10, n, payload) for n, (topic, payload) in enumerate(said)])


def picture(frame: str) -> EncodedImage:
    return EncodedImage(0, frame, "jpeg", b"\xff\xd8")


def calibration(frame: str) -> CameraInfo:
    return CameraInfo(0, frame, 4, 3, "plumb_bob", np.zeros(0), np.eye(3), np.eye(3), np.zeros((3, 4)))


def cloud(frame: str, *fields: str, value: float = 100.0) -> PointCloud:
    return PointCloud(0, frame, np.full(3, value, np.dtype([(name, np.float32) for name in fields])))


def moved(parent: str, child: str, static: bool = False) -> FrameTransforms:
    return FrameTransforms((FrameTransform(0, parent, child, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)),), static)


def test_nuscenes2mcap_topics_give_nuscenes_channels() -> None:
    cameras = ["CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK"]
    said: list[tuple[str, Payload]] = [("/tf", moved("map", "base_link"))]
    for name in cameras:
        said += [
            (f"/{name}/image_rect_compressed", picture(name)),
            (f"/{name}/camera_info", calibration(name)),
            ("/tf", moved("base_link", name)),
            (f"/{name}/annotations", Other("foxglove.ImageAnnotations", b"")),
        ]
    said += [
        ("/LIDAR_TOP", cloud("LIDAR_TOP", "x", "y", "z", "intensity", "ring")),
        ("/RADAR_FRONT", cloud("RADAR_FRONT", "x", "y", "z", "rcs", "vx_comp")),
        ("/RADAR_BACK_LEFT", cloud("RADAR_BACK_LEFT", "x", "y", "z", "rcs")),
        ("/tf", moved("base_link", "LIDAR_TOP")),
        ("/semantic_map", SceneBoxes(0, "", ())),
        ("/markers/annotations", SceneBoxes(0, "map", (BOX,))),
    ]
    mapping = propose_mapping(listed(*said)).mapping
    assert mapping == LogMapping(
        cameras={
            name: CameraTopics(image=f"/{name}/image_rect_compressed", info=f"/{name}/camera_info") for name in cameras
        },
        lidars={"LIDAR_TOP": LidarTopics(points="/LIDAR_TOP")},
        radars={
            "RADAR_FRONT": RadarTopics(points="/RADAR_FRONT"),
            "RADAR_BACK_LEFT": RadarTopics(points="/RADAR_BACK_LEFT"),
        },
        ego_frame="base_link",
        global_frame="map",
        truth="/markers/annotations",
    )


def test_names_of_a_ros_car_are_understood() -> None:
    proposal = propose_mapping(
        listed(
            ("/tf_static", moved("base_footprint", "velodyne", static=True)),
            ("/tf", moved("odom", "base_footprint")),
            ("/sensing/rearLeftCam/image_raw", RawImage(0, "rl", "rgb8", 1, 1, 3, b"abc")),
            ("/sensing/rearLeftCam/image_raw/compressed", picture("rl")),
            ("/sensing/rearLeftCam/camera_info", calibration("rl")),
            ("/sensing/depth/image", RawImage(0, "rl", "16UC1", 1, 1, 2, b"ab")),
            ("/thermal", picture("nobody")),
            ("/velodyne_points", cloud("velodyne", "x", "y", "z", "reflectivity", "laser_id", value=0.5)),
            ("/ars408", cloud("ars408_front", "x", "y", "z", "rcs", "v_x_comp")),
        )
    )
    mapping = proposal.mapping
    assert mapping is not None
    camera = CameraTopics(image="/sensing/rearLeftCam/image_raw/compressed", info="/sensing/rearLeftCam/camera_info")
    assert mapping.cameras == {"CAM_BACK_LEFT": camera}
    lidar = LidarTopics(
        points="/velodyne_points", fields={"intensity": "reflectivity", "ring": "laser_id"}, intensity_scale=255.0
    )
    assert mapping.lidars == {"LIDAR_TOP": lidar}
    assert mapping.radars == {"RADAR_FRONT": RadarTopics(points="/ars408", fields={"vx_comp": "v_x_comp"})}
    assert (mapping.ego_frame, mapping.global_frame, mapping.truth) == ("base_footprint", "odom", None)
    told = "\n".join(proposal.reasons)
    for word in ("the only one of its kind", "/thermal: left out, no calibration", "depth", "is the same camera"):
        assert word in told


def test_a_log_without_sensors_gets_reasons_and_no_mapping() -> None:
    proposal = propose_mapping(listed(("/words", Other("std_msgs/msg/String", b""))))
    assert proposal.mapping is None
    assert proposal.reasons[-2:] == (
        "of types that nothing here reads: /words (std_msgs/msg/String)",
        "no topic carries pictures or points that can be read: /words (std_msgs/msg/String)",
    )
    assert propose_mapping(ListedLog([])).mapping is None


CLOUD, FILM = "sensor_msgs/msg/PointCloud2", "foxglove.CompressedVideo"


def test_topics_that_cannot_be_read_are_proposed_after_the_others_and_named_with_their_reason() -> None:
    proposal = propose_mapping(
        listed(
            ("/cam_front/film", Malformed(FILM, "expected pictures, got a film")),
            ("/cam_front/image", picture("c")),
            ("/cam_front/camera_info", calibration("c")),
            ("/cam_back/film", Malformed(FILM, "expected pictures, got a film")),
            ("/cam_back/camera_info", Malformed("sensor_msgs/msg/CameraInfo", "expected 9 numbers in K, got 8")),
            ("/velodyne", Malformed(CLOUD, "expected 64 bytes, got 7")),
            ("/velodyne", Malformed(CLOUD, "expected 64 bytes, got 9")),
            ("/now_and_then", Malformed(CLOUD, "expected 64 bytes, got 7")),
            ("/now_and_then", cloud("l", "x", "y", "z")),
            ("/radar", Malformed(CLOUD, "expected 64 bytes, got 7")),
            ("/boxes", Malformed("foxglove.SceneUpdate", "expected a number")),
        )
    )
    mapping = proposal.mapping
    assert mapping is not None
    assert mapping.cameras == {
        "CAM_FRONT": CameraTopics(image="/cam_front/image", info="/cam_front/camera_info"),
        "CAM_BACK": CameraTopics(image="/cam_back/film", info="/cam_back/camera_info"),
    }
    assert mapping.lidars == {
        "LIDAR_TOP": LidarTopics(points="/now_and_then"),
        "LIDAR_VELODYNE": LidarTopics(points="/velodyne"),
    }
    assert mapping.radars == {"RADAR_FRONT": RadarTopics(points="/radar")}
    assert proposal.unread == (
        "/boxes: cannot be read: expected a number",
        "/cam_back/camera_info: cannot be read: expected 9 numbers in K, got 8",
        "/cam_back/film, /cam_front/film: cannot be read: expected pictures, got a film",
        "/radar, /velodyne: cannot be read: expected 64 bytes, got 7",
    )
    assert set(proposal.unread) <= set(proposal.reasons)
    assert "/cam_front/film: left out, /cam_front/image is the same camera, and better to read" in proposal.reasons


def test_a_log_of_nothing_but_what_cannot_be_read_gets_reasons_and_no_mapping() -> None:
    proposal = propose_mapping(listed(("/velodyne", Malformed(CLOUD, "expected ROS 2 messages (cdr), got ROS 1"))))
    assert proposal.mapping is None
    assert proposal.unread == ("/velodyne: cannot be read: expected ROS 2 messages (cdr), got ROS 1",)


@pytest.mark.parametrize(
    ("topic", "model", "D", "says"),
    [
        ("/c/image_rect", "plumb_bob", [0.1] * 5, "rectified already by its name"),
        ("/c/image_raw", "plumb_bob", [0] * 5, "rectified already as D is all 0"),
        ("/c/image_raw", " Plumb_Bob", [0.1] * 5, "to be rectified here by plumb_bob"),
        ("/c/image_non_rectified", "", [0.1] * 8, "to be rectified here by rational_polynomial"),
        ("/c/image_raw", "fisheye", [0] * 4, "a fisheye whose D is all 0: not rectified here"),
        ("/c/image_raw", "ocam", [0.1], "cannot be rectified: expected one of the distortion models .*, got 'ocam'"),
    ],
)
def test_of_every_camera_it_is_said_whether_it_is_rectified_here(
    topic: str, model: str, D: list[float], says: str
) -> None:
    info = dataclasses.replace(calibration("c"), distortion_model=model, D=np.array(D, float))
    reasons = propose_mapping(listed((topic, picture("c")), ("/c/camera_info", info))).reasons
    assert any(
        re.fullmatch(rf"CAM_FRONT: {topic}, .*Calibrated by /c/camera_info, {says}", reason) for reason in reasons
    )


def test_fields_in_capitals_are_mapped_and_tell_a_radar() -> None:
    log = listed(
        ("/lidar", cloud("l", "x", "y", "z", "Intensity", "RING")),
        ("/front", cloud("r", "x", "y", "z", "RCS", "Vx_Comp")),
    )
    mapping = propose_mapping(log).mapping
    assert mapping is not None
    assert mapping.lidars["LIDAR_TOP"].fields == {"intensity": "Intensity", "ring": "RING"}
    assert mapping.radars["RADAR_FRONT"].fields == {"rcs": "RCS", "vx_comp": "Vx_Comp"}


@pytest.mark.parametrize(
    ("moves", "frame", "why"),
    [
        ([moved("map", "base_link"), moved("odom", "base_link")], "map", "the ego moves in it"),
        ([moved("odom", "base_link"), moved("map", "base_link")], "map", "the ego moves in it"),
        ([moved("base_link", "map")], "map", "the ego moves in it"),
        ([moved("odom", "base_link"), moved("odom", "map")], "odom", "the ego moves in it"),
        ([moved("utm_33", "base_link")], "utm_33", "the ego moves in it"),
        ([moved("map", "base_link"), moved("base_link", "map")], "map", "the ego moves in it"),
        ([], None, "no transform moves the ego, and so no motion can be compensated"),
    ],
)
def test_the_global_frame_is_found_in_whatever_tree_is_sent(moves: list[Payload], frame: str | None, why: str) -> None:
    mount = ("/tf_static", moved("base_link", "l", static=True))
    proposal = propose_mapping(listed(mount, *(("/tf", one) for one in moves), ("/lidar", cloud("l", "x", "y", "z"))))
    assert proposal.mapping is not None
    assert proposal.mapping.global_frame == frame
    assert f"global_frame {frame or 'null'}: {why}" in proposal.reasons


def test_two_sensors_of_one_side_get_two_names() -> None:
    clouds = [(f"/lidar_{n}", cloud(f"l{n}", "x", "y", "z")) for n in range(3)]
    mapping = propose_mapping(listed(*clouds)).mapping
    assert mapping is not None
    assert {name: topics.points for name, topics in mapping.lidars.items()} == {
        "LIDAR_0": "/lidar_0", "LIDAR_1": "/lidar_1", "LIDAR_2": "/lidar_2"
    }  # fmt: skip


def test_a_mapping_survives_its_yaml(tmp_path: Path) -> None:
    mapping = LogMapping(
        cameras={"CAM_FRONT": CameraTopics(image="/i", info="/c", offset_s=0.02)},
        radars={"RADAR_FRONT": RadarTopics(points="/r", fields={"rcs": "RCS"})},
        global_frame=None,
        truth="/t",
    )
    file = tmp_path / "mapping.yaml"
    file.write_text(dump_mapping(mapping))
    assert load_mapping(file) == mapping


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cameras: {CAM: {image: /i, inof: /c}}", "cameras.CAM.inof: unknown key. Did you mean info?"),
        ("lidar: {}", "lidar: unknown key. Did you mean lidars?"),
        ("lidars: {L: {}}", "lidars.L.points: expected a value, got none"),
        ("ego_frame: map", "name at least one of cameras, lidars, radars"),
        ("lidars: {A: {points: /a}}\nradars: {A: {points: /b}}", "channel A is named twice"),
        ("lidars: {A: {points: /a, offset_s: .nan}}", "lidars.A.offset_s"),
        ("- a list", "expected keys such as cameras"),
        ("", "expected keys such as cameras"),
        ("{: [", "expected YAML"),
    ],
)
def test_faults_in_a_mapping_file_are_told_with_their_key(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mapping.yaml"
    file.write_text(text)
    with pytest.raises(LogError) as caught:
        load_mapping(file)
    assert words in str(caught.value)
    assert all(line.startswith(f"{file}: ") for line in str(caught.value).splitlines())


def test_a_missing_mapping_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="No such file"):
        load_mapping(tmp_path / "none.yaml")


def test_a_mapping_must_fit_the_log() -> None:
    log = listed(("/lidar", cloud("l", "x", "y", "z")), ("/camera", picture("c")))
    check_mapping(LogMapping(lidars={"A": LidarTopics(points="/lidar")}), log)
    with pytest.raises(
        LogError, match=r"lidars\.A\.points: no topic '/lidra'.* Did you mean /lidar\?.*/camera, /lidar"
    ):
        check_mapping(LogMapping(lidars={"A": LidarTopics(points="/lidra")}), log)
    with pytest.raises(LogError, match=r"radars\.R\.points: expected the topic /camera .*got EncodedImage.*: /lidar"):
        check_mapping(LogMapping(radars={"R": RadarTopics(points="/camera")}), log)
    foreign = ListedLog(
        [],
        (
            TopicInfo("/lidar", "sensor_msgs/msg/PointCloud2", "ros1", 1),
            TopicInfo("/film", "foxglove.CompressedVideo", "json", 1),
        ),
    )
    with pytest.raises(
        LogError, match=r"lidars\.A\.points: the topic /lidar in .* cannot be read: .*ROS 1.*rosbags-convert"
    ):
        check_mapping(LogMapping(lidars={"A": LidarTopics(points="/lidar")}), foreign)
    film = LogMapping(cameras={"C": CameraTopics(image="/film", info="/info")})
    more = (
        TopicInfo("/info", "foxglove.CameraCalibration", "json", 1),
        TopicInfo("/other", "foxglove.PointCloud", "json", 1),
    )
    with pytest.raises(LogError, match=r"cameras\.C\.image: the topic /film .* cannot be read: .*parts of a film"):
        check_mapping(film, ListedLog([], foreign.topics() + more))
    beside = {"A": LidarTopics(points="/lidar"), "B": LidarTopics(points="/other")}
    check_mapping(film.model_copy(update={"lidars": beside}), ListedLog([], foreign.topics() + more))
    with pytest.raises(
        LogError, match=r"lidars\.A\.points: expected the topic /film .* to be of type .*got foxglove.CompressedVideo"
    ):
        check_mapping(LogMapping(lidars={"A": LidarTopics(points="/film")}), foreign)
    silent = ListedLog([], (TopicInfo("/lidar", "sensor_msgs/msg/PointCloud2", "cdr", 0),))
    check_mapping(LogMapping(lidars={"A": LidarTopics(points="/lidar")}), silent)


def test_a_summary_tells_rates_gaps_frames_and_damage() -> None:
    said = [LogMessage("/lidar", n * SECOND // 10, 0, cloud("lidar", "x", "y", "z")) for n in (0, 1, 2, 7, 8)]
    said += [LogMessage("/lidar", SECOND, 0, Malformed("sensor_msgs/msg/PointCloud2", "expected"))]
    said += [LogMessage("/tf", SECOND, 0, moved("base_link", "lidar")), LogMessage("/tf", SECOND, 0, moved("a", "b"))]
    said += [LogMessage("/tf", SECOND, 0, moved("b", "a", static=True))]
    log = ListedLog(said, (TopicInfo("/silent", "x", "cdr", 0),), damage=Damage(truncated_at_byte=77))
    summary = inspect_log(log)
    topics = {topic.name: topic for topic in summary.topics}
    lidar = topics["/lidar"]
    assert (lidar.count, lidar.malformed, lidar.largest_gap_s, lidar.rate_hz) == (6, 1, 0.5, 5.0)
    assert (topics["/silent"].count, topics["/silent"].rate_hz, topics["/silent"].largest_gap_s) == (0, None, None)
    assert topics["/tf"].rate_hz is None
    assert (summary.span_ns, summary.duration_s) == ((0, SECOND), 1.0)
    assert list(summary.tree()) == [
        (0, "base_link", "root"), (1, "lidar", "moving"), (0, "a", "root"), (1, "b", "moving"),
        (2, "a", "static")
    ]  # fmt: skip
    out = io.StringIO()
    print_log_summary(summary, Console(file=out, width=60))
    text = out.getvalue()
    for word in ("damaged at byte 77", "/lidar", "0.500 s", "lidar (moving)", "LIDAR_TOP:", "points: /lidar"):
        assert word in text


def test_pictures_that_nothing_here_reads_are_named_with_their_reason() -> None:
    log = listed(
        ("/film", EncodedImage(0, "c", "h264", b"\0\0\0\x01\x67")), ("/film", EncodedImage(0, "c", "h264", b"\0\0\0\x01\x68")),
        ("/cut", EncodedImage(0, "c", "jpeg", b"\xff\xd8")), ("/range/image", RawImage(0, "c", "32FC1", 1, 1, 4, b"abcd")),
        ("/range/camera_info", calibration("c")), ("/lidar", cloud("l", "x", "y", "z")),
    )  # fmt: skip
    summary = inspect_log(log)
    topics = {topic.name: topic for topic in summary.topics}
    assert {name: topic.malformed for name, topic in topics.items() if topic.malformed} == {
        "/film": 2, "/cut": 1, "/range/image": 1
    }  # fmt: skip
    out = io.StringIO()
    print_log_summary(summary, Console(file=out, width=60))
    text = out.getvalue()
    assert "/film: 2 of 2 cannot be read, the first: expected a JPEG, PNG or WebP, got 5 bytes" in text
    assert "the log calls it 'h264'" in text
    assert "/cut: 1 of 1 cannot be read, the first: expected a whole JPEG" in text
    assert "/range/image: left out, expected a known layout of pixels, got '32FC1'" in text
    assert topics["/lidar"].reason == ""


def test_every_parent_of_a_frame_is_shown() -> None:
    said = [
        ("/tf", moved("map", "base_link")),
        ("/tf", moved("odom", "base_link")),
        ("/tf", moved("base_link", "lidar", static=True)),
    ]
    summary = inspect_log(listed(*said, ("/lidar", cloud("lidar", "x", "y", "z"))))
    assert list(summary.tree()) == [
        (0, "map", "root"),
        (1, "base_link", "moving"),
        (2, "lidar", "static"),
        (0, "odom", "root"),
        (1, "base_link", "moving"),
    ]
    assert summary.several_parents() == {"base_link": ["map", "odom"]}
    out = io.StringIO()
    print_log_summary(summary, Console(file=out, width=60))
    assert (
        "base_link has several parents, map, odom: a replay takes the shortest way, and tells where ways disagree"
        in out.getvalue()
    )


def test_an_empty_log_has_a_summary() -> None:
    summary = inspect_log(ListedLog([]))
    assert (summary.span_ns, summary.duration_s, summary.topics) == (None, 0.0, ())
    out = io.StringIO()
    print_log_summary(summary, Console(file=out))
    assert "no messages" in out.getvalue()


@pytest.mark.parametrize("others", [("x", "y", "z"), ("x", "y", "z", "intensity", "ring")])
def test_a_lidars_clouds_need_not_have_the_same_fields(others: tuple[str, ...]) -> None:
    array = np.zeros(3, np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("intensity", "f4", (2,))]))
    clouds = [
        cloud("top", "x", "y", "z", "intensity", value=0.5),
        cloud("top", *others, value=0.25),
        PointCloud(0, "top", array),
    ]
    proposed = propose_mapping(listed(*(("/lidar", one) for one in clouds))).mapping
    assert proposed is not None
    assert proposed.lidars["LIDAR_TOP"].intensity_scale == 255
