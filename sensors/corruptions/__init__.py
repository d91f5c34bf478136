"""What goes wrong with sensors: pure, seeded changes of a frame in five severities, to measure what a model loses by them.

    worse = corrupt(frame, Corruption("fog", 3), history)

`MULTICORRUPT` are the ten corruptions of "MultiCorrupt: A Multi-Modal Robustness Dataset and Benchmark of LiDAR-Camera Fusion for
3D Object Detection" (Beemelmanns et al., 2024). Severities 1 to 3 are the published ones where those carry over to any rig and
size of picture; severities 4 and 5, and all the other corruptions, are ours. The operations and their numbers stand in
`sensors.corruptions.camera`, `_lidar`, `_radar`, `_place`, `_time` and `_weather`. They touch what they can of the sensors that a
frame has, and never its truth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from sensors.corruptions import camera as camera
from sensors.corruptions import lidar as lidar
from sensors.corruptions import place as place
from sensors.corruptions import radar as radar
from sensors.corruptions import time as time
from sensors.corruptions import weather as weather
from sensors.frames import CameraImage, History, SensorFrame

__all__ = [
    "CORRUPTIONS", "MULTICORRUPT", "SEVERITIES", "Corruption", "CorruptionError", "History", "Operation", "corrupt",
]  # fmt: skip

SEVERITIES = (1, 2, 3, 4, 5)


class CorruptionError(ValueError):
    """A corruption that changed nothing: what is measured under its name would be clean data."""


@dataclass(frozen=True)
class Operation:
    """What a name stands for. `change` returns None where its draw spares the frame, or the frame has no past to take from."""

    change: Callable[[SensorFrame, int, np.random.Generator, History], SensorFrame | None]
    modalities: tuple[str, ...]  # whose data or claims it may alter


_CAMERA, _LIDAR, _RADAR = (("camera",), ("lidar",), ("radar",))
_BOTH = ("camera", "lidar")

CORRUPTIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "bright": Operation(camera.bright, _CAMERA),
        "dark": Operation(camera.dark, _CAMERA),
        "fog": Operation(weather.fog, _BOTH),
        "snow": Operation(weather.snow, _BOTH),
        "motion_blur": Operation(place.motion_blur, _BOTH),
        "missing_camera": Operation(camera.missing_camera, _CAMERA),
        "beams_reducing": Operation(lidar.beams_reducing, _LIDAR),
        "points_reducing": Operation(lidar.points_reducing, _LIDAR),
        "spatial_misalignment": Operation(place.spatial_misalignment, _LIDAR),
        "temporal_misalignment": Operation(time.temporal_misalignment, _BOTH),
        "single_camera_lost": Operation(camera.single_camera_lost, _CAMERA),
        "camera_black": Operation(camera.camera_black, _CAMERA),
        "camera_blur": Operation(camera.camera_blur, _CAMERA),
        "camera_frozen": Operation(partial(time.frozen, time.stale_cameras), _CAMERA),
        "camera_lagging": Operation(partial(time.lagging, time.stale_cameras), _CAMERA),
        "camera_misaligned": Operation(place.camera_misaligned, _CAMERA),
        "lidar_sectors": Operation(lidar.lidar_sectors, _LIDAR),
        "lidar_crosstalk": Operation(lidar.lidar_crosstalk, _LIDAR),
        "lidar_noise": Operation(lidar.lidar_noise, _LIDAR),
        "lidar_frozen": Operation(partial(time.frozen, time.stale_lidar), _LIDAR),
        "lidar_lagging": Operation(partial(time.lagging, time.stale_lidar), _LIDAR),
        "lidar_misaligned": Operation(place.lidar_misaligned, _LIDAR),
        "radar_lost": Operation(radar.radar_lost, _RADAR),
        "radar_clutter": Operation(radar.radar_clutter, _RADAR),
        "radar_velocity_noise": Operation(radar.radar_velocity_noise, _RADAR),
        "radar_frozen": Operation(partial(time.frozen, time.stale_radar), _RADAR),
        "radar_lagging": Operation(partial(time.lagging, time.stale_radar), _RADAR),
    }
)

MULTICORRUPT = (
    "bright", "dark", "fog", "snow", "motion_blur", "missing_camera", "beams_reducing", "points_reducing",
    "spatial_misalignment", "temporal_misalignment",
)  # fmt: skip


@dataclass(frozen=True)
class Corruption:
    """A corruption by name, how severe it is, and the seed of its draws. Called with a frame and its history, it corrupts.

    Raises:
        ValueError: no such name or severity, or a seed that is none.
    """

    name: str
    severity: int  # 1..5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            raise ValueError(f"unknown corruption {self.name!r}, expected one of {', '.join(CORRUPTIONS)}")
        if isinstance(self.severity, bool) or self.severity not in SEVERITIES:
            raise ValueError(f"{self.name}: severity: expected a whole number from 1 to 5, got {self.severity!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"{self.name}: seed: expected a whole number, got {self.seed!r}")

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> Corruption:
        """From "fog-3"; ValueError where that is not a corruption and a severity."""
        name, dash, severity = text.rpartition("-")
        if not dash or not severity.isdigit():
            raise ValueError(
                f"expected a corruption and a severity from 1 to 5, as fog-3, got {text!r}; "
                f"corruptions are {', '.join(CORRUPTIONS)}"
            )
        return cls(name, int(severity), seed)

    def __str__(self) -> str:
        return f"{self.name}-{self.severity}"

    def __call__(self, frame: SensorFrame, history: History) -> SensorFrame:
        return corrupt(frame, self, history)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities whose data or claims it may alter."""
        return CORRUPTIONS[self.name].modalities


def corrupt(frame: SensorFrame, corruption: Corruption, history: History) -> SensorFrame:
    """The frame made worse; the one given stays as it is, arrays that do not change are shared.

    Draws follow from the corruption's seed and name and from the frame's token, in every process alike. All severities share
    them: the cameras that severity 2 loses are among those that severity 3 loses, so that severities compare.

    Returns the frame itself where there is nothing to corrupt in it: its sensors are absent or delivered nothing, old data is
    asked for and the scene has just begun (or a frozen sensor has just come to life), or a probability spares this frame.

    Raises:
        CorruptionError: there was something to corrupt and the result equals the frame.
    """
    if not set(corruption.modalities) & set(_delivering(frame)):
        return frame
    text = f"{corruption.seed}/{corruption.name}/{frame.token}"
    entropy = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    changed = CORRUPTIONS[corruption.name].change(frame, corruption.severity, random, history)
    if changed is None:
        return frame
    if _equal(frame, changed):
        raise CorruptionError(
            f"{corruption} changed nothing in sample {frame.token}: expected other {' or '.join(corruption.modalities)} data or "
            "poses, got the frame as it was. Look at what is in it, and whether history(n) gives earlier keyframes"
        )
    return changed


def _delivering(frame: SensorFrame) -> tuple[str, ...]:
    """The modalities with a picture or a point."""
    return tuple(
        kind
        for kind, readings in frame.by_kind.items()
        if any(isinstance(one, CameraImage) or len(one.points) for one in readings)
    )


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f" and b.dtype.kind == "f")
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if is_dataclass(a) and type(a) is type(b):
        return all(_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return type(a) is type(b) and bool(a == b)
