"""Rows of the index of a nuScenes-format data set as messages of a log. Stamps are the times of measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensors.camera.picture_files import check_whole
from sensors.errors import PictureError, SensorDataError
from sensors.files import read_bytes
from sensors.logs.messages import (
    CameraInfo,
    EncodedImage,
    FrameTransform,
    FrameTransforms,
    Malformed,
    PointCloud,
    SceneBoxes,
    TruthBox,
)
from sensors.nuscenes.index import NuScenesIndex
from sensors.nuscenes.point_files import read_lidar_file, read_radar_records

EGO_FRAME = "base_link"
GLOBAL_FRAME = "map"
LIDAR_RECORD = np.dtype([(name, np.float32) for name in ("x", "y", "z", "intensity", "ring")])


def ego_pose(index: NuScenesIndex, row: int) -> FrameTransforms:
    """From map to base_link at the time of a reading."""
    arrays = index.arrays
    pose = _transform(int(arrays.data_time_us[row]), GLOBAL_FRAME, EGO_FRAME, arrays.data_ego_pose[row])
    return FrameTransforms((pose,), static=False)


def sensor_poses(index: NuScenesIndex, time_us: int, rows: Sequence[int]) -> FrameTransforms:
    """From base_link to the sensor of each of these readings, told at one time."""
    arrays = index.arrays
    return FrameTransforms(
        tuple(
            _transform(time_us, EGO_FRAME, _channel(index, row), arrays.calibration_pose[arrays.data_calibration[row]])
            for row in rows
        ),
        static=True,
    )


def camera_info(index: NuScenesIndex, row: int) -> CameraInfo:
    """The calibration that a picture was taken with."""
    arrays, calibration = index.arrays, int(index.arrays.data_calibration[row])
    height, width = arrays.data_size_px[row].tolist()
    intrinsics = np.array(arrays.calibration_intrinsics[calibration], np.float64)
    model, coefficients = index.distortion(calibration)
    return CameraInfo(
        stamp_ns=int(arrays.data_time_us[row]) * 1000,
        frame_id=_channel(index, row),
        width_px=width,
        height_px=height,
        # Without coefficients: a model that readers of ROS know, and no distortion.
        distortion_model=model or "plumb_bob",
        D=coefficients,
        K=intrinsics,
        R=np.eye(3),
        P=np.hstack([intrinsics, np.zeros((3, 1))]),
    )


def reading(
    index: NuScenesIndex, root: Path, row: int, lidar_columns: tuple[str, ...]
) -> EncodedImage | PointCloud | Malformed:
    """A picture's file as it is, or a LiDAR's or radar's points with every field of the file.

    `lidar_columns`: of the LiDAR's files, as `NuScenesConfig` has them; the fields are always the same five.
    """
    arrays, channel = index.arrays, _channel(index, row)
    modality = index.meta.modalities[int(arrays.data_channel[row])]
    token, stamp_ns = arrays.data_token[row].decode(), int(arrays.data_time_us[row]) * 1000
    try:
        path = index.file(row, root)
        if modality == "camera":
            data = read_bytes(path, sensor=channel, token=token)
            try:
                return EncodedImage(stamp_ns, channel, check_whole(data), data)
            except PictureError as error:
                return Malformed("EncodedImage", f"{channel}: {path} (token {token}): {error}")
        if modality == "lidar":
            rows = read_lidar_file(path, sensor=channel, token=token, columns=lidar_columns)
            points = rows.view(LIDAR_RECORD)[:, 0]
        else:
            points = read_radar_records(path, sensor=channel, token=token)
    except SensorDataError as error:
        return Malformed("EncodedImage" if modality == "camera" else "PointCloud", str(error))
    return PointCloud(stamp_ns, channel, points)


def scene_boxes(index: NuScenesIndex, sample: int) -> SceneBoxes:
    """All boxes of an annotated sample, whatever their category; the id is the token of the instance."""
    arrays, meta = index.arrays, index.meta
    boxes = []
    for row in range(*arrays.box_start[sample : sample + 2].tolist()):
        x, y, z, qw, qx, qy, qz = arrays.box_pose[row].tolist()
        vx, vy = arrays.box_velocity_mps[row].tolist()
        width, length, height = arrays.box_size_m[row].tolist()
        attribute = int(arrays.box_attribute[row])
        boxes.append(
            TruthBox(
                id=arrays.instance_token[arrays.box_instance[row]].decode(),
                category=meta.categories[int(arrays.box_category[row])],
                center_m=(x, y, z),
                size_m=(width, length, height),
                rotation_wxyz=(qw, qx, qy, qz),
                velocity_mps=(vx, vy) if np.isfinite([vx, vy]).all() else None,
                attribute=meta.attributes[attribute] if attribute >= 0 else "",
                num_points=int(arrays.box_lidar_points[row]) + int(arrays.box_radar_points[row]),
            )
        )
    return SceneBoxes(int(arrays.sample_time_us[sample]) * 1000, GLOBAL_FRAME, tuple(boxes))


def _channel(index: NuScenesIndex, row: int) -> str:
    return index.meta.channels[int(index.arrays.data_channel[row])]


def _transform(time_us: int, parent: str, child: str, pose: NDArray[np.float64]) -> FrameTransform:
    x, y, z, qw, qx, qy, qz = pose.tolist()
    return FrameTransform(time_us * 1000, parent, child, (x, y, z), (qw, qx, qy, qz))
