"""A LiDAR modality: its sweeps as points of one reference frame, and as a batch.

Letters: B samples, L LiDARs, P points, S azimuth sectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from sensors.batch import LidarBatch
from sensors.calibration import FloatArray, apply_columns
from sensors.frames import SECTORS, azimuth_sector
from sensors.modality import Preparation, Prepared, Sample
from sensors.points import Cloud, DroppedPoints, Float32, Merged, SweepPoints, inside, merge, pad

_ROUND_UP = 1024


@dataclass(frozen=True)
class PreparedLidar:
    """The points of one sample, at least one."""

    points: Float32  # [P, 5], see `sensors.batch.LidarBatch`
    present: NDArray[np.bool_]  # [L]
    sectors: Float32  # [L, S]


@dataclass(frozen=True)
class Lidar:
    """`sensors.modality.Modality` of LiDARs."""

    name: str
    channels: tuple[str, ...]  # L
    alone: bool = True  # False: the rig has LiDARs of other modalities too
    kind: ClassVar[str] = "lidar"

    def prepare(self, sample: Sample) -> Prepared[PreparedLidar]:
        mine = (cloud for cloud in sample.clouds if cloud.sweep.channel in self.channels)
        merged = merge(self.channels, (_sweep(cloud, sample) for cloud in mine))
        points, item = merged.together(), None
        if points is not None:
            working = sample.frame.lidar_sectors
            sectors = _sectors(self.channels, merged, working, sample.bev_change, all_around=self._all_around)
            item = PreparedLidar(points, merged.present, sectors)
        return Prepared(item, merged.sensors)

    @property
    def _all_around(self) -> bool:
        """A rig's only LiDAR looks all around. Of several each looks its own way, whether one modality has them or several."""
        return self.alone and len(self.channels) == 1

    def collate(self, items: Sequence[PreparedLidar | None], preparation: Preparation) -> LidarBatch | None:
        if all(item is None for item in items):
            return None
        points, count = pad([None if item is None else item.points for item in items], 5, _ROUND_UP)
        present = np.zeros((len(items), len(self.channels)), bool)
        sectors = np.zeros((len(items), len(self.channels), SECTORS), np.float32)
        for b, item in enumerate(items):
            if item is not None:
                present[b], sectors[b] = item.present, item.sectors
        return LidarBatch(points, count, torch.from_numpy(present), torch.from_numpy(sectors))


def _sweep(cloud: Cloud, sample: Sample) -> SweepPoints:
    preparation = sample.preparation
    xyz = apply_columns((sample.bev_change @ cloud.sweep.reference_T_lidar)[:3], cloud.xyz_m)
    within = inside(xyz, preparation.grid, preparation.z_range_m) & cloud.usable
    kept = np.flatnonzero(cloud.usable if preparation.keep_outside else within)
    points = np.empty((len(kept), 5), np.float32)
    for axis in range(3):
        points[:, axis] = xyz[axis][kept]
    points[:, 3] = cloud.sweep.points[:, 3][kept] / 255
    age_us = int(sample.frame.time_us) - int(cloud.sweep.time_us)
    points[:, 4] = age_us * 1e-6
    outside = np.count_nonzero(cloud.usable) - np.count_nonzero(within)
    dropped = cloud.dropped + DroppedPoints(lidar_outside=outside)
    return SweepPoints(cloud.sweep.channel, points, len(cloud.sweep.points), dropped, age_us)


def _sectors(
    channels: Sequence[str],
    merged: Merged,
    working: NDArray[np.bool_] | None,
    bev_change: FloatArray,
    *,
    all_around: bool,
) -> Float32:
    """[L, S] 0..1, how much of each azimuth sector of the (changed) reference frame each LiDAR covers; 0 of absent ones.

    All but those that are not `working` [S] (`SensorFrame.lidar_sectors`). Where a LiDAR does not look `all_around`, its points
    tell which way it looks: it covers the sectors, as seen from the reference's origin, in which it delivers at least one point.
    A sector without any is as unknown as a sweep without any.
    """
    sectors = np.zeros((len(channels), SECTORS), np.float32)
    works = np.ones(SECTORS, np.float32) if working is None else _changed_sectors(working, bev_change)
    for row, channel in zip(sectors, channels, strict=True):
        points = merged.points.get(channel)
        if points is not None:
            row[:] = works
            if not all_around:
                met = np.bincount(azimuth_sector(points[:, 0], points[:, 1]), minlength=SECTORS)
                row[met == 0] = 0
    return sectors


def _changed_sectors(sectors: NDArray[np.bool_], bev_change: FloatArray) -> Float32:
    """[S] of the changed reference frame: the share of each sector that lies on working ones of the old."""
    parts = 8  # directions looked at in each sector; their middles, so that no change gives back what came in
    azimuth = (np.arange(SECTORS * parts) + 0.5) * (2 * np.pi / (SECTORS * parts)) - np.pi
    x, y = np.linalg.inv(bev_change[:2, :2]) @ np.stack([np.cos(azimuth), np.sin(azimuth)])
    return sectors[azimuth_sector(x, y)].reshape(SECTORS, parts).mean(axis=1, dtype=np.float32)
