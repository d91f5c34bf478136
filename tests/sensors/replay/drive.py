"""A short drive as messages of a log, without any file: two cameras, a LiDAR, a radar, ego poses, calibrations.

All sensors measure at 10 Hz, a little after one another; every message comes `LATENCY_NS` after its stamp. The vehicle drives
8 m/s along x. The x of the first point of every cloud says when it was truly measured, in seconds since the drive's begin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from sensors.logs.log import Damage, TopicInfo
from sensors.logs.mapping.mapping import CameraTopics, LidarTopics, LogMapping, RadarTopics
from sensors.logs.messages import (
    CameraInfo,
    EncodedImage,
    FrameTransform,
    FrameTransforms,
    LogMessage,
    Payload,
    PointCloud,
)
from sensors.replay.channels import Channels
from sensors.replay.config import ReplayConfig

START_NS = 1_600_000_000_000_000_000
MS = 1_000_000
PERIOD_NS, LATENCY_NS = 100 * MS, 5 * MS
SPEED_MPS = 8.0
WIDTH_PX, HEIGHT_PX = 64, 36
FRONT, BACK = (0.5, -0.5, 0.5, -0.5), (0.5, -0.5, -0.5, 0.5)  # camera axes: x right, y down, z along the view
MOUNTS = {
    "CAM_FRONT": ((1.7, 0.0, 1.5), FRONT),
    "CAM_BACK": ((0.0, 0.0, 1.6), BACK),
    "LIDAR_TOP": ((0.9, 0.0, 1.8), (1.0, 0.0, 0.0, 0.0)),
    "RADAR_FRONT": ((3.4, 0.0, 0.5), (1.0, 0.0, 0.0, 0.0)),
}
PHASE_NS = {"CAM_FRONT": -30 * MS, "CAM_BACK": -10 * MS, "LIDAR_TOP": 0, "RADAR_FRONT": 14 * MS}
MODALITY = {"CAM_FRONT": "camera", "CAM_BACK": "camera", "LIDAR_TOP": "lidar", "RADAR_FRONT": "radar"}
TOPIC = {"CAM_FRONT": "/cam_front/image_rect", "CAM_BACK": "/cam_back/image_rect", "LIDAR_TOP": "/lidar_top"}
TOPIC["RADAR_FRONT"] = "/radar_front"
INFO = {channel: f"/{channel.lower()}/camera_info" for channel in ("CAM_FRONT", "CAM_BACK")}
CHANNELS = Channels(("CAM_FRONT", "CAM_BACK"), ("LIDAR_TOP",), ("RADAR_FRONT",))
MAPPING = LogMapping(
    cameras={channel: CameraTopics(image=TOPIC[channel], info=INFO[channel]) for channel in INFO},
    lidars={"LIDAR_TOP": LidarTopics(points="/lidar_top")},
    radars={"RADAR_FRONT": RadarTopics(points="/radar_front")},
)
CONFIG = ReplayConfig(tick_hz=10, lidar_sweeps=3, radar_sweeps=2)
_LIDAR = np.dtype([(name, np.float32) for name in ("x", "y", "z", "intensity")])
_RADAR = np.dtype([(name, np.float32) for name in ("x", "y", "z", "rcs", "vx_comp", "vy_comp")])


class MemoryLog:
    """Messages as a log. They are given in the order in which they stand."""

    def __init__(self, messages: Sequence[LogMessage]) -> None:
        self._messages = list(messages)
        self.path, self.damage = Path("drive.mem"), Damage()

    def topics(self) -> tuple[TopicInfo, ...]:
        names = dict.fromkeys(message.topic for message in self._messages)
        return tuple(TopicInfo(name, _kind(name), "memory", 0) for name in names)

    def span_ns(self) -> tuple[int, int] | None:
        times = [message.log_time_ns for message in self._messages]
        return (min(times), max(times)) if times else None

    def messages(
        self,
        *,
        topics: Collection[str] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
    ) -> Iterator[LogMessage]:
        for message in self._messages:
            time_ns = message.log_time_ns
            latched = isinstance(message.payload, CameraInfo | FrameTransforms) and message.topic != "/tf"
            inside = (start_ns is None or time_ns >= start_ns or latched) and (end_ns is None or time_ns < end_ns)
            if inside and (topics is None or message.topic in topics):
                yield message


def calibrations() -> list[LogMessage]:
    """Every sensor's mounting and the cameras' calibrations."""
    transforms = tuple(
        FrameTransform(START_NS, "base_link", channel, translation, rotation)
        for channel, (translation, rotation) in MOUNTS.items()
    )
    out = [LogMessage("/tf_static", START_NS, START_NS, FrameTransforms(transforms, static=True))]
    return out + [LogMessage(INFO[channel], START_NS, START_NS, camera_info(channel)) for channel in INFO]


def camera_info(channel: str, **changes: Any) -> CameraInfo:
    K = np.array([[50.0, 0, 32], [0, 50, 18], [0, 0, 1]])
    P = np.hstack([K, np.zeros((3, 1))])
    info = CameraInfo(START_NS, channel, WIDTH_PX, HEIGHT_PX, "plumb_bob", np.zeros(5), K, np.eye(3), P)
    return dataclasses.replace(info, **changes)


def drive(seconds: float = 3.0, begin_ns: int = START_NS) -> list[LogMessage]:
    """The drive's messages by log time, calibrations first."""
    out = []
    for n in range(round(seconds * 10) + 1):
        for channel in MOUNTS:
            since_ns = n * PERIOD_NS + PHASE_NS[channel]
            out.append(measurement(channel, since_ns, begin_ns + since_ns))
            out.append(ego_pose(since_ns, begin_ns + since_ns))
    return [*calibrations(), *sorted(out, key=lambda message: message.log_time_ns)]


def measurement(channel: str, since_ns: int, stamp_ns: int) -> LogMessage:
    """What a sensor measures `since_ns` after the drive's begin."""
    payload: Payload
    if MODALITY[channel] == "camera":
        payload = EncodedImage(stamp_ns, channel, "jpeg", _jpeg(channel))
    else:
        points = np.ones(4, _LIDAR if channel == "LIDAR_TOP" else _RADAR)
        points["x"][0], points["y"][0] = since_ns / 1e9, 0.0
        payload = PointCloud(stamp_ns, channel, points)
    return LogMessage(TOPIC[channel], stamp_ns + LATENCY_NS, stamp_ns + LATENCY_NS - MS, payload)


def ego_pose(since_ns: int, stamp_ns: int) -> LogMessage:
    x_m = 500 + SPEED_MPS * since_ns / 1e9
    pose = FrameTransform(stamp_ns, "map", "base_link", (x_m, 900.0, 0.0), (1.0, 0.0, 0.0, 0.0))
    return LogMessage("/tf", stamp_ns + MS, stamp_ns + MS, FrameTransforms((pose,), static=False))


def since_s(message: LogMessage, begin_ns: int = START_NS) -> float:
    """Log time since the drive's begin."""
    return (message.log_time_ns - begin_ns) / 1e9


def later(message: LogMessage, log_ns: int, stamp_ns: int) -> LogMessage:
    """The message with other times: those of the log, and its own stamps."""
    payload = message.payload
    if isinstance(payload, FrameTransforms):
        moved = tuple(dataclasses.replace(t, stamp_ns=t.stamp_ns + stamp_ns) for t in payload.transforms)
        payload = dataclasses.replace(payload, transforms=moved)
    elif isinstance(payload, EncodedImage | PointCloud | CameraInfo):
        payload = dataclasses.replace(payload, stamp_ns=payload.stamp_ns + stamp_ns)
    return dataclasses.replace(
        message,
        payload=payload,
        log_time_ns=message.log_time_ns + log_ns,
        publish_time_ns=message.publish_time_ns + log_ns,
    )


def altered(
    messages: Sequence[LogMessage], channels: Collection[str], change: Callable[[LogMessage], LogMessage | None]
) -> list[LogMessage]:
    """The messages of some channels changed, or left out where `change` gives None; in order of log time."""
    topics = {TOPIC[channel] for channel in channels}
    out = [change(message) if message.topic in topics else message for message in messages]
    kept = [message for message in out if message is not None]
    return [*kept[:3], *sorted(kept[3:], key=lambda message: message.log_time_ns)]


def _kind(topic: str) -> str:
    if topic in INFO.values():
        return "CameraInfo"
    if topic.startswith("/tf"):
        return "FrameTransforms"
    return "EncodedImage" if "image" in topic else "PointCloud"


@lru_cache
def _jpeg(channel: str) -> bytes:
    shade = 40 if channel == "CAM_FRONT" else 200
    return bytes(simplejpeg.encode_jpeg(np.full((HEIGHT_PX, WIDTH_PX, 3), shade, np.uint8)))
