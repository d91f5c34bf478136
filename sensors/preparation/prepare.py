"""One instant made ready for the network: pictures cut to size, sweeps merged into one (perhaps augmented) reference frame.

Letters: N cameras, L LiDARs, R radars, P points, S azimuth sectors, H and W pixels, h and w feature pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import FloatArray, inverse_rigid
from sensors.camera.depth import depth_targets
from sensors.camera.images import ImageChange, fit_image
from sensors.frame_checks import check_frame
from sensors.frames import NOT_GIVEN, Absence, CameraImage, SensorFrame
from sensors.preparation.points import (
    Cloud,
    DroppedPoints,
    lidar_clouds,
    lidar_sectors,
    merge_lidar,
    merge_radar,
    radar_poses,
)
from sensors.preparation.preparation import Preparation

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class PreparedFrame:
    """One sample, ready to be collated. A modality without `images`, `lidar` or `radar` is absent."""

    images: NDArray[np.uint8] | None  # [N, H, W, 3]
    intrinsics: Float32 | None  # [N, 3, 3]
    reference_T_camera: Float32 | None  # [N, 4, 4]
    camera_present: NDArray[np.bool_] | None  # [N]
    lidar: Float32 | None  # [P, 5]
    lidar_present: NDArray[np.bool_]  # [L]
    lidar_sectors: Float32  # [L, S], see `sensors.batch.LidarBatch`
    radar: Float32 | None  # [P, 7]
    radar_present: NDArray[np.bool_]  # [R]
    reference_T_radar: Float32  # [R, 4, 4]
    depth_m: Float32 | None  # [N, h, w], 0 where unknown
    dropped: DroppedPoints
    absent: Mapping[str, Absence]  # channel -> why, of every sensor of the rig that is absent


def prepare(
    frame: SensorFrame,
    preparation: Preparation,
    *,
    image_changes: Sequence[ImageChange] | None = None,
    bev_change: FloatArray | None = None,
    depth_from: SensorFrame | None = None,
) -> PreparedFrame:
    """One frame as the network wants it.

    `image_changes`, one a camera, alter the cut of the pictures. `bev_change` [4, 4], any affine map of the reference frame
    (mirror, turn, scale), is applied to points, velocities and sensor poses alike; truth boxes are the caller's
    (`training.data.augmentation`). Depth targets stay in the camera's own metres; they come from the LiDAR and the camera poses
    of `depth_from`, where that is given: a frame whose sensors were made to fail would teach wrong depths.

    A sensor without one usable measurement is absent, see `sensors.preparation.points`; `PreparedFrame.absent` says why.

    Raises:
        CalibrationError, ValueError: the frame is none, see `sensors.frame_checks.check_frame`, or `cameras` has another length
            than the configuration's.
    """
    check_frame(frame)
    change = np.eye(4) if bev_change is None else bev_change
    cameras = _cameras(frame, preparation, image_changes, change)
    clouds = lidar_clouds(frame, preparation)
    lidar = merge_lidar(frame, clouds, preparation, change)
    radar = merge_radar(frame, preparation, change)
    depth_m = None
    taught = frame if depth_from is None else depth_from
    if preparation.depth_targets and cameras is not None:
        shown = clouds if taught.lidar is frame.lidar else lidar_clouds(taught, preparation)
        depth_m = _depth(taught, shown, cameras[1], preparation) if shown else None
    images, intrinsics, poses, present = cameras or (None, None, None, None)
    return PreparedFrame(
        images=images,
        intrinsics=intrinsics,
        reference_T_camera=poses,
        camera_present=present,
        lidar=lidar.together(),
        lidar_present=lidar.present,
        lidar_sectors=lidar_sectors(lidar, preparation, frame.lidar_sectors, change),
        radar=radar.together(),
        radar_present=radar.present,
        reference_T_radar=radar_poses(frame, radar, preparation, change),
        depth_m=depth_m,
        dropped=lidar.dropped + radar.dropped,
        absent=_absent_cameras(preparation.camera_channels, present) | lidar.absent | radar.absent,
    )


def _cameras(
    frame: SensorFrame, preparation: Preparation, changes: Sequence[ImageChange] | None, bev_change: FloatArray
) -> tuple[NDArray[np.uint8], Float32, Float32, NDArray[np.bool_]] | None:
    count = len(preparation.camera_channels)
    if preparation.image_size_px is None or not frame.cameras:
        return None
    if len(frame.cameras) != count:
        raise ValueError(
            f"sample {frame.token}: expected {count} cameras, got {len(frame.cameras)}; an absent camera is None in its place"
        )
    if all(camera is None for camera in frame.cameras):
        return None
    images = np.zeros((count, *preparation.image_size_px, 3), np.uint8)
    # An absent camera keeps a pose that can be inverted; nothing of it is ever used.
    intrinsics = np.tile(np.eye(3, dtype=np.float32), (count, 1, 1))
    poses = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
    for n, camera in enumerate(frame.cameras):
        if camera is not None:
            change = changes[n] if changes is not None else ImageChange()
            images[n], intrinsics[n] = fit_image(camera.image, camera.intrinsics, preparation.image_size_px, change)
            poses[n] = bev_change @ camera.reference_T_camera
    return images, intrinsics, poses, np.array([camera is not None for camera in frame.cameras])


def _absent_cameras(channels: tuple[str, ...], present: NDArray[np.bool_] | None) -> dict[str, Absence]:
    here = np.zeros(len(channels), bool) if present is None else present
    return {channel: NOT_GIVEN for channel, is_here in zip(channels, here, strict=True) if not is_here}


def _depth(frame: SensorFrame, clouds: list[Cloud], intrinsics: Float32, preparation: Preparation) -> Float32:
    """[N, h, w] from the newest sweep of each LiDAR; older ones show moving objects where they were."""
    assert preparation.image_size_px is not None
    cameras: tuple[CameraImage | None, ...] = frame.cameras or ()
    newest = {cloud.sweep.channel: cloud for cloud in reversed(clouds)}  # sweeps come newest first: the last one stays
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
                image_size_px=preparation.image_size_px,
                stride_px=preparation.feature_stride_px,
            )
        )
    nearest = np.min([np.where(depth > 0, depth, np.inf) for depth in maps], axis=0)
    known = np.isfinite(nearest) & _pictured(cameras, intrinsics, nearest.shape, preparation.feature_stride_px)
    return np.where(known, nearest, 0).astype(np.float32)


def _pictured(
    cameras: tuple[CameraImage | None, ...], intrinsics: Float32, shape: tuple[int, ...], stride_px: int
) -> NDArray[np.bool_]:
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
