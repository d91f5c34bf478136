"""Parts of sensors that fail in training, so that a model learns to do without them. Whole modalities are `training.loop.step`'s.

The same operations as in `sensors.corruptions`, with strengths drawn from ranges. Letters: S azimuth sectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from robustbev import StrictModel
from sensors.calibration import FloatArray
from sensors.corruptions import CORRUPTIONS
from sensors.corruptions.camera import lose_cameras, present_cameras
from sensors.corruptions.lidar import change_points, keep_beams, lose_points, lose_sectors, neighbouring_sectors
from sensors.corruptions.place import misplace_cameras, misplace_lidar, random_offset
from sensors.corruptions.time import stale_cameras, stale_lidar, stale_radar
from sensors.frames import SECTORS, History, SensorFrame

Probability = Annotated[float, Field(ge=0, le=1)]
Length = Annotated[float, Field(ge=0)]
# Those that leave pictures where and when they were taken, so that depth can still be taught.
View = Literal["bright", "dark", "camera_blur", "motion_blur", "fog", "snow"]


class FailureConfig(StrictModel):
    """How often each part fails in a training sample, independently of the others, and how badly; ranges are drawn from evenly.

    A model that was trained with one of `views` knows it: say so where it is measured under the corruption of that name.
    """

    ramp_epochs: Annotated[int, Field(ge=0)] = (
        0  # probabilities grow from 0 in the first epoch to their values in this one
    )
    camera_lost: Probability = 0.1
    cameras_lost: tuple[int, int] = (1, 3)  # how many; one always stays
    camera_late: Probability = 0.05  # all pictures of the keyframe before, said to be of now
    camera_jitter: Probability = 0.1  # every camera by itself
    camera_jitter_deg: Length = 2.0  # at most, about any axis
    camera_jitter_m: Length = 0.1
    view: Probability = 0.1
    views: Annotated[tuple[View, ...], Field(min_length=1)] = ("bright", "dark", "camera_blur", "fog")  # one of these
    view_severity: tuple[int, int] = (1, 3)  # see `sensors.corruptions`
    lidar_sectors: Probability = 0.1
    sectors_lost: tuple[int, int] = (4, 18)  # of 36, side by side
    lidar_beams: Probability = 0.1
    beam_steps: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (
        2,
        4,
        8,
    )  # one ring of so many
    lidar_points: Probability = 0.1
    points_lost: tuple[float, float] = (0.2, 0.8)  # share
    lidar_late: Probability = 0.05
    lidar_jitter: Probability = 0.1
    lidar_jitter_deg: Length = 2.0
    lidar_jitter_m: Length = 0.2
    radar_late: Probability = 0.05

    @model_validator(mode="after")
    def _check(self) -> FailureConfig:
        limits: dict[str, tuple[float, float]] = {
            "cameras_lost": (1, np.inf),
            "view_severity": (1, 5),
            "sectors_lost": (1, SECTORS - 1),
            "points_lost": (0.0, 1.0),
        }
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                bound = f"{least:g} <= low <= high" + (f" <= {most:g}" if np.isfinite(most) else "")
                raise ValueError(f"{name}: expected {bound}, got {low:g} and {high:g}")
        return self


def fail(
    frame: SensorFrame, config: FailureConfig, random: np.random.Generator, epoch: int, history: History
) -> tuple[SensorFrame, SensorFrame | None]:
    """The frame with what fails in it, and the frame to take depth targets from; None where nothing failed.

    Depth is taught from the LiDAR and the poses as they were: what a failed LiDAR or a wrong pose projects into a picture is not
    what the picture shows. A late picture shows another instant, so its camera is taught no depth.
    """
    dice = _Dice(random, min(1.0, epoch / config.ramp_epochs) if config.ramp_epochs else 1.0)
    late = _late(frame, config, dice, history)
    changed = _fail_views(late, config, dice, history)
    changed = _fail_cameras(changed, config, dice)
    changed = _fail_lidar(changed, config, dice)
    if changed is frame:
        return frame, None
    return changed, _to_teach_depth(frame, late, changed)


@dataclass(frozen=True)
class _Dice:
    """Draws of one visit to one sample, with probabilities scaled by `share`."""

    random: np.random.Generator
    share: float

    def falls(self, probability: float) -> bool:
        return bool(self.random.random() < self.share * probability)

    def whole(self, low_high: tuple[int, int]) -> int:
        return int(self.random.integers(*low_high, endpoint=True))

    def offset(self, most_deg: float, most_m: float) -> FloatArray:
        """[4, 4] a wrong pose."""
        return random_offset(self.random.uniform(0, most_deg), self.random.uniform(0, most_m), self.random)


def _late(frame: SensorFrame, config: FailureConfig, dice: _Dice, history: History) -> SensorFrame:
    """Every modality by itself with the data of the keyframe before."""
    stale = [
        one
        for one, probability in (
            (stale_cameras, config.camera_late),
            (stale_lidar, config.lidar_late),
            (stale_radar, config.radar_late),
        )
        if dice.falls(probability)
    ]
    old = history(1) if stale else None  # reading it takes as long as reading the frame
    if old is not None:
        for one in stale:
            frame = one(frame, old) or frame
    return frame


def _fail_views(frame: SensorFrame, config: FailureConfig, dice: _Dice, history: History) -> SensorFrame:
    if not dice.falls(config.view):
        return frame
    operation, severity = CORRUPTIONS[str(dice.random.choice(config.views))], dice.whole(config.view_severity)
    if not present_cameras(frame):
        return frame
    return operation.change(frame, severity, dice.random, history) or frame


def _fail_cameras(frame: SensorFrame, config: FailureConfig, dice: _Dice) -> SensorFrame:
    here = present_cameras(frame)
    if dice.falls(config.camera_jitter) and here:
        frame = misplace_cameras(frame, here, lambda: dice.offset(config.camera_jitter_deg, config.camera_jitter_m))
    if dice.falls(config.camera_lost):
        count = min(dice.whole(config.cameras_lost), len(here) - 1)
        if count > 0:
            frame = lose_cameras(frame, dice.random.choice(here, count, replace=False).tolist())
    return frame


def _fail_lidar(frame: SensorFrame, config: FailureConfig, dice: _Dice) -> SensorFrame:
    if frame.lidar is None:
        return frame
    if dice.falls(config.lidar_beams):
        step = int(dice.random.choice(config.beam_steps))
        frame = change_points(frame, lambda points: keep_beams(points, step))
    if dice.falls(config.lidar_points):
        share = dice.random.uniform(*config.points_lost)
        frame = change_points(frame, lambda points: lose_points(points, share, dice.random))
    if dice.falls(config.lidar_jitter):
        frame = misplace_lidar(frame, dice.offset(config.lidar_jitter_deg, config.lidar_jitter_m))
    if dice.falls(config.lidar_sectors):  # last: what is dead is said in directions as the car believes them
        frame = lose_sectors(frame, neighbouring_sectors(dice.whole(config.sectors_lost), dice.random))
    return frame


def _to_teach_depth(frame: SensorFrame, late: SensorFrame, changed: SensorFrame) -> SensorFrame:
    """The clean frame without the cameras that deliver no picture of this instant."""
    if frame.cameras is None or late.cameras is None or changed.cameras is None:
        return frame
    trios = zip(frame.cameras, late.cameras, changed.cameras, strict=True)
    return replace(frame, cameras=tuple(a if a is b and c is not None else None for a, b, c in trios))
