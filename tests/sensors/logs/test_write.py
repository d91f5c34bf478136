"""What writing a log promises: every message, to the bit, for readers that are not ours; whole or not at all; the same bytes."""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory
from rosbags.highlevel import AnyReader
from rosbags.interfaces import ConnectionExtRosbag2, QosDurability

from sensors.calibration import transforms
from sensors.logs.log import LogError, LogWarning
from sensors.logs.messages import (
    EncodedImage,
    FrameTransforms,
    LogMessage,
    Malformed,
    Other,
    PointCloud,
    SceneBoxes,
)
from sensors.logs.nuscenes.log import NuScenesLog
from sensors.logs.open import open_log
from sensors.logs.ros2.types import typestore
from sensors.logs.write import LogFormat, write_log
from tests.sensors.logs.made_log import T0_NS, message, one_of_each, sqlite_bag, transform
from tests.sensors.logs.test_encode import same
from tests.sensors.replay.drive import MemoryLog
from tests.small_nuscenes import SmallNuScenes

FORMATS: tuple[LogFormat, ...] = ("foxglove", "ros2")


@pytest.fixture(scope="module")
def scene(small_nuscenes: SmallNuScenes) -> NuScenesLog:
    return NuScenesLog(small_nuscenes.config, "scene-0")


@pytest.fixture(scope="module")
def source(scene: NuScenesLog) -> list[LogMessage]:
    return list(scene.messages())


@pytest.fixture(scope="module")
def written(scene: NuScenesLog, tmp_path_factory: pytest.TempPathFactory) -> dict[LogFormat, Path]:
    folder = tmp_path_factory.mktemp("written")
    paths: dict[LogFormat, Path] = {kind: folder / f"{kind}.mcap" for kind in FORMATS}  # rosbags goes by the ending
    for kind, path in paths.items():
        write_log(scene, path, kind)
    return paths


def foxglove_messages(path: Path) -> Iterator[tuple[Any, Any, Any, Any]]:
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        yield from reader.iter_decoded_messages(log_time_order=False)


def of_topic(source: list[LogMessage], topic: str) -> list[LogMessage]:
    return [m for m in source if m.topic == topic]


def test_mcap_reads_pictures_and_points_to_the_bit(written: dict[LogFormat, Path], source: list[LogMessage]) -> None:
    found: dict[str, list[tuple[Any, Any]]] = {}
    for _, channel, record, decoded in foxglove_messages(written["foxglove"]):
        found.setdefault(channel.topic, []).append((record, decoded))
    for topic in ("/cam_front/image_rect_compressed", "/lidar_top", "/radar_front"):
        for wanted, (record, decoded) in zip(of_topic(source, topic), found[topic], strict=True):
            assert isinstance(wanted.payload, EncodedImage | PointCloud)
            data = wanted.payload.data if isinstance(wanted.payload, EncodedImage) else wanted.payload.points.tobytes()
            assert decoded.data == data
            assert (record.log_time, record.publish_time) == (wanted.log_time_ns, wanted.publish_time_ns)
            assert decoded.timestamp.ToNanoseconds() == wanted.payload.stamp_ns
            assert decoded.frame_id == wanted.payload.frame_id


def test_rosbags_reads_pictures_points_and_poses_to_the_bit(
    written: dict[LogFormat, Path], source: list[LogMessage]
) -> None:
    by_topic: dict[str, Iterator[LogMessage]] = {
        topic: iter(of_topic(source, topic)) for topic in {m.topic for m in source}
    }
    with AnyReader([written["ros2"]], default_typestore=typestore()) as reader:
        assert reader.message_count == len(source)
        for connection, time_ns, raw in reader.messages():
            decoded: Any = reader.deserialize(raw, connection.msgtype)
            wanted = next(by_topic[connection.topic])
            assert time_ns == wanted.log_time_ns
            if isinstance(wanted.payload, EncodedImage):
                assert decoded.data.tobytes() == wanted.payload.data
            elif isinstance(wanted.payload, PointCloud):
                assert decoded.data.tobytes() == wanted.payload.points.tobytes()
            elif isinstance(wanted.payload, FrameTransforms):
                for one, other in zip(decoded.transforms, wanted.payload.transforms, strict=True):
                    t, q = one.transform.translation, one.transform.rotation
                    assert (t.x, t.y, t.z, q.w, q.x, q.y, q.z) == (*other.translation_m, *other.rotation_wxyz)
                    assert (one.header.frame_id, one.child_frame_id) == (other.parent, other.child)
    assert not [topic for topic, rest in by_topic.items() if list(rest)]


@pytest.mark.parametrize("kind", FORMATS)
def test_our_own_reader_gives_the_source_back(
    written: dict[LogFormat, Path], source: list[LogMessage], kind: LogFormat
) -> None:
    """Apart from what a format has no place for, and static transforms in Foxglove."""
    log = open_log(written[kind])
    again = list(log.messages())
    assert not log.damage
    for topic in ("/cam_front/image_rect_compressed", "/cam_front/camera_info", "/lidar_top", "/radar_front"):
        wanted, found = of_topic(source, topic), of_topic(again, topic)
        assert [m.log_time_ns for m in found] == [m.log_time_ns for m in wanted]
        assert all(same(a.payload, b.payload) for a, b in zip(found, wanted, strict=True))
    boxes = [m.payload for m in of_topic(again, "/markers/annotations")]
    truth = [m.payload for m in of_topic(source, "/markers/annotations")]
    if kind == "foxglove":
        assert same(boxes, truth)
    else:
        assert same(of_topic(again, "/tf_static")[0].payload, of_topic(source, "/tf_static")[0].payload)
        for a, b in zip(boxes, truth, strict=True):
            assert isinstance(a, SceneBoxes)
            assert isinstance(b, SceneBoxes)
            assert [(box.id, box.category, box.size_m) for box in a.boxes] == [
                (box.id, box.category, box.size_m) for box in b.boxes
            ]


def test_a_bag_that_rosbags_puts_into_sqlite_says_the_same(written: dict[LogFormat, Path], tmp_path: Path) -> None:
    ours, theirs = (
        list(open_log(path).messages()) for path in (written["ros2"], sqlite_bag(written["ros2"], tmp_path / "a"))
    )
    assert [(m.topic, m.log_time_ns) for m in theirs] == [(m.topic, m.log_time_ns) for m in ours]
    assert all(same(a.payload, b.payload) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_log_gives_the_same_bytes(
    written: dict[LogFormat, Path], scene: NuScenesLog, tmp_path: Path, kind: LogFormat
) -> None:
    again = tmp_path / written[kind].name
    write_log(scene, again, kind)
    assert again.read_bytes() == written[kind].read_bytes()


def test_foxglove_has_a_connected_tree_from_the_start_and_at_least_once_a_second(
    written: dict[LogFormat, Path], small_nuscenes: SmallNuScenes
) -> None:
    told: dict[str, list[int]] = {}
    parents: dict[str, str] = {}
    sensors, last_ns, seen_before_tree = set(), 0, []
    for schema, channel, record, decoded in foxglove_messages(written["foxglove"]):
        last_ns = record.log_time
        if schema.name == "foxglove.FrameTransforms":
            assert channel.topic == "/tf"
            for one in decoded.transforms:
                parents[one.child_frame_id] = one.parent_frame_id
                told.setdefault(one.child_frame_id, []).append(one.timestamp.ToNanoseconds())
        elif hasattr(decoded, "frame_id"):
            sensors.add(decoded.frame_id)
            if decoded.frame_id not in parents:
                seen_before_tree.append(decoded.frame_id)
    assert sensors == {"CAM_FRONT", "LIDAR_TOP", "RADAR_FRONT"}
    assert not seen_before_tree
    assert parents == {**dict.fromkeys(sensors, "base_link"), "base_link": "map"}
    for child in sensors:
        assert np.diff([*told[child], last_ns]).max() <= 1e9


def test_points_stand_in_the_world_through_the_transforms_of_the_file(
    written: dict[LogFormat, Path], small_nuscenes: SmallNuScenes
) -> None:
    """The drive's world is fixed: every sweep, carried by the file's own tree, must hit it."""
    poses: dict[tuple[str, int], Any] = {}
    for schema, _, _, decoded in foxglove_messages(written["foxglove"]):
        if schema.name == "foxglove.FrameTransforms":
            for one in decoded.transforms:
                t, q = one.translation, one.rotation
                matrix = transforms([t.x, t.y, t.z, q.w, q.x, q.y, q.z])
                poses[one.child_frame_id, one.timestamp.ToNanoseconds()] = poses[one.child_frame_id, 0] = matrix
        elif schema.name == "foxglove.PointCloud":
            names = {field.name: field.offset for field in decoded.fields}
            assert [names[name] for name in "xyz"] == [0, 4, 8]
            rows = np.frombuffer(decoded.data, np.uint8).reshape(-1, decoded.point_stride)[:, :12]
            xyz = np.ascontiguousarray(rows).view("<f4").astype(np.float64)
            global_T_ego = poses["base_link", decoded.timestamp.ToNanoseconds()]
            global_T_sensor = global_T_ego @ poses[decoded.frame_id, 0]
            np.testing.assert_allclose(
                xyz @ global_T_sensor[:3, :3].T + global_T_sensor[:3, 3], small_nuscenes.world_m, atol=1e-4
            )


def test_ros2_bags_latch_static_transforms_and_name_published_types(written: dict[LogFormat, Path]) -> None:
    with AnyReader([written["ros2"]], default_typestore=typestore()) as reader:
        connections = {connection.topic: connection for connection in reader.connections}
    types = {topic: connection.msgtype for topic, connection in connections.items()}
    assert types == {
        "/cam_front/image_rect_compressed": "sensor_msgs/msg/CompressedImage",
        "/cam_front/camera_info": "sensor_msgs/msg/CameraInfo",
        "/lidar_top": "sensor_msgs/msg/PointCloud2",
        "/radar_front": "sensor_msgs/msg/PointCloud2",
        "/tf": "tf2_msgs/msg/TFMessage",
        "/tf_static": "tf2_msgs/msg/TFMessage",
        "/markers/annotations": "vision_msgs/msg/Detection3DArray",
    }
    for topic, connection in connections.items():
        assert isinstance(connection.ext, ConnectionExtRosbag2)
        (qos,) = connection.ext.offered_qos_profiles
        latched = qos.durability is QosDurability.TRANSIENT_LOCAL
        assert latched is (topic == "/tf_static")
        if connection.digest:  # rosbags computes it from the definition in the file
            assert connection.digest == typestore().hash_rihs01(connection.msgtype)


def test_a_ros2_mcap_carries_what_rosbag2_keeps_beside_its_bags(
    written: dict[LogFormat, Path], source: list[LogMessage]
) -> None:
    with written["ros2"].open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        assert reader.get_header().profile == "ros2"
        (record,) = reader.iter_metadata()
        summary = reader.get_summary()
    assert record.name == "rosbag2"
    bag = json.loads(record.metadata["serialized_metadata"])
    assert bag["message_count"] == len(source)
    assert bag["starting_time"]["nanoseconds_since_epoch"] == source[0].log_time_ns
    assert bag["duration"]["nanoseconds"] == source[-1].log_time_ns - source[0].log_time_ns
    counts = {t["topic_metadata"]["name"]: t["message_count"] for t in bag["topics_with_message_count"]}
    assert counts == Counter(m.topic for m in source)
    assert summary is not None
    assert {schema.encoding for schema in summary.schemas.values()} == {"ros2msg"}


@pytest.mark.parametrize("kind", FORMATS)
def test_progress_is_told(tmp_path: Path, kind: LogFormat) -> None:
    told: list[tuple[int, int]] = []
    pictures = MemoryLog([message("/a", EncodedImage(T0_NS, "c", "jpeg", b"x"), n) for n in range(7)])
    write_log(pictures, tmp_path / "a", "ros2")
    log = open_log(tmp_path / "a")
    assert write_log(log, tmp_path / "b", kind, progress=lambda done, total: told.append((done, total))) == 7
    assert told == [(n, 7) for n in range(1, 8)]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_cannot_be_written_is_left_out_and_counted(tmp_path: Path, kind: LogFormat) -> None:
    made = MemoryLog(
        [
            *(message(topic, payload, i) for i, (topic, payload) in enumerate(one_of_each().items())),
            message("/lidar_top", Malformed("x", "expected whole points, got 7 bytes"), 20),
            message("/lidar_top", Malformed("x", "another"), 21),
            message("/speech", Other("made/msg/Up", b""), 22),
        ]
    )
    with pytest.warns(LogWarning) as told:
        count = write_log(made, tmp_path / "a", kind)
    assert count == len(one_of_each())
    texts = [str(warning.message) for warning in told]
    assert len(texts) == 2
    assert "/lidar_top: 2 messages left out" in texts[0]
    assert "expected whole points, got 7 bytes" in texts[0]
    assert "/speech: 1 messages left out" in texts[1]


@pytest.mark.parametrize("kind", FORMATS)
def test_errors_say_why_and_leave_nothing_behind(tmp_path: Path, kind: LogFormat) -> None:
    with pytest.raises(LogError, match="no message to write"):
        write_log(MemoryLog([]), tmp_path / "a", kind)
    broken = MemoryLog([message("/a", Malformed("x", "it is broken"))])
    with pytest.raises(LogError, match=r"no message to write.*it is broken"):
        write_log(broken, tmp_path / "a", kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore::sensors.logs.log.LogWarning")
def test_a_log_that_is_cut_off_is_written_as_far_as_it_goes(
    written: dict[LogFormat, Path], tmp_path: Path, kind: LogFormat
) -> None:
    whole = written["ros2"].read_bytes()
    (tmp_path / "cut.mcap").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.warns(LogWarning):
        readable = list(open_log(tmp_path / "cut.mcap").messages())
    log = open_log(tmp_path / "cut.mcap")
    write_log(log, tmp_path / "a", kind)
    assert log.damage.truncated_at_byte is not None
    again = [m for m in open_log(tmp_path / "a").messages() if m.topic != "/tf"]
    assert 0 < len(again) < len(readable)
    assert all(m.topic == "/tf_static" or same(m, n) for m, n in zip(again, of_other(log, kind), strict=True))


def of_other(log: Any, kind: LogFormat) -> list[LogMessage]:
    """All but transforms, which Foxglove has elsewhere."""
    static = ("/tf",) if kind != "foxglove" else ("/tf", "/tf_static")
    return [m for m in log.messages() if m.topic not in static]


def test_an_unknown_format_lists_those_that_there_are(scene: NuScenesLog, tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"'rosbag1'.*foxglove, ros2"):
        write_log(scene, tmp_path / "a", "rosbag1")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_source_that_fails_on_the_way_leaves_what_was_there(tmp_path: Path, kind: LogFormat) -> None:
    class Failing(MemoryLog):
        def messages(self, **_: Any) -> Iterator[LogMessage]:
            yield message("/a", EncodedImage(T0_NS, "c", "jpeg", b"x"))
            raise RuntimeError("the disk went away")

    made = MemoryLog([message("/a", EncodedImage(T0_NS, "c", "jpeg", b"old"))])
    write_log(made, tmp_path / "a", kind)
    with pytest.raises(LogError, match="exists already"):
        write_log(made, tmp_path / "a", kind)
    with pytest.raises(RuntimeError, match="went away"):
        write_log(Failing(()), tmp_path / "a", kind, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (old,) = open_log(tmp_path / "a").messages()
    assert isinstance(old.payload, EncodedImage)
    assert old.payload.data == b"old"
    new = MemoryLog([message("/a", EncodedImage(T0_NS, "c", "jpeg", b"new"))])
    assert write_log(new, tmp_path / "a", kind, overwrite=True) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (found,) = open_log(tmp_path / "a").messages()
    assert isinstance(found.payload, EncodedImage)
    assert found.payload.data == b"new"


def test_every_parent_of_a_static_frame_is_repeated_for_foxglove(tmp_path: Path) -> None:
    edges = {("base_link", "lidar"), ("calib", "lidar"), ("base_footprint", "base_link"), ("lidar", "base_link")}
    static = FrameTransforms(tuple(transform(parent, child) for parent, child in sorted(edges)), static=True)
    picture = EncodedImage(T0_NS, "CAM_FRONT", "jpeg", b"x")
    made = MemoryLog([message("/tf_static", static), *(message("/cam", picture, n * 300_000_000) for n in range(3))])
    write_log(made, tmp_path / "a.mcap", "foxglove")
    sent = [m.payload for m in open_log(tmp_path / "a.mcap").messages() if isinstance(m.payload, FrameTransforms)]
    assert len(sent) > 1
    assert all({(one.parent, one.child) for one in each.transforms} == edges for each in sent)


def test_static_transforms_that_come_late_stand_at_the_beginning_of_a_foxglove_file(tmp_path: Path) -> None:
    picture = EncodedImage(T0_NS, "CAM_FRONT", "jpeg", b"x")
    made = MemoryLog(
        [
            message("/cam", picture),
            message("/tf_static", FrameTransforms((transform("base_link", "CAM_FRONT"),), static=True), 50_000_000),
            message(
                "/tf_static", FrameTransforms((transform("base_link", "CAM_FRONT", 9.0),), static=True), 60_000_000
            ),
            message("/cam", picture, 3_000_000_000),
        ]
    )
    write_log(made, tmp_path / "a", "foxglove")
    order = [
        (channel.topic, record.log_time - T0_NS, [t.translation.x for t in getattr(decoded, "transforms", [])])
        for _, channel, record, decoded in foxglove_messages(tmp_path / "a")
    ]
    assert order == [
        ("/tf", 0, [1.5]),
        ("/cam", 0, []),
        ("/tf", 60_000_000, [9.0]),
        ("/tf", 3_000_000_000, [9.0]),
        ("/cam", 3_000_000_000, []),
    ]


def test_ros2_puts_transforms_where_tf2_listens(tmp_path: Path) -> None:
    made = MemoryLog(
        [
            message("/tf", FrameTransforms((transform("base_link", "CAM_FRONT"),), static=True)),
            message("/tf", FrameTransforms((transform("map", "base_link"),), static=False), 1),
        ]
    )
    write_log(made, tmp_path / "a", "ros2")
    assert {topic.name for topic in open_log(tmp_path / "a").topics()} == {"/tf", "/tf_static"}


@pytest.mark.parametrize(("kind", "library"), [("foxglove", "foxglove"), ("ros2", "rosbags.typesys")])
def test_a_missing_library_names_the_extra(
    scene: NuScenesLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: LogFormat, library: str
) -> None:
    typestore.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"pip install 'robustbev\[replay\]'"):
        write_log(scene, tmp_path / "a", kind)
    assert not list(tmp_path.iterdir())


def test_a_real_ros2_drive_becomes_a_foxglove_file_and_a_bag_again(tmp_path: Path, kitti_drive: Path) -> None:
    log = open_log(kitti_drive)
    source = list(log.messages())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_log(log, tmp_path / "fox.mcap", "foxglove")
        write_log(log, tmp_path / "ros.mcap", "ros2")
    for name in ("fox.mcap", "ros.mcap"):
        again = list(open_log(tmp_path / name).messages())
        for topic in ("/cam_front/image_rect_compressed", "/cam_front/camera_info", "/lidar_top"):
            for a, b in zip(of_topic(again, topic), of_topic(source, topic), strict=True):
                assert same(a, b), topic


@pytest.fixture(scope="module")
def kitti_drive() -> Path:
    path = Path(__file__).resolve().parents[3].parent / "shared" / "real" / "kitti-drive.mcap"
    if not path.is_file():
        pytest.skip(f"no real ROS 2 drive: expected it at ../shared/real/kitti-drive.mcap ({path})")
    return path
