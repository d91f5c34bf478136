"""The reader on one real nuScenes keyframe (scene-0061), held to the devkit and to the annotation's own counts.

Skipped where the keyframe is not there; see `tests.conftest.real_keyframe`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud, RadarPointCloud
from nuscenes.utils.geometry_utils import view_points
from pyquaternion import Quaternion

from sensors.calibration import apply, inverse_rigid
from sensors.camera.depth import project
from sensors.camera.images import DecodeSize, ImageChange, fit_image
from sensors.errors import DataRootError
from sensors.frames import CameraImage
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import open_index
from sensors.nuscenes.reader import NuScenesReader
from sensors.nuscenes.summary import describe
from tests.small_nuscenes import box_tokens, lidar_points


@pytest.fixture(scope="module")
def reader(real_config: NuScenesConfig) -> NuScenesReader:
    return NuScenesReader(real_config, "mini_train")


@pytest.fixture(scope="module")
def devkit(real_keyframe: Path) -> NuScenes:
    return NuScenes("v1.0-mini", str(real_keyframe), verbose=False)


def devkit_points_in_camera(devkit: NuScenes, channel: str) -> Any:
    """[3, P] LiDAR points in a camera's frame, by the devkit's own four steps."""
    sample = devkit.sample[0]
    lidar, camera = (devkit.get("sample_data", sample["data"][name]) for name in ("LIDAR_TOP", channel))
    cloud = LidarPointCloud.from_file(str(Path(devkit.dataroot) / lidar["filename"]))
    for row in (
        devkit.get("calibrated_sensor", lidar["calibrated_sensor_token"]),
        devkit.get("ego_pose", lidar["ego_pose_token"]),
    ):
        cloud.rotate(Quaternion(row["rotation"]).rotation_matrix)
        cloud.translate(np.array(row["translation"]))
    for row in (
        devkit.get("ego_pose", camera["ego_pose_token"]),
        devkit.get("calibrated_sensor", camera["calibrated_sensor_token"]),
    ):
        cloud.translate(-np.array(row["translation"]))
        cloud.rotate(Quaternion(row["rotation"]).rotation_matrix.T)
    return cloud.points[:3]


def test_points_in_each_box_are_as_many_as_annotated(real_config: NuScenesConfig) -> None:
    categories = open_index(real_config).meta.categories  # all 69 boxes, those of no detection class too
    config = real_config.model_copy(update={"class_map": {name: name for name in categories}})
    reader = NuScenesReader(config, "mini_train")
    lidar = reader.frame(0).lidar
    assert lidar is not None
    points = apply(lidar[0].reference_T_lidar, lidar[0].points[:, :3].astype(np.float64))
    sizes = reader.boxes(0).size_m.numpy().astype(np.float64)
    counts = []
    for pose, (width, length, height) in zip(reader.reference_T_box(0), sizes, strict=True):
        inside = np.abs(apply(inverse_rigid(pose), points)) <= np.array([length, width, height]) / 2
        counts.append(int(inside.all(axis=1).sum()))
    assert len(counts) == 69
    assert counts == lidar_points(reader, 0).tolist()


def test_upright_boxes_stay_within_centimetres_of_the_exact_ones(reader: NuScenesReader) -> None:
    boxes, exact = reader.boxes(0), reader.reference_T_box(0)
    np.testing.assert_allclose(boxes.center_m.numpy(), exact[:, :3, 3], atol=1e-4)
    heading = np.stack([boxes.yaw_rad.cos(), boxes.yaw_rad.sin()], axis=1)
    assert (np.sum(heading * exact[:, :2, 0], axis=1) > 0.999).all()  # this vehicle is pitched by 1.4 degrees


def test_the_radar_is_read_whole(reader: NuScenesReader, real_config: NuScenesConfig) -> None:
    radar = reader.frame(0).radar
    assert radar is not None
    assert [sweep.channel for sweep in radar] == ["RADAR_FRONT"]
    assert len(radar[0].points) == 74
    assert describe(real_config)["channels_missing"] == []


def test_radars_that_the_tables_do_not_know_are_named(real_config: NuScenesConfig) -> None:
    usual = NuScenesConfig().radar_channels
    with pytest.raises(DataRootError, match=r"radar_channels: .*got RADAR_FRONT_LEFT \(the nearest is RADAR_FRONT\)"):
        NuScenesReader(real_config.model_copy(update={"radar_channels": usual}), "mini_train")


def test_radar_points_are_the_devkits(reader: NuScenesReader, devkit: NuScenes) -> None:
    row = devkit.get("sample_data", devkit.sample[0]["data"]["RADAR_FRONT"])
    states = list(range(18))
    expected = RadarPointCloud.from_file(str(Path(devkit.dataroot) / row["filename"]), states, states, states).points
    radar = reader.frame(0).radar
    assert radar is not None
    np.testing.assert_allclose(radar[0].points, expected[[0, 1, 2, 5, 8, 9]].T)


def test_lidar_points_are_the_devkits(reader: NuScenesReader, devkit: NuScenes) -> None:
    row = devkit.get("sample_data", devkit.sample[0]["data"]["LIDAR_TOP"])
    expected = LidarPointCloud.from_file(str(Path(devkit.dataroot) / row["filename"])).points
    lidar = reader.frame(0).lidar
    assert lidar is not None
    np.testing.assert_array_equal(lidar[0].points[:, :4], expected.T)
    assert set(np.unique(lidar[0].points[:, 4])) == set(range(32))  # rings


@pytest.mark.parametrize("camera", range(6))
def test_lidar_falls_on_the_same_pixels_as_by_the_devkit(reader: NuScenesReader, devkit: NuScenes, camera: int) -> None:
    frame = reader.frame(0)
    assert frame.cameras is not None
    assert frame.lidar is not None
    picture = frame.cameras[camera]
    assert picture is not None
    in_camera = devkit_points_in_camera(devkit, picture.channel)
    row = devkit.get("sample_data", devkit.sample[0]["data"][picture.channel])
    intrinsics = np.array(devkit.get("calibrated_sensor", row["calibrated_sensor_token"])["camera_intrinsic"])
    ahead = in_camera[2] > 1
    expected = view_points(in_camera[:, ahead], intrinsics, normalize=True)[:2].T
    sweep = frame.lidar[0]
    points = apply(sweep.reference_T_lidar, sweep.points[:, :3].astype(np.float64))
    pixels, depth_m = project(points, picture.intrinsics, picture.reference_T_camera)
    assert picture.image.shape == (900, 1600, 3)
    np.testing.assert_allclose(depth_m[ahead], in_camera[2][ahead], atol=1e-3)
    inside = ((expected >= 0) & (expected < (1600, 900))).all(axis=1)
    assert inside.sum() > 1000
    # The devkit passes through global coordinates in float32, which costs it a tenth of a millimetre.
    np.testing.assert_allclose(pixels[ahead][inside], expected[inside], atol=0.1)


def test_boxes_are_the_devkits(reader: NuScenesReader, devkit: NuScenes) -> None:
    _, boxes, _ = devkit.get_sample_data(devkit.sample[0]["data"]["LIDAR_TOP"], use_flat_vehicle_coordinates=False)
    by_token = {box.token: box for box in boxes}  # in the LiDAR's frame
    lidar = reader.frame(0).lidar
    assert lidar is not None
    ours = reader.boxes(0)
    centers = apply(inverse_rigid(lidar[0].reference_T_lidar), ours.center_m.numpy().astype(np.float64))
    assert len(ours) == 68
    for i, token in enumerate(box_tokens(reader, 0)):
        np.testing.assert_allclose(centers[i], by_token[token].center, atol=1e-4)
        np.testing.assert_allclose(ours.size_m[i], by_token[token].wlh, atol=1e-5)


def test_velocities_are_unknown_in_a_single_keyframe(reader: NuScenesReader, real_keyframe: Path) -> None:
    assert reader.boxes(0).velocity_mps.isnan().all()
    known = json.loads((real_keyframe / "velocities.json").read_text())["velocity"]
    assert set(box_tokens(reader, 0)) <= set(known)


def test_a_picture_decoded_small_and_cut_shows_the_same_place(real_config: NuScenesConfig) -> None:
    """At every LiDAR point, the small picture is as bright as the full one blurred to the same scale."""
    import cv2

    size = (256, 704)
    full = NuScenesReader(real_config, "mini_train").frame(0)
    reduced = NuScenesReader(real_config, "mini_train", decode=DecodeSize(*size)).frame(0)
    assert full.cameras is not None
    assert reduced.cameras is not None
    assert full.lidar is not None
    points = apply(full.lidar[0].reference_T_lidar, full.lidar[0].points[:, :3].astype(np.float64))
    for before, after in zip(full.cameras, reduced.cameras, strict=True):
        assert isinstance(before, CameraImage)
        assert isinstance(after, CameraImage)
        assert after.image.shape == (450, 800, 3)
        small, intrinsics = fit_image(after.image, after.intrinsics, size, ImageChange())
        pixels, depth_m = project(points, intrinsics, after.reference_T_camera)
        seen = (depth_m > 1) & (pixels > 2).all(axis=1) & (pixels < (size[1] - 3, size[0] - 3)).all(axis=1)
        in_full, _ = project(points, before.intrinsics, before.reference_T_camera)
        blurred = cv2.GaussianBlur(before.image, (0, 0), 1.1).astype(np.float32)
        errors = []
        for shift in (-1.0, 0.0, 1.0):
            there = (in_full[seen] + (shift, 0)).astype(np.float32)
            here = pixels[seen].astype(np.float32)
            want = cv2.remap(blurred, there[:, None], None, cv2.INTER_LINEAR)
            got = cv2.remap(small.astype(np.float32), here[:, None], None, cv2.INTER_LINEAR)
            errors.append(float(np.abs(want - got).mean()))
        assert errors[1] < min(errors[0], errors[2])  # half a pixel of the small picture is 1.1 of the full one
