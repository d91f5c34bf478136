"""Settings of a replay: when the virtual clock ticks, and how old a measurement may be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sensors.readings import TOLERANCE_S
from sensors.settings import StrictModel

Span = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Tolerances(StrictModel):
    """Seconds between a measurement and the tick that it may be used at, by modality; either side."""

    camera: Span = TOLERANCE_S
    lidar: Span = TOLERANCE_S
    radar: Span = TOLERANCE_S


class ReplayConfig(StrictModel):
    """Everything that decides what a replay gives, beside the log and the checkpoint. How fast it runs is not among it."""

    tick_hz: Span | None = None
    """Ticks a second of the virtual clock. None: the rate of the log's slowest mapped sensor, at most 20; 2 where none sends
    twice."""
    tolerance_s: Tolerances = Tolerances()
    tolerance_of_channel_s: dict[str, Span] = Field(default_factory=dict)  # over that of the modality
    timeout_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """How long a tick waits for measurements that are on their way."""
    missing_after_s: Span = 1.0  # a sensor silent for longer is missing, and is not waited for
    rate_low_share: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Fewer than this share of the messages that it is known to send, over `rate_window_s`: rate too low."""
    rate_window_s: Span = 2.0
    jump_s: Span = 5.0
    """Log time going forward by more than this between two messages, or back by more than `missing_after_s`, is a jump of the
    clock; so is it when the stamps of most sensors are further than this from the log time. All state is reset. Smaller steps
    back are messages out of order."""
    ego_pose_gap_s: Span = 0.5  # ego poses further apart than this, or older, are not interpolated or carried on
    lidar_sweeps: Annotated[int, Field(ge=1)] = 1  # the tick's and those before it, a LiDAR; as the model was trained
    radar_sweeps: Annotated[int, Field(ge=1)] = 3
