"""The thirteen nuScenes tables: rows that are the same in every data set, and the rows of one scene."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from sensors.nuscenes import arrays
from sensors.simulation.sensing import rig

Row = dict[str, Any]

TABLES = tuple(sorted((*arrays.TABLES, *arrays.OPTIONAL_TABLES)))

CATEGORIES = (
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "vehicle.car",
    "vehicle.motorcycle",
    "vehicle.bicycle",
    "vehicle.bus.rigid",
    "vehicle.truck",
    "vehicle.construction",
    "vehicle.trailer",
    "movable_object.barrier",
    "movable_object.trafficcone",
)

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)

# Token, level and upper share of nuScenes' visibility classes.
VISIBILITY = (("1", "v0-40", 0.4), ("2", "v40-60", 0.6), ("3", "v60-80", 0.8), ("4", "v80-100", 1.0))


def token(seed: int, *names: object) -> str:
    """32 hexadecimal digits that depend on the seed and the names alone."""
    return hashlib.md5("/".join((str(seed), *map(str, names))).encode(), usedforsecurity=False).hexdigest()


def visibility_token(share: float) -> str:
    """NuScenes' class of a visible share 0..1."""
    return next(t for t, _, upper in VISIBILITY if share <= upper or t == "4")


@dataclass(slots=True)
class Rows:
    """Rows by table."""

    tables: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in TABLES})

    def add(self, table: str, **row: Any) -> None:
        """Append one row."""
        self.tables[table].append(row)

    def extend(self, other: Rows) -> None:
        """Append all rows of another."""
        for name, rows in other.tables.items():
            self.tables[name].extend(rows)


def common_rows(seed: int, *, width_px: int, height_px: int) -> Rows:
    """Categories, attributes, visibility levels, sensors and their calibration, which all scenes share."""
    rows = Rows()
    for name in CATEGORIES:
        rows.add("category", token=token(seed, "category", name), name=name, description="")
    for name in ATTRIBUTES:
        rows.add("attribute", token=token(seed, "attribute", name), name=name, description="")
    for key, level, _ in VISIBILITY:
        low, high = level[1:].split("-")
        rows.add(
            "visibility", token=key, level=level, description=f"visibility of whole object is between {low} and {high}%"
        )
    for mount in rig.SENSORS:
        sensor = token(seed, "sensor", mount.channel)
        rows.add("sensor", token=sensor, channel=mount.channel, modality=mount.modality)
        intrinsic = mount.intrinsic(width_px, height_px).tolist() if mount.modality == "camera" else []
        rows.add(
            "calibrated_sensor",
            token=token(seed, "calibrated_sensor", mount.channel),
            sensor_token=sensor,
            translation=list(mount.translation_m),
            rotation=[float(v) for v in mount.rotation_wxyz],
            camera_intrinsic=intrinsic,
        )
    return rows


def link(rows: list[Row]) -> None:
    """Set `prev` and `next` along a chain that is in order of time."""
    for row, before, after in zip(rows, [None, *rows[:-1]], [*rows[1:], None], strict=True):
        row["prev"] = before["token"] if before else ""
        row["next"] = after["token"] if after else ""
