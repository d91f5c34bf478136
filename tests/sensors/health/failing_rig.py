"""A small rig whose data drifts evenly with time, for corruptions: older is further away, and nothing may be written to."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import transforms
from sensors.frames import CameraImage, History, LidarSweep, RadarSweep, SensorFrame

KEYFRAME_US = 500_000
LIDAR_POSE = transforms([0.9, 0.0, 1.8, np.sqrt(0.5), 0.0, 0.0, -np.sqrt(0.5)])
RADAR_POSE = transforms([3.4, 0.1, 0.5, np.cos(0.3), 0.0, 0.0, np.sin(0.3)])
AHEAD = transforms([1.7, 0.0, 1.5, 0.5, -0.5, 0.5, -0.5])


def rig_frame(
    number: int = 5,
    *,
    cameras: int = 3,
    size_px: tuple[int, int] = (45, 80),
    points: int = 640,
    rings: bool = True,
    sweeps: int = 1,
    radars: int = 5,
    token: str = "sample",
) -> SensorFrame:
    """Keyframe `number` of a scene; 0 cameras or radars and negative points are absent modalities."""
    random = np.random.default_rng(7)
    now_us = number * KEYFRAME_US
    height, width = size_px
    picture = random.integers(20, 150, (height, width, 3)) + 8 * number
    intrinsics = np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1.0]])
    turns = [transforms([0, 0, 0, np.cos(a / 2), 0, 0, np.sin(a / 2)]) for a in np.arange(cameras) * 1.1]
    cloud = ring_cloud(max(points, 0), random)
    cloud[:, 0] += 0.3 * number
    if not rings:
        cloud[:, 4] = -1
    return freeze(
        SensorFrame(
            token=f"{token}-{number}",
            time_us=now_us,
            cameras=tuple(
                CameraImage(
                    f"CAM_{n}", np.clip(picture + n, 0, 255).astype(np.uint8), intrinsics, turn @ AHEAD, now_us - n
                )
                for n, turn in enumerate(turns)
            )
            or None,
            lidar=tuple(LidarSweep("LIDAR_TOP", cloud.copy(), LIDAR_POSE, now_us - 50_000 * k) for k in range(sweeps))
            if points >= 0
            else None,
            radar=tuple(
                RadarSweep(f"RADAR_{n}", radar_cloud(12, random) + np.float32(0.3 * number), RADAR_POSE, now_us)
                for n in range(radars)
            )
            or None,
            global_T_reference=transforms([5.0 * number, 0, 0, 1, 0, 0, 0]),
        )
    )


def ring_cloud(count: int, random: np.random.Generator) -> NDArray[np.float32]:
    """[count, 5] points of 32 rings in turn, -30 to 10 degrees, all around."""
    ring = np.arange(count) % 32
    elevation, azimuth = np.deg2rad(-30 + ring * 40 / 31), random.uniform(-np.pi, np.pi, count)
    range_m = random.uniform(2, 50, count)
    flat = range_m * np.cos(elevation)
    xyz = [flat * np.cos(azimuth), flat * np.sin(azimuth), range_m * np.sin(elevation)]
    return np.stack([*xyz, random.uniform(5, 100, count), ring], axis=1).astype(np.float32)


def radar_cloud(count: int, random: np.random.Generator) -> NDArray[np.float32]:
    low, high = [2, -20, 0, -5, -3, -3], [60, 20, 0.1, 20, 3, 3]
    return random.uniform(low, high, (count, 6)).astype(np.float32)


def past_of(frame: SensorFrame, **rig: Any) -> History:
    """The keyframes before a frame of `rig_frame`; the scene begins with number 0."""
    number = round(frame.time_us / KEYFRAME_US)
    return lambda n: rig_frame(number - n, **rig) if number - n >= 0 else None


def no_past(n: int) -> SensorFrame | None:
    return None


def arrays(value: Any) -> list[NDArray[Any]]:
    """Every array in a frame, in order."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, tuple):
        return [array for part in value for array in arrays(part)]
    if is_dataclass(value):
        return [array for f in fields(value) for array in arrays(getattr(value, f.name))]
    return []


def freeze(frame: SensorFrame) -> SensorFrame:
    """The frame with arrays of its own that raise where they are written to."""
    frame = replace(frame)
    for array in arrays(frame):
        array.setflags(write=False)
    return frame
