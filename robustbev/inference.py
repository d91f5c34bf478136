"""What a model wants of a frame, and whether the frame's sensors are those of its rig."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from robustbev.config import ModelConfig, RigConfig
from sensors.errors import SensorDataWarning
from sensors.frames import Absence, CameraImage, Lack, SensorFrame
from sensors.preparation.preparation import Preparation


def preparation(config: ModelConfig, rig: RigConfig | None = None) -> Preparation:
    """What a model wants its frames to be made into.

    Args:
        config: the model's.
        rig: the sensors that there are, where they are not those of `config.rig`. Sensors of modalities that the model does not
            have are passed over.

    Raises:
        ValueError: neither names the sensors.
    """
    rig = config.rig if rig is None else rig
    if rig is None:
        raise ValueError(
            "this model's config.json does not name its sensors (it has no rig): give rig=robustbev.RigConfig("
            'camera_channels=("CAM_FRONT", ...), lidar_channels=..., radar_channels=...)'
        )
    camera, mine = config.camera, rig.only(config.modalities)
    return Preparation(
        grid=config.grid.bev(),
        z_range_m=(config.grid.z_min_m, config.grid.z_max_m),
        image_size_px=None if camera is None else camera.image_size,
        camera_channels=mine.camera_channels,
        lidar_channels=mine.lidar_channels,
        radar_channels=mine.radar_channels,
        feature_stride_px=8 if camera is None else camera.feature_stride_px,
        lift_samples=(1, 1) if camera is None else camera.lift_samples,
        depth_bins=None if camera is None else camera.depth_bins.bins(),
        lidar_min_range_m=rig.lidar_min_range_m,
    )


def warn_of_absent(absent: Mapping[str, Absence]) -> None:
    """Of sensors that were given, without the counts: so Python shows each such warning once and not at every frame."""
    for channel, absence in absent.items():
        if absence.lack is not Lack.READING:
            message = f"{channel} counts as absent: {absence.lack} in this frame (Detections.absent has the counts)"
            warnings.warn(message, SensorDataWarning, stacklevel=4)  # where `perceive` was called


def on_rig(frame: SensorFrame, rig: RigConfig) -> SensorFrame:
    """The frame with its cameras in the places of the rig's; ValueError for a sensor that the rig does not have."""
    _check_sweeps(frame.token, [s.channel for s in frame.lidar or ()], "LiDAR", rig.lidar_channels, rig.lidar_sweeps)
    _check_sweeps(frame.token, [s.channel for s in frame.radar or ()], "radar", rig.radar_channels, rig.radar_sweeps)
    if frame.cameras is None:
        return frame
    there = [camera for camera in frame.cameras if camera is not None]
    _check_sweeps(frame.token, [camera.channel for camera in there], "camera", rig.camera_channels, 1)
    by_channel: dict[str, CameraImage] = {camera.channel: camera for camera in there}
    return replace(frame, cameras=tuple(by_channel.get(channel) for channel in rig.camera_channels))


def _check_sweeps(token: str, channels: list[str], kind: str, known: tuple[str, ...], most: int) -> None:
    for channel, count in Counter(channels).items():
        if channel not in known:
            has = f"its {kind} channels are {', '.join(known)}" if known else f"it has no {kind}"
            raise ValueError(
                f"sample {token}: {kind} {channel} is not of this model's rig: {has}. Give the sensor the name that it had "
                "in training, or name your own sensors with rig="
            )
        if count > most:
            times = "one picture" if kind == "camera" else f"{most} sweep{'s' if most > 1 else ''}"
            raise ValueError(
                f"sample {token}: expected at most {times} of {kind} {channel}, as in training, got {count}: give the newest"
            )
