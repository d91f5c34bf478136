"""Poses and intrinsics, checked when they enter the house.

Letters: K rows. Quaternions are (w, x, y, z); a pose row is (x, y, z, qw, qx, qy, qz), metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sensors.errors import SensorDataError

FloatArray = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]

FARTHEST = 1e9  # metres and pixels that float32 can still be multiplied in; farther than any place on earth
QUATERNION_TOLERANCE = 1e-3  # a table that prints 4 decimals stays within 2e-4
RIGID_TOLERANCE = 1e-3
LAST_ROW_TOLERANCE = 1e-6  # nothing is rounded there
_SINGULAR = 1e-6


class CalibrationError(SensorDataError):
    """A pose or an intrinsic matrix that cannot be one."""


def pose_fault(pose: ArrayLike) -> str | None:
    """What is wrong with a pose row [7], as "expected ..., got ..."; None where it is sound."""
    row = np.asarray(pose, float)
    if row.shape != (7,):
        return f"expected a translation of 3 and a quaternion of 4 numbers, got shape {row.shape}"
    if not np.isfinite(row).all():
        return f"expected finite numbers, got translation {row[:3].tolist()}, quaternion {row[3:].tolist()}"
    norm = float(np.linalg.norm(row[3:]))
    if abs(norm - 1) > QUATERNION_TOLERANCE:
        return f"expected a quaternion (w, x, y, z) of norm 1, got {row[3:].tolist()} of norm {norm:.6g}"
    return None


def intrinsics_fault(intrinsics: ArrayLike) -> str | None:
    """What is wrong with an intrinsic matrix [3, 3] in pixels; None where it is sound."""
    matrix = np.asarray(intrinsics, float)
    if matrix.shape != (3, 3):
        return f"expected a 3 x 3 intrinsic matrix, got shape {matrix.shape}"
    if not (np.abs(matrix) <= FARTHEST).all():  # NaN neither
        return f"expected finite intrinsics, at most {FARTHEST:g} px, got {matrix.tolist()}"
    if np.abs(matrix[2] - [0, 0, 1]).max() > LAST_ROW_TOLERANCE:
        return f"expected a third row of 0 0 1 in the intrinsics, got {matrix[2].tolist()}"
    determinant = float(np.linalg.det(matrix))
    if abs(determinant) < _SINGULAR:
        return (
            f"expected an invertible intrinsic matrix (focal lengths in px), got {matrix.tolist()}, "
            f"whose determinant is {determinant:.3g}"
        )
    return None


def rigid_fault(transform: ArrayLike) -> str | None:
    """What is wrong with a 4 x 4 rigid transform; None where it is a rotation and a translation."""
    matrix = np.asarray(transform, float)
    if matrix.shape != (4, 4):
        return f"expected a 4 x 4 transform, got shape {matrix.shape}"
    if not (np.abs(matrix) <= FARTHEST).all():
        return f"expected a finite transform, of at most {FARTHEST:g} m, got {matrix.tolist()}"
    if np.abs(matrix[3] - [0, 0, 0, 1]).max() > LAST_ROW_TOLERANCE:
        return f"expected a last row of 0 0 0 1, got {matrix[3].tolist()}"
    rotation = matrix[:3, :3]
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if error > RIGID_TOLERANCE:
        return f"expected a rotation (R R^T = 1 within {RIGID_TOLERANCE}), got one that is off by {error:.3g}"
    if np.linalg.det(rotation) < 0:
        return "expected a right-handed rotation, got a reflection (determinant -1)"
    return None


def check_intrinsics(intrinsics: ArrayLike, where: str) -> None:
    """CalibrationError, with `where` (file, token, sensor) in front, for a matrix that is not an intrinsic one."""
    if fault := intrinsics_fault(intrinsics):
        raise CalibrationError(
            f"{where}: {fault}. Correct the calibration, or leave this camera out of the configured channels"
        )


def are_rigid(transforms: Sequence[FloatArray]) -> bool:
    """Whether each of K transforms, at least one, is a rotation and a translation [4, 4].

    All are looked at together: a sample has dozens of sweeps, and looking at each would cost more than reading them.
    """
    if not all(np.shape(matrix) == (4, 4) for matrix in transforms):
        return False
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is no fault of numpy's
        stack = np.stack(transforms, dtype=np.float64)
        rotation = stack[:, :3, :3]
        error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
        sound = (error <= RIGID_TOLERANCE) & (np.abs(stack[:, 3] - [0, 0, 0, 1]).max(axis=1) <= LAST_ROW_TOLERANCE)
        sound &= (np.abs(stack[:, :3, 3]) <= FARTHEST).all(axis=1) & (np.linalg.det(rotation) > 0)  # False for NaN
    return bool(sound.all())


def check_rigid(transform: FloatArray, where: str) -> None:
    """CalibrationError, with `where` in front, for a transform [4, 4] that is not rigid."""
    if fault := rigid_fault(transform):
        raise CalibrationError(
            f"{where}: {fault}. Correct this pose, or leave the sensor out of the configured channels"
        )


def transforms(poses: ArrayLike) -> Float64:
    """[..., 7] pose rows -> [..., 4, 4] rigid transforms. The quaternions are normalised; check them first."""
    rows = np.asarray(poses, np.float64)
    w, x, y, z = np.moveaxis(rows[..., 3:] / np.linalg.norm(rows[..., 3:], axis=-1, keepdims=True), -1, 0)
    out = np.zeros((*rows.shape[:-1], 4, 4))
    out[..., 0, 0], out[..., 0, 1], out[..., 0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    out[..., 1, 0], out[..., 1, 1], out[..., 1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    out[..., 2, 0], out[..., 2, 1], out[..., 2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    out[..., :3, 3] = rows[..., :3]
    out[..., 3, 3] = 1
    return out


def inverse_rigid(transform: FloatArray) -> Float64:
    """[..., 4, 4] -> the inverse, exact for rotations and translations."""
    rotation = np.swapaxes(transform[..., :3, :3], -1, -2)
    out = np.zeros(transform.shape)
    out[..., :3, :3] = rotation
    out[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, transform[..., :3, 3])
    out[..., 3, 3] = 1
    return out


def apply(transform: FloatArray, xyz_m: FloatArray) -> FloatArray:
    """Points [P, 3] through an affine [4, 4], in the precision of the points."""
    return apply_columns(transform[:3], xyz_m.T).T


def apply_columns(rows: FloatArray, xyz_m: FloatArray) -> FloatArray:
    """Points [3, P] through K rows [K, 4] of an affine or projective map -> [K, P], in the precision of the points.

    Not by BLAS: its threads, one a core, would wake for each sweep and keep every core busy for a while after it.
    """
    matrix = rows.astype(xyz_m.dtype, copy=False)
    moved: FloatArray = np.einsum("kj,jp->kp", matrix[:, :3], xyz_m)
    moved += matrix[:, 3:]
    return moved
