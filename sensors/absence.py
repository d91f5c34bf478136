"""Why a sensor of the rig counts as absent in one frame. `sensors.prepare` decides; all others pass on what it says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Lack(StrEnum):
    """What a frame lacks of a sensor."""

    READING = "no reading"  # the frame holds no picture or sweep of it
    RETURN = "no return"  # its sweeps hold no point: one frame cannot tell a dead sensor from an empty world
    USABLE = "no usable point"  # its sweeps hold points, and none of them can reach the network


@dataclass(frozen=True)
class Absence:
    """One sensor that counts as absent: what is lacking, and the reason for a person, with counts."""

    lack: Lack
    reason: str


NOT_GIVEN = Absence(Lack.READING, "the frame holds nothing of it")
