"""A real ROS 2 log, replayed: its LiDAR lies on the objects in its pictures. Skipped where the log is not there.

The log is expected at ../shared/real/kitti-drive.mcap, or where the variable ROBUSTBEV_REAL_DRIVE points.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from scipy.spatial.transform import Rotation

from sensors.calibration import Float64, apply
from sensors.camera.depth import project
from sensors.camera.images import DecodeSize
from sensors.frames import CameraImage, LidarSweep
from sensors.logs.mapping.mapping import CameraTopics, LidarTopics, LogMapping
from sensors.logs.open import open_log
from sensors.replay.channels import Channels
from sensors.replay.config import ReplayConfig
from sensors.replay.tick import SensorState, Tick
from sensors.replay.ticks import ticks

CHANNELS = Channels(("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_BACK"), ("LIDAR_TOP",), ("RADAR_FRONT",))
MAPPING = LogMapping(
    cameras={"CAM_FRONT": CameraTopics(image="/cam_front/image_rect_compressed", info="/cam_front/camera_info")},
    lidars={"LIDAR_TOP": LidarTopics(points="/lidar_top", intensity_scale=255)},
)
SIZE_PX = (1242, 375)


@pytest.fixture(scope="module")
def drive() -> Path:
    default = Path(__file__).resolve().parents[4] / "shared" / "real" / "kitti-drive.mcap"
    path = Path(os.environ.get("ROBUSTBEV_REAL_DRIVE") or default)
    if not path.is_file():
        pytest.skip(f"no real drive: expected it at {path}")
    return path


@pytest.fixture(scope="module")
def replayed(drive: Path) -> list[Tick]:
    return list(ticks(open_log(drive), MAPPING, CHANNELS, ReplayConfig()))


def readings(tick: Tick) -> tuple[CameraImage, LidarSweep]:
    assert tick.frame.cameras is not None
    assert tick.frame.lidar is not None
    camera = tick.frame.cameras[1]
    assert camera is not None
    return camera, tick.frame.lidar[0]


def pixels(tick: Tick) -> tuple[Float64, Float64]:
    """Where the tick's LiDAR points fall in its picture [P, 2], and their depth [P]."""
    camera, sweep = readings(tick)
    points = apply(sweep.reference_T_lidar, sweep.points[:, :3].astype(np.float64))
    with np.errstate(all="ignore"):
        return project(points, camera.intrinsics, camera.reference_T_camera)


def test_every_tick_answers_and_absent_sensors_are_absent(replayed: list[Tick]) -> None:
    assert [tick.index for tick in replayed] == list(range(10))
    assert [tick.time_us for tick in replayed] == [1_317_038_400_000_000 + 100_000 * i for i in range(10)]
    for tick in replayed:
        for channel, status in tick.sensors.items():
            here = channel in ("CAM_FRONT", "LIDAR_TOP")
            assert status.state is (SensorState.OK if here else SensorState.MISSING), status
        assert tick.frame.radar is None
        assert not tick.ego_pose_known  # the log has no /tf
        assert tick.frame.cameras is not None
        assert [camera is not None for camera in tick.frame.cameras] == [False, True, False]


def test_points_project_as_the_logs_own_matrices_say(drive: Path, replayed: list[Tick]) -> None:
    """pixel = P [R X; 1] for X in cam_front, from the messages as another reader gives them."""
    with AnyReader([drive]) as reader:
        first: dict[str, Any] = {}
        for connection, _, data in reader.messages():
            first.setdefault(connection.topic, reader.deserialize(data, connection.msgtype))
    links = {link.child_frame_id: link.transform for link in first["/tf_static"].transforms}
    base_T = {}
    for child, link in links.items():
        base_T[child] = np.eye(4)
        q = link.rotation
        base_T[child][:3, :3] = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
        base_T[child][:3, 3] = [link.translation.x, link.translation.y, link.translation.z]
    cloud = np.frombuffer(first["/lidar_top"].data, "<f4").reshape(-1, 4)
    X = apply(np.linalg.inv(base_T["cam_front"]) @ base_T["lidar_top"], cloud[:, :3].astype(np.float64))
    info = first["/cam_front/camera_info"]
    P, R = info.p.reshape(3, 4), info.r.reshape(3, 3)
    u, v, depth = P @ np.vstack([R @ X.T, np.ones(len(X))])
    ours, depth_m = pixels(replayed[0])
    seen = depth > 1
    np.testing.assert_allclose(depth_m[seen], depth[seen], atol=1e-4)
    np.testing.assert_allclose(ours[seen], np.stack([u / depth, v / depth], axis=1)[seen], atol=1e-3)
    _, sweep = readings(replayed[0])
    np.testing.assert_allclose(sweep.points[:, 3], 255 * cloud[:, 3], rtol=1e-6)


def edge_contrast(tick: Tick, shift_px: float) -> float:
    """Mean horizontal gradient of the picture where the nearer side of a step in depth falls, moved by some pixels."""
    camera, _ = readings(tick)
    uv, depth = pixels(tick)
    step = np.flatnonzero((np.abs(np.diff(depth)) > 2) & (depth[:-1] > 3) & (depth[1:] > 3) & (depth[:-1] < 40))
    near = np.where(depth[step] < depth[step + 1], step, step + 1)
    u, v = np.rint(uv[near] + [shift_px, 0]).astype(int).T
    inside = (u > 0) & (u < SIZE_PX[0] - 1) & (v >= 0) & (v < SIZE_PX[1])
    grey = camera.image.astype(np.float64).mean(axis=2)
    return float(np.abs(grey[v[inside], u[inside] + 1] - grey[v[inside], u[inside] - 1]).mean())


def test_the_lidar_lies_on_the_objects_in_the_picture(replayed: list[Tick]) -> None:
    """Where the depth steps, the picture has its edges: most so where the points fall, less a few pixels beside."""
    contrast = {shift: np.mean([edge_contrast(tick, shift) for tick in replayed]) for shift in (-12, -6, 0, 6, 12)}
    assert contrast[0] > 1.1 * max(contrast[-12], contrast[12]), contrast
    assert contrast[0] >= max(contrast[-6], contrast[6]), contrast


def test_a_reduced_picture_has_the_same_geometry(drive: Path, replayed: list[Tick]) -> None:
    tick = next(ticks(open_log(drive), MAPPING, CHANNELS, ReplayConfig(), decode=DecodeSize(90, 300)))
    camera, _ = readings(tick)
    assert camera.image.shape == (94, 311, 3)
    small, _ = pixels(tick)
    full, depth = pixels(replayed[0])
    seen = depth > 1
    np.testing.assert_allclose((small[seen] + 0.5) * 4 - 0.5, full[seen], atol=1e-6)
