"""What of the nuScenes tables is the same in every simulated scene."""

from __future__ import annotations

from sensors.nuscenes.rows import VISIBILITY, Rows, token
from sensors.simulation.sensing import rig

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


def visibility_token(share: float) -> str:
    """NuScenes' class of a visible share 0..1."""
    return next(t for t, _, upper in VISIBILITY if share <= upper or t == "4")


def common_rows(seed: int, *, width_px: int, height_px: int) -> Rows:
    """Categories, attributes, visibility levels, sensors and their calibration, which all scenes share."""
    rows = Rows()
    rows.add_names(seed, CATEGORIES, ATTRIBUTES)
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
