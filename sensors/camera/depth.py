"""LiDAR points projected into the cameras: the depth that a camera network is taught.

Letters: N cameras, P points, H and W pixels, h and w feature pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import FloatArray, apply_columns, inverse_rigid

_NEAREST_M = 0.5  # nearer than that stands only the vehicle itself


def project(
    points_m: NDArray[Any], intrinsics: FloatArray, reference_T_camera: FloatArray
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Points [P, 3] of the reference frame -> pixels [P, 2] (u, v) and depth [P] in metres along the camera's z axis.

    The pose must be rigid. Points at depth 0 or behind give pixels without meaning.
    """
    matrix = (intrinsics @ inverse_rigid(reference_T_camera)[:3]).astype(points_m.dtype)
    u, v, depth_m = matrix[:, :3] @ points_m.T + matrix[:, 3:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([u / depth_m, v / depth_m], axis=1), depth_m


def depth_targets(
    points_m: NDArray[np.float32], pixels_T_points: FloatArray, *, image_size_px: tuple[int, int], stride_px: int
) -> NDArray[np.float32]:
    """[N, h, w] float32: depth of the nearest point in each feature pixel, 0 where there is none.

    `points_m` [3, P]; `pixels_T_points` [N, 3, 4], intrinsics times camera_T_points, maps them to (u d, v d, d).
    """
    height, width = image_size_px[0] // stride_px, image_size_px[1] // stride_px
    matrix = pixels_T_points.astype(np.float32)
    matrix[:, :2] += 0.5 * matrix[:, 2:]  # pixel centres are at whole numbers; now pixel i spans i..i + 1
    ud, vd, depth_m = (apply_columns(matrix[:, row], points_m) for row in range(3))  # [N, P] each
    # Compared before the division, which only the few points in sight then need.
    seen = (depth_m > _NEAREST_M) & (ud >= 0) & (ud < width * stride_px * depth_m)
    seen &= (vd >= 0) & (vd < height * stride_px * depth_m)
    flat = np.flatnonzero(seen)
    depth_m = depth_m.ravel()[flat]
    column = (ud.ravel()[flat] / (depth_m * stride_px)).astype(np.int64)
    row = (vd.ravel()[flat] / (depth_m * stride_px)).astype(np.int64)
    camera = flat // points_m.shape[1]
    # Rounding may put a point at the last edge into a pixel that is not there.
    cell = (camera * height + np.minimum(row, height - 1)) * width + np.minimum(column, width - 1)
    nearest = np.full(len(matrix) * height * width, np.inf, np.float32)
    np.minimum.at(nearest, cell, depth_m)
    return np.where(np.isfinite(nearest), nearest, 0).astype(np.float32).reshape(-1, height, width)
