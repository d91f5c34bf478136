"""What a nuScenes scene as a log promises: every reading of every channel, in the order of time, as it was measured."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg

from sensors.calibration import transforms
from sensors.camera.depth import project
from sensors.logs.log import Log, LogError
from sensors.logs.messages import (
    CameraInfo,
    EncodedImage,
    FrameTransforms,
    LogMessage,
    Malformed,
    PointCloud,
    SceneBoxes,
)
from sensors.logs.nuscenes.log import NuScenesLog, mapping_of_nuscenes, scene_names
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import open_index
from sensors.nuscenes.reader import NuScenesReader
from tests.sensors.logs.test_encode import same
from tests.small_nuscenes import CHANNELS, INTRINSICS, VERSION, SmallNuScenes, ego_pose

START_US = 1_600_000_000_000_000


@pytest.fixture
def copied(small_nuscenes: SmallNuScenes, tmp_path: Path) -> NuScenesConfig:
    """A copy whose files may be broken."""
    shutil.copytree(small_nuscenes.root, tmp_path / "copy", ignore=shutil.ignore_patterns(".robustbev*"))
    return small_nuscenes.config.model_copy(update={"root": tmp_path / "copy"})


@pytest.fixture
def swept(copied: NuScenesConfig) -> NuScenesConfig:
    """With a sweep of the camera between the first two keyframes of scene-0, as real nuScenes has them."""
    tables = copied.root / VERSION
    data, poses = (json.loads((tables / f"{name}.json").read_text()) for name in ("sample_data", "ego_pose"))
    rows = {row["token"]: row for row in data}
    before, after = rows["CAM_FRONT-0-0"], rows["CAM_FRONT-0-1"]
    time_us = before["timestamp"] + 250_000
    ego = ego_pose(time_us - START_US)
    poses.append({"token": "sweep", "timestamp": time_us, "translation": list(ego[:3]), "rotation": list(ego[3:])})
    sweep = before | {
        "token": "sweep", "ego_pose_token": "sweep", "timestamp": time_us, "is_key_frame": False,
        "sample_token": after["sample_token"], "filename": "sweeps/CAM_FRONT/sweep.jpg",
        "prev": before["token"], "next": after["token"],
    }  # fmt: skip
    before["next"] = after["prev"] = "sweep"
    data.insert(3, sweep)
    (tables / "sample_data.json").write_text(json.dumps(data))
    (tables / "ego_pose.json").write_text(json.dumps(poses))
    shutil.copy(copied.root / before["filename"], copied.root / sweep["filename"])
    return copied


def by_topic(log: Log, **asked: Any) -> dict[str, list[LogMessage]]:
    found: dict[str, list[LogMessage]] = {}
    for message in log.messages(**asked):
        found.setdefault(message.topic, []).append(message)
    return found


def test_a_scene_has_all_readings_in_order_as_counted(small_nuscenes: SmallNuScenes) -> None:
    log = NuScenesLog(small_nuscenes.config, "scene-0")
    messages = list(log.messages())
    times = [message.log_time_ns for message in messages]
    assert times == sorted(times)
    assert log.span_ns() == (times[0], times[-1])
    assert times[0] == (START_US - 30_000) * 1000
    counts = Counter(message.topic for message in messages)
    assert counts == {topic.name: topic.count for topic in log.topics() if topic.count}
    assert {"/cam_back/camera_info", "/lidar_front", "/radar_back_left"} <= {topic.name for topic in log.topics()}
    assert counts == {
        "/cam_front/image_rect_compressed": 3, "/cam_front/camera_info": 3, "/lidar_top": 7, "/radar_front": 7,
        "/tf": 17, "/tf_static": 1, "/markers/annotations": 3,
    }  # fmt: skip
    assert all(message.publish_time_ns == message.log_time_ns for message in messages)
    assert [m.topic for m in messages[:4]] == [
        "/tf_static", "/tf", "/cam_front/camera_info", "/cam_front/image_rect_compressed"
    ]  # fmt: skip


def test_readings_are_the_files_and_calibrations_the_tables(small_nuscenes: SmallNuScenes) -> None:
    found = by_topic(NuScenesLog(small_nuscenes.config, "scene-1"))
    picture = found["/cam_front/image_rect_compressed"][1].payload
    assert isinstance(picture, EncodedImage)
    assert picture.data == (small_nuscenes.root / "samples/CAM_FRONT/CAM_FRONT-1-1.jpg").read_bytes()
    assert (picture.frame_id, picture.format, picture.stamp_ns) == ("CAM_FRONT", "jpeg", (START_US + 20_470_000) * 1000)
    info = found["/cam_front/camera_info"][1].payload
    assert isinstance(info, CameraInfo)
    assert (info.width_px, info.height_px, info.stamp_ns) == (320, 180, picture.stamp_ns)
    assert info.K.tolist() == INTRINSICS
    np.testing.assert_array_equal(info.P, np.hstack([info.K, np.zeros((3, 1))]))
    np.testing.assert_array_equal(info.R, np.eye(3))
    lidar = found["/lidar_top"][3].payload
    assert isinstance(lidar, PointCloud)
    assert lidar.points.dtype.names == ("x", "y", "z", "intensity", "ring")
    assert lidar.points.tobytes() == (small_nuscenes.root / "samples/LIDAR_TOP/LIDAR_TOP-1-3.pcd.bin").read_bytes()
    radar = found["/radar_front"][1].payload
    assert isinstance(radar, PointCloud)
    assert radar.points.dtype.names is not None
    assert {"x", "y", "z", "rcs", "vx", "vy", "vx_comp", "vy_comp", "dyn_prop", "pdh0"} <= set(radar.points.dtype.names)
    assert radar.points.tobytes() in (small_nuscenes.root / "sweeps/RADAR_FRONT/RADAR_FRONT-1-1.pcd").read_bytes()


def test_every_sweep_stands_in_the_world_through_the_logs_own_transforms(small_nuscenes: SmallNuScenes) -> None:
    found = by_topic(NuScenesLog(small_nuscenes.config, "scene-0"))
    (static,) = found["/tf_static"]
    assert isinstance(static.payload, FrameTransforms)
    assert static.payload.static
    ego_T_sensor = {t.child: transforms([*t.translation_m, *t.rotation_wxyz]) for t in static.payload.transforms}
    assert {t.parent for t in static.payload.transforms} == {"base_link"}
    assert set(ego_T_sensor) == {"CAM_FRONT", "LIDAR_TOP", "RADAR_FRONT"}
    map_T_ego = {}
    for message in found["/tf"]:
        assert isinstance(message.payload, FrameTransforms)
        (pose,) = message.payload.transforms
        assert (pose.parent, pose.child, message.payload.static) == ("map", "base_link", False)
        map_T_ego[pose.stamp_ns] = transforms([*pose.translation_m, *pose.rotation_wxyz])
    for message in (*found["/lidar_top"], *found["/radar_front"]):
        cloud = message.payload
        assert isinstance(cloud, PointCloud)
        xyz = np.stack([cloud.points[name] for name in "xyz"], axis=1).astype(np.float64)
        there = map_T_ego[cloud.stamp_ns] @ ego_T_sensor[cloud.frame_id]
        np.testing.assert_allclose(xyz @ there[:3, :3].T + there[:3, 3], small_nuscenes.world_m, atol=1e-4)


def test_boxes_come_at_keyframes_with_all_that_is_annotated(small_nuscenes: SmallNuScenes) -> None:
    found = by_topic(NuScenesLog(small_nuscenes.config, "scene-0"))["/markers/annotations"]
    assert [message.log_time_ns for message in found] == [(START_US + k * 500_000) * 1000 for k in range(3)]
    boxes = found[1].payload
    assert isinstance(boxes, SceneBoxes)
    assert boxes.frame_id == "map"
    car, child = boxes.boxes
    assert (car.id, car.category, car.attribute, car.num_points) == ("car-0", "vehicle.car", "vehicle.moving", 22)
    assert (car.center_m, car.size_m) == ((513.0, 903.5, 0.9), (1.9, 4.6, 1.7))
    assert car.velocity_mps == pytest.approx((2.0, 1.0))
    assert (child.category, child.attribute, child.velocity_mps) == ("human.pedestrian.child", "", None)
    last = found[2].payload
    assert isinstance(last, SceneBoxes)
    assert [box.id for box in last.boxes] == ["car-0"]


def test_sweeps_of_cameras_are_in_the_index_and_keyframes_stay_what_they_are(
    swept: NuScenesConfig, small_nuscenes: SmallNuScenes
) -> None:
    index = open_index(swept)
    arrays, camera = index.arrays, index.meta.channels.index("CAM_FRONT")
    keyframes = [arrays.data_token[row].decode() for row in arrays.keyframe[:3, camera]]
    assert keyframes == ["CAM_FRONT-0-0", "CAM_FRONT-0-1", "CAM_FRONT-0-2"]
    before = int(arrays.data_prev[arrays.keyframe[1, camera]])
    assert arrays.data_token[before] == b"sweep"
    assert arrays.data_prev[before] == arrays.keyframe[0, camera]
    rows = index.data_of_scene(0)
    assert len(rows) == 18
    assert (np.diff(arrays.data_time_us[rows]) >= 0).all()
    assert {index.meta.channels[channel] for channel in arrays.data_channel[rows]} == set(CHANNELS)
    frame, same = (
        NuScenesReader(swept, "small_train").frame(1),
        NuScenesReader(small_nuscenes.config, "small_train").frame(1),
    )
    assert frame.cameras is not None
    assert same.cameras is not None
    assert frame.cameras[0] is not None
    assert same.cameras[0] is not None
    assert frame.cameras[0].time_us == same.cameras[0].time_us
    found = by_topic(NuScenesLog(swept, "scene-0"))
    assert [(m.log_time_ns // 1000 - START_US) for m in found["/cam_front/image_rect_compressed"]] == [
        -30_000, 220_000, 470_000, 970_000
    ]  # fmt: skip


def test_an_index_of_an_older_format_is_left_alone_and_a_new_one_built(copied: NuScenesConfig) -> None:
    old = copied.root / VERSION / ".robustbev-index-0123456789abcdef"
    old.mkdir()
    (old / "meta.json").write_text("{}")
    assert open_index(copied).path != old
    assert old.exists()


def test_reading_twice_gives_the_same(small_nuscenes: SmallNuScenes) -> None:
    log = NuScenesLog(small_nuscenes.config, "scene-0")
    assert all(same(a, b) for a, b in zip(log.messages(), log.messages(), strict=True))


def test_a_span_begins_with_what_was_latched_before_it(small_nuscenes: SmallNuScenes) -> None:
    log = NuScenesLog(small_nuscenes.config, "scene-0")
    whole = list(log.messages())
    start_ns, end_ns = (START_US + 500_000) * 1000, (START_US + 900_000) * 1000
    part = list(log.messages(start_ns=start_ns, end_ns=end_ns))
    assert [(m.topic, m.log_time_ns // 1000 - START_US) for m in part[:2]] == [
        ("/tf_static", -30_000),
        ("/cam_front/camera_info", 470_000),
    ]
    inside = [m for m in whole if start_ns <= m.log_time_ns < end_ns]
    assert inside
    assert all(same(a, b) for a, b in zip(part[2:], inside, strict=True))
    assert [m.topic for m in log.messages(topics=["/tf_static"], start_ns=start_ns)] == ["/tf_static"]
    assert [m.topic for m in log.messages(topics=["/lidar_top"], start_ns=start_ns, end_ns=start_ns + 1)] == [
        "/lidar_top"
    ]
    late = list(log.messages(start_ns=10**19))
    assert [m.topic for m in late] == ["/tf_static", "/cam_front/camera_info"]


def test_points_of_other_columns_are_read_by_their_names(copied: NuScenesConfig) -> None:
    path = copied.root / "samples/LIDAR_TOP/LIDAR_TOP-0-0.pcd.bin"
    points = np.fromfile(path, "<f4").reshape(-1, 5)
    points[:, [3, 0, 1, 2]].tofile(path)  # intensity first, no ring
    config = copied.model_copy(update={"lidar_columns": ("intensity", "x", "y", "z")})
    cloud = next(m.payload for m in NuScenesLog(config, "scene-0").messages() if m.topic == "/lidar_top")
    assert isinstance(cloud, PointCloud)
    for name, column in (("x", 0), ("z", 2), ("intensity", 3)):
        np.testing.assert_array_equal(cloud.points[name], points[:, column])
    assert (cloud.points["ring"] == -1).all()


def test_a_picture_in_png_is_read_by_the_log_and_by_the_reader(copied: NuScenesConfig) -> None:
    path = copied.root / "samples/CAM_FRONT/CAM_FRONT-0-1.jpg"
    image = simplejpeg.decode_jpeg(path.read_bytes(), "BGR", fastupsample=True)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    log = NuScenesLog(copied, "scene-0")
    payloads = [message.payload for message in log.messages() if message.topic.endswith("compressed")]
    assert [payload.format for payload in payloads if isinstance(payload, EncodedImage)] == ["jpeg", "png", "jpeg"]
    assert not log.damage
    reader = NuScenesReader(copied, copied.train_split)
    (read,) = [camera for camera in reader.frame(1).cameras or () if camera is not None]
    np.testing.assert_array_equal(read.image, image[..., ::-1])


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("samples/CAM_FRONT/CAM_FRONT-0-1.jpg", lambda data: data[:-400], "expected a whole JPEG.*without its end"),
        ("samples/CAM_FRONT/CAM_FRONT-0-1.jpg", lambda _: b"no picture", "expected a JPEG.*6e 6f"),
        ("samples/CAM_FRONT/CAM_FRONT-0-1.jpg", lambda _: b"", "0 bytes"),
        ("sweeps/LIDAR_TOP/LIDAR_TOP-0-1.pcd.bin", lambda data: data[:-3], "whole points"),
        ("sweeps/RADAR_FRONT/RADAR_FRONT-0-1.pcd", lambda data: data[:500], "fields|points|POINTS|header"),
        ("sweeps/LIDAR_TOP/LIDAR_TOP-0-1.pcd.bin", None, "none there"),
    ],
)
def test_a_broken_file_is_a_malformed_message_and_counted(
    copied: NuScenesConfig, file: str, change: Any, words: str
) -> None:
    path = copied.root / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    log = NuScenesLog(copied, "scene-0")
    broken = [message for message in log.messages() if isinstance(message.payload, Malformed)]
    assert len(broken) == 1
    (reason,) = [m.payload.reason for m in broken if isinstance(m.payload, Malformed)]

    assert re.search(words, reason)
    assert path.name in reason
    assert log.damage.malformed == {broken[0].topic: 1}
    assert len(list(log.messages())) == 41


def test_a_calibration_that_changes_is_told_again_when_it_does(copied: NuScenesConfig) -> None:
    tables = copied.root / VERSION
    calibrations = json.loads((tables / "calibrated_sensor.json").read_text())
    data = json.loads((tables / "sample_data.json").read_text())
    knocked = next(row for row in calibrations if row["token"] == "calibration-LIDAR_TOP")
    calibrations.append(knocked | {"token": "knocked", "translation": [0.9, 0.0, 1.7]})
    for row in data:
        if row["token"].startswith("LIDAR_TOP-0-") and row["token"] >= "LIDAR_TOP-0-4":
            row["calibrated_sensor_token"] = "knocked"
    (tables / "calibrated_sensor.json").write_text(json.dumps(calibrations))
    (tables / "sample_data.json").write_text(json.dumps(data))
    log = NuScenesLog(copied, "scene-0")
    messages = list(log.messages(topics=["/tf_static", "/lidar_top"]))
    assert [m.topic for m in messages].index("/tf_static", 1) == 5  # just before the fifth sweep
    told = messages[5].payload
    assert isinstance(told, FrameTransforms)
    assert [(t.child, t.translation_m[2]) for t in told.transforms] == [("LIDAR_TOP", 1.7)]
    assert {t.name: t.count for t in log.topics()}["/tf_static"] == 2


def test_readings_of_one_time_share_one_pose(copied: NuScenesConfig) -> None:
    """A tree of transforms holds one pose a time."""
    table = copied.root / VERSION / "sample_data.json"
    data = json.loads(table.read_text())
    lidar = next(row for row in data if row["token"] == "LIDAR_TOP-0-2")
    next(row for row in data if row["token"] == "RADAR_FRONT-0-2")["timestamp"] = lidar["timestamp"]
    table.write_text(json.dumps(data))
    log = NuScenesLog(copied, "scene-0")
    found = by_topic(log)
    times = [message.log_time_ns for message in found["/tf"]]
    assert lidar["timestamp"] * 1000 in times
    assert len(set(times)) == len(times) == 16
    assert {topic.name: topic.count for topic in log.topics()}["/tf"] == 16
    assert len(found["/radar_front"]) == len(found["/lidar_top"]) == 7


def test_tables_without_annotations_say_nothing_of_boxes(copied: NuScenesConfig) -> None:
    """As those of nuScenes' test split: no truth is not the truth that nothing is there."""
    for table in ("sample_annotation", "instance"):
        (copied.root / VERSION / f"{table}.json").write_text("[]")
    assert "/markers/annotations" not in by_topic(NuScenesLog(copied, "scene-0"))
    assert mapping_of_nuscenes(copied).truth is None


def test_the_mapping_names_the_channels_that_are_there(small_nuscenes: SmallNuScenes) -> None:
    config = small_nuscenes.config.model_copy(update={"radar_channels": ("RADAR_FRONT", "RADAR_ROOF")})
    mapping = mapping_of_nuscenes(config)
    assert (list(mapping.cameras), list(mapping.lidars), list(mapping.radars)) == (
        ["CAM_FRONT"], ["LIDAR_TOP"], ["RADAR_FRONT"]
    )  # fmt: skip
    topics = {topic.name for topic in NuScenesLog(small_nuscenes.config, "scene-0").topics()}
    assert {mapping.cameras["CAM_FRONT"].image, mapping.cameras["CAM_FRONT"].info} <= topics
    assert {mapping.lidars["LIDAR_TOP"].points, mapping.radars["RADAR_FRONT"].points, mapping.truth} <= topics
    nothing = small_nuscenes.config.model_copy(
        update={"camera_channels": ("CAM_SIDE",), "lidar_channels": (), "radar_channels": ()}
    )
    with pytest.raises(LogError, match=r"CAM_SIDE.*CAM_FRONT, LIDAR_FRONT, LIDAR_TOP"):
        mapping_of_nuscenes(nothing)


def test_scenes_are_listed_and_an_unknown_one_names_some(small_nuscenes: SmallNuScenes) -> None:
    assert scene_names(small_nuscenes.config) == ("scene-0", "scene-1")
    with pytest.raises(LogError, match=r"no scene 'scene-7'\. There are scene-0, scene-1"):
        NuScenesLog(small_nuscenes.config, "scene-7")


def test_the_real_keyframe_is_a_scene_of_one_moment(real_config: NuScenesConfig) -> None:
    (scene,) = scene_names(real_config)
    log = NuScenesLog(real_config, scene)
    found = by_topic(log)
    assert not log.damage
    assert len(found) == 6 * 2 + 1 + 1 + 3
    boxes, lidar, static = (found[t][0].payload for t in ("/markers/annotations", "/lidar_top", "/tf_static"))
    assert isinstance(boxes, SceneBoxes)
    assert len(boxes.boxes) == 69
    assert all(box.velocity_mps is None for box in boxes.boxes)  # one keyframe knows none
    assert isinstance(lidar, PointCloud)
    assert len(lidar.points) == 34_688
    assert isinstance(static, FrameTransforms)
    assert len(static.transforms) == 8
    assert list(mapping_of_nuscenes(real_config).radars) == ["RADAR_FRONT"]


def test_boxes_of_the_real_keyframe_lie_where_the_reader_has_them(real_config: NuScenesConfig) -> None:
    (scene,) = scene_names(real_config)
    boxes = by_topic(NuScenesLog(real_config, scene))["/markers/annotations"][0].payload
    assert isinstance(boxes, SceneBoxes)
    categories = open_index(real_config).meta.categories
    reader = NuScenesReader(real_config.model_copy(update={"class_map": {c: c for c in categories}}), "mini_train")
    map_T_box = reader.global_T_reference(0) @ reader.reference_T_box(0)
    ours = transforms([[*box.center_m, *box.rotation_wxyz] for box in boxes.boxes])
    np.testing.assert_allclose(ours, map_T_box, atol=1e-6)


def test_the_logs_own_calibration_puts_real_points_on_the_pictures_pixels(real_config: NuScenesConfig) -> None:
    """Through the log's transforms and K a LiDAR point falls where the reader's own chain puts it."""
    (scene,) = scene_names(real_config)
    found = by_topic(NuScenesLog(real_config, scene))
    static = found["/tf_static"][0].payload
    assert isinstance(static, FrameTransforms)
    ego_T = {t.child: transforms([*t.translation_m, *t.rotation_wxyz]) for t in static.transforms}
    map_T_ego = {}
    for message in found["/tf"]:
        assert isinstance(message.payload, FrameTransforms)
        (pose,) = message.payload.transforms
        map_T_ego[pose.stamp_ns] = transforms([*pose.translation_m, *pose.rotation_wxyz])
    frame = NuScenesReader(real_config, "mini_train").frame(0)
    assert frame.lidar is not None
    cloud, info = found["/lidar_top"][0].payload, found["/cam_back/camera_info"][0].payload
    assert isinstance(cloud, PointCloud)
    assert isinstance(info, CameraInfo)
    xyz = np.stack([cloud.points[name] for name in "xyz"], axis=1).astype(np.float64)
    map_T_lidar = map_T_ego[cloud.stamp_ns] @ ego_T["LIDAR_TOP"]
    map_T_camera = map_T_ego[info.stamp_ns] @ ego_T["CAM_BACK"]
    pixels, depth_m = project(xyz @ map_T_lidar[:3, :3].T + map_T_lidar[:3, 3], info.P[:, :3], map_T_camera)
    camera = next(c for c in frame.cameras or () if c is not None and c.channel == "CAM_BACK")
    reference_T_lidar = frame.lidar[0].reference_T_lidar
    wanted, _ = project(
        xyz @ reference_T_lidar[:3, :3].T + reference_T_lidar[:3, 3], camera.intrinsics, camera.reference_T_camera
    )
    ahead = depth_m > 1
    assert ahead.sum() > 1000
    np.testing.assert_allclose(pixels[ahead], wanted[ahead], atol=1e-3)
