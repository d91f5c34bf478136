"""Agreement of points in the ground plane: how many of some points lie where others are, and whether a shift would do better.

Letters: P points, S shifts, n cells a side.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

CELL_M = 0.5
REACH_M = 32.0
_ROOM = 12  # cells around, for shifted points
_SIDE = 2 * int(REACH_M / CELL_M) + 2 * _ROOM
_STEPS = np.array([-8, -5, -3, -1, 0, 1, 3, 5, 8])  # cells
SHIFTS = np.stack(np.meshgrid(_STEPS, _STEPS, indexing="ij"), -1).reshape(-1, 2)  # [S, 2] cells along x and y
_HERE = int(np.flatnonzero((SHIFTS == 0).all(axis=1))[0])


@dataclass(frozen=True)
class Occupancy:
    """Where there is something: near [n, n], 1 in occupied cells falling to 0 at about a metre."""

    near: Float32

    @classmethod
    def of(cls, xy_m: Float32) -> Occupancy:
        """From points [P, 2] in metres; those out of reach are left out."""
        grid = np.zeros((_SIDE, _SIDE), np.float32)
        x, y = cells(xy_m)
        grid[x, y] = 1
        soft = cv2.GaussianBlur(cv2.dilate(grid, np.ones((3, 3), np.uint8)), (5, 5), 1.0)
        return cls(soft)

    def at(self, xy_m: Float32) -> Float32:
        """[P'] 0..1 at those of the points that are in reach."""
        x, y = cells(xy_m)
        return self.near[x, y]


def cells(xy_m: Float32) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the points in reach."""
    inside = xy_m[(np.abs(xy_m) < REACH_M).all(axis=1)]
    index = np.floor((inside + REACH_M) / CELL_M).astype(np.int64) + _ROOM
    return index[:, 0], index[:, 1]


def shift_scores(occupancy: Occupancy, xy_m: Float32) -> Float32:
    """[S] mean occupancy at the points [P, 2], moved by each of SHIFTS; one point a cell counts."""
    x, y = cells(xy_m)
    if len(x) == 0:
        return np.zeros(len(SHIFTS), np.float32)
    flat = np.unique(x * _SIDE + y)
    moved = flat[None, :] + (SHIFTS[:, 0] * _SIDE + SHIFTS[:, 1])[:, None]
    return np.asarray(np.take(occupancy.near.ravel(), moved).mean(axis=1), np.float32)


def mean_at(occupancy: Occupancy, xy_m: Float32) -> float:
    """Mean occupancy at the points [P, 2] in reach, one point a cell; 0 where there is none."""
    x, y = cells(xy_m)
    return float(np.take(occupancy.near.ravel(), np.unique(x * _SIDE + y)).mean()) if len(x) else 0.0


def margin(scores: Float32) -> tuple[float, float, float]:
    """How far no shift stands above the mean of all shifts (in their deviations), how far the best shift stands above none, and
    how long the best shift is in metres.
    """
    deviation = float(scores.std()) + 1e-3
    best = int(scores.argmax())
    here = float(scores[_HERE])
    return (
        (here - float(scores.mean())) / deviation,
        (float(scores[best]) - here) / deviation,
        float(np.hypot(*SHIFTS[best])) * CELL_M,
    )
