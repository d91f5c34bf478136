"""Ticks while the vehicle drives: messages are taken as they come, and time goes on between them.

The same clock, queues and states as in a replay (`sensors.replay.ticks`), with two differences: what comes later is not known
when the first tick is to be placed, and time must go on when nothing comes at all. A tick that had all its measurements when it
was ready is the same tick that a replay of the recorded messages gives. Times are nanoseconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from sensors.camera.images import DecodeSize
from sensors.logs.log import LogError, LogWarning
from sensors.logs.mapping.mapping import LogMapping
from sensors.logs.messages import LogMessage
from sensors.replay.channels import Channels, Source, sources
from sensors.replay.clock import SECOND_NS, Measurement, drives_clock, jump
from sensors.replay.config import ReplayConfig, Span
from sensors.replay.playback import Playback
from sensors.replay.rig import Rig
from sensors.replay.tick import Tick


class LiveConfig(ReplayConfig):
    """Settings of a replay that also hold on the road, and those of the road alone."""

    tick_hz: Span = 10.0
    queue_messages: Annotated[int, Field(ge=1)] = 20
    """Messages of one topic that may wait while the model is busy; then the oldest of that topic is dropped."""
    max_age_s: Span = 0.5
    """A tick that is older than this when its turn comes is reported, and not shown to the model."""

    @model_validator(mode="after")
    def _check(self) -> LiveConfig:
        if self.max_age_s <= self.timeout_s:
            raise ValueError(
                f"max_age_s: expected more than timeout_s ({self.timeout_s:g}), or no tick that waited for a sensor "
                f"would be looked at; got {self.max_age_s:g}"
            )
        return self


class LivePlayback(Playback):
    """Takes messages as they come and gives ticks; for one thread.

    The arrival of a message is its `log_time_ns`, and must be of the same clock as `time_goes_on`. Ticks start at the stamp of
    the reference LiDAR's first measurement; where none comes within `missing_after_s`, at that of the first of any sensor; where
    nothing comes at all, when time was first told. Messages that come before are kept until then.

    Args:
        mapping: which topic is which sensor.
        channels: of the model.
        decode: lets JPEGs be decoded at a reduced scale.

    Raises:
        LogError: the mapping has none of the channels, or has one as another modality.
    """

    def __init__(
        self, mapping: LogMapping, channels: Channels, config: LiveConfig, *, decode: DecodeSize | None = None
    ) -> None:
        source_of = sources(channels, mapping, config)
        if not source_of:
            mapped = ", ".join(mapping.by_channel)
            known = ", ".join(channels.modalities())
            raise LogError(f"mapping: expected at least one of the model's channels {known}, got {mapped}")
        rig = Rig(mapping, gap_ns=round(config.ego_pose_gap_s * SECOND_NS))
        super().__init__(source_of, rig, channels, config, hz=config.tick_hz, log_hz={}, decode=decode)
        self._assembler.endured = Exception  # whatever a decoder raises, the node goes on without that sensor
        self._reference = source_of.get(channels.reference)
        self._held: list[LogMessage] | None = []  # what came before the ticks begin; None: they did
        self._waiting_since_ns: int | None = None

    def receive(self, message: LogMessage) -> Iterator[Tick]:
        """Take in a message; -> the ticks that are ready now."""
        if self._held is None:
            yield from self._feed(message)
            yield from self._ready()
            return
        if drives_clock(message):
            if message.log_time_ns <= 0:  # a simulated clock that has not been heard of
                return
            self._note_waiting(message.log_time_ns)
        self._held.append(message)
        if (source := self._opening(message, self._reference)) is not None:
            yield from self._start(message, source)
        elif drives_clock(message):
            yield from self._start_when_due(message.log_time_ns)

    def time_goes_on(self, now_ns: int) -> Iterator[Tick]:
        """It is `now_ns`, whatever came or did not; -> the ticks that are ready now. Times <= 0 are no times."""
        if now_ns <= 0:
            return
        if self._held is not None:
            self._note_waiting(now_ns)
            yield from self._start_when_due(now_ns)
            return
        time_ns = now_ns - self._epoch.shift_ns
        how = None if self._now_ns is None else jump(self._now_ns, time_ns, self._config)
        if how is None:
            yield from self._time_goes_on(time_ns)
            return
        yield from self._finish()
        warnings.warn(
            f"the clock goes {how}. All that depends on time is forgotten; ticks go on with number {self._grid.index}",
            LogWarning,
            stacklevel=2,
        )
        self.begin(time_ns, self._epoch.shift_ns, reset=True)
        self._now_ns = time_ns

    def age_ns(self, tick: Tick, now_ns: int) -> int:
        """How old a tick is, that was given last, when it is `now_ns`."""
        return now_ns - self._epoch.shift_ns - tick.time_us * 1000

    def _note_waiting(self, now_ns: int) -> None:
        assert self._held is not None, "the ticks have not begun"
        if self._waiting_since_ns is None or now_ns < self._waiting_since_ns:
            if self._waiting_since_ns is not None:  # the clock went back: only what holds at any time is kept
                self._held = [message for message in self._held if not drives_clock(message)]
            self._waiting_since_ns = now_ns

    def _start_when_due(self, now_ns: int) -> Iterator[Tick]:
        assert self._held is not None, "the ticks have not begun"
        assert self._waiting_since_ns is not None, "time was told"
        if self._reference is not None and now_ns - self._waiting_since_ns <= self._config.missing_after_s * SECOND_NS:
            return
        for message in self._held:
            for source in self._of_topic.get(message.topic, ()):
                if self._opening(message, source) is not None:
                    yield from self._start(message, source)
                    return
        if now_ns - self._waiting_since_ns > self._config.missing_after_s * SECOND_NS:
            yield from self._begin_at(self._waiting_since_ns, 0)
            self._now_ns = self._now_ns or self._waiting_since_ns
            yield from self._time_goes_on(now_ns)

    def _opening(self, message: LogMessage, source: Source | None) -> Source | None:
        """`source`, if this is a measurement of it with a stamp."""
        payload = message.payload
        if source is None or not isinstance(payload, Measurement) or payload.stamp_ns <= 0:
            return None
        return source if message.topic == source.topic else None

    def _start(self, message: LogMessage, source: Source) -> Iterator[Tick]:
        """Let the ticks begin at a measurement's stamp."""
        assert isinstance(message.payload, Measurement), "it opens the ticks"
        stamp_ns = message.payload.stamp_ns + source.offset_ns
        off_ns = message.log_time_ns - stamp_ns
        if abs(off_ns) <= self._config.jump_s * SECOND_NS:
            off_ns = 0
        else:
            warnings.warn(
                f"{source.topic}: its first stamp is {off_ns / SECOND_NS:.3f} s before the clock; ticks follow the stamps",
                LogWarning,
                stacklevel=2,
            )
        yield from self._begin_at(stamp_ns, off_ns)

    def _begin_at(self, begin_ns: int, shift_ns: int) -> Iterator[Tick]:
        held, self._held = self._held or [], None
        self.begin(begin_ns, shift_ns, reset=False)
        for message in held:
            yield from self._feed(message)
        yield from self._ready()

    def _ready(self) -> Iterator[Tick]:
        """Ticks that the last message made complete; nothing that comes later could change them."""
        if self._now_ns is not None:
            yield from self._advance(self._now_ns)
