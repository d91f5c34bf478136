"""Faults on the way from a log to the replay: messages go in, what a failing vehicle would have sent comes out.

    touched = Counter[Fault]()
    for message in alter_messages(log.messages(), faults, mapping, begin_ns, touched=touched): ...
    idle = unused(faults, touched)

Corruptions act on frames: `sensors.replay.faults.frames`. Windows go by the time at which a message was recorded.
"""

from __future__ import annotations

import difflib
import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from sensors.corruptions import Corruption
from sensors.logs.mapping.mapping import LogMapping
from sensors.logs.messages import FrameTransforms, LogMessage, Malformed, Other, Payload
from sensors.replay.faults.kinds import (
    Delay,
    Drift,
    Drop,
    Duplicate,
    Fault,
    FaultError,
    Flicker,
    Freeze,
    Malform,
    Rate,
    Shift,
    Skew,
)
from sensors.replay.faults.mounts import ShiftedMounts

__all__ = ["Fault", "FaultError", "Reach", "alter_messages", "check_faults", "resolve", "unused"]

_SECOND_NS = 10**9


@dataclass(frozen=True)
class Reach:
    """What a fault's target means in a log."""

    topics: frozenset[str]  # whose messages it alters
    channels: frozenset[str]  # whose mounts and frames it alters
    whole: frozenset[str]  # modalities of which it reaches every channel


def resolve(fault: Fault, mapping: LogMapping, topics: Collection[str] | None = None) -> Reach:
    """Which topics and channels a fault reaches.

    Args:
        fault: its target is a channel, a modality, a topic or `all`.
        mapping: of the log.
        topics: those that the log has; None: not known, and every name that begins with a slash may be one.

    Raises:
        FaultError: the target is none of these, or the action cannot act on it.
    """
    sensors = mapping.by_kind
    modality_of = {channel: name for name, channels in sensors.items() for channel in channels}
    wanted = fault.target.casefold()
    if wanted == "all":
        channels = set(modality_of)
    elif sensors.get(wanted):
        channels = set(sensors[wanted])
    else:
        channels = {channel for channel in modality_of if channel.casefold() == wanted}
    data = {where.data: channel for channel, where in mapping.by_channel.items()}
    info = {camera.info: channel for channel, camera in mapping.cameras.items()}
    if channels:
        reached = {topic for topic, channel in data.items() if channel in channels}
    else:
        known = {*data, *info, *({mapping.truth} if mapping.truth else ()), *(topics or ())}
        if fault.target not in known and not (topics is None and fault.target.startswith("/")):
            raise _unknown_target(fault, [name for name in sensors if sensors[name]], modality_of, known)
        reached = {fault.target}
        channels = {of[fault.target] for of in (data, info) if fault.target in of}
    whole = {name for name, mine in sensors.items() if mine and set(mine) <= channels}
    _check_action(fault, channels, {modality_of[channel] for channel in channels})
    return Reach(frozenset(reached), frozenset(channels), frozenset(whole))


def check_faults(faults: Iterable[Fault], mapping: LogMapping, topics: Collection[str] | None = None) -> None:
    """FaultError for the first fault whose target is not in the log, or that cannot act on it."""
    for fault in faults:
        resolve(fault, mapping, topics)


def unused(faults: Iterable[Fault], touched: Counter[Fault]) -> tuple[Fault, ...]:
    """The faults that never changed anything: their sensor sent nothing within the window, or the replay ended before it."""
    return tuple(fault for fault in faults if not touched[fault])


def alter_messages(
    messages: Iterable[LogMessage],
    faults: Sequence[Fault],
    mapping: LogMapping,
    begin_ns: int,
    *,
    topics: Collection[str] | None = None,
    touched: Counter[Fault] | None = None,
) -> Iterator[LogMessage]:
    """The messages as the faults leave them, in order of time; equal times keep the order in which they came.

    Every fault sees what the one before it lets through. Read lazily; only messages delayed by a fault are held. Corruptions
    are passed over.

    Args:
        messages: in order of log time. Where time goes back, the clock has jumped: what is held comes out before that.
        faults: in order of application.
        mapping: which topic is which sensor.
        begin_ns: the log time from which the windows count.
        topics: of the log, to check targets with; None: not known.
        touched: counts, per fault, the messages that it changed.

    Raises:
        FaultError: at once, for a fault whose target is not in the log.
    """
    counts = Counter[Fault]() if touched is None else touched
    reaches = [(fault, resolve(fault, mapping, topics)) for fault in faults]
    shifts = [(fault, reach.channels) for fault, reach in reaches if isinstance(fault.action, Shift)]
    stages = [
        _Stage(fault, reach.topics, counts)
        for fault, reach in reaches
        if not isinstance(fault.action, Shift | Corruption)
    ]
    return _altered(messages, stages, ShiftedMounts(shifts, mapping, counts), begin_ns)


def _altered(
    messages: Iterable[LogMessage], stages: Sequence[_Stage], mounts: ShiftedMounts, begin_ns: int
) -> Iterator[LogMessage]:
    held: list[tuple[int, int, LogMessage]] = []  # a heap by time, then by arrival
    count, last_ns = 0, -1
    for message in messages:
        now_ns = message.log_time_ns
        if now_ns < last_ns:
            yield from _released(held, None)
        last_ns = now_ns
        altered = mounts(message, now_ns - begin_ns)
        for stage in stages:
            altered = [new for old in altered for new in stage(old, now_ns - begin_ns)]
        for new in altered:
            heapq.heappush(held, (new.log_time_ns, count, new))
            count += 1
        yield from _released(held, now_ns)
    yield from _released(held, None)


def _released(held: list[tuple[int, int, LogMessage]], until_ns: int | None) -> Iterator[LogMessage]:
    while held and (until_ns is None or held[0][0] <= until_ns):
        yield heapq.heappop(held)[2]


class _Stage:
    """One fault on its way through the messages."""

    def __init__(self, fault: Fault, topics: frozenset[str], touched: Counter[Fault]) -> None:
        self._fault = fault
        self._topics = topics
        self._touched = touched
        self._last: dict[str, Payload] = {}  # topic -> the content that a freeze repeats
        self._slot: dict[str, int] = {}  # topic -> the last period out of which a rate let a message through

    def __call__(self, message: LogMessage, elapsed_ns: int) -> tuple[LogMessage, ...]:
        if message.topic not in self._topics:
            return (message,)
        if not self._fault.holds_at(elapsed_ns):
            if isinstance(self._fault.action, Freeze):
                self._last[message.topic] = message.payload
            return (message,)
        changed = self._changed(message, elapsed_ns)
        if len(changed) != 1 or changed[0] is not message:
            self._touched[self._fault] += 1
        return changed

    def _changed(self, message: LogMessage, elapsed_ns: int) -> tuple[LogMessage, ...]:
        since_ns = elapsed_ns - (self._fault.start_ns or 0)
        match self._fault.action:
            case Drop():
                return ()
            case Flicker(period_ns=period_ns, on_percent=percent):
                return (message,) if since_ns % period_ns < period_ns * percent / 100 else ()
            case Freeze():
                return (self._frozen(message),)
            case Delay(delay_ns=delay_ns):
                times = message.log_time_ns + delay_ns, message.publish_time_ns + delay_ns
                return (replace(message, log_time_ns=times[0], publish_time_ns=times[1]),)
            case Skew(skew_ns=skew_ns):
                return (_later_stamps(message, skew_ns),)
            case Drift(ns_per_s=ns_per_s):
                return (_later_stamps(message, max(since_ns, 0) * ns_per_s // _SECOND_NS),)
            case Rate(hz=hz):
                slot = since_ns // max(1, round(_SECOND_NS / hz))
                kept = self._slot.get(message.topic) != slot
                self._slot[message.topic] = slot
                return (message,) if kept else ()
            case Duplicate():
                return (message, message)
            case Malform():
                reason = f"expected a readable message, got one that a fault has broken ({self._fault})"
                return (replace(message, payload=Malformed(type(message.payload).__name__, reason)),)
        raise AssertionError(self._fault)

    def _frozen(self, message: LogMessage) -> LogMessage:
        """The message with the last content before the window, or else with the first in it, under its own stamp."""
        last = self._last.setdefault(message.topic, message.payload)
        if last is message.payload:
            return message
        now_ns, then_ns = _stamp_ns(message.payload), _stamp_ns(last)
        payload = last if now_ns is None or then_ns is None else _moved(last, now_ns - then_ns)
        return replace(message, payload=payload)


def _later_stamps(message: LogMessage, by_ns: int) -> LogMessage:
    moved = _moved(message.payload, by_ns)
    return message if moved is message.payload else replace(message, payload=moved)


def _stamp_ns(payload: Payload) -> int | None:
    """When it was measured; None where a payload does not say."""
    if isinstance(payload, FrameTransforms):
        return max((transform.stamp_ns for transform in payload.transforms), default=None)
    return None if isinstance(payload, Other | Malformed) else payload.stamp_ns


def _moved(payload: Payload, by_ns: int) -> Payload:
    """The payload with stamps that are later by so much; itself where it has none or nothing changes."""
    if isinstance(payload, Other | Malformed) or not by_ns:
        return payload
    if isinstance(payload, FrameTransforms):
        moved = tuple(replace(t, stamp_ns=t.stamp_ns + by_ns) for t in payload.transforms)
        return replace(payload, transforms=moved)
    return replace(payload, stamp_ns=payload.stamp_ns + by_ns)


# --- targets ----------------------------------------------------------------------------------------------------------


def _check_action(fault: Fault, channels: Collection[str], modalities: Collection[str]) -> None:
    """FaultError where a shift or a corruption is to act on what is no sensor, or on another one."""
    action = fault.action
    if isinstance(action, Shift | Corruption) and not channels:
        raise FaultError(f"fault '{fault}': expected a sensor as target, got the topic {fault.target}, which is none")
    if isinstance(action, Corruption) and not set(action.modalities) & set(modalities):
        raise FaultError(
            f"fault '{fault}': {action.name} acts on {' and '.join(action.modalities)}, got a target of "
            f"{' and '.join(sorted(modalities))}"
        )


def _unknown_target(
    fault: Fault, modalities: Sequence[str], channels: Collection[str], topics: Collection[str]
) -> FaultError:
    names = [*channels, *modalities, *sorted(topics), "all"]
    spelt = {name.casefold(): name for name in reversed(names)}
    near = difflib.get_close_matches(fault.target.casefold(), spelt, n=1)
    return FaultError(
        f"fault '{fault}': no sensor or topic {fault.target!r} in this log"
        f"{f'; did you mean {spelt[near[0]]!r}?' if near else '.'} Channels: {', '.join(channels)}; kinds of sensors: "
        f"{', '.join(modalities)}; topics: {', '.join(sorted(topics))}; or all"
    )
