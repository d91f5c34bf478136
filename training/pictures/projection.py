"""Lines and points of the world on a camera's picture, for drawing.

Letters: N boxes, S segments, P points.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bev.detection.boxes import Boxes
from sensors.frames import CameraImage

Array = NDArray[np.floating[Any]]

NEAR_M = 0.3  # what is nearer to the camera's plane than this is cut away

# Corners as `Boxes.corners_m` orders them: bottom four, then top four, each front-left, front-right, rear-right, rear-left.
BOX_EDGES = np.array(
    [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)], dtype=np.int64
)
FRONT_EDGES = np.array([(0, 5), (1, 4)], dtype=np.int64)  # a cross on the side that looks along the heading


def to_camera(points_m: Array, reference_T_camera: Array) -> Array:
    """[..., 3] reference -> [..., 3] camera frame (x right, y down, z forward), metres."""
    rotation, translation = reference_T_camera[:3, :3], reference_T_camera[:3, 3]
    return (points_m - translation) @ rotation


def project_segments(start_m: Array, end_m: Array, camera: CameraImage) -> tuple[Array, NDArray[np.bool_]]:
    """[S, 3] starts and ends in the reference frame -> [S, 2, 2] px, and [S] whether any of it is in front of the camera.

    Cut at the near plane: a corner behind the camera projects to a mirrored place, and a line to it would cross the picture
    where nothing is. Rows that are not in front hold zeros.
    """
    start = to_camera(np.asarray(start_m, dtype=np.float64), camera.reference_T_camera)
    end = to_camera(np.asarray(end_m, dtype=np.float64), camera.reference_T_camera)
    seen = (start[:, 2] > NEAR_M) | (end[:, 2] > NEAR_M)
    step = end - start
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = np.where(step[:, 2] != 0, (NEAR_M - start[:, 2]) / step[:, 2], 0.0)[:, None]
    at_plane = start + cut * step
    start = np.where(start[:, 2:] < NEAR_M, at_plane, start)
    end = np.where(end[:, 2:] < NEAR_M, at_plane, end)
    pixels = np.stack([_pixels(start, camera.intrinsics), _pixels(end, camera.intrinsics)], axis=1)
    return np.where(seen[:, None, None], pixels, 0.0), seen


def _pixels(points_m: Array, intrinsics: Array) -> Array:
    homogeneous = points_m @ intrinsics.T
    depth = np.where(np.abs(homogeneous[:, 2:]) < 1e-9, 1e-9, homogeneous[:, 2:])
    return homogeneous[:, :2] / depth


def box_segments(boxes: Boxes, camera: CameraImage) -> list[tuple[int, Array]]:
    """(index of the box, [S, 2, 2] px) for every box of which something is in the picture.

    The lines are the edges and a cross on the front face. A box whose visible lines all lie beside the picture is left out.
    """
    corners = boxes.corners_m().double().numpy()  # [N, 8, 3]
    edges = np.concatenate([BOX_EDGES, FRONT_EDGES])
    lines, seen = project_segments(
        corners[:, edges[:, 0]].reshape(-1, 3), corners[:, edges[:, 1]].reshape(-1, 3), camera
    )
    lines, seen = lines.reshape(len(boxes), len(edges), 2, 2), seen.reshape(len(boxes), len(edges))
    size_px = camera.image.shape[1::-1]
    visible = [
        (index, box[of_box]) for index, (box, of_box) in enumerate(zip(lines, seen, strict=True)) if of_box.any()
    ]
    return [(k, box) for k, box in visible if (box.max((0, 1)) > 0).all() and (box.min((0, 1)) < size_px).all()]


def project_points(points_m: Array, camera: CameraImage) -> tuple[Array, Array]:
    """[P, 3] reference -> ([V, 2] px, [V] depth m) of the points that fall on the picture."""
    in_camera = to_camera(points_m, camera.reference_T_camera)
    in_camera = in_camera[in_camera[:, 2] > NEAR_M]
    pixels = _pixels(in_camera, camera.intrinsics)
    height, width = camera.image.shape[:2]
    inside = (pixels > -0.5).all(axis=1) & (pixels[:, 0] < width - 0.5) & (pixels[:, 1] < height - 0.5)
    return pixels[inside], in_camera[inside, 2]
