"""From messages that come at any time to one report a tick, without ever holding up who brings them.

`receive` and `time_goes_on` only put something into a queue. One worker thread decodes, synchronises, asks the model and
publishes. A report comes when its tick's measurements are in (or their time-out is over), plus what the model takes; the
time-out is noticed within one period of whoever calls `time_goes_on`. Where the model is too slow, the oldest messages of
a topic are dropped and ticks that are too old are reported without it, so that what it says never falls behind by more than
`max_age_s` and its own time.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from robustbev.results.content import (
    ALARM_TEXT,
    NO_PERCEPTION,
    ChangeLog,
    Diagnosis,
    Level,
    diagnoses,
    sensor_diagnoses,
)
from robustbev.results.result import TickResult
from sensors.logs.messages import LogMessage
from sensors.replay.clock import SECOND_NS
from sensors.replay.live import LivePlayback
from sensors.replay.tick import Tick

_PULSE_NS = SECOND_NS  # while the worker is busy, time is kept in steps of this length at most

Decode = Callable[[str, bytes, int], LogMessage]  # topic, serialised message, arrival (ns)
Look = Callable[[Tick], TickResult]


@dataclass(frozen=True)
class Event:
    """A message that came, or (topic None) the news that time went on."""

    now_ns: int
    topic: str | None = None
    data: bytes = b""


class Inbox:
    """What waits for the worker, in the order in which it came. For any number of threads.

    `most`: topic -> messages of it that may wait; then the oldest of that topic is dropped and counted.
    """

    def __init__(self, most: Mapping[str, int]) -> None:
        self._most = dict(most)
        self._events: deque[Event] = deque()
        self._waiting: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._closed = False
        self._now_ns = 0

    def put(self, event: Event) -> None:
        """Take in an event; never blocks for longer than it takes to note it. A closed inbox forgets it."""
        with self._changed:
            if self._closed:
                return
            self._now_ns = event.now_ns
            if event.topic is None:
                self._join_times(event.now_ns)
            elif self._waiting[event.topic] >= self._most[event.topic]:
                self._drop_oldest(event.topic)
            if event.topic is not None:
                self._waiting[event.topic] += 1
            self._events.append(event)
            self._changed.notify_all()

    def take(self) -> list[Event]:
        """All that waits, possibly nothing."""
        with self._changed:
            events = list(self._events)
            self._events.clear()
            self._waiting.clear()
            return events

    def wait(self) -> bool:
        """Until something waits; False: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._events))
            return not self._closed

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._events.clear()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        with self._changed:
            return self._closed

    @property
    def now_ns(self) -> int:
        """The newest time that was told."""
        with self._changed:
            return self._now_ns

    def dropped(self) -> Counter[str]:
        """Topic -> messages dropped so far."""
        with self._changed:
            return Counter(self._dropped)

    def _join_times(self, now_ns: int) -> None:
        """Two pieces of news about time on end become one, unless that would look like a jump of the clock."""
        if len(self._events) < 2 or self._events[-1].topic is not None:
            return
        if 0 <= now_ns - self._events[-2].now_ns <= _PULSE_NS:
            self._events.pop()

    def _drop_oldest(self, topic: str) -> None:
        at = next(number for number, event in enumerate(self._events) if event.topic == topic)
        del self._events[at]
        self._waiting[topic] -= 1
        self._dropped[topic] += 1


@dataclass(frozen=True)
class LiveReport:
    """What became of one tick."""

    tick: Tick
    result: TickResult | None  # None: the model did not look at it, see `problem`
    problem: str
    age_ns: int  # of the tick when its turn came
    model_s: float  # wall time of the model
    dropped: Mapping[str, int]  # topic -> messages dropped since the start
    dropped_now: int  # messages dropped since the report before
    skipped: int  # ticks since the start that were too old when their turn came
    failed: int  # ticks since the start at which the model failed

    @property
    def perceived(self) -> bool:
        """Whether there is something to say of the surroundings. If not, no boxes does not mean that nothing is there."""
        return self.result is not None and self.result.perceived

    @property
    def _no_perception(self) -> str:
        return f"{ALARM_TEXT}: {self.problem}" if self.problem else NO_PERCEPTION

    def changes(self, log: ChangeLog) -> list[tuple[Level, str]]:
        """What changed since the report before, which went through the same log."""
        tick = self.tick if self.result is None else self.result.tick
        return log.lines(tick, perceived=self.perceived, problem=self._no_perception)

    def diagnoses(self) -> list[Diagnosis]:
        """The perception as a whole, every sensor, and how the node keeps up."""
        if self.result is not None:
            entries = diagnoses(self.result)
        else:
            entries = [Diagnosis(Level.ERROR, "perception", self._no_perception, "model", ())]
            entries += sensor_diagnoses(self.tick)
        behind = self.dropped_now > 0 or self.result is None
        message = "falls behind: messages or ticks are left out" if behind else "keeps up"
        values = [
            ("tick", str(self.tick.index)),
            ("age when its turn came (ms)", f"{self.age_ns / 1e6:.1f}"),
            ("model (ms)", f"{self.model_s * 1e3:.1f}"),
            ("ticks skipped", str(self.skipped)),
            ("ticks failed", str(self.failed)),
            ("messages dropped", str(sum(self.dropped.values()))),
            *((f"messages dropped of {topic}", str(count)) for topic, count in sorted(self.dropped.items())),
        ]
        return [*entries, Diagnosis(Level.WARN if behind else Level.OK, "live", message, "model", tuple(values))]


@dataclass
class LiveLoop:
    """Messages in, one `LiveReport` a tick out. `receive` and `time_goes_on` are for any thread and return at once.

    Args:
        decode: what a message says; must not raise for one that makes no sense (`Malformed`).
        look: asks the model. What it raises is reported at its tick, and the next tick is tried.
        publish: is called once a tick, in order, from the worker.
        most: topic -> messages of it that may wait; others are not listened to.
        max_age_s: see `sensors.replay.live.LiveConfig`.
    """

    playback: LivePlayback
    decode: Decode
    look: Look
    publish: Callable[[LiveReport], None]
    most: Mapping[str, int]
    max_age_s: float
    failure: Exception | None = None  # why the worker ended, where it was not told to
    _skipped: int = 0
    _failed: int = 0
    _dropped_before: int = 0
    _thread: threading.Thread | None = None
    _inbox: Inbox = field(init=False)

    def __post_init__(self) -> None:
        self._inbox = Inbox(self.most)

    def receive(self, topic: str, data: bytes, now_ns: int) -> None:
        """A message came on a topic. `data` is kept, not copied."""
        self._inbox.put(Event(now_ns, topic, data))

    def time_goes_on(self, now_ns: int) -> None:
        """It is `now_ns`. To be called several times a tick, whether messages come or not."""
        self._inbox.put(Event(now_ns))

    def start(self) -> None:
        """Start the worker."""
        self._thread = threading.Thread(target=self._run, name="robustbev-live", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Let the worker finish the tick that it is at, and end; what waits is forgotten. -> whether it ended in time."""
        self._inbox.close()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def work(self) -> int:
        """Handle all that came so far, in this thread. -> reports published."""
        count = 0
        for event in self._inbox.take():
            if self._inbox.closed:
                break
            if event.topic is None:
                ticks = self.playback.time_goes_on(event.now_ns)
            else:
                ticks = self.playback.receive(self.decode(event.topic, event.data, event.now_ns))
            for tick in ticks:
                self.publish(self._report(tick))
                count += 1
        return count

    def _run(self) -> None:
        try:
            while self._inbox.wait():
                self.work()
        except Exception as error:  # the thread's owner asks for it: nobody else would see it
            self.failure = error
            self._inbox.close()

    def _report(self, tick: Tick) -> LiveReport:
        age_ns = self.playback.age_ns(tick, self._inbox.now_ns)
        result, problem, model_s = None, "", 0.0
        if age_ns > self.max_age_s * SECOND_NS:
            self._skipped += 1
            problem = f"this tick was {age_ns / SECOND_NS:.3f} s old when its turn came, more than {self.max_age_s:g} s"
        else:
            began = time.perf_counter()
            try:
                result = self.look(tick)
            except Exception as error:  # one tick without perception, said aloud, is better than a node that is gone
                self._failed += 1
                problem = f"the model failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            model_s = time.perf_counter() - began
        dropped = self._inbox.dropped()
        new, self._dropped_before = dropped.total() - self._dropped_before, dropped.total()
        return LiveReport(tick, result, problem, age_ns, model_s, dropped, new, self._skipped, self._failed)
