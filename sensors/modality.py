"""What a modality is: a named source of knowledge about the grid, of which a model has one encoder, one null and one dropout.

A frame holds readings by kind of sensor; which of them are whose, the channels of the modalities say. `sensors.camera.prepare`,
`sensors.lidar.prepare` and `sensors.radar.prepare` hold the kinds that there are; all else here loops over names.

Letters: B samples, K sensors, Q channels, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from bev.grid import BEVGrid
from bev.lift.table import LiftTable, build_lift_table
from fusion.features import BEVFeatures
from sensors.batch import Part
from sensors.calibration import FloatArray
from sensors.frames import SensorFrame
from sensors.points import Cloud, SensorUse, lidar_clouds

Item = TypeVar("Item", covariant=True)


class Modality(Protocol):
    """A modality as its data are prepared, in the loader's worker."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str:
        """Of its sensors, one of `sensors.frames.KINDS`."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Its sensors [K], in this order in `present` [B, K] of its batches."""

    def prepare(self, sample: Sample) -> Prepared[Any]:
        """What the modality has of one sample, in numpy."""

    def collate(self, items: Sequence[Any], preparation: Preparation) -> Part | None:
        """B samples as one batch, None where none of them has anything of the modality."""


@dataclass(frozen=True)
class Preparation:
    """What the network wants to be given."""

    grid: BEVGrid
    z_range_m: tuple[float, float]
    modalities: tuple[Modality, ...]
    camera_channels: tuple[str, ...] = ()  # the places of `SensorFrame.cameras`
    depth_targets: bool = False
    lift_tables: bool = True  # whether cameras' tables are made with the batch; False: by the encoder
    lift_table: Callable[..., LiftTable] = build_lift_table  # which makes them, or a `KeptTables`
    lidar_min_range_m: float = 1.0
    keep_outside: bool = False  # True: points outside the grid stay, at the cost of padding


@dataclass(frozen=True)
class Sample:
    """A frame that is being prepared."""

    frame: SensorFrame
    preparation: Preparation
    bev_change: FloatArray  # [4, 4]
    image_changes: Sequence[Any] | None = None
    """`sensors.camera.images.ImageChange`, one a place of `SensorFrame.cameras`."""
    depth_from: SensorFrame | None = None  # the frame of the depth targets, where it is another one

    @cached_property
    def clouds(self) -> list[Cloud]:
        """Of every LiDAR of the frame."""
        return lidar_clouds(self.frame, self.preparation.lidar_min_range_m)

    @property
    def taught(self) -> SensorFrame:
        """The frame of the depth targets."""
        return self.frame if self.depth_from is None else self.depth_from

    @cached_property
    def taught_clouds(self) -> list[Cloud]:
        """Of every LiDAR of `taught`."""
        if self.taught.lidar is self.frame.lidar:
            return self.clouds
        return lidar_clouds(self.taught, self.preparation.lidar_min_range_m)


@dataclass(frozen=True)
class Prepared(Generic[Item]):
    """What one modality has of a sample."""

    item: Item | None  # None: it is absent
    sensors: Mapping[str, SensorUse]  # by channel, each of its sensors


@dataclass(frozen=True)
class Encoded:
    """What an encoder gives."""

    bev: BEVFeatures
    extras: Mapping[str, Tensor]  # for the modality's own losses


@dataclass(frozen=True)
class SensorFeatures(BEVFeatures):
    """The grid of a modality, and how much of it each of its sensors covers."""

    sensor_coverage: Tensor  # [B, K] 0..1, mean over the cells; 0 of an absent one


@dataclass(frozen=True)
class MovingFeatures(SensorFeatures):
    """The grid of a sensor that measures motion by itself.

    What it measures goes past the fuser to the heads. Among the features it got lost on the way: of pedestrians' true velocity
    0.14 came out in a short training, past them 0.42 (by LiDAR; 24 development drives, configs/tiny.yaml, seed 0).
    """

    motion: Tensor  # [B, Q, X, Y] float32, see `bev.motion`; read where `coverage` is not 0
