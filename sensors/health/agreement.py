"""Whether a camera's picture and the LiDAR's points show one and the same world under the claimed calibration.

Three things that LiDAR and picture both know are correlated over the points in sight: edges in depth with upright edges in the
picture, fine changes of the reflected intensity with those of brightness, and the tops of things with level edges. As Levinson
and Thrun ("Automatic Online Calibration of Cameras and Lasers", RSS 2013) did, the figure at the claimed calibration is held
against the same after small shifts: a right calibration is a peak. Beside shifts stand guesses that one of the two is late: then
the ego motion between the frames explains the picture better.

Letters: P points, S shifts, C cues (3).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sensors.calibration import FloatArray, inverse_rigid
from sensors.health.lidar import Scan
from sensors.health.pictures import MARGIN_PX, Picture

Float32 = NDArray[np.float32]

_ACROSS, _DOWN = np.array([-14, -9, -5, -2, 0, 2, 5, 9, 14]), np.array([-8, -4, 0, 4, 8])  # px of the small maps
SHIFTS = np.stack(np.meshgrid(_DOWN, _ACROSS, indexing="ij"), -1).reshape(-1, 2)  # [S, 2] down, across
_HERE = int(np.flatnonzero((SHIFTS == 0).all(axis=1))[0])
_FEWEST = 60  # points in sight below which nothing is said
_MOST = 700  # points looked at a camera
_NEAR_M, _FAR_M = 2.0, 45.0
_CUES = ("edges", "intensity", "tops")


@dataclass(frozen=True)
class Cues:
    """What a sweep says of each point that a picture should show: xyz_m [P, 3] in the reference frame, values [C, P]."""

    xyz_m: Float32
    values: Float32


def cues(scan: Scan) -> Cues:
    """The cues of a sweep's returns up to 45 m."""
    range_m, height_m = scan.range_m, scan.xyz_m[..., 2]
    hit = (range_m > _NEAR_M) & (range_m < _FAR_M)
    beyond = np.where(range_m > 0, range_m, 2 * _FAR_M)
    above = np.vstack([beyond[1:], np.full_like(beyond[:1], 2 * _FAR_M)])
    jump = np.maximum(np.roll(beyond, 1, axis=1), np.roll(beyond, -1, axis=1))
    edge = (jump > 1.08 * range_m) & (height_m > 0.3)
    top = np.clip((above - range_m) / np.maximum(range_m, 1), 0, 0.5) * (height_m > 0.5)
    bright, weight = np.log1p(scan.intensity), hit.astype(np.float32)
    around = cv2.blur(bright * weight, (9, 1)) / np.maximum(cv2.blur(weight, (9, 1)), 0.1)
    keep = np.flatnonzero(hit)
    values = np.stack([layer.ravel()[keep] for layer in (edge, bright - around, top)])
    return Cues(scan.xyz_m.reshape(-1, 3)[keep], values.astype(np.float32))


@dataclass(frozen=True)
class Agreement:
    """Of one picture with the LiDAR: correlation [C, S] after each shift, and what the guesses of lateness gain over none."""

    surface: Float32
    camera_late: float
    lidar_late: float


def agree(picture: Picture, lidar: Cues, now_T_before: FloatArray | None) -> Agreement | None:
    """How a picture agrees with the LiDAR's cues; None where too few points are in sight.

    `now_T_before` maps the reference frame of the previous frame to this one's; None leaves the guesses of lateness out.
    """
    camera_T_reference = inverse_rigid(picture.reference_T_camera)
    wide = _project(picture, lidar.xyz_m, camera_T_reference, room_px=picture.map_size_px[1] // 3).index
    near = Cues(lidar.xyz_m[wide], lidar.values[:, wide])  # all that even a late camera could see
    seen = _in_sight(picture, near, camera_T_reference)
    if seen is None:
        return None
    surface = _correlations(picture, *seen, SHIFTS)
    if now_T_before is None:
        return Agreement(surface, np.nan, np.nan)
    here = float(surface[:, _HERE].sum())
    before_T_now = inverse_rigid(now_T_before)

    def gain(step: FloatArray) -> float:
        """Of the better of one and two steps of ego motion between the points and the camera."""
        gains = []
        for moved in (step, step @ step):
            late = _in_sight(picture, near, camera_T_reference @ moved)
            if late is not None:
                gains.append(float(_correlations(picture, *late, SHIFTS[_HERE : _HERE + 1]).sum()) - here)
        return max(gains, default=np.nan)

    return Agreement(surface, camera_late=gain(before_T_now), lidar_late=gain(now_T_before))


def describe(surface: Float32) -> dict[str, float]:
    """Figures of a surface [C, S]: how far no shift stands above the others, by cue and for their sum; then, of the sum, how far
    the best shift stands above none, and how long it is (px of the small maps).
    """
    total = surface.sum(axis=0)
    rows = np.vstack([surface, total])
    mean, deviation = rows.mean(axis=1), rows.std(axis=1) + 1e-3
    peaks = ((rows[:, _HERE] - mean) / deviation).tolist()
    best = int(total.argmax())
    down, across = SHIFTS[best].tolist()
    return dict(zip((*(f"agreement_{cue}" for cue in _CUES), "agreement"), peaks, strict=True)) | {
        "correlation": float(total[_HERE]),
        "better_by": float((total[best] - total[_HERE]) / deviation[-1]),
        "better_across_px": float(abs(across)),
        "better_down_px": float(abs(down)),
    }


def flow(now: Picture, before: Picture, lidar: Cues, now_T_before: FloatArray) -> dict[str, float]:
    """Whether the picture changed as the vehicle moved: the fine brightness of points now, with that where they were before.

    `moved_as_expected` is that correlation, `moved_beyond_still` what it gains over the assumption that nothing moved.
    """
    if now.map_size_px != before.map_size_px:
        return {}
    sight = _project(now, lidar.xyz_m, inverse_rigid(now.reference_T_camera))
    earlier = _project(before, lidar.xyz_m[sight.index], inverse_rigid(now_T_before @ before.reference_T_camera))
    if len(earlier.index) < _FEWEST:
        return {}
    here, there = sight.cell[earlier.index], earlier.cell
    fine_now, fine_before = now.maps[1].ravel(), before.maps[1].ravel()
    moved = _correlation(fine_now[here], fine_before[there])
    columns = np.abs(here % now.maps.shape[2] - there % now.maps.shape[2])
    return {
        "moved_as_expected": moved,
        "moved_beyond_still": moved - _correlation(fine_now[here], fine_before[here]),
        "expected_motion_px": float(np.log1p(columns.mean())),
    }


@dataclass(frozen=True)
class _Sight:
    """The points in sight: their places among all [P'], and in a flattened map [P']."""

    index: NDArray[np.int64]
    cell: NDArray[np.int64]


def _project(picture: Picture, xyz_m: Float32, camera_T_reference: FloatArray, room_px: int = 0) -> _Sight:
    """Points [P, 3] into the small maps; `room_px` around the picture counts as in sight (such cells have no meaning)."""
    matrix = (picture.intrinsics @ camera_T_reference[:3]).astype(np.float32)
    ud, vd, depth = matrix[:, :3] @ xyz_m.T + matrix[:, 3:]
    height, width = picture.map_size_px
    edge = room_px + 0.5  # compared before the division, which only the few points in sight then need
    seen = (depth > 0.5) & (ud > -edge * depth) & (ud < (width - 1 + edge) * depth)
    seen &= (vd > -edge * depth) & (vd < (height - 1 + edge) * depth)
    index = np.flatnonzero(seen)
    depth = depth[index]
    column, row = (np.rint(p[index] / depth).astype(np.int64) + MARGIN_PX for p in (ud, vd))
    return _Sight(index, row * picture.maps.shape[2] + column)


def _in_sight(
    picture: Picture, lidar: Cues, camera_T_reference: FloatArray
) -> tuple[NDArray[np.int64], Float32] | None:
    """Map places [P'] and normalised cues [C, P'] of the points in sight; None where they are too few."""
    sight = _project(picture, lidar.xyz_m, camera_T_reference)
    if len(sight.index) < _FEWEST:
        return None
    step = -(-len(sight.index) // _MOST)
    values = lidar.values[:, sight.index[::step]]
    values = values - values.mean(axis=1, keepdims=True)
    return sight.cell[::step], values / (np.linalg.norm(values, axis=1, keepdims=True) + 1e-6)


def _correlations(picture: Picture, cell: NDArray[np.int64], values: Float32, shifts: NDArray[np.int64]) -> Float32:
    """[C, S] correlation of each cue with its map, points moved by each shift. The maps have a spread of 1 already."""
    moved = cell[None, :] + (shifts[:, 0] * picture.maps.shape[2] + shifts[:, 1])[:, None]
    out = np.empty((len(values), len(shifts)), np.float32)
    for c, (layer, value) in enumerate(zip(picture.maps, values, strict=True)):
        out[c] = np.take(layer.ravel(), moved) @ value
    return out / np.sqrt(len(cell))


def _correlation(a: Float32, b: Float32) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-3))
