"""The state of a replay between two messages: what time it is, what has come, which tick is next.

Times are nanoseconds on the clock of the ticks (see `sensors.replay.clock`) unless they are called arrival: those are the log's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from sensors.camera.images import DecodeSize
from sensors.checks.frame import MAX_AHEAD_S
from sensors.logs.log import LogWarning
from sensors.logs.messages import (
    CameraInfo,
    EncodedImage,
    FrameTransforms,
    LogMessage,
    Malformed,
    Other,
    Payload,
    PointCloud,
    RawImage,
)
from sensors.replay.assembly import Assembler
from sensors.replay.channels import Channels, Source
from sensors.replay.clock import SECOND_NS, Heartbeats, Measurement, TickGrid, drives_clock, jump
from sensors.replay.config import ReplayConfig
from sensors.replay.rig import Rig
from sensors.replay.synchroniser import Reading, SensorQueue
from sensors.replay.tick import Tick

_PICTURES, _POINTS = (EncodedImage, RawImage), (PointCloud,)
_EXPECTED: dict[str, tuple[type[Measurement], ...]] = {"camera": _PICTURES, "lidar": _POINTS, "radar": _POINTS}

AlterMessages = Callable[[Iterator[LogMessage]], Iterator[LogMessage]]


@dataclass(frozen=True)
class _Epoch:
    """A stretch of time without a jump. Times are the stamps': arrival - `shift_ns`."""

    shift_ns: int
    since_ns: int
    queues: dict[str, SensorQueue]


class Playback:
    """Takes messages in the order of their times and gives ticks."""

    def __init__(
        self,
        found: Mapping[str, Source],
        rig: Rig,
        channels: Channels,
        config: ReplayConfig,
        *,
        hz: float,
        log_hz: Mapping[str, float],
        decode: DecodeSize | None,
    ) -> None:
        self._found, self._rig, self._config = found, rig, config
        self._hz, self._log_hz = hz, log_hz
        self._assembler = Assembler(channels, rig, decode)
        self._timeout_ns = round(config.timeout_s * SECOND_NS)
        timed = any(source.time_field is not None for source in found.values())
        self._before_stamps_ns = (
            round(MAX_AHEAD_S * SECOND_NS) if timed else 0
        )  # at which points may have been measured
        self._of_topic: dict[str, list[Source]] = {}
        self._of_info: dict[str, list[Source]] = {}
        for source in found.values():
            self._of_topic.setdefault(source.topic, []).append(source)
            if source.info_topic is not None:
                self._of_info.setdefault(source.info_topic, []).append(source)
        self._now_ns: int | None = None
        self._reset = False
        self._last_ns: int | None = None  # no tick is later, whatever comes; None: not known yet
        self._grid = TickGrid(0, hz)
        self._epoch = _Epoch(0, 0, {})

    def begin(self, begin_ns: int, shift_ns: int, *, reset: bool) -> None:
        """Start anew at a time, with nothing heard of; the numbers of the ticks go on."""
        self._now_ns, self._reset = None, reset
        self._rig.reset()
        self._grid = TickGrid(begin_ns, self._hz, self._grid.index)
        queues = {
            channel: SensorQueue(source, self._config, since_ns=begin_ns, log_hz=self._log_hz.get(channel))
            for channel, source in self._found.items()
        }
        self._epoch = _Epoch(shift_ns, begin_ns, queues)

    def run(self, messages: Iterator[LogMessage], alter: AlterMessages | None) -> Iterator[Tick]:
        """The ticks of one pass."""
        heartbeats, self._last_ns = Heartbeats(), None
        if alter is not None:
            messages = alter(heartbeats.through(messages))
        for message in messages:
            self._note_end(heartbeats)
            for time_ns in heartbeats.before(message.log_time_ns):
                yield from self._time_goes_on(time_ns - self._epoch.shift_ns)
            yield from self._feed(message)
        self._note_end(heartbeats)
        for time_ns in heartbeats.before(None):
            yield from self._time_goes_on(time_ns - self._epoch.shift_ns)
        yield from self._finish()

    def _note_end(self, heartbeats: Heartbeats) -> None:
        """No ticks behind the log's end for what is delayed past it, unless its clock was altered."""
        if self._last_ns is None and self._now_ns is not None and heartbeats.end_ns is not None:
            end_ns = heartbeats.end_ns - self._epoch.shift_ns
            if self._now_ns - end_ns <= self._config.jump_s * SECOND_NS:
                self._last_ns = max(end_ns, self._now_ns)

    def _time_goes_on(self, time_ns: int, *, first: bool = True) -> Iterator[Tick]:
        """What was taken out of the drive, or does not drive the clock, as time; `first`: it may be the first."""
        if self._now_ns is None:
            self._now_ns = time_ns if first and self._jumped(time_ns) is None else None
        elif 0 < time_ns - self._now_ns <= self._config.jump_s * SECOND_NS:
            yield from self._advance(time_ns)

    def _feed(self, message: LogMessage) -> Iterator[Tick]:
        arrival_ns = message.log_time_ns
        if not drives_clock(message):
            yield from self._time_goes_on(arrival_ns - self._epoch.shift_ns, first=False)
            self._take_calibration(message)
            return
        time_ns = arrival_ns - self._epoch.shift_ns
        how = self._jumped(time_ns)
        if how is not None:
            shift_ns = self._shift_after(message, arrival_ns)
            yield from self._jump(message, f"the log's time goes {how}", arrival_ns, shift_ns)
        else:
            yield from self._advance(time_ns)
        self._take(message, arrival_ns)
        if (off_ns := self._stamps_off()) is not None:
            shift_ns = off_ns + self._epoch.shift_ns
            what = f"the stamps of most sensors are now {shift_ns / SECOND_NS:.3f} s behind the log's time"
            yield from self._jump(message, what, arrival_ns, shift_ns)
            self._take(message, arrival_ns)

    def _jumped(self, time_ns: int) -> str | None:
        """What to call the step to a time where it is a jump. The first message may come before the first tick, or soon after."""
        if self._now_ns is None:
            return jump(min(self._grid.time_ns, time_ns), time_ns, self._config)
        return jump(self._now_ns, time_ns, self._config)

    def _jump(self, message: LogMessage, what: str, arrival_ns: int, shift_ns: int) -> Iterator[Tick]:
        """End what was before a jump, and begin anew at this message."""
        yield from self._finish()
        warnings.warn(
            f"{message.topic} at log time {arrival_ns / SECOND_NS:.3f} s: {what}. All that depends on time is forgotten; "
            f"ticks go on with number {self._grid.index}",
            LogWarning,
            stacklevel=2,
        )
        now_ns, stamp_ns = arrival_ns - shift_ns, self._stamp_ns(message)
        fresh = stamp_ns is not None and 0 <= now_ns - stamp_ns <= self._timeout_ns
        self.begin(stamp_ns if fresh and stamp_ns is not None else now_ns, shift_ns, reset=True)
        self._now_ns = now_ns

    def _shift_after(self, message: LogMessage, arrival_ns: int) -> int:
        """What lies between the log's clock and that of the stamps, by the first message after a jump of the log's."""
        stamp_ns, before_ns = self._stamp_ns(message), self._epoch.shift_ns
        if stamp_ns is None or abs(arrival_ns - before_ns - stamp_ns) <= self._config.jump_s * SECOND_NS:
            return before_ns
        return arrival_ns - stamp_ns

    def _stamp_ns(self, message: LogMessage) -> int | None:
        """When a message was measured by its own stamp; None where it has none."""
        payload = message.payload
        if isinstance(payload, FrameTransforms):
            return max((transform.stamp_ns for transform in payload.transforms), default=0) or None
        if not isinstance(payload, Measurement) or payload.stamp_ns <= 0:
            return None
        return payload.stamp_ns + next((source.offset_ns for source in self._of_topic.get(message.topic, ())), 0)

    def _stamps_off(self) -> int | None:
        """By how much the stamps of most sensors are behind the clock, where that is a jump's length; else None."""
        assert self._now_ns is not None, "a message was taken"
        alive = [
            queue for queue in self._epoch.queues.values() if queue.heard_ns is not None and queue.alive(self._now_ns)
        ]
        off = [queue.off_ns for queue in alive if queue.off_ns is not None]
        return off[-1] if 2 * len(off) > len(alive) else None

    def _advance(self, time_ns: int) -> Iterator[Tick]:
        """All ticks that are ready before a time; then it is that time."""
        while self._grid.time_ns < time_ns and (self._last_ns is None or self._grid.time_ns <= self._last_ns):
            tick_ns, limit_ns = self._grid.time_ns, self._grid.time_ns + self._timeout_ns
            if self._complete(tick_ns):
                yield self._tick(min(max(tick_ns, self._now_ns or tick_ns), limit_ns))
            elif limit_ns < time_ns:
                yield self._tick(limit_ns)
            else:
                break
        self._now_ns = time_ns if self._now_ns is None else max(self._now_ns, time_ns)

    def _finish(self) -> Iterator[Tick]:
        """All ticks up to now: nothing more comes, which is only known once their time-out is over."""
        if self._now_ns is None:
            return
        last_ns = self._now_ns if self._last_ns is None else min(self._now_ns, self._last_ns)
        while self._grid.time_ns <= last_ns:
            tick_ns = self._grid.time_ns
            limit_ns = tick_ns + self._timeout_ns
            yield self._tick(min(max(tick_ns, self._now_ns), limit_ns) if self._complete(tick_ns) else limit_ns)

    def _complete(self, tick_ns: int) -> bool:
        queues = self._epoch.queues.values()
        if not all(queue.settled(tick_ns) for queue in queues):
            return False
        if not self._rig.has_global:
            return True
        newest = self._rig.newest_pose_ns()
        if newest is None:  # at the beginning it may be on its way, as the sensors may
            return tick_ns - self._epoch.since_ns > self._config.missing_after_s * SECOND_NS
        pose_ns, spacing_ns = newest
        chosen = [
            reading.stamp_ns
            for queue in queues
            if (reading := queue.nearest(tick_ns)) and queue.usable(reading, tick_ns)
        ]
        return pose_ns >= max([tick_ns, *chosen]) or pose_ns + spacing_ns > tick_ns + self._timeout_ns

    def _tick(self, ready_ns: int) -> Tick:
        tick_ns, index = self._grid.time_ns, self._grid.index
        tick = self._assembler.tick(
            self._epoch.queues, index=index, tick_ns=tick_ns, ready_ns=ready_ns, reset=self._reset
        )
        self._reset = False
        self._grid.index += 1
        for queue in self._epoch.queues.values():
            queue.forget(self._grid.time_ns)
        oldest = [queue.oldest_ns for queue in self._epoch.queues.values() if queue.oldest_ns is not None]
        self._rig.tree.forget_before(min([*oldest, tick_ns]) - self._before_stamps_ns)
        return tick

    def _take(self, message: LogMessage, arrival_ns: int) -> None:
        """A measurement to its sensors' queues, a transform to the tree."""
        payload = message.payload
        if isinstance(payload, FrameTransforms):
            self._rig.take_transforms(payload)
            return
        for source in self._of_topic.get(message.topic, ()):
            self._queue(source, payload, arrival_ns - self._epoch.shift_ns)
        for source in self._of_info.get(message.topic, ()):
            self._rig.take_broken_info(source.channel, _reason(payload, "CameraInfo"))

    def _queue(self, source: Source, payload: Payload, time_ns: int) -> None:
        queue, expected = self._epoch.queues[source.channel], _EXPECTED[source.modality]
        if not isinstance(payload, expected):
            kinds = " or ".join(kind.__name__ for kind in expected)
            payload = Malformed(type(payload).__name__, _reason(payload, kinds))
        doubts: tuple[str, ...] = ()
        if isinstance(payload, Malformed):
            stamp_ns = queue.stamp_of_malformed_ns(time_ns)
        elif payload.stamp_ns <= 0:
            stamp_ns, doubts = time_ns, ("it has no stamp: its log time is used",)
        else:
            stamp_ns = payload.stamp_ns + source.offset_ns
        # A message that comes out of order comes now.
        arrival_ns = time_ns if self._now_ns is None else max(time_ns, self._now_ns)
        queue.add(Reading(stamp_ns, arrival_ns, payload, doubts), next_tick_ns=self._grid.time_ns)

    def _take_calibration(self, message: LogMessage) -> None:
        payload = message.payload
        if isinstance(payload, FrameTransforms):
            self._rig.take_transforms(payload)
        elif isinstance(payload, CameraInfo):
            for source in self._of_info.get(message.topic, ()):
                self._rig.take_info(source.channel, payload)


def _reason(payload: Payload, expected: str) -> str:
    """Why a message is not what its topic is to carry."""
    if isinstance(payload, Malformed):
        return payload.reason
    got = payload.type if isinstance(payload, Other) else type(payload).__name__
    return f"expected {expected}, got a message of type {got}"
