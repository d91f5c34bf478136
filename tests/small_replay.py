"""Ticks, as the synchroniser would give them, of a car on which random sensors see noise."""

from __future__ import annotations

import numpy as np

import robustbev
from robustbev import RigConfig
from sensors.frames import CameraImage, LidarSweep, RadarSweep, SensorFrame
from sensors.modality import Preparation
from sensors.replay.tick import SensorState, SensorStatus, Tick
from tests.tiny_model import CAMERAS, IMAGE_SIZE, RADAR_YAWS_DEG, camera_pose, tiny_config

CAMERA_CHANNELS = tuple(f"CAM_{n}" for n in range(CAMERAS))
RADAR_CHANNELS = tuple(f"RADAR_{n}" for n in range(len(RADAR_YAWS_DEG)))
MODALITY_OF = dict.fromkeys(CAMERA_CHANNELS, "camera") | {"LIDAR_TOP": "lidar"} | dict.fromkeys(RADAR_CHANNELS, "radar")
BEGIN_US = 1_600_000_000_000_000
STEP_US = 500_000


def preparation() -> Preparation:
    """What `tests.tiny_model` wants to be given."""
    rig = RigConfig(camera_channels=CAMERA_CHANNELS, lidar_channels=("LIDAR_TOP",), radar_channels=RADAR_CHANNELS)
    return robustbev.preparation(tiny_config(), rig)


def noise_frame(index: int, modalities: tuple[str, ...] = ("camera", "lidar", "radar")) -> SensorFrame:
    """The frame of tick `index`; what a modality sees does not depend on which others are there."""
    random = np.random.default_rng(index)
    time_us = BEGIN_US + index * STEP_US
    intrinsics = np.array([[45.0, 0.0, 31.3], [0.0, 45.0, 16.3], [0.0, 0.0, 1.0]])
    cameras = tuple(
        CameraImage(
            channel, random.integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8), intrinsics,
            camera_pose(n * np.pi / 3 + 0.013).double().numpy(), time_us,
        )
        for n, channel in enumerate(CAMERA_CHANNELS)
    )  # fmt: skip
    lidar = random.uniform((-12, -12, -1, 0, -1), (12, 12, 2, 255, 31), (200, 5)).astype(np.float32)
    radar = tuple(
        RadarSweep(
            channel,
            random.uniform((1, -8, 0, -5, -9, -9), (12, 8, 1, 30, 9, 9), (8, 6)).astype(np.float32),
            np.eye(4),
            time_us,
        )
        for channel in RADAR_CHANNELS
    )
    return SensorFrame(
        token=f"tick-{index:06d}",
        time_us=time_us,
        cameras=cameras if "camera" in modalities else None,
        lidar=(LidarSweep("LIDAR_TOP", lidar, np.eye(4), time_us),) if "lidar" in modalities else None,
        radar=radar if "radar" in modalities else None,
        global_T_reference=np.eye(4),
    )


def noise_tick(index: int, modalities: tuple[str, ...] = ("camera", "lidar", "radar"), *, reset: bool = False) -> Tick:
    """Tick `index` at which `modalities` were there and the others had fallen silent."""
    frame = noise_frame(index, modalities)
    sensors = {
        channel: SensorStatus(channel, modality, SensorState.OK, 0)
        if modality in modalities
        else SensorStatus(channel, modality, SensorState.MISSING, None)
        for channel, modality in MODALITY_OF.items()
    }
    return Tick(index, frame.time_us, frame.time_us + 20_000, frame, sensors, True, reset)
