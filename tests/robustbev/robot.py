"""A robot's loop around `perceive`, as docs/inputs.md has it, fed with the messages of a drive: no replay, no synchroniser."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robustbev import RigConfig
from sensors.calibration import CalibrationError, Float64
from sensors.camera.rectification import Lens
from sensors.frames import SensorFrame
from sensors.logs.messages import CameraInfo, EncodedImage, FrameTransforms, LogMessage, PointCloud, RawImage
from sensors.motion.poses import pose
from sensors.motion.trajectory import Trajectory
from sensors.readings import CameraReading, LidarReading, RadarReading, Reading, frame_at
from sensors.replay.readings import decode_picture, lidar_points, radar_points
from tests.sensors.replay.drive import INFO, MAPPING, MODALITY, TOPIC

RIG = RigConfig(
    camera_channels=tuple(MAPPING.cameras),
    lidar_channels=tuple(MAPPING.lidars),
    radar_channels=tuple(MAPPING.radars),
    lidar_sweeps=2,
    radar_sweeps=2,
)
CHANNEL_OF = {topic: channel for channel, topic in TOPIC.items()}
CAMERA_OF = {topic: channel for channel, topic in INFO.items()}


@dataclass
class Robot:
    """Keeps the last picture of each camera and the last two sweeps of each other sensor, in the order in which they come."""

    mounts: dict[str, Float64] = field(default_factory=dict)
    infos: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # channel -> what our own helpers say of its calibration
    trajectory: Trajectory = field(default_factory=Trajectory)

    def __post_init__(self) -> None:
        self.kept: dict[str, deque[Reading]] = defaultdict(lambda: deque(maxlen=2))

    def take(self, messages: Iterable[LogMessage], until_ns: int) -> Robot:
        """All that came until then."""
        for message in messages:
            if message.log_time_ns > until_ns:
                break
            payload = message.payload
            if isinstance(payload, FrameTransforms):
                self._take_transforms(payload)
            elif message.topic in CAMERA_OF:
                self.infos[CAMERA_OF[message.topic]] = payload
            elif message.topic in CHANNEL_OF:
                channel = CHANNEL_OF[message.topic]
                self.kept[channel].append(self._reading(channel, message))
        return self

    def frame(self, now_us: int) -> SensorFrame:
        """Of what it has."""
        readings: list[Reading] = []
        for channel, kept in self.kept.items():
            readings += [kept[-1]] if MODALITY[channel] == "camera" else kept
        return frame_at(now_us, readings, self._turned(), self.trajectory, token="now")

    def _turned(self) -> dict[str, Float64]:
        """The mounts, cameras turned to the axes of their rectified pictures."""
        turned = {channel: mount.copy() for channel, mount in self.mounts.items()}
        for channel, info in self.infos.items():
            if isinstance(info, CameraInfo) and channel in turned:
                turned[channel][:3, :3] = turned[channel][:3, :3] @ info.R.T
        return turned

    def _take_transforms(self, payload: FrameTransforms) -> None:
        for one in payload.transforms:
            try:
                matrix = pose(one.translation_m, wxyz=one.rotation_wxyz)
            except CalibrationError as error:
                self.refused[one.child] = f"{one.child}: {error}"
                continue
            if one.child == "base_link":
                self.trajectory.add(one.stamp_ns // 1000, matrix)
            else:
                self.mounts[one.child] = matrix

    def _reading(self, channel: str, message: LogMessage) -> Any:
        """What cannot be read is handed over as nothing, with the time at which it came."""
        payload, modality = message.payload, MODALITY[channel]
        if isinstance(payload, EncodedImage | RawImage):
            return CameraReading(
                channel, decode_picture(payload).image, self._intrinsics(channel), payload.stamp_ns // 1000
            )
        if isinstance(payload, PointCloud) and modality == "lidar":
            return LidarReading(channel, lidar_points(payload, {}, 1.0)[0], payload.stamp_ns // 1000)
        if isinstance(payload, PointCloud):
            return RadarReading(channel, radar_points(payload, {}), payload.stamp_ns // 1000)
        nothing: Any = None
        came_us = message.log_time_ns // 1000
        if modality == "camera":
            return CameraReading(channel, nothing, self._intrinsics(channel), came_us)
        return (LidarReading if modality == "lidar" else RadarReading)(channel, nothing, came_us)

    def _intrinsics(self, channel: str) -> Any:
        """P's, or K's where P is as K was or nothing; None where there is no calibration. D makes a lens."""
        info = self.infos.get(channel)
        if not isinstance(info, CameraInfo):
            return None
        try:
            Lens.of(info.distortion_model, info.D, info.K, (info.height_px, info.width_px))
        except CalibrationError as error:
            self.refused[channel] = f"{channel}: {error}"
        same = info.K.shape == (3, 3) and np.array_equal(info.K, [[50, 0, 32], [0, 50, 18], [0, 0, 1]])
        return np.array(info.P[:, :3] if same and info.P.any() else info.K, float)
