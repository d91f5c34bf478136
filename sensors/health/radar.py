"""Measurements of the radars' newest sweeps: how many points, how fast, and how many lie where LiDAR or radar saw something.

Letters: P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import FloatArray
from sensors.frames import RadarSweep
from sensors.health.grid import REACH_M, Occupancy

Float32 = NDArray[np.float32]

_SLOW_MPS = 0.5
_THERE = 0.3  # of an occupancy: about a metre from something


@dataclass(frozen=True)
class Echoes:
    """The newest sweep of every radar, together, in the reference frame."""

    xy_m: Float32  # [P, 2]
    velocity_mps: Float32  # [P, 2] over ground
    sight: Float32  # [P, 2] unit vectors from the radar to the point
    rcs_dbsm: Float32  # [P]
    delivered: dict[str, Float32]  # channel -> points as delivered
    occupancy: Occupancy  # of all points


def view(sweeps: tuple[RadarSweep, ...]) -> Echoes:
    """Newest sweep of each channel, merged."""
    newest = {sweep.channel: sweep for sweep in reversed(sweeps)}  # newest first: the last one written stays
    parts = []
    for sweep in newest.values():
        points = sweep.points[np.isfinite(sweep.points).all(axis=1)]
        turn, place = sweep.reference_T_radar[:2, :2].astype(np.float32), sweep.reference_T_radar[:2, 3]
        offset = points[:, :2] @ turn.T
        length = np.maximum(np.linalg.norm(offset, axis=1, keepdims=True), 0.1)
        parts.append(np.hstack([offset + place, points[:, 4:6] @ turn.T, offset / length, points[:, 3:4]]))
    rows = np.concatenate([np.zeros((0, 7)), *parts]).astype(np.float32)
    delivered = {channel: sweep.points for channel, sweep in newest.items()}
    return Echoes(rows[:, :2], rows[:, 2:4], rows[:, 4:6], rows[:, 6], delivered, Occupancy.of(rows[:, :2]))


def look(echoes: Echoes, standing: Occupancy | None) -> dict[str, float]:
    """What the radars tell, with the LiDAR's standing things where there is a LiDAR."""
    count = len(echoes.xy_m)
    figures = {
        "points": float(np.log(count + 1)),
        "radars_with_points": float(sum(map(len, echoes.delivered.values())) > 0),
    }
    if count == 0:
        return figures
    radial = (echoes.velocity_mps * echoes.sight).sum(axis=1)
    across = echoes.velocity_mps[:, 0] * echoes.sight[:, 1] - echoes.velocity_mps[:, 1] * echoes.sight[:, 0]
    speed = np.abs(radial)
    slow = speed < _SLOW_MPS
    inside = (np.abs(echoes.xy_m) < REACH_M).all(axis=1)
    figures |= {
        "speed": float(np.log(np.median(speed) + 0.02)),
        "speed_high": float(np.log(np.percentile(speed, 85) + 0.02)),
        "slow_share": float(slow.mean()),
        "across_speed": float(np.log(np.percentile(np.abs(across), 80) + 0.02)),
        "rcs": float(np.median(echoes.rcs_dbsm)),
        "rcs_spread": float(echoes.rcs_dbsm.std()),
        "near_share": float(inside.mean()),
    }
    if standing is not None and inside.any():
        there = standing.at(echoes.xy_m) > _THERE
        figures["on_lidar"] = float(there.mean())
        figures["on_lidar_slow"] = float(slow[inside][there].mean()) if there.any() else np.nan
        figures["off_lidar"] = float(np.log1p((~there).sum()))
    return figures


def compare(now: Echoes, before: Echoes, now_T_before: FloatArray) -> dict[str, float]:
    """What changed since the sweeps delivered before, whose points are brought here by the ego motion."""
    turn, place = now_T_before[:2, :2].astype(np.float32), now_T_before[:2, 3].astype(np.float32)
    earlier = Occupancy.of(before.xy_m @ turn.T + place)
    slow = np.abs((now.velocity_mps * now.sight).sum(axis=1)) < _SLOW_MPS
    there = earlier.at(now.xy_m) > _THERE
    repeated = [
        float(points.shape == before.delivered[channel].shape and np.array_equal(points, before.delivered[channel]))
        for channel, points in now.delivered.items()
        if channel in before.delivered and len(points)
    ]
    return {
        "repeated": float(np.mean(repeated)) if repeated else np.nan,
        "on_previous": float(there.mean()) if len(there) else np.nan,
        "count_change": float(abs(np.log((len(now.xy_m) + 1) / (len(before.xy_m) + 1)))),
        "slow_change": float(
            abs(slow.mean() - (np.abs((before.velocity_mps * before.sight).sum(axis=1)) < _SLOW_MPS).mean())
        )
        if len(slow) and len(before.xy_m)
        else np.nan,
    }
