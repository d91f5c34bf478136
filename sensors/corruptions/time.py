"""Sensors that deliver the past and claim that it is now. Conventions of operations as in `sensors.corruptions.camera`.

Old data comes with the pose and the time of the current reading: whoever stamps it knows neither its age nor how far the vehicle
has driven since. Without a past (a scene's first keyframe) nothing happens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TypeVar

import numpy as np

from sensors.corruptions.camera import present_cameras
from sensors.frames import History, LidarSweep, RadarSweep, SensorFrame

# MultiCorrupt (Beemelmanns et al., 2024), severities 1 to 3, for each camera and the LiDAR by itself; 4 and 5 are ours.
TEMPORAL_PROBABILITY = (0.2, 0.4, 0.6, 0.8, 1.0)
# Ours.
LAG_KEYFRAMES = (1, 2, 3, 4, 5)
HANG_US = (1_000_000, 1_500_000, 2_000_000, 2_500_000, 3_000_000)  # 2 to 6 keyframes of nuScenes

_Sweep = TypeVar("_Sweep", LidarSweep, RadarSweep)
Stale = Callable[[SensorFrame, SensorFrame], SensorFrame | None]


def stale_cameras(frame: SensorFrame, old: SensorFrame, cameras: Collection[int] | None = None) -> SensorFrame | None:
    """The frame with the pictures that some cameras (default: all) took in `old`; None where none of them took one."""
    before = dict(enumerate(old.cameras or ()))
    changed = [
        replace(camera, image=past.image)
        if camera is not None and (cameras is None or n in cameras) and (past := before.get(n)) is not None
        else camera
        for n, camera in enumerate(frame.cameras or ())
    ]
    same = all(new is camera for new, camera in zip(changed, frame.cameras or (), strict=True))
    return None if same else replace(frame, cameras=tuple(changed))


def stale_lidar(frame: SensorFrame, old: SensorFrame) -> SensorFrame | None:
    """The frame with the points of `old`'s LiDAR sweeps; None where it had none."""
    if frame.lidar is None or old.lidar is None:
        return None
    return replace(frame, lidar=_stale(frame.lidar, old.lidar))


def stale_radar(frame: SensorFrame, old: SensorFrame) -> SensorFrame | None:
    """The frame with the points of `old`'s radar sweeps; None where it had none."""
    if frame.radar is None or old.radar is None:
        return None
    return replace(frame, radar=_stale(frame.radar, old.radar))


def _stale(now: tuple[_Sweep, ...], old: tuple[_Sweep, ...]) -> tuple[_Sweep, ...]:
    """Sweeps with the points of the old ones of their channel, newest to newest; a channel without old ones stays."""
    sweeps: list[_Sweep] = []
    for channel in dict.fromkeys(sweep.channel for sweep in now):
        fresh = [sweep for sweep in now if sweep.channel == channel]
        past = [sweep for sweep in old if sweep.channel == channel]
        sweeps += [replace(sweep, points=before.points) for sweep, before in zip(fresh, past, strict=False)] or fresh
    return tuple(sweeps)


def lagging(
    stale: Stale, frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """A sensor, by its `stale`, delivers late: data `severity` keyframes old, or as old as the scene is."""
    for n in range(LAG_KEYFRAMES[severity - 1], 0, -1):
        old = history(n)
        if old is not None:
            return stale(frame, old)
    return None


def frozen(
    stale: Stale, frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """A sensor, by its `stale`, hangs: data of the last instant at which it came to life, which it does every so many seconds.

    Those instants are multiples of the hang, so that consecutive frames agree on what is delivered between them.
    """
    began_us = frame.time_us - frame.time_us % HANG_US[severity - 1]
    first: SensorFrame | None = None
    for n in range(1, HANG_US[severity - 1] // 50_000):  # more keyframes a second than 20 are taken as 20
        old = history(n)
        if old is None or old.time_us < began_us:
            break
        first = old
    return None if first is None else stale(frame, first)


def temporal_misalignment(
    frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """Each camera and the LiDAR delivers the keyframe before, with a probability by severity (MultiCorrupt)."""
    draw = random.random(1 + len(frame.cameras or ()))
    late = {n for n in present_cameras(frame) if draw[1 + n] < TEMPORAL_PROBABILITY[severity - 1]}
    late_lidar = frame.lidar is not None and draw[0] < TEMPORAL_PROBABILITY[severity - 1]
    old = history(1) if late or late_lidar else None
    if old is None:
        return None
    with_cameras = stale_cameras(frame, old, late) if late else None
    with_lidar = stale_lidar(with_cameras or frame, old) if late_lidar else None
    return with_lidar or with_cameras
