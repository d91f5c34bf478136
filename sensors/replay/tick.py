"""One tick of the virtual clock, and how every sensor stood at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from sensors.frames import Absence, Lack, SensorFrame

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
_LACK = {
    SensorState.LATE: Lack.STALE,
    SensorState.STALE: Lack.STALE,
    SensorState.MISSING: Lack.READING,
    SensorState.MALFORMED: Lack.MALFORMED,
    SensorState.UNCALIBRATED: Lack.UNCALIBRATED,
    SensorState.SICK: Lack.SICK,
}


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

    @property
    def absence(self) -> Absence | None:
        """Why it is absent from the frame, as `Detections.sensors` says it; None where it was given."""
        return None if self.given else Absence(_LACK[self.state], self.detail or str(self.state))


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
    ego_T_sensor: Mapping[str, Float64] = field(default_factory=dict)  # channel -> mount of what was given, no motion
