"""Prepared frames stacked into the model's input.

Letters: B samples, N cameras, L LiDARs, R radars, P points, S azimuth sectors, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bev.lift.table import LiftTable, build_lift_table
from sensors.batch import CameraBatch, LidarBatch, RadarBatch, SensorBatch
from sensors.camera.images import split_colours
from sensors.frames import SECTORS
from sensors.preparation.preparation import Preparation
from sensors.preparation.prepare import Float32, PreparedFrame

_LIDAR_ROUND_UP, _RADAR_ROUND_UP = 1024, 64


def collate(frames: Sequence[PreparedFrame], preparation: Preparation) -> SensorBatch:
    """B prepared frames as one batch, points padded to the longest (rounded up, so that few shapes occur).

    A modality that no frame has is None. Where `depth_bins` are given, the lift table is built here, in the loader's worker.
    """
    return SensorBatch(
        cameras=_collate_cameras(frames, preparation),
        lidar=_collate_lidar(frames, preparation),
        radar=_collate_radar(frames, preparation),
        batch_size=len(frames),
    )


def _collate_cameras(frames: Sequence[PreparedFrame], preparation: Preparation) -> CameraBatch | None:
    if all(frame.images is None for frame in frames) or preparation.image_size_px is None:
        return None
    count = len(preparation.camera_channels)
    images = np.zeros((len(frames), count, 3, *preparation.image_size_px), np.uint8)
    intrinsics = np.tile(np.eye(3, dtype=np.float32), (len(frames), count, 1, 1))
    poses = np.tile(np.eye(4, dtype=np.float32), (len(frames), count, 1, 1))
    present = np.zeros((len(frames), count), bool)
    for b, frame in enumerate(frames):
        if frame.images is not None:
            for image, planes in zip(frame.images, images[b], strict=True):
                split_colours(image, planes)
            intrinsics[b], poses[b], present[b] = frame.intrinsics, frame.reference_T_camera, frame.camera_present
    matrices, transforms, here = torch.from_numpy(intrinsics), torch.from_numpy(poses), torch.from_numpy(present)
    return CameraBatch(
        images=torch.from_numpy(images),
        intrinsics=matrices,
        reference_T_camera=transforms,
        present=here,
        lift=_lift(matrices, transforms, here, preparation),
    )


def _lift(intrinsics: Tensor, poses: Tensor, present: Tensor, preparation: Preparation) -> LiftTable | None:
    if preparation.depth_bins is None or preparation.image_size_px is None:
        return None
    return build_lift_table(
        intrinsics,
        poses,
        present,
        image_size=preparation.image_size_px,
        stride=preparation.feature_stride_px,
        bins=preparation.depth_bins,
        grid=preparation.grid,
        z_range_m=preparation.z_range_m,
        samples=preparation.lift_samples,
    )


def _collate_lidar(frames: Sequence[PreparedFrame], preparation: Preparation) -> LidarBatch | None:
    clouds = [frame.lidar for frame in frames]
    if all(cloud is None for cloud in clouds):
        return None
    points, count = _pad(clouds, 5, _LIDAR_ROUND_UP)
    lidars = len(preparation.lidar_channels)
    present = np.zeros((len(frames), lidars), bool)
    sectors = np.zeros((len(frames), lidars, SECTORS), np.float32)
    for b, frame in enumerate(frames):
        if frame.lidar is not None:
            present[b], sectors[b] = frame.lidar_present, frame.lidar_sectors
    return LidarBatch(points=points, count=count, present=torch.from_numpy(present), sectors=torch.from_numpy(sectors))


def _collate_radar(frames: Sequence[PreparedFrame], preparation: Preparation) -> RadarBatch | None:
    clouds = [frame.radar for frame in frames]
    if all(cloud is None for cloud in clouds):
        return None
    points, count = _pad(clouds, 7, _RADAR_ROUND_UP)
    radars = len(preparation.radar_channels)
    present = np.zeros((len(frames), radars), bool)
    poses = np.tile(np.eye(4, dtype=np.float32), (len(frames), radars, 1, 1))
    for b, frame in enumerate(frames):
        if frame.radar is not None:
            present[b], poses[b] = frame.radar_present, frame.reference_T_radar
    return RadarBatch(
        points=points, count=count, present=torch.from_numpy(present), reference_T_radar=torch.from_numpy(poses)
    )


def _pad(clouds: Sequence[Float32 | None], columns: int, round_up: int) -> tuple[Tensor, Tensor]:
    """[B, P, columns] with zeros behind, and [B] counts. P is at least `round_up`, so that no axis is ever empty."""
    counts = [0 if cloud is None else len(cloud) for cloud in clouds]
    longest = max(1, -(-max(counts) // round_up)) * round_up
    points = np.zeros((len(clouds), longest, columns), np.float32)
    for b, cloud in enumerate(clouds):
        if cloud is not None:
            points[b, : len(cloud)] = cloud
    return torch.from_numpy(points), torch.tensor(counts, dtype=torch.long)
