"""What a replay gives, tick by tick, and who listens.

Letters: T boxes, M modalities, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bev.boxes import Boxes
from sensors.frames import SensorFrame

Float64 = NDArray[np.float64]


class SensorState(StrEnum):
    """How a sensor stood at a tick. OK, RATE_LOW and FLAGGED are given to the model, all others count as absent."""

    OK = "ok"
    RATE_LOW = "rate low"  # fresh, but fewer messages came of late than it is known to send
    FLAGGED = "flagged"  # fresh, but the health monitor or a calibration check doubts it (report only)
    LATE = "late"  # its measurement of this tick came after the time-out
    STALE = "stale"  # the newest measurement is older than the tolerance
    MISSING = "missing"  # nothing came, at all or for longer than `missing_after_s`, or sweeps without a return
    MALFORMED = "malformed"  # its newest message cannot be read, or holds nothing that can be used
    UNCALIBRATED = "uncalibrated"  # no transform or intrinsics for it, or such as cannot be
    SICK = "sick"  # the health monitor says so, and may act


GIVEN = frozenset({SensorState.OK, SensorState.RATE_LOW, SensorState.FLAGGED})


@dataclass(frozen=True)
class SensorStatus:
    """One sensor at one tick."""

    channel: str
    modality: str  # "camera", "lidar", "radar"
    state: SensorState
    age_us: int | None  # of the measurement that was given, or of the newest; None: there is none
    detail: str = ""  # why, where the state does not say it all

    @property
    def given(self) -> bool:
        """Whether the model was given its measurement."""
        return self.state in GIVEN


@dataclass(frozen=True)
class Tick:
    """What is known at one tick of the virtual clock, before the model has seen it."""

    index: int
    time_us: int  # of the tick: the reference time of the frame
    ready_us: int  # virtual time at which it was complete: between `time_us` and `time_us` + the time-out
    frame: SensorFrame  # what the model is given
    sensors: Mapping[str, SensorStatus]  # channel -> status, every configured channel
    ego_pose_known: bool  # False: the log says nothing of ego motion at this time, none was compensated
    reset: bool = False  # the clock jumped before this tick, and everything older was forgotten


@dataclass(frozen=True)
class TickResult:
    """What the model made of a tick. Nothing in it depends on how fast the machine was."""

    tick: Tick
    perceived: bool  # False: no sensor covers any cell. `boxes` is empty then, and does not mean "nothing there"
    boxes: Boxes  # [T] on the CPU, reference frame, sorted by score; one class a place
    candidates: Boxes  # [T or more] of every class, as evaluations measure them
    modalities: tuple[str, ...]  # M
    attention: NDArray[np.float32]  # [M, X, Y] share of each modality
    classes: tuple[str, ...]
    attributes: tuple[str, ...]

    @property
    def shares(self) -> dict[str, float]:
        """Modality -> its share of the attention, mean over the grid."""
        return {name: float(self.attention[m].mean()) for m, name in enumerate(self.modalities)}


class ResultWriter(Protocol):
    """Takes results in order. What it writes lies under its final name only after `close`; `abort` leaves nothing behind."""

    def write(self, result: TickResult) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...
