"""What to read of a nuScenes-format data set. Nothing of it is hard-wired in the reader."""

from __future__ import annotations

import difflib
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sensors.settings import StrictModel

# nuScenes' 23 categories to its ten detection classes, as published with the detection challenge; categories not named here are
# not detected. In the order of the classes.
DETECTION_CLASS_OF_CATEGORY = MappingProxyType({
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.trailer": "trailer",
    "vehicle.construction": "construction_vehicle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.bicycle": "bicycle",
    "movable_object.trafficcone": "traffic_cone",
    "movable_object.barrier": "barrier",
})  # fmt: skip
DETECTION_ATTRIBUTES = (
    "cycle.with_rider", "cycle.without_rider", "pedestrian.moving", "pedestrian.sitting_lying_down",
    "pedestrian.standing", "vehicle.moving", "vehicle.parked", "vehicle.stopped",
)  # fmt: skip

LIDAR_COLUMNS = ("x", "y", "z", "intensity", "ring")  # what a point is, here and in nuScenes' files


class RadarFilter(StrictModel):
    """Which radar points to keep, by the states in nuScenes' radar files; None keeps all.

    The devkit's own defaults are invalid_states (0,), dynprop_states 0..6, ambig_states (3,). They are off here: what is clutter
    is for the network to learn.
    """

    invalid_states: tuple[int, ...] | None = None
    dynprop_states: tuple[int, ...] | None = None
    ambig_states: tuple[int, ...] | None = None


class NuScenesConfig(StrictModel):
    """A nuScenes-format data set: where it is, which part, which sensors, which classes."""

    root: Path = Path("data/nuscenes")  # holds samples/, sweeps/, maps/ and the folder of tables
    version: str = "v1.0-trainval"  # the folder of tables
    train_split: str = "train"  # nuScenes' own, or a name from <root>/<version>/splits.json
    val_split: str = "val"

    camera_channels: tuple[str, ...] = (
        "CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT",
    )  # fmt: skip
    lidar_channels: tuple[str, ...] = ("LIDAR_TOP",)
    radar_channels: tuple[str, ...] = (
        "RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT",
    )  # fmt: skip
    # Its ego pose at the keyframe is the reference frame: one of the LiDARs, or any channel of the data set where there is none.
    reference_channel: str = "LIDAR_TOP"
    lidar_sweeps: Annotated[int, Field(ge=1)] = 10  # the keyframe and those before it
    radar_sweeps: Annotated[int, Field(ge=1)] = 6
    max_sweep_gap_s: Annotated[float, Field(gt=0)] | None = 0.3
    """A sweep so much older than the next, and all before it, are left out: in a data set without sweeps between its keyframes
    the sweep before is that of the keyframe before. null takes what is there."""
    radar_filter: RadarFilter = RadarFilter()
    lidar_columns: tuple[str, ...] = LIDAR_COLUMNS
    """The float32 that a point has in a LiDAR's file, in this order. Columns of other names are skipped; intensity and ring may
    be missing."""

    class_map: dict[str, str] = Field(default_factory=lambda: dict(DETECTION_CLASS_OF_CATEGORY))
    index_dir: Path | None = None  # None: beside the tables, or in the user's cache where those are read-only
    on_bad_file: Literal["error", "absent"] = "error"  # absent: a broken file is a missing sensor, with a warning

    @model_validator(mode="after")
    def _check(self) -> NuScenesConfig:
        channels = (*self.camera_channels, *self.lidar_channels, *self.radar_channels)
        if not channels:
            raise ValueError("name at least one of camera_channels, lidar_channels, radar_channels")
        twice = sorted({name for name in channels if channels.count(name) > 1})
        if twice:
            raise ValueError(f"channel {twice[0]} is named twice")
        columns = self.lidar_columns
        if not {"x", "y", "z"} <= set(columns) or any(columns.count(name) > 1 for name in LIDAR_COLUMNS):
            raise ValueError(
                f"lidar_columns: expected each of x, y, z once, intensity and ring at most once, got {', '.join(columns)}"
            )
        if self.lidar_channels and self.reference_channel not in self.lidar_channels:
            near = difflib.get_close_matches(self.reference_channel, self.lidar_channels, n=1, cutoff=0.0)
            raise ValueError(
                f"reference_channel must be one of lidar_channels ({', '.join(self.lidar_channels)}), "
                f"got {self.reference_channel}: choose {near[0]}, say"
            )
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of `class_map`, in the order in which they first appear there."""
        return tuple(dict.fromkeys(self.class_map.values()))

    def channels(self) -> dict[str, tuple[str, ...]]:
        """Modality -> its channels."""
        return {"camera": self.camera_channels, "lidar": self.lidar_channels, "radar": self.radar_channels}
