"""Sensors that are not where they claim to be, and a car that shakes. Conventions as in `sensors.corruptions.camera`.

The data stays as it is; the claimed pose is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import FloatArray
from sensors.corruptions.camera import MOTION_LENGTH, MOTION_SIGMA, change_images, present_cameras, trail
from sensors.corruptions.lidar import Points, change_points
from sensors.frames import History, SensorFrame

# MultiCorrupt (Beemelmanns et al., 2024), severities 1 to 3; 4 and 5 are ours.
SPATIAL_PROBABILITY = (0.2, 0.4, 0.6, 0.8, 1.0)
SPATIAL_DEG = (1.0, 2.0, 3.0, 4.0, 5.0)  # about each axis
SPATIAL_M = 2.0  # along the sensor's x axis
SHAKE_M = (0.06, 0.1, 0.13, 0.18, 0.25)
_SHAKE_JITTER = np.array([0.15, 0.2, 0.12], np.float32)  # of SHAKE_M, point by point in x, y, z
_SHAKE_ANGLE_DEG = 45.0  # a trail lies within this of the horizontal
# Ours.
LIDAR_DEG, LIDAR_M = (1.0, 2.0, 3.0, 5.0, 8.0), (0.1, 0.2, 0.4, 0.6, 1.0)
CAMERA_DEG, CAMERA_M = (1.0, 2.0, 4.0, 6.0, 10.0), (0.02, 0.05, 0.1, 0.15, 0.2)


def offset(axis: FloatArray, angle_rad: float, shift_m: FloatArray) -> NDArray[np.float64]:
    """[4, 4] a turn about `axis` [3] of length 1 and a shift [3]."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    out = np.eye(4)
    out[:3, :3] += np.sin(angle_rad) * cross + (1 - np.cos(angle_rad)) * cross @ cross
    out[:3, 3] = shift_m
    return out


def random_offset(angle_deg: float, shift_m: float, random: np.random.Generator) -> NDArray[np.float64]:
    """[4, 4] a turn by `angle_deg` about any axis and a shift by `shift_m` in any direction."""
    axis, direction = (v / np.linalg.norm(v) for v in random.standard_normal((2, 3)))
    return offset(axis, np.deg2rad(angle_deg), shift_m * direction)


def misplace_cameras(frame: SensorFrame, cameras: Sequence[int], error: Callable[[], FloatArray]) -> SensorFrame:
    """The frame in which some cameras claim poses that are wrong by claimed_T_true = error(), drawn camera by camera."""
    return replace(
        frame,
        cameras=tuple(
            replace(camera, reference_T_camera=camera.reference_T_camera @ error())
            if camera is not None and n in cameras
            else camera
            for n, camera in enumerate(frame.cameras or ())
        ),
    )


def misplace_lidar(frame: SensorFrame, error: FloatArray) -> SensorFrame:
    """The frame in which the LiDAR claims a pose that is wrong by `error` [4, 4], in all its sweeps alike."""
    return replace(
        frame,
        lidar=tuple(replace(sweep, reference_T_lidar=sweep.reference_T_lidar @ error) for sweep in frame.lidar or ()),
    )


def spatial_misalignment(
    frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """LiDAR turned about all three axes and shifted against the cameras, with a probability by severity (MultiCorrupt)."""
    if random.random() >= SPATIAL_PROBABILITY[severity - 1]:
        return None
    angle = np.deg2rad(SPATIAL_DEG[severity - 1])
    turns = [offset(axis, -angle, np.zeros(3)) for axis in np.eye(3)]
    error = turns[0] @ turns[1] @ turns[2]
    error[0, 3] = SPATIAL_M
    return misplace_lidar(frame, error)


def lidar_misaligned(
    frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """The LiDAR turned about a random axis and shifted, in every frame. Severities are ours."""
    return misplace_lidar(frame, random_offset(LIDAR_DEG[severity - 1], LIDAR_M[severity - 1], random))


def camera_misaligned(
    frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """One camera, drawn from those present, turned about a random axis and shifted. Severities are ours."""
    here = present_cameras(frame)
    camera = here[int(random.integers(len(here)))]
    error = random_offset(CAMERA_DEG[severity - 1], CAMERA_M[severity - 1], random)
    return misplace_cameras(frame, [camera], lambda: error)


def motion_blur(frame: SensorFrame, severity: int, random: np.random.Generator, history: History) -> SensorFrame | None:
    """Trails in the pictures and a LiDAR that shakes (MultiCorrupt): every sweep moves as one, and each point a little."""
    s = severity - 1

    def smear(image: NDArray[Any]) -> NDArray[Any]:
        angle = np.deg2rad(random.uniform(-_SHAKE_ANGLE_DEG, _SHAKE_ANGLE_DEG))
        return trail(image, MOTION_SIGMA[s], MOTION_LENGTH[s], float(angle))

    def shake(points: Points) -> Points:
        moved = points.copy()
        common = random.standard_normal(3, dtype=np.float32)
        single = random.standard_normal((len(points), 3), dtype=np.float32)
        moved[:, :3] += np.float32(SHAKE_M[s]) * (common + _SHAKE_JITTER * np.clip(single, -3, 3))
        return moved

    changed = change_images(frame, smear) if present_cameras(frame) else frame
    return change_points(changed, shake) if changed.lidar is not None else changed
