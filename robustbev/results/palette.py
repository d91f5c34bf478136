"""The colours of sensor states."""

from __future__ import annotations

from sensors.palette import RGB
from sensors.replay.tick import SensorState

STATE_COLOURS: dict[SensorState, RGB] = {
    SensorState.OK: (34, 136, 51),
    SensorState.RATE_LOW: (221, 170, 51),
    SensorState.FLAGGED: (238, 119, 51),
    SensorState.LATE: (170, 68, 153),
    SensorState.STALE: (153, 85, 34),
    SensorState.MISSING: (130, 130, 130),
    SensorState.MALFORMED: (204, 51, 17),
    SensorState.UNCALIBRATED: (136, 34, 85),
    SensorState.SICK: (187, 0, 68),
}
ALARM: RGB = (190, 20, 20)  # of "no perception"
