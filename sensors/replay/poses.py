"""Pose rows: between two of them, and how far they are apart. A row is (x, y, z, qw, qx, qy, qz), metres."""

from __future__ import annotations

import math

import numpy as np

from sensors.calibration import Float64, inverse_rigid

SAME_M, SAME_RAD = 1e-3, 1e-3  # two transforms this near to each other are one


def interpolate(before: Float64, after: Float64, share: float) -> Float64:
    """The pose row [7] at `share` (0..1, or beyond: the same velocity) of the way: straight and at constant turn rate."""
    out = before + share * (after - before)
    first, last = before[3:] / np.linalg.norm(before[3:]), after[3:] / np.linalg.norm(after[3:])
    cosine = float(first @ last)
    if cosine < 0:  # q and -q are one rotation; the short way
        last, cosine = -last, -cosine
    if cosine > 1 - 1e-12:
        mixed = first + share * (last - first)
    else:
        angle = math.acos(min(cosine, 1.0))
        mixed = (math.sin((1 - share) * angle) * first + math.sin(share * angle) * last) / math.sin(angle)
    out[3:] = mixed / np.linalg.norm(mixed)
    return out


def pose_matrix(row: Float64) -> Float64:
    """`sensors.calibration.transforms` of one row, which for one is six times as slow."""
    x, y, z, qw, qx, qy, qz = row.tolist()
    norm = math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
    w, i, j, k = qw / norm, qx / norm, qy / norm, qz / norm
    return np.array([
        [1 - 2 * (j * j + k * k), 2 * (i * j - w * k), 2 * (i * k + w * j), x],
        [2 * (i * j + w * k), 1 - 2 * (i * i + k * k), 2 * (j * k - w * i), y],
        [2 * (i * k - w * j), 2 * (j * k + w * i), 1 - 2 * (i * i + j * j), z],
        [0.0, 0.0, 0.0, 1.0],
    ])  # fmt: skip


def difference(a: Float64, b: Float64) -> str:
    """How far two pose rows are apart, in words; empty where they are the same."""
    if np.array_equal(a, b):
        return ""
    shift_m = float(np.linalg.norm(a[:3] - b[:3]))
    cosine = abs(float(a[3:] @ b[3:])) / float(np.linalg.norm(a[3:]) * np.linalg.norm(b[3:]))
    turn_rad = 2 * math.acos(min(cosine, 1.0))
    return in_words(shift_m, turn_rad) if shift_m > SAME_M or turn_rad > SAME_RAD else ""


def apart(a: Float64, b: Float64) -> tuple[float, float]:
    """How far two rigid [4, 4] are apart, in metres and radians."""
    between = inverse_rigid(a) @ b
    sine = np.linalg.norm([between[i, j] - between[j, i] for i, j in ((2, 1), (0, 2), (1, 0))]) / 2
    return float(np.linalg.norm(between[:3, 3])), math.atan2(sine, (np.trace(between[:3, :3]) - 1) / 2)


def in_words(shift_m: float, turn_rad: float) -> str:
    """A difference of two poses, turns in degrees."""
    return f"{shift_m:.3f} m, {math.degrees(turn_rad):.2f} deg"
