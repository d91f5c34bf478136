"""A camera modality: pictures cut to the network's size, depth targets, and the batch of both.

Letters: B samples, N cameras, H and W pixels, h and w feature pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bev.lift.table import DepthBins, LiftTable
from sensors.batch import CameraBatch
from sensors.calibration import check_intrinsics, inverse_rigid
from sensors.camera.depth import depth_targets
from sensors.camera.images import ImageChange, fit_image, split_colours
from sensors.errors import naming
from sensors.frames import NOT_GIVEN, CameraImage, SensorFrame
from sensors.modality import Preparation, Prepared, Sample
from sensors.points import Cloud, Float32, SensorUse

Pictures = Sequence[CameraImage | None]


@dataclass(frozen=True)
class PreparedCameras:
    """The pictures of one sample, at least one."""

    images: NDArray[np.uint8]  # [N, H, W, 3]
    intrinsics: Float32  # [N, 3, 3]
    reference_T_camera: Float32  # [N, 4, 4]
    present: NDArray[np.bool_]  # [N]
    depth_m: Float32 | None
    """[N, h, w] metres along the camera's z axis, 0 where unknown; None: no LiDAR, or not wanted."""


@dataclass(frozen=True)
class Camera:
    """`sensors.modality.Modality` of cameras."""

    name: str
    channels: tuple[str, ...]  # N
    image_size_px: tuple[int, int]  # (H, W)
    feature_stride_px: int
    depth_bins: DepthBins
    lift_samples: tuple[int, int] = (1, 1)
    kind: ClassVar[str] = "camera"

    def prepare(self, sample: Sample) -> Prepared[PreparedCameras]:
        item = self._pictures(sample)
        cameras = dict(zip(sample.preparation.camera_channels, sample.frame.cameras or (), strict=False))
        return Prepared(item, {channel: _use(cameras.get(channel), sample.frame) for channel in self.channels})

    def _pictures(self, sample: Sample) -> PreparedCameras | None:
        frame, places = sample.frame, sample.preparation.camera_channels
        if not frame.cameras:
            return None
        if len(frame.cameras) != len(places):
            raise ValueError(
                f"sample {frame.token}: expected {len(places)} cameras, got {len(frame.cameras)}; an absent camera is None in "
                "its place"
            )
        mine = [places.index(channel) for channel in self.channels]
        if all(frame.cameras[place] is None for place in mine):
            return None
        count = len(mine)
        images = np.zeros((count, *self.image_size_px, 3), np.uint8)
        # An absent camera keeps a pose that can be inverted; nothing of it is ever used.
        intrinsics = np.tile(np.eye(3, dtype=np.float32), (count, 1, 1))
        poses = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
        for n, place in enumerate(mine):
            camera = frame.cameras[place]
            if camera is not None:
                change = ImageChange() if sample.image_changes is None else sample.image_changes[place]
                images[n], intrinsics[n] = fit_image(camera.image, camera.intrinsics, self.image_size_px, change)
                with naming(camera.channel):
                    check_intrinsics(intrinsics[n], f"sample {frame.token}, {camera.channel}, at the network's size")
                poses[n] = sample.bev_change @ camera.reference_T_camera
        depth_m = None
        if sample.preparation.depth_targets and sample.taught_clouds:
            cameras = sample.taught.cameras
            pictures = [None if cameras is None else cameras[place] for place in mine]
            depth_m = self._depth(pictures, sample.taught_clouds, intrinsics)
        present = np.array([frame.cameras[place] is not None for place in mine])
        return PreparedCameras(images, intrinsics, poses, present, depth_m)

    def _depth(self, cameras: Pictures, clouds: Sequence[Cloud], intrinsics: Float32) -> Float32:
        """[N, h, w] from the newest sweep of each LiDAR; older ones show moving objects where they were."""
        newest = {cloud.sweep.channel: cloud for cloud in reversed(clouds)}  # newest first: the last one stays
        maps = []
        for cloud in newest.values():
            pixels_T_lidar = np.zeros((len(cameras), 3, 4))  # an absent camera's zeros put every point at depth 0
            for n, camera in enumerate(cameras):
                if camera is not None:
                    camera_T_lidar = inverse_rigid(camera.reference_T_camera) @ cloud.sweep.reference_T_lidar
                    pixels_T_lidar[n] = intrinsics[n] @ camera_T_lidar[:3]
            maps.append(
                depth_targets(
                    cloud.xyz_m.compress(cloud.usable, axis=1),
                    pixels_T_lidar,
                    image_size_px=self.image_size_px,
                    stride_px=self.feature_stride_px,
                )
            )
        nearest = np.min([np.where(depth > 0, depth, np.inf) for depth in maps], axis=0)
        known = np.isfinite(nearest) & _pictured(cameras, intrinsics, nearest.shape, self.feature_stride_px)
        return np.where(known, nearest, 0).astype(np.float32)

    def collate(self, items: Sequence[PreparedCameras | None], preparation: Preparation) -> CameraBatch | None:
        if all(item is None for item in items):
            return None
        count = len(self.channels)
        images = np.zeros((len(items), count, 3, *self.image_size_px), np.uint8)
        intrinsics = np.tile(np.eye(3, dtype=np.float32), (len(items), count, 1, 1))
        poses = np.tile(np.eye(4, dtype=np.float32), (len(items), count, 1, 1))
        present = np.zeros((len(items), count), bool)
        for b, item in enumerate(items):
            if item is not None:
                for image, planes in zip(item.images, images[b], strict=True):
                    split_colours(image, planes)
                intrinsics[b], poses[b], present[b] = item.intrinsics, item.reference_T_camera, item.present
        matrices, transforms, here = torch.from_numpy(intrinsics), torch.from_numpy(poses), torch.from_numpy(present)
        table = self._table(matrices, transforms, here, preparation) if preparation.lift_tables else None
        return CameraBatch(torch.from_numpy(images), matrices, transforms, here, table)

    def _table(self, intrinsics: Tensor, poses: Tensor, present: Tensor, preparation: Preparation) -> LiftTable:
        return preparation.lift_table(
            intrinsics,
            poses,
            present,
            image_size=self.image_size_px,
            stride=self.feature_stride_px,
            bins=self.depth_bins,
            grid=preparation.grid,
            z_range_m=preparation.z_range_m,
            samples=self.lift_samples,
        )


def _use(camera: CameraImage | None, frame: SensorFrame) -> SensorUse:
    if camera is None:
        return SensorUse(NOT_GIVEN)
    return SensorUse(None, int(frame.time_us) - int(camera.time_us))


def stack_depth(items: Sequence[PreparedCameras | None]) -> Tensor | None:
    """[B, N, h, w] depth targets, zeros for a sample without; None where no sample has any."""
    maps = [None if item is None else item.depth_m for item in items]
    known = [depth for depth in maps if depth is not None]
    if not known:
        return None
    return torch.stack([torch.zeros(known[0].shape) if depth is None else torch.from_numpy(depth) for depth in maps])


def _pictured(cameras: Pictures, intrinsics: Float32, shape: tuple[int, ...], stride_px: int) -> NDArray[np.bool_]:
    """[N, h, w] whether the middle of a feature pixel shows the camera's picture, and not the black around a window too large."""
    pictured = np.zeros(shape, bool)
    for n, camera in enumerate(cameras):
        if camera is not None:
            shown = []
            for axis, size_px, count in zip((1, 0), camera.image.shape[:2], shape[1:], strict=True):
                # Old pixel to new pixel. Cuts, scales and mirrors keep rows and columns apart.
                new, old = intrinsics[n, axis].astype(np.float64), camera.intrinsics[axis]
                scale = new[axis] / old[axis]
                first, last = sorted(scale * (np.array([-0.5, size_px - 0.5]) - old[2]) + new[2])
                middle = (np.arange(count) + 0.5) * stride_px - 0.5
                shown.append((middle > first) & (middle < last))
            pictured[n] = shown[0][:, None] & shown[1]
    return pictured
