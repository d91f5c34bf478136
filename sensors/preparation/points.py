"""The points of LiDARs and radars made ready for the network, and which of these sensors count as absent.

A sensor is judged by all its sweeps together: it is present if at least one of its points can reach the network. Where none can,
what the network would see is an empty world, which nobody measured; so the sensor counts as absent, with the reason.

Letters: L LiDARs, R radars, P points, S azimuth sectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.batch import radar_heights_m
from sensors.calibration import FloatArray, apply, apply_columns
from sensors.frames import NOT_GIVEN, SECTORS, Absence, Lack, LidarSweep, RadarSweep, SensorFrame, azimuth_sector
from sensors.preparation.preparation import Preparation

_NEAREST_M = 0.1  # nearer than any sensor sees lie only the zeros of a buffer that was not written
Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class DroppedPoints:
    """Points that the network cannot use, and why."""

    lidar_not_finite: int = 0  # NaN or infinite in the file
    lidar_near: int = 0  # within `lidar_min_range_m` of the LiDAR: the vehicle itself
    lidar_outside: int = 0  # outside the grid or its height range; they travel along where `Preparation.keep_outside`
    radar_not_finite: int = 0
    radar_outside: int = 0
    radar_near: int = 0  # at the radar itself
    lidar_dead_sector: int = 0  # in a sector that `SensorFrame.lidar_sectors` says delivers nothing

    def __add__(self, other: DroppedPoints) -> DroppedPoints:
        return DroppedPoints(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))

    def __str__(self) -> str:
        counts = [(getattr(self, f.name), f.name.partition("_")[2]) for f in fields(self)]
        return ", ".join(f"{count} {_WORDS[why]}" for count, why in counts if count)


_WORDS = {
    "not_finite": "not finite", "near": "on the vehicle itself", "outside": "outside the grid or its heights",
    "dead_sector": "in dead sectors",
}  # fmt: skip


@dataclass(frozen=True)
class Cloud:
    """The points of one LiDAR sweep as columns: they are worked on one coordinate at a time."""

    sweep: LidarSweep
    xyz_m: Float32  # [3, P] sensor frame
    usable: Mask  # [P]
    dropped: DroppedPoints


@dataclass(frozen=True)
class _Sweep:
    """The points of one sweep as the network wants them, [P, columns], out of so many delivered."""

    channel: str
    points: Float32
    delivered: int
    dropped: DroppedPoints


@dataclass(frozen=True)
class Merged:
    """What the LiDARs, or the radars, of the rig deliver in one frame."""

    points: dict[str, Float32]  # channel -> [P, columns] of all its sweeps; of the sensors that are present
    absent: dict[str, Absence]  # the others of the rig
    present: Mask  # [L] or [R]
    dropped: DroppedPoints

    def together(self) -> Float32 | None:
        """[P, columns] of all sensors; None where none is present."""
        return _stacked(list(self.points.values())) if self.points else None


def _stacked(parts: list[Float32]) -> Float32:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _merge(channels: Sequence[str], sweeps: Iterable[_Sweep]) -> Merged:
    of_channel: dict[str, list[_Sweep]] = {channel: [] for channel in channels}
    for sweep in sweeps:
        of_channel[sweep.channel].append(sweep)
    points, absent, dropped = {}, {}, DroppedPoints()
    for channel, mine in of_channel.items():
        lost = sum((sweep.dropped for sweep in mine), DroppedPoints())
        absence = _absence(len(mine), sum(sweep.delivered for sweep in mine), lost)
        if absence is None:
            points[channel] = _stacked([sweep.points for sweep in mine])
        else:
            absent[channel] = absence
        dropped = dropped + lost
    return Merged(points, absent, np.array([channel in points for channel in channels], bool), dropped)


def _absence(sweeps: int, delivered: int, dropped: DroppedPoints) -> Absence | None:
    """None where at least one point can be used."""
    if delivered > dropped.total:
        return None
    if sweeps == 0:
        return NOT_GIVEN
    of = f"{sweeps} sweep{'s' if sweeps > 1 else ''}"
    if delivered == 0:
        return Absence(Lack.RETURN, f"no return in {of}: a dead sensor looks like an empty world")
    return Absence(Lack.USABLE, f"none of {delivered} point{'s' if delivered > 1 else ''} in {of} is usable: {dropped}")


def lidar_clouds(frame: SensorFrame, preparation: Preparation) -> list[Cloud]:
    """Every LiDAR sweep; not usable is what is not finite, what is the vehicle itself and what lies in a dead sector."""
    return [_cloud(sweep, preparation.lidar_min_range_m, frame.lidar_sectors) for sweep in frame.lidar or ()]


def _cloud(sweep: LidarSweep, min_range_m: float, sectors: Mask | None) -> Cloud:
    xyz = np.ascontiguousarray(sweep.points[:, :3].T)
    with np.errstate(invalid="ignore", over="ignore"):
        # A sum finds NaN and infinity in any of them.
        finite = np.isfinite(xyz[0] + xyz[1] + xyz[2] + sweep.points[:, 3])
        usable = finite & (xyz[0] ** 2 + xyz[1] ** 2 >= max(min_range_m, _NEAREST_M) ** 2)
    bad, left = len(finite) - np.count_nonzero(finite), np.count_nonzero(usable)
    dropped = DroppedPoints(lidar_not_finite=bad, lidar_near=len(finite) - bad - left)
    if sectors is not None and not sectors.all():
        keep = np.flatnonzero(usable)
        x_m, y_m, _ = apply(sweep.reference_T_lidar, np.ascontiguousarray(xyz[:, keep].T)).T
        usable[keep] = sectors[azimuth_sector(x_m, y_m)]
        dropped = dropped + DroppedPoints(lidar_dead_sector=left - np.count_nonzero(usable))
    return Cloud(sweep, xyz, usable, dropped)


def merge_lidar(
    frame: SensorFrame, clouds: Sequence[Cloud], preparation: Preparation, bev_change: FloatArray
) -> Merged:
    """[P, 5] of each LiDAR of the rig in the (changed) reference frame, see `sensors.batch.LidarBatch`."""
    channels = preparation.lidar_channels
    return _merge(
        channels,
        (
            _lidar_sweep(cloud, frame.time_us, preparation, bev_change)
            for cloud in clouds
            if cloud.sweep.channel in channels
        ),
    )


def _lidar_sweep(cloud: Cloud, now_us: int, preparation: Preparation, bev_change: FloatArray) -> _Sweep:
    xyz = apply_columns((bev_change @ cloud.sweep.reference_T_lidar)[:3], cloud.xyz_m)
    inside = _inside(xyz, preparation, preparation.z_range_m) & cloud.usable
    kept = np.flatnonzero(cloud.usable if preparation.keep_outside else inside)
    points = np.empty((len(kept), 5), np.float32)
    for axis in range(3):
        points[:, axis] = xyz[axis][kept]
    points[:, 3] = cloud.sweep.points[:, 3][kept] / 255
    points[:, 4] = (now_us - cloud.sweep.time_us) * 1e-6
    outside = np.count_nonzero(cloud.usable) - np.count_nonzero(inside)
    dropped = cloud.dropped + DroppedPoints(lidar_outside=outside)
    return _Sweep(cloud.sweep.channel, points, len(cloud.sweep.points), dropped)


def lidar_sectors(
    merged: Merged, preparation: Preparation, working: NDArray[np.bool_] | None, bev_change: FloatArray
) -> Float32:
    """[L, S] 0..1, how much of each azimuth sector of the (changed) reference frame each LiDAR covers; 0 of absent ones.

    A rig's only LiDAR looks all around, but for the sectors that are not `working` [S] (`SensorFrame.lidar_sectors`). Of several,
    each looks its own way, which its points tell: it covers the sectors, as seen from the reference's origin, in which it
    delivers at least one point. A sector without any is as unknown as a sweep without any.
    """
    channels = preparation.lidar_channels
    sectors = np.zeros((len(channels), SECTORS), np.float32)
    works = np.ones(SECTORS, np.float32) if working is None else _changed_sectors(working, bev_change)
    for row, channel in zip(sectors, channels, strict=True):
        points = merged.points.get(channel)
        if points is not None:
            row[:] = works
            if len(channels) > 1:
                met = np.bincount(azimuth_sector(points[:, 0], points[:, 1]), minlength=SECTORS)
                row[met == 0] = 0
    return sectors


def _changed_sectors(sectors: NDArray[np.bool_], bev_change: FloatArray) -> Float32:
    """[S] of the changed reference frame: the share of each sector that lies on working ones of the old."""
    parts = 8  # directions looked at in each sector; their middles, so that no change gives back what came in
    azimuth = (np.arange(SECTORS * parts) + 0.5) * (2 * np.pi / (SECTORS * parts)) - np.pi
    x, y = np.linalg.inv(bev_change[:2, :2]) @ np.stack([np.cos(azimuth), np.sin(azimuth)])
    return sectors[azimuth_sector(x, y)].reshape(SECTORS, parts).mean(axis=1, dtype=np.float32)


def merge_radar(frame: SensorFrame, preparation: Preparation, bev_change: FloatArray) -> Merged:
    """[P, 7] of each radar of the rig in the (changed) reference frame, see `sensors.batch.RadarBatch`."""
    channels = preparation.radar_channels
    sweeps = (sweep for sweep in frame.radar or () if sweep.channel in channels)
    return _merge(channels, (_radar_sweep(sweep, frame.time_us, preparation, bev_change) for sweep in sweeps))


def radar_poses(frame: SensorFrame, merged: Merged, preparation: Preparation, bev_change: FloatArray) -> Float32:
    """[R, 4, 4] of each radar's newest sweep; the identity, which can be inverted, of an absent one."""
    newest = {sweep.channel: sweep for sweep in reversed(frame.radar or ())}  # newest first: the last one stays
    poses = [
        bev_change @ newest[channel].reference_T_radar if channel in merged.points else np.eye(4)
        for channel in preparation.radar_channels
    ]
    return np.array(poses, np.float32).reshape(-1, 4, 4)


def _radar_sweep(sweep: RadarSweep, now_us: int, preparation: Preparation, bev_change: FloatArray) -> _Sweep:
    transform = bev_change @ sweep.reference_T_radar
    with np.errstate(invalid="ignore", over="ignore"):
        is_finite = np.isfinite(sweep.points.sum(axis=1))
        far = np.abs(sweep.points[:, :2]).max(axis=1, initial=0) >= _NEAREST_M
    usable = sweep.points[is_finite & far]
    xyz = apply(transform, usable[:, :3])
    inside = _inside(xyz.T, preparation, radar_heights_m(preparation.z_range_m))
    kept = np.arange(len(inside)) if preparation.keep_outside else np.flatnonzero(inside)
    points = np.empty((len(kept), 7), np.float32)
    points[:, :3] = xyz[kept]
    points[:, 3] = usable[kept, 3]
    points[:, 4:6] = usable[kept, 4:6] @ transform[:2, :2].T.astype(np.float32)  # a vector in the sensor's x-y plane
    points[:, 6] = (now_us - sweep.time_us) * 1e-6
    dropped = DroppedPoints(
        radar_not_finite=int((~is_finite).sum()),
        radar_near=int((is_finite & ~far).sum()),
        radar_outside=len(inside) - int(inside.sum()),
    )
    return _Sweep(sweep.channel, points, len(sweep.points), dropped)


def _inside(xyz_m: NDArray[Any], preparation: Preparation, z_range_m: tuple[float, float]) -> Mask:
    """[3, P] metres -> [P]."""
    grid, (x, y, z) = preparation.grid, xyz_m
    inside: Mask = (x >= grid.x_min_m) & (x < grid.x_max_m) & (y >= grid.y_min_m) & (y < grid.y_max_m)
    return inside & (z >= z_range_m[0]) & (z < z_range_m[1])
