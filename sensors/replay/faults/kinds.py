"""Faults of a drive log as values: what goes wrong with which sensor, and when. `sensors.replay.faults.script` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from sensors.corruptions import Corruption


class FaultError(ValueError):
    """A fault that cannot be understood, or names what is not there."""


@dataclass(frozen=True)
class Drop:
    """No message comes."""


@dataclass(frozen=True)
class Flicker:
    """Messages come during the first `on_percent` of every period, counted from the window's start."""

    period_ns: int
    on_percent: float = 50.0


@dataclass(frozen=True)
class Freeze:
    """The last content over and over with new stamps, as a hung driver sends it."""


@dataclass(frozen=True)
class Delay:
    """Messages arrive later, and their stamps stay."""

    delay_ns: int


@dataclass(frozen=True)
class Skew:
    """Stamps are wrong by a constant (positive: in the future), and messages arrive when they did."""

    skew_ns: int


@dataclass(frozen=True)
class Drift:
    """A clock that runs too fast (or, negative, too slow) from the window's start on."""

    ns_per_s: int


@dataclass(frozen=True)
class Shift:
    """The calibration has the sensor so far from where it is, and so much turned, in a direction drawn once."""

    distance_m: float = 0.0
    angle_deg: float = 0.0

    def __str__(self) -> str:  # the draw of the direction depends on it
        return f"shift {self.distance_m!r}m {self.angle_deg!r}deg"


@dataclass(frozen=True)
class Malform:
    """Messages come, and cannot be read."""


@dataclass(frozen=True)
class Rate:
    """At most so many messages a second, topic by topic: the first of every 1/hz seconds."""

    hz: float


@dataclass(frozen=True)
class Duplicate:
    """Every message comes twice."""


Action: TypeAlias = (
    Drop | Flicker | Freeze | Delay | Skew | Drift | Shift | Malform | Rate | Duplicate | Corruption
)  # a corruption acts on frames, all others on messages


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong; `str` gives the text that it was read from."""

    target: str  # as written; `sensors.replay.faults.messages.resolve` knows what it means in a log
    action: Action
    start_ns: int | None = None  # after the log's beginning; None: from before it on
    end_ns: int | None = None  # None: to the end
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.text

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
