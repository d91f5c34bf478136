"""One instant made ready for the network: pictures cut to size, sweeps merged into one (perhaps augmented) reference frame.

Letters: N cameras, R radars, P points, H and W pixels, h and w feature pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bev.grid import BEVGrid
from bev.lift import DepthBins
from sensors.calibration import FloatArray, apply, inverse_rigid
from sensors.depth import depth_targets
from sensors.frame_checks import check_frame
from sensors.frames import SECTORS, CameraImage, LidarSweep, RadarSweep, SensorFrame, azimuth_sector
from sensors.images import ImageChange, fit_image

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class DroppedPoints:
    """Points that did not reach the network, and why."""

    lidar_not_finite: int = 0  # NaN or infinite in the file
    lidar_near: int = 0  # within `lidar_min_range_m` of the LiDAR: the vehicle itself
    lidar_outside: int = 0  # outside the grid or its height range
    radar_not_finite: int = 0
    radar_outside: int = 0
    lidar_dead_sector: int = 0  # in a sector that `SensorFrame.lidar_sectors` says delivers nothing

    def __add__(self, other: DroppedPoints) -> DroppedPoints:
        return DroppedPoints(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Preparation:
    """What the network wants to be given."""

    grid: BEVGrid
    z_range_m: tuple[float, float]
    image_size_px: tuple[int, int] | None  # (H, W); None: no camera encoder, cameras count as absent
    cameras: int  # N
    radar_channels: tuple[str, ...]  # R
    lidar: bool = True  # False: LiDAR serves depth targets only
    radar: bool = True
    feature_stride_px: int = 8
    lift_samples: tuple[int, int] = (1, 1)  # of the lift table
    depth_bins: DepthBins | None = None  # given: `sensors.collate` builds the lift table
    depth_targets: bool = False
    lidar_min_range_m: float = 1.0
    keep_outside: bool = False  # True: points outside the grid stay, at the cost of padding


@dataclass(frozen=True)
class PreparedFrame:
    """One sample, ready to be collated. None is an absent modality."""

    images: NDArray[np.uint8] | None  # [N, H, W, 3]
    intrinsics: Float32 | None  # [N, 3, 3]
    reference_T_camera: Float32 | None  # [N, 4, 4]
    camera_present: NDArray[np.bool_] | None  # [N]
    lidar: Float32 | None  # [P, 5]
    lidar_sectors: Float32 | None  # [S] 0..1, how much of each azimuth sector of the (changed) reference frame delivers
    radar: Float32 | None  # [P, 7]
    radar_present: NDArray[np.bool_] | None  # [R]
    reference_T_radar: Float32 | None  # [R, 4, 4]
    depth_m: Float32 | None  # [N, h, w], 0 where unknown
    dropped: DroppedPoints


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
    (`training.augmentation`). Depth targets stay in the camera's own metres; they come from the LiDAR and the camera poses of
    `depth_from`, where that is given: a frame whose sensors were made to fail would teach wrong depths.

    Raises:
        CalibrationError, ValueError: the frame is none, see `sensors.frame_checks.check_frame`, or `cameras` has another length
            than the configuration's.
    """
    check_frame(frame)
    change = np.eye(4) if bev_change is None else bev_change
    cameras = _cameras(frame, preparation, image_changes, change)
    clouds = _clouds(frame, preparation)
    lidar, dropped = _lidar(clouds, frame.time_us, preparation, change)
    radar, radar_present, reference_T_radar, dropped_radar = _radar(frame, preparation, change)
    depth_m = None
    taught = frame if depth_from is None else depth_from
    if preparation.depth_targets and cameras is not None and taught.lidar is not None:
        shown = clouds if taught.lidar is frame.lidar else _clouds(taught, preparation)
        depth_m = _depth(taught, shown, cameras[1], preparation)
    images, intrinsics, poses, present = cameras or (None, None, None, None)
    return PreparedFrame(
        images=images,
        intrinsics=intrinsics,
        reference_T_camera=poses,
        camera_present=present,
        lidar=lidar if preparation.lidar and frame.lidar is not None else None,
        lidar_sectors=_changed_sectors(frame.lidar_sectors, change),
        radar=radar,
        radar_present=radar_present,
        reference_T_radar=reference_T_radar,
        depth_m=depth_m,
        dropped=dropped + dropped_radar,
    )


def _cameras(
    frame: SensorFrame, preparation: Preparation, changes: Sequence[ImageChange] | None, bev_change: FloatArray
) -> tuple[NDArray[np.uint8], Float32, Float32, NDArray[np.bool_]] | None:
    if preparation.image_size_px is None or frame.cameras is None:
        return None
    count = preparation.cameras
    if len(frame.cameras) != count:
        raise ValueError(
            f"sample {frame.token}: expected {count} cameras, got {len(frame.cameras)}; an absent camera is None in its place"
        )
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


@dataclass(frozen=True)
class _Cloud:
    """The points of one LiDAR sweep that are points, as columns: they are worked on one coordinate at a time."""

    sweep: LidarSweep
    xyz_m: Float32  # [3, P] sensor frame
    intensity: Float32  # [P]
    dropped: DroppedPoints


def _clouds(frame: SensorFrame, preparation: Preparation) -> list[_Cloud]:
    return [_usable(sweep, preparation.lidar_min_range_m, frame.lidar_sectors) for sweep in frame.lidar or ()]


def _usable(sweep: LidarSweep, min_range_m: float, sectors: NDArray[np.bool_] | None) -> _Cloud:
    """Leaves out what is not finite, what is the vehicle itself and what lies in a dead sector."""
    xyz, intensity = np.ascontiguousarray(sweep.points[:, :3].T), sweep.points[:, 3]
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(xyz[0] + xyz[1] + xyz[2] + intensity)  # a sum finds NaN and infinity in any of them
        far = xyz[0] ** 2 + xyz[1] ** 2 >= min_range_m**2
    keep = np.flatnonzero(finite & far)
    bad = len(finite) - int(finite.sum())
    dropped = DroppedPoints(lidar_not_finite=bad, lidar_near=len(finite) - bad - len(keep))
    if sectors is not None and not sectors.all():
        x_m, y_m, _ = apply(sweep.reference_T_lidar, np.ascontiguousarray(xyz[:, keep].T)).T
        works = sectors[azimuth_sector(x_m, y_m)]
        dropped = dropped + DroppedPoints(lidar_dead_sector=len(keep) - int(works.sum()))
        keep = keep[works]
    if len(keep) == len(finite):
        return _Cloud(sweep, xyz, intensity, dropped)
    return _Cloud(sweep, xyz[:, keep], intensity[keep], dropped)


def _changed_sectors(sectors: NDArray[np.bool_] | None, bev_change: FloatArray) -> Float32 | None:
    """[S] of the changed reference frame: the share of each sector that lies on working ones of the old."""
    if sectors is None:
        return None
    parts = 8  # directions looked at in each sector; their middles, so that no change gives back what came in
    azimuth = (np.arange(SECTORS * parts) + 0.5) * (2 * np.pi / (SECTORS * parts)) - np.pi
    x, y = np.linalg.inv(bev_change[:2, :2]) @ np.stack([np.cos(azimuth), np.sin(azimuth)])
    return sectors[azimuth_sector(x, y)].reshape(SECTORS, parts).mean(axis=1, dtype=np.float32)


def _lidar(
    clouds: list[_Cloud], now_us: int, preparation: Preparation, bev_change: FloatArray
) -> tuple[Float32, DroppedPoints]:
    """[P, 5] of all sweeps in the (changed) reference frame."""
    merged, dropped = [np.zeros((0, 5), np.float32)], DroppedPoints()
    for cloud in clouds:
        transform = (bev_change @ cloud.sweep.reference_T_lidar).astype(np.float32)
        xyz = transform[:3, :3] @ cloud.xyz_m + transform[:3, 3:]
        inside = np.flatnonzero(_inside(xyz, preparation, preparation.z_range_m))
        points = np.empty((len(inside), 5), np.float32)
        for axis in range(3):
            points[:, axis] = xyz[axis][inside]
        points[:, 3] = cloud.intensity[inside] / 255
        points[:, 4] = (now_us - cloud.sweep.time_us) * 1e-6
        merged.append(points)
        dropped = dropped + cloud.dropped + DroppedPoints(lidar_outside=xyz.shape[1] - len(points))
    return np.concatenate(merged), dropped


def _radar(
    frame: SensorFrame, preparation: Preparation, bev_change: FloatArray
) -> tuple[Float32 | None, NDArray[np.bool_] | None, Float32 | None, DroppedPoints]:
    if not preparation.radar or frame.radar is None:
        return None, None, None, DroppedPoints()
    channels = preparation.radar_channels
    present = np.zeros(len(channels), bool)
    poses = np.tile(np.eye(4, dtype=np.float32), (len(channels), 1, 1))
    merged, dropped = [np.zeros((0, 7), np.float32)], DroppedPoints()
    for sweep in frame.radar:
        if sweep.channel not in channels:
            continue
        r = channels.index(sweep.channel)
        if not present[r]:  # newest first: the keyframe's own pose is the radar's
            present[r], poses[r] = True, bev_change @ sweep.reference_T_radar
        points, lost = _radar_points(sweep, frame.time_us, preparation, bev_change @ sweep.reference_T_radar)
        merged.append(points)
        dropped = dropped + lost
    return np.concatenate(merged), present, poses, dropped


def _radar_points(
    sweep: RadarSweep, now_us: int, preparation: Preparation, transform: FloatArray
) -> tuple[Float32, DroppedPoints]:
    """[P, 7] in the (changed) reference frame. Height is no reason to drop a radar point: radars hardly measure it."""
    usable = sweep.points[np.isfinite(sweep.points.sum(axis=1))]
    xyz = apply(transform, usable[:, :3])
    inside = _inside(xyz.T, preparation, (-np.inf, np.inf))
    points = np.empty((int(inside.sum()), 7), np.float32)
    points[:, :3] = xyz[inside]
    points[:, 3] = usable[inside, 3]
    points[:, 4:6] = usable[inside, 4:6] @ transform[:2, :2].T.astype(np.float32)  # a vector in the sensor's x-y plane
    points[:, 6] = (now_us - sweep.time_us) * 1e-6
    lost = DroppedPoints(radar_not_finite=len(sweep.points) - len(usable), radar_outside=len(usable) - len(points))
    return points, lost


def _inside(xyz_m: NDArray[Any], preparation: Preparation, z_range_m: tuple[float, float]) -> NDArray[np.bool_]:
    """[3, P] metres -> [P]."""
    grid, (x, y, z) = preparation.grid, xyz_m
    if preparation.keep_outside:
        return np.ones(len(x), bool)
    inside = (x >= grid.x_min_m) & (x < grid.x_max_m) & (y >= grid.y_min_m) & (y < grid.y_max_m)
    inside &= (z >= z_range_m[0]) & (z < z_range_m[1])
    return inside


def _depth(frame: SensorFrame, clouds: list[_Cloud], intrinsics: Float32, preparation: Preparation) -> Float32:
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
                cloud.xyz_m,
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
    rows, columns = ((np.arange(count) + 0.5) * stride_px - 0.5 for count in shape[1:])
    for n, camera in enumerate(cameras):
        if camera is not None:
            height, width = camera.image.shape[:2]
            # Old pixel to new pixel. Cuts, scales and mirrors keep rows and columns apart.
            change = intrinsics[n].astype(np.float64) @ np.linalg.inv(camera.intrinsics)
            left, right = sorted(change[0, 0] * np.array([-0.5, width - 0.5]) + change[0, 2])
            top, bottom = sorted(change[1, 1] * np.array([-0.5, height - 0.5]) + change[1, 2])
            pictured[n] = ((rows > top) & (rows < bottom))[:, None] & ((columns > left) & (columns < right))
    return pictured
