"""Corruptions of `sensors.corruptions` on the way of a replay's frames to the model, as faults with a target and a window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sensors.corruptions import Corruption, CorruptionError, corrupt
from sensors.frames import History, LidarSweep, RadarSweep, SensorFrame
from sensors.logs.mapping.mapping import LogMapping
from sensors.replay.faults.kinds import Fault
from sensors.replay.faults.messages import Reach, resolve

KEYFRAME_US = 500_000  # severities of corruptions in time count keyframes of nuScenes

_Sweep = TypeVar("_Sweep", LidarSweep, RadarSweep)


class FrameFaults:
    """The corruptions among a replay's faults; those that act on messages are passed over.

    A target restricts a corruption: of fog on `lidar` the pictures stay clear, and `cam_front: single_camera_lost-1` can lose
    no other camera. Draws follow from the corruption and the frame's token.

    Args:
        faults: in order of application.
        mapping: which channel is of which modality.
        topics: of the log, to check targets with; None: not known.
        touched: counts, per fault, the frames that it changed.

    Raises:
        FaultError: a fault whose target is not in the log, or on whose sensors its corruption does not act.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        mapping: LogMapping,
        *,
        topics: Collection[str] | None = None,
        touched: Counter[Fault] | None = None,
    ) -> None:
        self._touched = Counter[Fault]() if touched is None else touched
        self._faults = [
            (fault, fault.action, resolve(fault, mapping, topics))
            for fault in faults
            if isinstance(fault.action, Corruption)
        ]

    def __bool__(self) -> bool:
        """Whether there is a corruption among the faults."""
        return bool(self._faults)

    def __call__(self, frame: SensorFrame, history: History, since_begin_s: float) -> SensorFrame:
        """The frame as the faults leave it, so long after the log's beginning.

        `history` gives the clean frames of the ticks before; corruptions in time count keyframes of 0.5 s, whatever the ticks'
        length. One that takes from the past takes what the faults before it made of it then.
        """
        past, elapsed_ns = keyframes(history, frame.time_us), round(since_begin_s * 1e9)
        for number, (fault, _, _) in enumerate(self._faults):
            changed = self._one(number, frame, past, elapsed_ns)
            self._touched[fault] += changed is not frame
            frame = changed
        return frame

    def _one(self, number: int, frame: SensorFrame, history: History, elapsed_ns: int) -> SensorFrame:
        """The frame through the fault of this number alone."""
        fault, corruption, reach = self._faults[number]
        if not fault.holds_at(elapsed_ns):
            return frame

        def past(n: int) -> SensorFrame | None:
            old = history(n)
            if old is None:
                return None
            then_ns = elapsed_ns - 1000 * (frame.time_us - old.time_us)
            for earlier in range(number):
                old = self._one(earlier, old, lambda more: history(n + more), then_ns)
            return old

        seen = _only(frame, reach)
        try:
            changed = corrupt(seen, corruption, past)
        except CorruptionError:  # nothing to be seen of it in this frame; one that never shows is reported as unused
            return frame
        return frame if changed is seen else _merged(frame, changed, reach)


def keyframes(ticks: History, time_us: int) -> History:
    """History in steps of 0.5 s out of one in ticks of any length, of the frame at `time_us`.

    Each step gives the tick nearest to it; None where none is within a quarter of a second.
    """

    def history(n: int) -> SensorFrame | None:
        wanted_us, nearest, step = time_us - n * KEYFRAME_US, None, 1
        while (old := ticks(step)) is not None and old.time_us >= wanted_us - KEYFRAME_US // 2:
            if nearest is None or abs(old.time_us - wanted_us) < abs(nearest.time_us - wanted_us):
                nearest = old
            step += 1
        return nearest if nearest is not None and nearest.time_us - wanted_us <= KEYFRAME_US // 2 else None

    return history


def _only(frame: SensorFrame, reach: Reach) -> SensorFrame:
    """The frame without the other channels of a modality of which some are reached; draws then fall on those.

    Modalities that are not reached stay: fog takes the depth of pictures from the LiDAR.
    """
    kept: dict[str, Any] = {}
    for kind, readings in frame.by_kind.items():
        if kind not in reach.whole and any(one.channel in reach.channels for one in readings):
            if kind == "camera":  # each keeps its place
                places = frame.cameras or ()
                kept["cameras"] = tuple(c if c is not None and c.channel in reach.channels else None for c in places)
            else:
                kept[kind] = tuple(sweep for sweep in readings if sweep.channel in reach.channels)
    return replace(frame, **kept) if kept else frame


def _merged(frame: SensorFrame, changed: SensorFrame, reach: Reach) -> SensorFrame:
    """The frame with what the corruption made of the reached channels; itself where that is as it was."""
    cameras, lidar, radar = frame.cameras, frame.lidar, frame.radar
    if cameras is not None:
        news = changed.cameras or (None,) * len(cameras)
        mixed = tuple(
            new if old is not None and old.channel in reach.channels else old
            for old, new in zip(cameras, news, strict=True)
        )
        if any(new is not old for new, old in zip(mixed, cameras, strict=True)):
            cameras = mixed if any(camera is not None for camera in mixed) else None
    if lidar is not None and any(sweep.channel in reach.channels for sweep in lidar):
        lidar = _mixed_sweeps(lidar, changed.lidar, reach)
    if radar is not None and any(sweep.channel in reach.channels for sweep in radar):
        radar = _mixed_sweeps(radar, changed.radar, reach)
    # Where only some of several LiDARs lose sectors, the others still look there.
    all_reached = all(sweep.channel in reach.channels for sweep in frame.lidar or ())
    sectors = changed.lidar_sectors if lidar is not frame.lidar and all_reached else frame.lidar_sectors
    same = cameras is frame.cameras and lidar is frame.lidar and radar is frame.radar
    return frame if same else replace(frame, cameras=cameras, lidar=lidar, radar=radar, lidar_sectors=sectors)


def _mixed_sweeps(
    now: tuple[_Sweep, ...], changed: tuple[_Sweep, ...] | None, reach: Reach
) -> tuple[_Sweep, ...] | None:
    """The sweeps with those of the reached channels as changed; None where no sweep is left, `now` where all are as they were."""
    mixed: list[_Sweep] = []
    for channel in dict.fromkeys(sweep.channel for sweep in now):
        source = (changed or ()) if channel in reach.channels else now
        mixed += [sweep for sweep in source if sweep.channel == channel]
    if len(mixed) == len(now) and all(new is old for new, old in zip(mixed, now, strict=True)):
        return now
    return tuple(mixed) or None
