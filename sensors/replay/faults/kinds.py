"""Faults of a drive log as values: what goes wrong with which sensor, and when. `fault_script` reads them from text."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from sensors.corruptions import Corruption


class FaultError(ValueError):
    """A fault that cannot be understood, or names what is not there."""


@dataclass(frozen=True)
class Drop:
    """No message comes."""

    def __str__(self) -> str:
        return "drop"


@dataclass(frozen=True)
class Flicker:
    """Messages come during the first `on_percent` of every period, counted from the window's start."""

    period_ns: int
    on_percent: float = 50.0

    def __str__(self) -> str:
        return f"flicker {shown_time(self.period_ns)} {self.on_percent!r}%"


@dataclass(frozen=True)
class Freeze:
    """The last content over and over with new stamps, as a hung driver sends it."""

    def __str__(self) -> str:
        return "freeze"


@dataclass(frozen=True)
class Delay:
    """Messages arrive later, and their stamps stay."""

    delay_ns: int

    def __str__(self) -> str:
        return f"delay {shown_time(self.delay_ns)}"


@dataclass(frozen=True)
class Skew:
    """Stamps are wrong by a constant (positive: in the future), and messages arrive when they did."""

    skew_ns: int

    def __str__(self) -> str:
        return f"skew {shown_time(self.skew_ns)}"


@dataclass(frozen=True)
class Drift:
    """A clock that runs too fast (or, negative, too slow) from the window's start on."""

    ns_per_s: int

    def __str__(self) -> str:
        return f"drift {shown_time(self.ns_per_s)}/s"


@dataclass(frozen=True)
class Shift:
    """The calibration has the sensor so far from where it is, and so much turned, in a direction drawn from the seed."""

    distance_m: float = 0.0
    angle_deg: float = 0.0

    def __str__(self) -> str:
        return f"shift {self.distance_m!r}m {self.angle_deg!r}deg"


@dataclass(frozen=True)
class Malform:
    """Messages come, and cannot be read."""

    def __str__(self) -> str:
        return "malformed"


@dataclass(frozen=True)
class Rate:
    """At most so many messages a second, topic by topic: the first of every 1/hz seconds."""

    hz: float

    def __str__(self) -> str:
        return f"rate {self.hz!r}hz"


@dataclass(frozen=True)
class Duplicate:
    """Every message comes twice."""

    def __str__(self) -> str:
        return "duplicate"


Action: TypeAlias = (
    Drop | Flicker | Freeze | Delay | Skew | Drift | Shift | Malform | Rate | Duplicate | Corruption
)  # a corruption acts on frames, all others on messages


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong. `str` gives a text that parses to an equal fault."""

    target: str  # as written; `sensors.replay.faults.messages.resolve` knows what it means in a log
    action: Action
    start_ns: int | None = None  # after the log's beginning; None: from before it on
    end_ns: int | None = None  # None: to the end

    def __str__(self) -> str:
        start, end = ("" if time is None else shown_time(time) for time in (self.start_ns, self.end_ns))
        return f"{self.target}: {self.action}{f' {start}..{end}' if start or end else ''}"

    def holds_at(self, elapsed_ns: int) -> bool:
        """Whether its window holds this time after the log's beginning: from the start on, before the end."""
        return (self.start_ns is None or elapsed_ns >= self.start_ns) and (
            self.end_ns is None or elapsed_ns < self.end_ns
        )


@dataclass(frozen=True)
class FaultScript:
    """Faults that hold together, under a name. Without any, it is the clean drive."""

    name: str
    faults: tuple[Fault, ...]


def shown_time(time_ns: int) -> str:
    """A time as a script writes it: 5s, 300ms, 0.0001s."""
    if time_ns % 10**6 == 0 and 0 < abs(time_ns) < 10**9:
        return f"{time_ns // 10**6}ms"
    seconds = f"{Decimal(time_ns) / 10**9:f}"
    return f"{seconds.rstrip('0').rstrip('.') if '.' in seconds else seconds}s"
