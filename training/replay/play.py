"""A drive log through a checkpoint, tick by tick, as the car would have met it.

What comes out depends on the log, the checkpoint, the settings and the faults alone: the virtual clock runs on the time of the
log, and `Pace` only decides how long the wall clock waits between ticks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from robustbev import Perception, PerceptionModel, perceive_frame
from robustbev.results.result import ResultWriter, TickResult
from robustbev.results.ticks import tick_result
from sensors.calibration import CalibrationError
from sensors.frames import History, SensorFrame
from sensors.health.monitor import HealthMode, HealthMonitor, HealthReport, sick_sensors, without_sick
from sensors.modality import Preparation
from sensors.replay.tick import SensorState, SensorStatus, Tick

STAGES = ("read", "faults", "health", "model", "write")  # read: reading, decoding, synchronising
_PAST = 64  # frames that corruptions may look back on


class FrameChange(Protocol):
    """What becomes of a frame on its way to the model, `since_begin_s` after the log's beginning."""

    def __call__(self, frame: SensorFrame, history: History, since_begin_s: float) -> SensorFrame: ...


@dataclass
class Latencies:
    """Wall time of every stage of every tick, in seconds."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})

    def percentiles_ms(self) -> dict[str, tuple[float, float, float]]:
        """Stage -> p50, p95, p99 in milliseconds, and "total"; a stage that never ran is left out."""
        rows = {stage: np.array(taken) * 1e3 for stage, taken in self.seconds.items() if any(taken)}
        if rows:
            rows["total"] = np.sum([np.array(taken) for taken in self.seconds.values() if taken], axis=0) * 1e3
        return {stage: tuple(np.percentile(row, (50, 95, 99)).tolist()) for stage, row in rows.items()}


@dataclass
class Pace:
    """Holds each tick back until the wall clock, `rate` times as fast as the log's, has come to it. None: as fast as it goes."""

    rate: float | None = None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _begun: tuple[float, int] | None = None

    def __call__(self, tick: Tick) -> None:
        if self.rate is None:
            return
        if self._begun is None or tick.reset:
            self._begun = (self.clock(), tick.ready_us)
        wall, log_us = self._begun
        ahead = wall + (tick.ready_us - log_us) * 1e-6 / self.rate - self.clock()
        if ahead > 0:
            self.sleep(ahead)


@dataclass(frozen=True)
class Perceiver:
    """A model with all that it needs to look at one frame."""

    model: PerceptionModel
    preparation: Preparation

    def __call__(self, frame: SensorFrame) -> Perception:
        return perceive_frame(self.model, frame, self.preparation)


@dataclass
class HealthWatch:
    """The sensor health monitor over a replay: it looks at each frame beside the one delivered before it."""

    monitor: HealthMonitor
    mode: HealthMode
    _previous: SensorFrame | None = None

    def __call__(self, tick: Tick) -> Tick:
        previous = None if tick.reset else self._previous
        self._previous = tick.frame
        report = self.monitor.score(tick.frame, previous)
        sick = sick_sensors(report, self.monitor.thresholds)
        if not sick:
            return tick
        state = SensorState.SICK if self.mode == "act" else SensorState.FLAGGED
        sensors = {
            channel: _doubted(status, state, report) if _name(status) in sick else status
            for channel, status in tick.sensors.items()
        }
        frame = tick.frame
        if self.mode == "act":
            frame = without_sick(frame, report, self.monitor.thresholds)
        return replace(tick, frame=frame, sensors=sensors)


def _name(status: SensorStatus) -> str:
    """What the monitor calls a sensor."""
    return "radar" if status.modality == "radar" else status.channel


def _doubted(status: SensorStatus, state: SensorState, report: HealthReport) -> SensorStatus:
    return replace(status, state=state, detail=report.reasons[_name(status)]) if status.given else status


def replay(
    ticks: Iterable[Tick],
    perceiver: Perceiver,
    *,
    change: FrameChange | None = None,
    health: HealthWatch | None = None,
    latencies: Latencies | None = None,
    pace: Pace | None = None,
    begin_us: int | None = None,
) -> Iterator[TickResult]:
    """One result a tick, whatever the sensors do. `begin_us` is the log's beginning, by default the first tick."""
    latencies, pace = latencies or Latencies(), pace or Pace()
    past: deque[SensorFrame] = deque(maxlen=_PAST)
    source = iter(ticks)
    while True:
        started = time.perf_counter()
        tick = next(source, None)
        if tick is None:
            return
        read = time.perf_counter()
        pace(tick)
        begin_us = tick.time_us if begin_us is None else begin_us
        if change is not None:
            if tick.reset:
                past.clear()
            changing = time.perf_counter()
            delivered, before = tick.frame, tuple(past)
            frame = change(delivered, _history(before), (tick.time_us - begin_us) * 1e-6)
            past.append(delivered)
            tick = _with_frame(tick, frame)
            latencies.seconds["faults"].append(time.perf_counter() - changing)
        if health is not None:
            judging = time.perf_counter()
            tick = health(tick)
            latencies.seconds["health"].append(time.perf_counter() - judging)
        perceiving = time.perf_counter()
        result = _result(tick, perceiver)
        latencies.seconds["read"].append(read - started)
        latencies.seconds["model"].append(time.perf_counter() - perceiving)
        yield result


def _history(past: tuple[SensorFrame, ...]) -> History:
    return lambda n: past[-n] if 1 <= n <= len(past) else None


def _with_frame(tick: Tick, frame: SensorFrame) -> Tick:
    """The tick with a changed frame: what the change took away is no longer given."""
    if frame is tick.frame:
        return tick
    there = {kind: {reading.channel for reading in readings} for kind, readings in frame.by_kind.items()}
    sensors = {
        channel: status
        if not status.given or channel in there[status.modality]
        else replace(status, state=SensorState.MISSING, detail="taken away by a fault")
        for channel, status in tick.sensors.items()
    }
    return replace(tick, frame=frame, sensors=sensors)


def _result(tick: Tick, perceiver: Perceiver) -> TickResult:
    try:
        seen = perceiver(tick.frame)
    except CalibrationError as error:  # a corruption or a fault broke a calibration that was sound before it
        raise AssertionError(f"tick {tick.index}: a calibration that the synchroniser let through: {error}") from error
    return tick_result(tick, seen, perceiver.model.config)


def drain(results: Iterable[TickResult], writers: Sequence[ResultWriter], latencies: Latencies) -> int:
    """Hand every result to every writer; close them at the end, abort all of them on any error. -> ticks."""
    count = 0
    try:
        for result in results:
            writing = time.perf_counter()
            for writer in writers:
                writer.write(result)
            latencies.seconds["write"].append(time.perf_counter() - writing)
            count += 1
        for writer in writers:
            writer.close()
    except BaseException:
        for writer in writers:
            writer.abort()
        raise
    return count
