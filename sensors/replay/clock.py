"""The virtual clock of a replay: when it ticks, and when it has jumped.

Ticks are told in the time of the sensors' stamps. A message comes at its log time, brought to the same clock: the two
are taken to be one clock unless they are further apart than `jump_s`, as in a log recorded anew from another; then their
difference at the first measurement counts as none.
"""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sensors.logs.log import Log, LogError
from sensors.logs.messages import CameraInfo, EncodedImage, FrameTransforms, LogMessage, PointCloud, RawImage
from sensors.replay.channels import Channels, Source
from sensors.replay.config import ReplayConfig

SECOND_NS = 1_000_000_000
MOST_HZ = 20.0
_KEYFRAME_HZ = 2.0
_PEEK_NS, _PEEK_MESSAGES = 10 * SECOND_NS, 21  # what the tick rate is taken from, a sensor
_HEARTBEAT_NS = SECOND_NS // 10

Measurement = EncodedImage | RawImage | PointCloud


@dataclass(frozen=True)
class Window:
    """The part of a log that is replayed."""

    start_ns: int | None
    end_ns: int | None

    def messages(self, log: Log, topics: frozenset[str]) -> Iterator[LogMessage]:
        return log.messages(topics=topics, start_ns=self.start_ns, end_ns=self.end_ns)


def window(log: Log, start_s: float | None, duration_s: float | None) -> Window:
    """`start_s` seconds after the log's begin, `duration_s` long; all of it by default.

    Raises:
        LogError: the log has no messages, or none in that span.
    """
    span = log.span_ns()
    if span is None:
        raise LogError(f"{log.path}: the log has no messages")
    begin = span[0] + round((start_s or 0.0) * SECOND_NS)
    length_s = (span[1] - span[0]) / SECOND_NS
    if not span[0] <= begin <= span[1] or (duration_s is not None and not duration_s > 0):
        raise LogError(
            f"{log.path}: expected a start between 0 and {length_s:.3f} s and a duration above 0, "
            f"got start {start_s or 0:g} s and duration {'all' if duration_s is None else f'{duration_s:g} s'}"
        )
    end = None if duration_s is None else begin + round(duration_s * SECOND_NS)
    return Window(None if start_s is None else begin, end)


def first_measurement(
    log: Log, found: Mapping[str, Source], channels: Channels, part: Window
) -> tuple[LogMessage, Source] | None:
    """The reference channel's first stamped measurement, else the first of any channel; None: the log has none."""
    groups = [[found[channels.reference]]] if channels.reference in found else []
    for group in (*groups, list(found.values())):
        by_topic = {source.topic: source for source in group}
        for message in part.messages(log, frozenset(by_topic)):
            if isinstance(message.payload, Measurement) and message.payload.stamp_ns > 0:
                return message, by_topic[message.topic]
    return None


def tick_rate_hz(log: Log, found: Mapping[str, Source], config: ReplayConfig, part: Window) -> float:
    """The configured rate, or that of the slowest sensor, from its first messages: their median spacing, to 0.01 Hz.

    Where no sensor sends twice, as in a single instant, it is nuScenes' rate of keyframes.
    """
    if config.tick_hz is not None:
        return config.tick_hz
    stamps: dict[str, list[int]] = {source.topic: [] for source in found.values()}
    begin = None
    for message in part.messages(log, frozenset(stamps)):
        arrival = message.log_time_ns
        begin = arrival if begin is None else begin
        if isinstance(message.payload, Measurement) and message.payload.stamp_ns > 0:
            stamps[message.topic].append(message.payload.stamp_ns)
        if arrival - begin > _PEEK_NS or min(map(len, stamps.values()), default=0) >= _PEEK_MESSAGES:
            break
    periods = [
        statistics.median(steps)
        for times in stamps.values()
        if (steps := [b - a for a, b in itertools.pairwise(times) if b > a])
    ]
    if not periods:
        return _KEYFRAME_HZ
    return min(max(round(SECOND_NS / max(periods), 2), 0.01), MOST_HZ)


class TickGrid:
    """Ticks at `start_ns` + i / hz, numbered from `first` on."""

    def __init__(self, start_ns: int, hz: float, first: int = 0) -> None:
        self._start_ns, self._hz, self._first = start_ns, hz, first
        self.index = first

    @property
    def time_ns(self) -> int:
        """Of the tick that comes next, `index`."""
        return self._start_ns + round((self.index - self._first) * SECOND_NS / self._hz)


def jump(now_ns: int, time_ns: int, config: ReplayConfig) -> str | None:
    """What to call the step between two messages' times where it is a jump; None for time going on.

    Steps back of up to `missing_after_s` are messages out of order: they come "now".
    """
    step = time_ns - now_ns
    if step > config.jump_s * SECOND_NS:
        return f"forward by {step / SECOND_NS:.3f} s"
    if -step > config.missing_after_s * SECOND_NS:
        return f"back by {-step / SECOND_NS:.3f} s"
    return None


class Heartbeats:
    """Lets messages through to whoever alters them, and remembers when they came.

    What was taken out of a drive must not look as if the clock had stood still or jumped.
    """

    def __init__(self) -> None:
        self._times_ns: deque[int] = deque()
        self._last_ns: int | None = None  # the newest of all, kept apart so that the end is exact
        self.end_ns: int | None = None  # the last message's time, once there are no more

    def through(self, messages: Iterator[LogMessage]) -> Iterator[LogMessage]:
        for message in messages:
            if drives_clock(message):
                time_ns = message.log_time_ns
                if not self._times_ns or not 0 <= time_ns - self._times_ns[-1] < _HEARTBEAT_NS:
                    self._times_ns.append(time_ns)
                self._last_ns = time_ns
            yield message
        self.end_ns = self._last_ns

    def before(self, time_ns: int | None) -> Iterator[int]:
        """The times before `time_ns`, each once; None: all."""
        while self._times_ns and (time_ns is None or self._times_ns[0] < time_ns):
            yield self._times_ns.popleft()
        if time_ns is None and self._last_ns is not None:
            yield self._last_ns
            self._last_ns = None


def drives_clock(message: LogMessage) -> bool:
    """Whether time goes on with a message: calibrations and static transforms may come with old times."""
    payload = message.payload
    return not isinstance(payload, CameraInfo) and not (isinstance(payload, FrameTransforms) and payload.static)
