"""Picks, for a tick, the measurement of one sensor and says how the sensor stands.

All times are nanoseconds on the clock of the ticks (see `sensors.replay.clock`). A measurement is usable at a tick where its
stamp is within the sensor's tolerance of it, either side, and is not later than its own arrival by more than that.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from sensors.logs.messages import EncodedImage, Malformed, PointCloud, RawImage
from sensors.replay.channels import Source
from sensors.replay.clock import SECOND_NS
from sensors.replay.config import ReplayConfig
from sensors.replay.tick import SensorState

_AHEAD_NS = 10_000_000  # a stamp this much later than its arrival is doubted
_PERIODS = 20  # the last ones, for their median
_JITTER = 0.1  # of a period
_STILL_SENDING = 1.5  # periods


@dataclass
class Reading:
    """A measurement that may be used. `decoded` keeps what was made of it, for the next tick that uses it."""

    stamp_ns: int
    arrival_ns: int
    payload: EncodedImage | RawImage | PointCloud | Malformed
    doubts: tuple[str, ...] = ()
    decoded: Any = field(default=None, repr=False)


class SensorQueue:
    """What came from one sensor and a tick may still need. Cleared when the clock jumps, by making a new one."""

    def __init__(self, source: Source, config: ReplayConfig, *, since_ns: int, log_hz: float | None) -> None:
        self.source = source
        self._config = config
        self._since_ns = since_ns
        self._readings: list[Reading] = []  # by stamp
        self._steps: deque[int] = deque(maxlen=_PERIODS)
        self._period_ns: float | None = None
        self._stamps: deque[int] = deque()  # of the last `rate_window_s`, for the rate
        self._known_count = 0.0 if log_hz is None else log_hz * config.rate_window_s
        self._newest: Reading | None = None  # by stamp, of those that can be right
        self._last: Reading | None = None  # by arrival
        self._last_good_ns: int | None = None
        self.heard_ns: int | None = None  # the last arrival
        self._latency_ns = 0
        self._off: tuple[int, int] = (0, 0)  # how far off the clock the last stamps were (ns), and how many of them

    def add(self, reading: Reading, *, next_tick_ns: int) -> None:
        """Take in a message; a stamp that was there already is replaced."""
        self.heard_ns, self._last = reading.arrival_ns, reading
        ahead_ns = reading.stamp_ns - reading.arrival_ns
        self._count_off(-ahead_ns)
        if ahead_ns > _AHEAD_NS:
            text = f"its stamps are {ahead_ns / SECOND_NS:.3f} s ahead of the log's time"
            reading.doubts = (*reading.doubts, text)
        if not self._possible(reading):
            return
        if not isinstance(reading.payload, Malformed):
            self._note_stamp(reading)
        if self._newest is None or reading.stamp_ns > self._newest.stamp_ns:
            self._newest = reading
        at = bisect_left(self._readings, reading.stamp_ns, key=_stamp)
        if at < len(self._readings) and self._readings[at].stamp_ns == reading.stamp_ns:
            self._readings[at] = reading
        else:
            self._readings.insert(at, reading)
        self.forget(next_tick_ns)

    def stamp_of_malformed_ns(self, arrival_ns: int) -> int:
        """When a message without a readable stamp was probably measured."""
        return arrival_ns - self._latency_ns

    def forget(self, next_tick_ns: int) -> None:
        """Drop what no tick from `next_tick_ns` on can use: all but the newest `sweeps` up to it."""
        spare = bisect_right(self._readings, next_tick_ns, key=_stamp) - self.source.sweeps
        if spare > 0:
            del self._readings[:spare]

    @property
    def oldest_ns(self) -> int | None:
        return self._readings[0].stamp_ns if self._readings else None

    @property
    def off_ns(self) -> int | None:
        """By how much the stamps are off the clock, where that is a jump's length in two messages on end; else None."""
        off, times = self._off
        return off if times >= 2 else None

    def nearest(self, tick_ns: int) -> Reading | None:
        """The measurement whose stamp is nearest to a tick, usable or not; of two equally near the newer."""
        at = bisect_left(self._readings, tick_ns, key=_stamp)
        near = self._readings[max(at - 1, 0) : at + 1]
        return min(reversed(near), key=lambda reading: abs(reading.stamp_ns - tick_ns), default=None)

    def usable(self, reading: Reading | None, tick_ns: int) -> bool:
        return reading is not None and abs(reading.stamp_ns - tick_ns) <= self.source.tolerance_ns

    def older(self, newest: Reading) -> list[Reading]:
        """The sweeps before one, newest first: as many as are wanted, and no older than these should be."""
        at = bisect_left(self._readings, newest.stamp_ns, key=_stamp)
        reach_ns = (self.source.sweeps - 1) * (self._period_ns or 0) + self.source.tolerance_ns
        return [
            reading
            for reading in self._readings[max(at - self.source.sweeps + 1, 0) : at][::-1]
            if newest.stamp_ns - reading.stamp_ns <= reach_ns and not isinstance(reading.payload, Malformed)
        ]

    def alive(self, time_ns: int) -> bool:
        """Heard of within `missing_after_s`; in the beginning every sensor has that long to be heard of."""
        heard_ns = self._since_ns if self.heard_ns is None else self.heard_ns
        return time_ns - heard_ns <= self._config.missing_after_s * SECOND_NS

    def settled(self, tick_ns: int) -> bool:
        """Whether nothing nearer to a tick is to be expected."""
        if not self.alive(tick_ns):
            return True
        near = self.nearest(tick_ns)
        if near is None:
            return False
        if near.stamp_ns >= tick_ns or self._readings[-1].stamp_ns >= tick_ns:
            return True
        period_ns = self._period_ns
        # The next one, even if it is early, is further away on the other side.
        return period_ns is not None and near.stamp_ns + (1 - _JITTER) * period_ns - tick_ns >= tick_ns - near.stamp_ns

    def state_without(self, tick_ns: int, ready_ns: int) -> tuple[SensorState, int | None, str]:
        """State, age (ns) and reason of a sensor that has nothing usable at a tick."""
        newest = self._newest if self._last is None or self._possible(self._last) else self._last
        if newest is None or self.heard_ns is None:
            return SensorState.MISSING, None, "nothing came so far"
        age_ns, silent_s = tick_ns - newest.stamp_ns, (ready_ns - self.heard_ns) / SECOND_NS
        if not self.alive(tick_ns):
            return SensorState.MISSING, age_ns, f"silent for {silent_s:.3f} s"
        if newest.stamp_ns - newest.arrival_ns > self.source.tolerance_ns:
            return SensorState.STALE, age_ns, newest.doubts[-1]
        latency_ns = newest.arrival_ns - newest.stamp_ns
        period_ns = self._period_ns or SECOND_NS * self._config.missing_after_s
        if latency_ns > self._config.timeout_s * SECOND_NS and silent_s * SECOND_NS <= _STILL_SENDING * period_ns:
            return SensorState.LATE, age_ns, f"comes {latency_ns / SECOND_NS:.3f} s after its stamps"
        return SensorState.STALE, age_ns, f"its newest measurement is {age_ns / SECOND_NS:.3f} s old"

    def rate_doubt(self, tick_ns: int) -> str:
        """Why the rate is too low; empty where it is not, or not yet known. Ask at every tick, in order."""
        window_ns = round(self._config.rate_window_s * SECOND_NS)
        while self._stamps and self._stamps[0] <= tick_ns - window_ns:
            self._stamps.popleft()
        if tick_ns - self._since_ns < window_ns:
            return ""
        count = sum(stamp <= tick_ns for stamp in self._stamps)
        known = self._known_count
        self._known_count = max(known, count)
        # Of slow sensors one message more or less falls into the window by chance.
        if count < self._config.rate_low_share * known and known - count > 1.5:
            seconds = self._config.rate_window_s
            return f"{count} messages in {seconds:g} s, known to send {known:.0f}"
        return ""

    @property
    def _jump_ns(self) -> float:
        return self._config.jump_s * SECOND_NS

    def _count_off(self, off_ns: int) -> None:
        before, times = self._off
        if abs(off_ns) <= self._jump_ns:
            self._off = (0, 0)
        else:
            self._off = (off_ns, times + 1 if times and abs(off_ns - before) <= self._jump_ns else 1)

    def _possible(self, reading: Reading) -> bool:
        """Neither measured after it came, beyond the tolerance, nor on another clock."""
        ahead_ns = reading.stamp_ns - reading.arrival_ns
        return -self._jump_ns <= ahead_ns <= self.source.tolerance_ns

    def _note_stamp(self, reading: Reading) -> None:
        """Period, rate and latency, by messages of a new stamp."""
        last_ns = self._last_good_ns
        if last_ns is not None:
            if reading.stamp_ns <= last_ns:
                return
            self._steps.append(reading.stamp_ns - last_ns)
            self._period_ns = statistics.median(self._steps)
        self._last_good_ns = reading.stamp_ns
        self._latency_ns = reading.arrival_ns - reading.stamp_ns
        self._stamps.append(reading.stamp_ns)


def _stamp(reading: Reading) -> int:
    return reading.stamp_ns
