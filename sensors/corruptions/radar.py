"""Radars lost, cluttered or wrong about speed. Conventions of operations as in `sensors.corruptions.camera`; severities are ours.

Letters: P points.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sensors.frames import History, SensorFrame

Points = NDArray[np.float32]  # [P, 6], see `RadarSweep`

LOST_SHARE = (0.2, 0.4, 0.6, 0.8, 1.0)  # of radars, rounded up: 1 to 5 of five
CLUTTER = (0.25, 0.5, 1.0, 2.0, 4.0)  # false points a true one
VELOCITY_NOISE_MPS = (0.5, 1.0, 2.0, 4.0, 8.0)  # standard deviation

_LEAST_POINTS = 8  # a radar that sees less is cluttered as if it saw so many
_FIELD_RAD = np.deg2rad(60)  # of view, to either side
_REACH_M = 80.0


def radar_lost(frame: SensorFrame, severity: int, random: np.random.Generator, history: History) -> SensorFrame | None:
    """A share of the radars absent; at severity 5 all of them."""
    channels = list(dict.fromkeys(sweep.channel for sweep in frame.radar or ()))
    order = random.permutation(len(channels))
    lost = {channels[n] for n in order[: int(np.ceil(LOST_SHARE[severity - 1] * len(channels)))]}
    kept = tuple(sweep for sweep in frame.radar or () if sweep.channel not in lost)
    return replace(frame, radar=kept or None)


def radar_clutter(
    frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """False points all over the field of view, with any radial velocity."""
    ratio = CLUTTER[severity - 1]
    return replace(
        frame,
        radar=tuple(
            replace(sweep, points=np.concatenate([sweep.points, _clutter(len(sweep.points), ratio, random)]))
            for sweep in frame.radar or ()
        ),
    )


def _clutter(points: int, ratio: float, random: np.random.Generator) -> Points:
    """False points [P, 6]; those of a lower ratio come first among those of a higher one."""
    true = max(points, _LEAST_POINTS)
    most = int(np.ceil(CLUTTER[-1] * true))
    azimuth, range_m = random.uniform(-_FIELD_RAD, _FIELD_RAD, most), random.uniform(1.0, _REACH_M, most)
    speed_mps, rcs_dbsm = random.normal(0.0, 4.0, most), random.normal(3.0, 6.0, most)
    cos, sin = np.cos(azimuth), np.sin(azimuth)
    false = [range_m * cos, range_m * sin, np.zeros(most), rcs_dbsm, speed_mps * cos, speed_mps * sin]
    return np.stack(false, axis=1).astype(np.float32)[: int(np.ceil(ratio * true))]


def radar_velocity_noise(
    frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """Gaussian noise on the radial velocity of every point."""
    sigma_mps = np.float32(VELOCITY_NOISE_MPS[severity - 1])

    def noisy(points: Points) -> Points:
        away = points[:, :2] / np.maximum(np.linalg.norm(points[:, :2], axis=1, keepdims=True), 1e-3)
        changed = points.copy()
        changed[:, 4:6] += sigma_mps * random.standard_normal((len(points), 1), dtype=np.float32) * away
        return changed

    return replace(frame, radar=tuple(replace(sweep, points=noisy(sweep.points)) for sweep in frame.radar or ()))
