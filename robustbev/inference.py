"""What a model wants of a frame, and whether the frame's sensors are those of its rig."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from robustbev.config import ModelConfig, RigConfig
from sensors.calibration import CalibrationError
from sensors.camera.config import CameraConfig
from sensors.camera.images import DecodeSize
from sensors.camera.prepare import Camera
from sensors.checks.calibration import check_frame_calibration
from sensors.checks.frame import readings_of
from sensors.errors import SensorDataError, SensorDataWarning, naming
from sensors.frames import CameraImage, Lack, LidarSweep, RadarSweep, SensorFrame
from sensors.lidar.config import LidarConfig
from sensors.lidar.prepare import Lidar
from sensors.modality import Modality, Preparation
from sensors.motion.poses import LINK_T_OPTICAL
from sensors.points import SensorUse
from sensors.radar.config import RadarConfig
from sensors.radar.prepare import Radar

_LIDAR_POINTS, _RADAR_POINTS = 30_000, 100  # of a sweep, to warm up with


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
    for name in config.modalities:
        if missing := config.missing_channels(name, rig):
            warnings.warn(f"modality {name}: {missing}: it counts as absent", SensorDataWarning, stacklevel=2)
    return Preparation(
        grid=config.grid.bev(),
        z_range_m=(config.grid.z_min_m, config.grid.z_max_m),
        modalities=tuple(_modality(name, config, rig) for name in config.modalities),
        camera_channels=rig.only(config.kinds).camera_channels,
        lidar_min_range_m=rig.lidar_min_range_m,
    )


def subsets_of(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every subset of up to three modalities, of more all together, all but each and each alone; larger ones first."""
    count = len(modalities)
    sizes = range(count, 0, -1) if count <= 3 else (count, count - 1, 1)
    return [names for size in sizes for names in combinations(modalities, size)]


def blank_frame(config: ModelConfig, rig: RigConfig, modalities: Sequence[str]) -> SensorFrame:
    """Of the sensors of these modalities, noise: black pictures, and points around the vehicle."""
    random, grid, ahead = np.random.default_rng(0), config.grid, np.eye(4)
    channels = {
        kind: [c for name in modalities if config.modalities[name].kind == kind for c in config.channels_of(name, rig)]
        for kind in ("camera", "lidar", "radar")
    }
    size = decode_size(config)
    height, width = (1, 1) if size is None else (size.height_px, size.width_px)
    intrinsics = np.array([[width / 2.0, 0, width / 2], [0, width / 2.0, height / 2], [0, 0, 1]])
    picture = np.zeros((height, width, 3), np.uint8)

    def points(count: int, *more: float) -> NDArray[np.float32]:
        low, high = (grid.x_min_m, grid.y_min_m, grid.z_min_m), (grid.x_max_m, grid.y_max_m, grid.z_max_m)
        xyz_m = random.uniform(low, high, (count, 3))
        return np.column_stack([xyz_m, np.tile(more, (count, 1))]).astype(np.float32)

    return SensorFrame(
        token="warm-up",
        time_us=0,
        cameras=tuple(
            CameraImage(channel, picture, intrinsics, ahead @ LINK_T_OPTICAL, 0) for channel in channels["camera"]
        )
        or None,
        lidar=tuple(LidarSweep(channel, points(_LIDAR_POINTS, 0, -1), ahead, 0) for channel in channels["lidar"])
        or None,
        radar=tuple(RadarSweep(channel, points(_RADAR_POINTS, 0, 0, 0), ahead, 0) for channel in channels["radar"])
        or None,
        global_T_reference=np.eye(4),
    )


def decode_size(config: ModelConfig, zoom: float = 1.0) -> DecodeSize | None:
    """How large pictures must be decoded for the largest of the model's camera modalities; None: it has none."""
    cameras = config.of_kind(CameraConfig).values()
    if not cameras:
        return None
    height, width = (max(sides) for sides in zip(*(camera.image_size for camera in cameras), strict=True))
    return DecodeSize(height, width, zoom)


def _modality(name: str, config: ModelConfig, rig: RigConfig) -> Modality:
    channels = config.channels_of(name, rig)
    match config.modalities[name]:
        case CameraConfig() as camera:
            return Camera(
                name,
                channels,
                camera.image_size,
                camera.feature_stride_px,
                camera.depth_bins.bins(),
                camera.lift_samples,
            )
        case LidarConfig():
            return Lidar(name, channels, alone=set(rig.lidar_channels) <= set(channels))
        case RadarConfig():
            return Radar(name, channels)


def warn_of_absent(sensors: Mapping[str, SensorUse]) -> None:
    """Of sensors that were given, without the counts: so Python shows each such warning once and not at every frame."""
    for channel, use in sensors.items():
        if use.absence is not None and use.absence.lack is not Lack.READING:
            message = (
                f"{channel} counts as absent: {use.absence.lack} in this frame (Detections.sensors has the reason)"
            )
            warnings.warn(message, SensorDataWarning, stacklevel=3)  # where `perceive` was called


def warn_of_calibration(frame: SensorFrame, sensors: Mapping[str, SensorUse], known: set[str]) -> None:
    """Of what is doubtful in the calibration of the sensors that gave something sound; once of each, which then is `known`."""
    gave = {
        channel
        for channel, use in sensors.items()
        if use.absence is None or use.absence.lack in (Lack.RETURN, Lack.USABLE)
    }
    if gave <= known:
        return
    for channel, findings in check_frame_calibration(frame, gave).items():
        if channel not in known:
            known.add(channel)
            for text in (*findings.refused, *findings.flagged):  # where `perceive` was called
                warnings.warn(f"{text}: taken as it is, and told once", SensorDataWarning, stacklevel=3)


def without(frame: SensorFrame, channel: str) -> SensorFrame:
    """The frame as if this sensor had given nothing."""
    cameras, lidar, radar = (
        None if readings is None else tuple(r for r in readings if r is None or r.channel != channel)
        for readings in (frame.cameras, frame.lidar, frame.radar)
    )
    absent = {other: why for other, why in frame.absent.items() if other != channel}
    return replace(frame, cameras=cameras, lidar=lidar, radar=radar, absent=absent)  # type: ignore[arg-type]  # of their kinds


def on_rig(frame: SensorFrame, rig: RigConfig) -> SensorFrame:
    """The frame with its cameras in the places of the rig's.

    Raises:
        SensorDataError: of one sensor, its `channel`: it has more sweeps or pictures than the rig says, or `SensorFrame.absent`
            says that what it gave cannot be.
        ValueError: `frame` is none, or holds a sensor that the rig does not have.
    """
    readings_of(frame)  # so that what is looked at has a channel
    for channel, absence in frame.absent.items():
        if absence.lack in (Lack.MALFORMED, Lack.UNCALIBRATED):
            kind = CalibrationError if absence.lack is Lack.UNCALIBRATED else SensorDataError
            with naming(channel):
                raise kind(absence.reason)
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
            with naming(channel):
                raise SensorDataError(
                    f"sample {token}: expected at most {times} of {kind} {channel}, as in training, got {count}: give the newest"
                )
