"""Poses from what robots have (quaternions, ROS messages, links of cameras), and pose rows: between two of them, how far apart.

A row is (x, y, z, qw, qx, qy, qz), metres. A pose [4, 4] is called `target_T_source`: it takes points of `source` to `target`, as
`tf2` answers `lookup_transform(target, source)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sensors.calibration import CalibrationError, Float64, FloatArray, inverse_rigid, pose_fault

SAME_M, SAME_RAD = 1e-3, 1e-3  # two transforms this near to each other are one

LINK_T_OPTICAL: Float64 = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""[4, 4] from a camera's optical frame (x right, y down, z forward) to its link (x forward, y left, z up), as ROS has them
(https://www.ros.org/reps/rep-0103.html): `ego_T_camera = ego_T_link @ LINK_T_OPTICAL`."""
LINK_T_OPTICAL.flags.writeable = False


def pose(
    translation_m: Sequence[float] | FloatArray,
    *,
    xyzw: Sequence[float] | FloatArray | None = None,
    wxyz: Sequence[float] | FloatArray | None = None,
) -> Float64:
    """[4, 4] of a translation [3] and a unit quaternion [4], in the order that is named: ROS and scipy have xyzw, nuScenes wxyz.

    Raises:
        CalibrationError: numbers that are not finite, another count of them, or a quaternion whose norm is not 1.
        ValueError: not one of `xyzw` and `wxyz`.
    """
    if (xyzw is None) == (wxyz is None):
        raise ValueError("pose: expected a quaternion as one of xyzw= and wxyz=, got both or none")
    quaternion = wxyz if xyzw is None else [*xyzw[3:], *xyzw[:3]]
    assert quaternion is not None  # one of the two is not
    if len(translation_m) != 3 or len(quaternion) != 4:
        raise CalibrationError(
            f"pose: expected a translation of 3 and a quaternion of 4 numbers, got {len(translation_m)} and {len(quaternion)}"
        )
    row = np.array([*translation_m, *quaternion], np.float64)
    if fault := pose_fault(row):
        raise CalibrationError(f"pose: {fault}")
    return pose_matrix(row)


def pose_of_message(message: Any) -> Float64:
    """[4, 4] of a ROS message that holds one: Transform, TransformStamped, Pose, PoseStamped, PoseWithCovariance, Odometry.

    Nothing of ROS is imported. Of a TransformStamped it is `header.frame_id` _T_ `child_frame_id`.

    Raises:
        CalibrationError: as `pose`.
        ValueError: the message holds no pose.
    """
    inner = message
    while not hasattr(inner, "rotation") and not hasattr(inner, "orientation"):
        step = getattr(inner, "transform", None) or getattr(inner, "pose", None)
        if step is None:
            raise ValueError(
                f"expected a ROS message with a transform or a pose, got {type(message).__name__}: give the one that tf2 or the "
                "odometry has sent"
            )
        inner = step
    place, turn = (
        (inner.translation, inner.rotation) if hasattr(inner, "rotation") else (inner.position, inner.orientation)
    )
    return pose((place.x, place.y, place.z), xyzw=(turn.x, turn.y, turn.z, turn.w))


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


def pose_row(matrix: FloatArray) -> Float64:
    """[7] of a rigid [4, 4]: `pose_matrix` undone, up to the quaternion's sign.

    The quaternion is the eigenvector of the largest eigenvalue (Bar-Itzhack, 2000), which no rotation makes inexact.
    """
    turn = np.asarray(matrix, np.float64)[:3, :3]
    form = np.empty((4, 4))
    form[:3, :3] = turn + turn.T - np.trace(turn) * np.eye(3)
    form[3, :3] = form[:3, 3] = turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]
    form[3, 3] = np.trace(turn)
    x, y, z, w = np.linalg.eigh(form)[1][:, -1]
    return np.array([*matrix[:3, 3], w, x, y, z], np.float64)


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
