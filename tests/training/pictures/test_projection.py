"""Lines and points of the world fall on a picture where they are."""

from __future__ import annotations

import numpy as np
import pytest

from bev.detection.boxes import Boxes
from robustbev import NUSCENES_CLASSES
from robustbev.results.content import points_in_reference
from sensors.frames import CameraImage
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.reader import NuScenesReader
from tests.robustbev.results.replay_results import boxes
from tests.small_nuscenes import lidar_points
from training.pictures.projection import box_segments, project_points, project_segments

LOOKS_AHEAD = np.array([[0.0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])  # reference_T_camera
INTRINSICS = np.array([[125.0, 0, 79.5], [0, 125.0, 44.5], [0, 0, 1]])
CAMERA = CameraImage("CAM_FRONT", np.full((90, 160, 3), 90, np.uint8), INTRINSICS, LOOKS_AHEAD, 0)


def test_a_segment_through_the_camera_is_cut_at_the_near_plane() -> None:
    start, end = np.array([[10.0, 1, 1.5]]), np.array([[-10.0, 1, 1.5]])  # from 8.5 m ahead of the lens to behind it
    pixels, seen = project_segments(start, end, CAMERA)
    assert seen.all()
    assert pixels[0, 0] == pytest.approx([79.5 - 125 / 8.5, 44.5])
    assert pixels[0, 1, 0] < -100  # far out to the left, where the line goes, not mirrored to the right
    _, seen = project_segments(np.array([[-3.0, 0, 1]]), np.array([[-9.0, 0, 1]]), CAMERA)
    assert not seen.any()


def test_boxes_behind_or_beside_the_camera_are_not_drawn() -> None:
    three = boxes((12.0, 0.0, 0.0, 0, 0.9), (-12.0, 0.0, 0.0, 0, 0.8), (12.0, 40.0, 0.0, 0, 0.7))
    assert [index for index, _ in box_segments(three, CAMERA)] == [0]
    assert box_segments(Boxes.empty(), CAMERA) == []


def test_on_the_real_keyframe_lidar_points_of_a_box_fall_into_its_drawing(real_config: NuScenesConfig) -> None:
    """In the pictures, the LiDAR points that lie in a box in space lie within the lines drawn for it."""
    reader = NuScenesReader(real_config, "mini_train", classes=NUSCENES_CLASSES)
    frame, truth, counts = reader.frame(0), reader.boxes(0), lidar_points(reader, 0)
    assert frame.lidar is not None
    points = points_in_reference(frame.lidar[0], frame.time_us)[:, :3].astype(np.float64)
    drawn = 0
    for camera in frame.cameras or ():
        assert camera is not None
        for index, lines in box_segments(truth, camera):
            box = truth[index]
            local = points - box.center_m.double().numpy()
            cos, sin = np.cos(float(box.yaw_rad)), np.sin(float(box.yaw_rad))
            along, across = cos * local[:, 0] + sin * local[:, 1], -sin * local[:, 0] + cos * local[:, 1]
            width, length, height = box.size_m.double().numpy()
            inside = (abs(along) < length / 2) & (abs(across) < width / 2) & (abs(local[:, 2]) < height / 2)
            pixels, _ = project_points(points[inside], camera)
            if counts[index] < 5 or len(pixels) == 0:
                continue
            low, high = lines.min(axis=(0, 1)) - 1, lines.max(axis=(0, 1)) + 1
            assert ((pixels >= low) & (pixels <= high)).all()
            drawn += 1
    assert drawn >= 20
