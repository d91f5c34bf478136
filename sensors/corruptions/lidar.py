"""LiDAR sweeps made worse: thinned, blind in parts, noisy. Conventions of operations as in `sensors.corruptions.camera`.

Letters: P points, S azimuth sectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import apply
from sensors.frames import SECTORS, History, SensorFrame, azimuth_sector

Points = NDArray[np.float32]  # [P, 5], see `LidarSweep`
Mask = NDArray[np.bool_]

# MultiCorrupt (Beemelmanns et al., 2024), severities 1 to 3: 16, 8 and 4 of 32 beams are left; 4 and 5 are ours.
BEAM_STEP = (2, 4, 8, 16, 32)
POINTS_LOST = (0.2, 0.4, 0.6, 0.8, 0.95)
# Ours.
SECTORS_LOST = (4, 8, 12, 18, 27)  # of 36, neighbours
CROSSTALK_SHARE = (0.02, 0.05, 0.1, 0.2, 0.35)  # of points
NOISE_M = (0.03, 0.06, 0.12, 0.25, 0.5)  # standard deviation in each axis

_UNKNOWN_RINGS = 32  # where a sweep does not say its rings, so many are told apart by elevation


def change_points(frame: SensorFrame, change: Callable[[Points], Points]) -> SensorFrame:
    """The frame with `change` applied to the points of every LiDAR sweep."""
    return replace(frame, lidar=tuple(replace(sweep, points=change(sweep.points)) for sweep in frame.lidar or ()))


def keep_beams(points: Points, step: int) -> Points:
    """One ring of `step` (2 or more): rings 1, 1 + step, ... as MultiCorrupt chooses them; a single one is ring 17 of 32."""
    ring, count = _rings(points)
    single = min(count - 1, 17 * count // 32)
    return points[ring == single if step >= count else ring % step == 1]


def _rings(points: Points) -> tuple[NDArray[np.int64], int]:
    """[P] ring of each point, and how many rings the LiDAR has: the power of two that holds all those seen."""
    if len(points) and points[:, 4].min() >= 0:
        ring = points[:, 4].astype(np.int64)
        return ring, 1 << int(ring.max()).bit_length()
    with np.errstate(invalid="ignore"):
        elevation = np.nan_to_num(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    low, high = np.quantile(elevation, (0.001, 0.999)) if len(points) else (0.0, 1.0)  # stray points aside
    ring = ((elevation - low) / max(high - low, 1e-6) * _UNKNOWN_RINGS).astype(np.int64)
    return np.clip(ring, 0, _UNKNOWN_RINGS - 1), _UNKNOWN_RINGS


def lose_points(points: Points, share: float, random: np.random.Generator) -> Points:
    """Without a random share of the points, rounded up: one at least goes where there is one."""
    return points[~_random_share(len(points), share, random)]


def _random_share(count: int, share: float, random: np.random.Generator) -> Mask:
    """[count] True for `share` of them, rounded up; a larger share holds all of a smaller one."""
    draw = random.random(count, dtype=np.float32)
    chosen = min(count, int(np.ceil(share * count)))
    if chosen == 0:
        return np.zeros(count, bool)
    mask: Mask = draw <= np.partition(draw, chosen - 1)[chosen - 1]
    return mask


def lose_sectors(frame: SensorFrame, dead: Mask) -> SensorFrame:
    """The frame whose LiDAR delivers nothing in the azimuth sectors `dead` [S], and says so."""
    works = ~dead if frame.lidar_sectors is None else frame.lidar_sectors & ~dead
    sweeps = []
    for sweep in frame.lidar or ():
        x_m, y_m, _ = apply(sweep.reference_T_lidar, sweep.points[:, :3]).T
        sweeps.append(replace(sweep, points=sweep.points[works[azimuth_sector(x_m, y_m)]]))
    return replace(frame, lidar=tuple(sweeps), lidar_sectors=works)


def neighbouring_sectors(count: int, random: np.random.Generator) -> Mask:
    """[S] True for `count` sectors side by side, beginning anywhere."""
    return np.roll(np.arange(SECTORS) < count, int(random.integers(SECTORS)))


def add_noise(points: Points, sigma_m: float, random: np.random.Generator) -> Points:
    """Gaussian noise of `sigma_m` on x, y and z."""
    noisy = points.copy()
    noisy[:, :3] += np.float32(sigma_m) * random.standard_normal((len(points), 3), dtype=np.float32)
    return noisy


def add_crosstalk(points: Points, share: float, random: np.random.Generator) -> Points:
    """A share of the points at any range along their own ray, with any intensity: pulses of another LiDAR."""
    hit = _random_share(len(points), share, random)
    new = random.random((len(points), 2), dtype=np.float32)
    range_m = np.linalg.norm(points[:, :3], axis=1)
    reach_m = np.nanmax(range_m, initial=1.0)
    mixed = points.copy()
    mixed[hit, :3] *= ((1 + (reach_m - 1) * new[hit, 0]) / np.maximum(range_m[hit], 0.1))[:, None]
    mixed[hit, 3] = 255 * new[hit, 1]
    return mixed


def beams_reducing(
    frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """Fewer beams (MultiCorrupt)."""
    return change_points(frame, lambda points: keep_beams(points, BEAM_STEP[severity - 1]))


def points_reducing(
    frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """Fewer points (MultiCorrupt)."""
    return change_points(frame, lambda points: lose_points(points, POINTS_LOST[severity - 1], random))


def lidar_sectors(
    frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """A dead piece of the LiDAR's round view, 40 to 270 degrees, known to the car. Severities are ours."""
    return lose_sectors(frame, neighbouring_sectors(SECTORS_LOST[severity - 1], random))


def lidar_crosstalk(
    frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """Pulses of other LiDARs taken for our own. Severities are ours."""
    return change_points(frame, lambda points: add_crosstalk(points, CROSSTALK_SHARE[severity - 1], random))


def lidar_noise(frame: SensorFrame, severity: int, random: np.random.Generator, history: History) -> SensorFrame | None:
    """Positions with Gaussian noise. Severities are ours."""
    return change_points(frame, lambda points: add_noise(points, NOISE_M[severity - 1], random))
