"""A data set in nuScenes format, small enough to be understood: a turning vehicle in a world of fixed points.

Two scenes of three keyframes 0.5 s apart. By default one camera, one LiDAR and one radar, each with its own times and poses;
LiDAR and radar have two sweeps between keyframes. Every LiDAR and radar sweep sees the same `world_m` points, every radar point
moves with `object_velocity_mps`; so all sweeps must coincide in the reference frame.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from sensors.calibration import inverse_rigid, transforms
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.reader import NuScenesReader

VERSION = "v1.0-small"
Channel = tuple[str, tuple[float, ...], int]  # modality, pose, time
CHANNELS: dict[str, Channel] = {
    # pose of the sensor in the ego frame (x, y, z, quaternion), microseconds after the LiDAR's keyframe
    "CAM_FRONT": ("camera", (1.7, 0.0, 1.5, 0.5, -0.5, 0.5, -0.5), -30_000),
    "LIDAR_TOP": ("lidar", (0.9, 0.0, 1.8, np.sqrt(0.5), 0.0, 0.0, -np.sqrt(0.5)), 0),
    "RADAR_FRONT": ("radar", (3.4, 0.1, 0.5, np.cos(0.3), 0.0, 0.0, np.sin(0.3)), 14_000),
}
SILENT = {"CAM_BACK": "camera", "LIDAR_FRONT": "lidar", "RADAR_BACK_LEFT": "radar"}  # in the tables, without a reading
PICTURE_PX = (180, 320)  # height, width
INTRINSICS = [[250.0, 0.0, 160.0], [0.0, 250.0, 90.0], [0.0, 0.0, 1.0]]
RADAR_HEADER = """# .PCD v0.7 - Point Cloud Data file format
VERSION 0.7
FIELDS x y z dyn_prop id rcs vx vy vx_comp vy_comp is_quality_valid ambig_state x_rms y_rms invalid_state pdh0 vx_rms vy_rms
SIZE 4 4 4 1 2 4 4 4 4 4 1 1 1 1 1 1 1 1
TYPE F F F I I F F F F F I I I I I I I I
COUNT 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
WIDTH {count}
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS {count}
DATA binary
"""
_RADAR_RECORD = np.dtype([
    ("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("dyn_prop", "i1"), ("id", "<i2"), ("rcs", "<f4"), ("vx", "<f4"),
    ("vy", "<f4"), ("vx_comp", "<f4"), ("vy_comp", "<f4"), ("is_quality_valid", "i1"), ("ambig_state", "i1"),
    ("x_rms", "i1"), ("y_rms", "i1"), ("invalid_state", "i1"), ("pdh0", "i1"), ("vx_rms", "i1"), ("vy_rms", "i1"),
])  # fmt: skip


@dataclass(frozen=True)
class SmallNuScenes:
    """What was written, in the global frame."""

    root: Path
    world_m: NDArray[np.float64]  # [P, 3]
    object_velocity_mps: NDArray[np.float64]  # [2]
    channels: Mapping[str, Channel] = field(default_factory=lambda: CHANNELS)
    picture_px: tuple[int, int] = PICTURE_PX

    @property
    def config(self) -> NuScenesConfig:
        return NuScenesConfig(
            root=self.root,
            version=VERSION,
            train_split="small_train",
            val_split="small_val",
            camera_channels=("CAM_FRONT",),
            radar_channels=("RADAR_FRONT", "RADAR_BACK_LEFT"),
            lidar_sweeps=3,
            radar_sweeps=3,
        )


def intrinsics(picture_px: tuple[int, int]) -> list[list[float]]:
    """`INTRINSICS` of a picture of another size; equal for `PICTURE_PX`."""
    tall, wide = picture_px[0] / PICTURE_PX[0], picture_px[1] / PICTURE_PX[1]
    return [[INTRINSICS[0][0] * wide, 0.0, INTRINSICS[0][2] * wide], [0.0, INTRINSICS[1][1] * tall, INTRINSICS[1][2] * tall],
            [0.0, 0.0, 1.0]]  # fmt: skip


def ego_pose(time_us: int) -> NDArray[np.float64]:
    """[7] the vehicle's pose: 8 m/s along a curve, pitching a little."""
    t = time_us * 1e-6
    yaw, pitch = 0.4 + 0.3 * t, 0.02 * np.sin(3 * t)
    turn = np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
    nod = np.array([np.cos(pitch / 2), 0, np.sin(pitch / 2), 0])
    w1, x1, y1, z1 = turn
    w2, x2, y2, z2 = nod
    quaternion = [
        w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2, w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
        w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2, w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
    ]  # fmt: skip
    return np.array([500 + 8 * t, 900 + 2 * t * t, 0.0, *quaternion])


def write_radar(path: Path, points: NDArray[np.float64], velocity: NDArray[np.float64], spare: int = 1) -> None:
    """A radar file of points [P, 3] with compensated velocities [P, 2], `spare` bytes behind."""
    records = np.zeros(len(points), _RADAR_RECORD)
    records["x"], records["y"], records["z"] = points.T
    records["vx_comp"], records["vy_comp"] = velocity.T
    records["rcs"] = 5.0
    records["ambig_state"] = 3
    records["invalid_state"] = np.arange(len(points)) % 2 * 4  # every other one "valid cluster with low RCS"
    path.write_bytes(RADAR_HEADER.format(count=len(points)).encode() + records.tobytes() + bytes(spare))


def write_small_nuscenes(
    root: Path,
    channels: Mapping[str, Channel] = CHANNELS,
    *,
    picture_px: tuple[int, int] = PICTURE_PX,
    maps: bool = True,
) -> SmallNuScenes:
    """Write it under `root`; equal every time. `maps`: whether there are the tables `map` and `log`."""
    random = np.random.default_rng(0)
    middle = np.array([515.0, 905.0, 1.0])
    world_m = middle + random.uniform([-15, -15, -1], [15, 15, 2], size=(200, 3))
    small = SmallNuScenes(root, world_m, np.array([3.0, -1.0]), channels, picture_px)
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("sample", "sample_data", "ego_pose", "scene")}
    tables |= {name: [] for name in ("sample_annotation", "instance")}
    tables["sensor"] = [
        {"token": f"sensor-{channel}", "channel": channel, "modality": modality}
        for channel, modality in ({c: modality for c, (modality, _, _) in channels.items()} | SILENT).items()
    ]
    tables["calibrated_sensor"] = [
        {
            "token": f"calibration-{channel}",
            "sensor_token": f"sensor-{channel}",
            "translation": list(pose[:3]),
            "rotation": list(pose[3:]),
            "camera_intrinsic": intrinsics(picture_px) if modality == "camera" else [],
        }
        for channel, (modality, pose, _) in channels.items()
    ]
    for folder in ("samples", "sweeps"):
        for channel in channels:
            (root / folder / channel).mkdir(parents=True, exist_ok=True)
    for scene in range(2):
        _write_scene(small, tables, scene)
    tables |= _static_tables()
    if maps:
        (root / "maps").mkdir()
        (root / "maps" / "map.png").write_bytes(b"the devkit opens it only when it is used")
    else:
        del tables["map"], tables["log"]
    (root / VERSION).mkdir()
    for name, rows in tables.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows))
    splits = {"small_train": ["scene-0"], "small_val": ["scene-1", "scene-that-is-elsewhere"]}
    (root / VERSION / "splits.json").write_text(json.dumps(splits))
    return small


def _write_scene(small: SmallNuScenes, tables: dict[str, list[dict[str, Any]]], scene: int) -> None:
    start_us = 1_600_000_000_000_000 + scene * 20_000_000
    samples = [f"sample-{scene}-{k}" for k in range(3)]
    tables["scene"].append({
        "token": f"scene-token-{scene}", "name": f"scene-{scene}", "log_token": "log", "description": "",
        "nbr_samples": 3, "first_sample_token": samples[0], "last_sample_token": samples[-1],
    })  # fmt: skip
    for k, token in enumerate(samples):
        tables["sample"].append({
            "token": token, "timestamp": start_us + k * 500_000, "scene_token": f"scene-token-{scene}",
            "prev": samples[k - 1] if k else "", "next": samples[k + 1] if k < 2 else "",
        })  # fmt: skip
    for channel, (modality, pose, offset_us) in small.channels.items():
        between = 0 if modality == "camera" else 2
        readings = range(2 * (between + 1) + 1)
        tokens = [f"{channel}-{scene}-{n}" for n in readings]
        for n in readings:
            is_key = n % (between + 1) == 0
            time_us = start_us + offset_us + n * 500_000 // (between + 1)
            suffix = {"camera": "jpg", "lidar": "pcd.bin", "radar": "pcd"}[modality]
            file = f"{'samples' if is_key else 'sweeps'}/{channel}/{tokens[n]}.{suffix}"
            ego = ego_pose(time_us - start_us)
            tables["ego_pose"].append(
                {"token": tokens[n], "timestamp": time_us, "translation": list(ego[:3]), "rotation": list(ego[3:])}
            )
            tables["sample_data"].append({
                "token": tokens[n], "sample_token": samples[-(-n // (between + 1))], "ego_pose_token": tokens[n],
                "calibrated_sensor_token": f"calibration-{channel}", "timestamp": time_us, "fileformat": suffix,
                "is_key_frame": is_key, "height": small.picture_px[0] if modality == "camera" else 0,
                "width": small.picture_px[1] if modality == "camera" else 0, "filename": file,
                "prev": tokens[n - 1] if n else "", "next": tokens[n + 1] if n < len(readings) - 1 else "",
            })  # fmt: skip
            _write_reading(small, small.root / file, modality, transforms(ego) @ transforms(pose))
    _write_boxes(tables, scene, samples)


def _write_reading(small: SmallNuScenes, path: Path, modality: str, global_T_sensor: NDArray[np.float64]) -> None:
    sensor_T_global = inverse_rigid(global_T_sensor)
    points = small.world_m @ sensor_T_global[:3, :3].T + sensor_T_global[:3, 3]
    if modality == "lidar":
        intensity_ring = np.tile([51.0, 7.0], (len(points), 1))
        np.hstack([points, intensity_ring]).astype("<f4").tofile(path)
    elif modality == "radar":
        velocity = sensor_T_global[:2, :2] @ small.object_velocity_mps
        write_radar(path, points, np.tile(velocity, (len(points), 1)))
    else:
        height, width = small.picture_px
        grey = np.broadcast_to(
            np.linspace(0, 255, width)[None, :, None], (height, width, 3)
        )  # a ramp tells every column apart
        path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(grey.round().astype(np.uint8)), quality=98))


def _write_boxes(tables: dict[str, list[dict[str, Any]]], scene: int, samples: list[str]) -> None:
    """Per scene a car driving (2, 1) m/s and a child standing in one keyframe only."""
    for name, visits in (("car", (0, 1, 2)), ("child", (1,))):
        tokens = [f"{name}-{scene}-{k}" for k in visits]
        tables["instance"].append({
            "token": f"{name}-{scene}", "category_token": f"category-{name}", "nbr_annotations": len(tokens),
            "first_annotation_token": tokens[0], "last_annotation_token": tokens[-1],
        })  # fmt: skip
        for n, k in enumerate(visits):
            tables["sample_annotation"].append({
                "token": tokens[n], "sample_token": samples[k], "instance_token": f"{name}-{scene}",
                "visibility_token": "4", "attribute_tokens": ["attribute-moving"] if name == "car" else [],
                "translation": [512.0 + k, 903.0 + 0.5 * k, 0.9] if name == "car" else [505.0, 910.0, 0.6],
                "size": [1.9, 4.6, 1.7] if name == "car" else [0.5, 0.6, 1.2],
                "rotation": [float(np.cos(0.2)), 0.0, 0.0, float(np.sin(0.2))],
                "prev": tokens[n - 1] if n else "", "next": tokens[n + 1] if n < len(tokens) - 1 else "",
                "num_lidar_pts": 20 if name == "car" else 0, "num_radar_pts": 2 if name == "car" else 0,
            })  # fmt: skip


def _static_tables() -> dict[str, list[dict[str, Any]]]:
    return {
        "category": [
            {"token": "category-car", "name": "vehicle.car", "description": "", "index": 0},
            {"token": "category-child", "name": "human.pedestrian.child", "description": "", "index": 1},
        ],
        "attribute": [{"token": "attribute-moving", "name": "vehicle.moving", "description": ""}],
        "visibility": [{"token": "4", "level": "v80-100", "description": ""}],
        "log": [{"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": "here"}],
        "map": [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": "maps/map.png"}],
    }


def box_tokens(reader: NuScenesReader, i: int) -> list[str]:
    """The annotation token of each of `reader.boxes(i)`."""
    return [token.decode() for token in reader.index.arrays.box_token[reader._box_rows(i)].tolist()]


def lidar_points(reader: NuScenesReader, i: int) -> NDArray[Any]:
    """As annotated, in each of `reader.boxes(i)`."""
    return reader.index.arrays.box_lidar_points[reader._box_rows(i)]
