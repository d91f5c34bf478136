"""Measurements of a LiDAR's newest sweep: how full and how smooth its range image is, where the ground lies, what stood still.

Letters: R rings, A azimuth columns, P points, S shifts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import apply
from sensors.frames import LidarSweep
from sensors.health.grid import Occupancy

Float32 = NDArray[np.float32]

COLUMNS = 512  # of the range image: below the firings of a turn, so that a whole sweep fills it
RINGS = 32  # of the range image; LiDARs with more beams get more
_NEAR_M = 1.5
_SECTORS = 36
_STANDING_M = (0.4, 3.0)  # heights of what a BEV comparison looks at: neither ground nor what hangs over the road


@dataclass(frozen=True)
class Scan:
    """A sweep as a range image in the reference frame. Cells without a return are 0."""

    points: Float32  # [P, 5] as delivered
    xyz_m: Float32
    range_m: Float32  # [R, A], 0: no return
    intensity: Float32  # [R, A]
    standing: Float32  # [Q, 2] x, y of points that stand on the ground
    occupancy: Occupancy  # of these


def view(sweep: LidarSweep) -> Scan:
    """The range image of a sweep; where several points share a cell, the last one is kept."""
    with np.errstate(invalid="ignore"):
        square = sweep.points[:, 0] ** 2 + sweep.points[:, 1] ** 2
        keep = np.isfinite(square + sweep.points[:, 2] + sweep.points[:, 3]) & (square > _NEAR_M**2)
    points, flat = sweep.points[keep], np.sqrt(square[keep])
    row = _rows(points, flat)
    rings = max(RINGS, int(row.max(initial=0)) + 1)
    turn = np.arctan2(points[:, 1], points[:, 0]) * np.float32(0.5 / np.pi) + np.float32(0.5)
    column = (turn * COLUMNS).astype(np.int64) % COLUMNS
    cell = row * COLUMNS + column
    reference = apply(sweep.reference_T_lidar, points[:, :3])
    range_m, intensity = np.zeros(rings * COLUMNS, np.float32), np.zeros(rings * COLUMNS, np.float32)
    xyz = np.zeros((rings * COLUMNS, 3), np.float32)
    range_m[cell], intensity[cell], xyz[cell] = np.hypot(flat, points[:, 2]), points[:, 3], reference
    shape = (rings, COLUMNS)
    standing = _standing(reference)
    return Scan(
        points=sweep.points,
        xyz_m=xyz.reshape(*shape, 3),
        range_m=range_m.reshape(shape),
        intensity=intensity.reshape(shape),
        standing=standing,
        occupancy=Occupancy.of(standing),
    )


def standing_points(sweep: LidarSweep) -> Float32:
    """[Q, 2] x, y in the reference frame of points that stand on the ground."""
    points = sweep.points[:, :3]
    return _standing(apply(sweep.reference_T_lidar, points[points[:, 0] ** 2 + points[:, 1] ** 2 > _NEAR_M**2]))


def _standing(xyz_m: Float32) -> Float32:
    low, high = _STANDING_M
    return xyz_m[np.flatnonzero((xyz_m[:, 2] > low) & (xyz_m[:, 2] < high)), :2]


def look(scan: Scan) -> dict[str, float]:
    """What one sweep alone tells."""
    range_m = scan.range_m
    hit = range_m > 0
    per_ring = hit.mean(axis=1)
    working = per_ring > 0.02
    lower = np.flatnonzero(working)[: max(1, int(working.sum()) // 2)]  # rings that look at the ground, always met
    edges = np.arange(_SECTORS) * COLUMNS // _SECTORS
    sectors = np.add.reduceat(hit.any(axis=0).astype(np.int64), edges) > 0
    left, right = np.roll(range_m, 1, axis=1), np.roll(range_m, -1, axis=1)
    triple = hit & (left > 0) & (right > 0)
    bend = np.abs(range_m - 0.5 * (left + right))[triple] / np.maximum(range_m[triple], 1)
    limit = np.maximum(0.5, 0.06 * range_m)
    lonely = hit & (np.abs(range_m - left) > limit) & (np.abs(range_m - right) > limit)
    near = hit & (range_m < 10) & lonely
    places = [len(bend) // 2, len(bend) * 4 // 5]
    bends = np.partition(bend, places)[places] if len(bend) else np.zeros(2)
    return {
        "points": float(np.log(len(scan.points) + 1)),
        "rings": float(working.mean()),
        "fill": float(hit[lower].mean()) if len(lower) else 0.0,
        "empty_sectors": 1 - float(sectors.mean()),
        "roughness": float(np.log(bends[0] + 1e-4)),
        "roughness_high": float(np.log(bends[1] + 1e-4)),
        "lonely_share": float(lonely.sum() / max(1, hit.sum())),
        "lonely_near": float(np.log1p(near.sum())),
        "far_share": float((range_m > 30).sum() / max(1, hit.sum())),
        "intensity": float(scan.intensity[hit].mean()) / 255 if hit.any() else 0.0,
        **_ground(scan, hit),
    }


def is_repeated(points: Float32, before: Float32) -> float:
    """1 where the points delivered are those delivered before, number by number; 0 otherwise."""
    return float(points.shape == before.shape and len(points) > 0 and bool(np.array_equal(points, before)))


def _rows(points: Float32, flat_m: Float32) -> NDArray[np.int64]:
    """[P] row of the range image; without ring numbers, equal steps of elevation stand in for rings."""
    if len(points) == 0 or points[:, 4].min() >= 0:
        return points[:, 4].astype(np.int64)
    low, high = np.radians(-31.0), np.radians(11.0)  # of an HDL-32E, as in nuScenes
    elevation = np.arctan2(points[:, 2], flat_m)
    return np.clip((elevation - low) / (high - low) * RINGS, 0, RINGS - 1).astype(np.int64)


def _ground(scan: Scan, hit: NDArray[np.bool_]) -> dict[str, float]:
    """Height and slope of the ground (z = 0 in the reference frame) by the lowest quarter of points in four directions."""
    xyz = scan.xyz_m[hit]
    far = np.hypot(xyz[:, 0], xyz[:, 1])
    xyz = xyz[(far > 4) & (far < 16)]
    quarter = (np.arctan2(xyz[:, 1], xyz[:, 0]) / (np.pi / 2) + 2.5).astype(np.int64) % 4  # back, right, front, left
    heights = []
    for q in range(4):
        z = xyz[quarter == q, 2]
        heights.append(np.partition(z, len(z) // 4)[len(z) // 4] if len(z) >= 20 else np.nan)
    back, right, front, left = heights
    return {
        "ground_height": float(abs(np.nanmedian(heights))) if np.isfinite(heights).any() else np.nan,
        "ground_pitch": float(abs(front - back)),
        "ground_roll": float(abs(left - right)),
    }
