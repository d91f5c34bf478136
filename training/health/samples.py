"""Measured sensors, healthy and with seeded failures, and the truth about them: what a health monitor is fitted and judged by."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sensors.corruptions import Corruption, CorruptionError, corrupt
from sensors.frames import History, SensorFrame
from sensors.health.fault_model import HEALTHY
from sensors.health.measure import Measured, measure
from training.data.dataset import Past

FAULT_OF = {
    "camera_frozen": "frozen", "lidar_frozen": "frozen", "radar_frozen": "frozen",
    "camera_black": "black",
    "camera_blur": "blurred", "motion_blur": "blurred",
    "bright": "blinded",
    "camera_misaligned": "misaligned", "lidar_misaligned": "misaligned", "spatial_misalignment": "misaligned",
    "lidar_noise": "noisy", "lidar_crosstalk": "noisy", "radar_clutter": "noisy", "radar_velocity_noise": "noisy",
    "points_reducing": "thinned", "beams_reducing": "thinned",
    "camera_lagging": "delayed", "lidar_lagging": "delayed", "radar_lagging": "delayed", "temporal_misalignment": "delayed",
    "dark": "dark", "fog": "weather", "snow": "weather",
}  # fmt: skip
"""Corruption -> fault. Sensors that it takes away, or declares dead as LiDAR sectors, need no monitor."""

MOVING_M = 0.5  # between keyframes: below it a frozen or late sensor shows nearly what it should
_CAMERA_FAULTS, _WEATHER = ("blurred", "blinded", "black", "dark"), ("dark", "weather")


@dataclass(frozen=True)
class HealthSample:
    """One sensor in one frame. `corruption` is what befell the frame, "" where it is clean; `fault` is this sensor's truth."""

    sensor: str
    fault: str  # "healthy", or a fault
    corruption: str
    severity: int
    scene: str
    moved_m: float  # of the vehicle since the previous frame; NaN at the start of a scene
    measured: Measured
    kind: str  # camera, lidar or radar


def measure_sample(
    drive: Past, i: int, corruption: Corruption | None = None, *, lasting: bool = False
) -> list[HealthSample]:
    """The sensors of sample `i`, corrupted as the sample before it was; nothing where the corruption cannot show there.

    `lasting` draws once a scene: corruptions draw anew for every sample, but a mount that is bent stays bent the same way.
    """
    frame, history = drive.frame(i), drive.history(i)
    if lasting:
        scene = drive.reader.scene_name(i)
        frame, history = replace(frame, token=scene), _renamed(history, scene)
    delivered, before = frame, history(1)
    if corruption is not None:
        delivered = _corrupted(frame, corruption, history)
        if delivered is frame:
            return []
        if before is not None:
            before = _corrupted(before, corruption, lambda n: history(n + 1))
    sick = changed_sensors(frame, delivered)
    name, severity = ("", 0) if corruption is None else (corruption.name, corruption.severity)
    measurements = measure(delivered, before)
    return [
        HealthSample(
            sensor=sensor,
            fault=fault_of(name, measurements.kinds[sensor]) if sensor in sick else HEALTHY,
            corruption=name,
            severity=severity,
            scene=drive.reader.scene_name(i),
            moved_m=_moved_m(frame, before),
            measured=measured,
            kind=measurements.kinds[sensor],
        )
        for sensor, measured in measurements.sensors.items()
    ]


def fault_of(corruption: str, kind: str) -> str:
    """What a corruption does to a kind of sensor: a LiDAR shaken in motion blur is not blurred, but noisy."""
    fault = FAULT_OF[corruption]
    return "noisy" if fault in _CAMERA_FAULTS and kind != "camera" else fault


def draw_corruptions(token: str, names: Sequence[str], count: int, seed: int) -> list[Corruption]:
    """`count` corruptions for a sample, each of some severity; decided by seed and token alone."""
    random = np.random.default_rng([seed, zlib.crc32(token.encode())])
    chosen = random.permutation(len(names))[:count]
    return [Corruption(names[n], int(random.integers(1, 6)), seed) for n in sorted(chosen)]


def changed_sensors(before: SensorFrame, after: SensorFrame) -> set[str]:
    """Names of the sensors that deliver something else after than before, or claim another pose."""
    changed = {
        new.channel
        for old, new in zip(before.cameras or (), after.cameras or (), strict=False)
        if old is not None
        and new is not None
        and not _same((old,), (new,), "image", "reference_T_camera", "intrinsics")
    }
    lidars = (sweep.channel for sweep in (*(before.lidar or ()), *(after.lidar or ())))
    for channel in dict.fromkeys(lidars):
        old, new = (tuple(s for s in frame.lidar or () if s.channel == channel) for frame in (before, after))
        if not _same(old, new, "points", "reference_T_lidar"):
            changed.add(channel)
    if not _same(before.radar, after.radar, "points", "reference_T_radar"):
        changed.add("radar")
    return changed


def _corrupted(frame: SensorFrame, corruption: Corruption, history: History) -> SensorFrame:
    """The frame itself where the corruption cannot show: a camera without noise that hangs in a parked car is not sick."""
    try:
        return corrupt(frame, corruption, history)
    except CorruptionError:
        return frame


def _renamed(history: History, token: str) -> History:
    def earlier(n: int) -> SensorFrame | None:
        frame = history(n)
        return None if frame is None else replace(frame, token=token)

    return earlier


def _same(before: tuple[Any, ...] | None, after: tuple[Any, ...] | None, *fields: str) -> bool:
    if before is after or before is None or after is None:
        return before is after
    return len(before) == len(after) and all(
        a is b or all(np.array_equal(getattr(a, field), getattr(b, field)) for field in fields)
        for a, b in zip(before, after, strict=True)
    )


def _moved_m(frame: SensorFrame, before: SensorFrame | None) -> float:
    if before is None:
        return float("nan")
    return float(np.linalg.norm(frame.global_T_reference[:3, 3] - before.global_T_reference[:3, 3]))
