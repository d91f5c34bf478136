"""Mappings: proposed from a log, read from YAML, held against a log; and the summary of a log."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sensors.logs.inspect import inspect_log
from sensors.logs.log import Damage, LogError, Order, TopicInfo
from sensors.logs.mapping import CameraTopics, LidarTopics, LogMapping, RadarTopics
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
from sensors.logs.propose import check_mapping, dump_mapping, load_mapping, propose_mapping
from training.log_inspect import print_log_summary

SECOND = 1_000_000_000
BOX = TruthBox("a", "car", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0, 0.0))


@dataclass
class ListedLog:
    """A log of given messages; types are the payloads' names, as in nuScenes logs."""

    listed: list[LogMessage]
    silent: tuple[TopicInfo, ...] = ()
    path: Path = Path("listed")
    damage: Damage = field(default_factory=Damage)

    def topics(self) -> tuple[TopicInfo, ...]:
        kinds = {message.topic: type(message.payload).__name__ for message in reversed(self.listed)}
        return (*(TopicInfo(name, kind, "nuscenes", None) for name, kind in sorted(kinds.items())), *self.silent)

    def span_ns(self) -> tuple[int, int] | None:
        return (self.listed[0].log_time_ns, self.listed[-1].log_time_ns) if self.listed else None

    def messages(
        self,
        *,
        topics: Collection[str] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        order: Order = "log",
    ) -> Iterator[LogMessage]:
        assert (topics, start_ns, end_ns, order) == (None, None, None, "log")
        return iter(self.listed)


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
    assert "/words (Other)" in proposal.reasons[-1]
    assert propose_mapping(ListedLog([])).mapping is None


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
        (0, "base_link", "root"), (1, "lidar", "moving"), (0, "a", "root"), (1, "b", "moving")
    ]  # fmt: skip
    out = io.StringIO()
    print_log_summary(summary, Console(file=out, width=60))
    text = out.getvalue()
    for word in ("ends at byte 77", "/lidar", "0.500 s", "lidar (moving)", "LIDAR_TOP:", "points: /lidar"):
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


def test_an_empty_log_has_a_summary() -> None:
    summary = inspect_log(ListedLog([]))
    assert (summary.span_ns, summary.duration_s, summary.topics) == (None, 0.0, ())
    out = io.StringIO()
    print_log_summary(summary, Console(file=out))
    assert "no messages" in out.getvalue()
