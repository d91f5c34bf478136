"""A radar modality: its sweeps as points of one reference frame, and as a batch.

Letters: B samples, R radars, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from sensors.batch import RadarBatch, radar_heights_m
from sensors.calibration import apply
from sensors.frames import RadarSweep
from sensors.modality import Preparation, Prepared, Sample
from sensors.points import NEAREST_M, DroppedPoints, Float32, Merged, SweepPoints, inside, merge, pad

_ROUND_UP = 64


@dataclass(frozen=True)
class PreparedRadar:
    """The points of one sample, at least one."""

    points: Float32  # [P, 7], see `sensors.batch.RadarBatch`
    present: NDArray[np.bool_]  # [R]
    reference_T_radar: Float32  # [R, 4, 4]


@dataclass(frozen=True)
class Radar:
    """`sensors.modality.Modality` of radars."""

    name: str
    channels: tuple[str, ...]  # R
    kind: ClassVar[str] = "radar"

    def prepare(self, sample: Sample) -> Prepared[PreparedRadar]:
        mine = (sweep for sweep in sample.frame.radar or () if sweep.channel in self.channels)
        merged = merge(self.channels, (_sweep(sweep, sample) for sweep in mine))
        points = merged.together()
        item = None if points is None else PreparedRadar(points, merged.present, self._poses(sample, merged))
        return Prepared(item, merged.sensors)

    def _poses(self, sample: Sample, merged: Merged) -> Float32:
        """[R, 4, 4] of each radar's newest sweep; the identity, which can be inverted, of an absent one."""
        # Sweeps come newest first: the last one stays.
        newest = {sweep.channel: sweep for sweep in reversed(sample.frame.radar or ())}
        poses = [
            sample.bev_change @ newest[channel].reference_T_radar if channel in merged.points else np.eye(4)
            for channel in self.channels
        ]
        return np.array(poses, np.float32).reshape(-1, 4, 4)

    def collate(self, items: Sequence[PreparedRadar | None], preparation: Preparation) -> RadarBatch | None:
        if all(item is None for item in items):
            return None
        points, count = pad([None if item is None else item.points for item in items], 7, _ROUND_UP)
        present = np.zeros((len(items), len(self.channels)), bool)
        poses = np.tile(np.eye(4, dtype=np.float32), (len(items), len(self.channels), 1, 1))
        for b, item in enumerate(items):
            if item is not None:
                present[b], poses[b] = item.present, item.reference_T_radar
        return RadarBatch(points, count, torch.from_numpy(present), torch.from_numpy(poses))


def _sweep(sweep: RadarSweep, sample: Sample) -> SweepPoints:
    transform = sample.bev_change @ sweep.reference_T_radar
    with np.errstate(invalid="ignore", over="ignore"):
        is_finite = np.isfinite(sweep.points.sum(axis=1))
        far = np.abs(sweep.points[:, :2]).max(axis=1, initial=0) >= NEAREST_M
    usable = sweep.points[is_finite & far]
    xyz = apply(transform, usable[:, :3])
    preparation = sample.preparation
    within = inside(xyz.T, preparation.grid, radar_heights_m(preparation.z_range_m))
    kept = np.arange(len(within)) if preparation.keep_outside else np.flatnonzero(within)
    points = np.empty((len(kept), 7), np.float32)
    points[:, :3] = xyz[kept]
    points[:, 3] = usable[kept, 3]
    points[:, 4:6] = usable[kept, 4:6] @ transform[:2, :2].T.astype(np.float32)  # a vector in the sensor's x-y plane
    age_us = int(sample.frame.time_us) - int(sweep.time_us)
    points[:, 6] = age_us * 1e-6
    dropped = DroppedPoints(
        radar_not_finite=int((~is_finite).sum()),
        radar_near=int((is_finite & ~far).sum()),
        radar_outside=len(within) - int(within.sum()),
    )
    return SweepPoints(sweep.channel, points, len(sweep.points), dropped, age_us)
