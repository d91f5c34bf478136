"""Results of a replay, made by hand: a small rig, two boxes, known attention.

Letters: M modalities, X and Y cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bev.detection.boxes import Boxes
from bev.grid import BEVGrid
from robustbev.perception import TaskMap
from robustbev.results.result import TickResult
from sensors.frames import CameraImage, LidarSweep, RadarSweep, SensorFrame
from sensors.replay.tick import SensorState, SensorStatus, Tick

GRID = BEVGrid(-8.0, 16.0, -12.0, 12.0, 2.0)  # 12 x 12 cells, not centred: x and y cannot be confused unseen
CLASSES = ("car", "pedestrian", "forklift")
ATTRIBUTES = ("vehicle.moving", "vehicle.parked")
KINDS = ("camera", "lidar", "radar")
CHANNELS = {"CAM_FRONT": "camera", "CAM_BACK": "camera", "LIDAR_TOP": "lidar", "RADAR_FRONT": "radar"}
START_US = 1_600_000_000_000_000
LOOKS_AHEAD = np.array([[0.0, 0, 1, 1.5], [-1, 0, 0, 0.2], [0, -1, 0, 1.6], [0, 0, 0, 1]])  # reference_T_camera
LOOKS_BACK = np.array([[0.0, 0, -1, -1.0], [1, 0, 0, 0.0], [0, -1, 0, 1.6], [0, 0, 0, 1]])
LIDAR_POSE = np.array([[0.0, -1, 0, 0.9], [1, 0, 0, 0.0], [0, 0, 1, 1.8], [0, 0, 0, 1]])  # turned by 90 degrees
RADAR_POSE = np.array([[0.0, -1, 0, 3.4], [1, 0, 0, 0.0], [0, 0, 1, 0.5], [0, 0, 0, 1]])


def boxes(*rows: tuple[float, float, float, int, float]) -> Boxes:
    """Cars of 4.5 x 1.9 x 1.6 m by (x, y, yaw, label, score); the first is moving, the others' velocities are not known."""
    n = len(rows)
    table = torch.tensor(rows).reshape(n, 5)
    velocity = torch.full((n, 2), torch.nan)
    velocity[:1] = torch.tensor([3.0, -4.0])
    return Boxes(
        center_m=torch.stack([table[:, 0], table[:, 1], torch.full((n,), 0.8)], dim=1),
        size_m=torch.tensor([1.9, 4.5, 1.6]).repeat(n, 1),
        yaw_rad=table[:, 2],
        velocity_mps=velocity,
        label=table[:, 3].long(),
        attribute=torch.tensor([0, *[-1] * (n - 1)][:n], dtype=torch.long),
        score=table[:, 4],
    )


_COUNT = np.full(GRID.shape, np.nan, np.float32)
_COUNT[:2, :3] = [[0.0, 1.0, 2.0], [3.0, -1.0, np.nan]]
COUNTS = {"counts/count": TaskMap(_COUNT, 0.0, 2.0)}  # known in five cells at the least x and y

TWO = boxes((10.0, 3.0, 0.5, 0, 0.9), (5.0, -6.0, 0.0, 2, 0.6))


def frame(time_us: int, *, camera: bool = True, lidar: bool = True, radar: bool = True) -> SensorFrame:
    """CAM_FRONT, LIDAR_TOP (two sweeps) and RADAR_FRONT; CAM_BACK never says anything."""
    image = np.zeros((90, 160, 3), np.uint8)
    image[:, :80] = (200, 40, 40)  # the left half is red
    intrinsics = np.array([[125.0, 0, 79.5], [0, 125.0, 44.5], [0, 0, 1]])
    points = np.array([[0.0, -10.0, -1.0, 20.0, 3.0], [2.0, 0.0, 0.0, 30.0, 4.0]], np.float32)
    echoes = np.array([[4.0, 0.0, 0.0, 7.5, 2.0, 0.0]], np.float32)
    pose = np.eye(4)
    pose[:3, 3] = [100.0, 50.0, 1.0]
    pose[:2, :2] = [[0.0, -1.0], [1.0, 0.0]]
    return SensorFrame(
        token=f"tick-{time_us}",
        time_us=time_us,
        cameras=(CameraImage("CAM_FRONT", image, intrinsics, LOOKS_AHEAD, time_us - 20_000), None) if camera else None,
        lidar=tuple(LidarSweep("LIDAR_TOP", points + 0.5 * k, LIDAR_POSE, time_us - 50_000 * k) for k in range(2))
        if lidar
        else None,
        radar=(RadarSweep("RADAR_FRONT", echoes, RADAR_POSE, time_us - 10_000),) if radar else None,
        global_T_reference=pose,
    )


def result(
    index: int = 0, *, found: Boxes = TWO, perceived: bool = True, reset: bool = False, **changes: Any
) -> TickResult:
    """The tick `index`, half a second after the one before. CAM_BACK is missing; without perception everything is stale.

    `changes` replace fields of the result, or `time_us` and `ego_pose_known` of the tick.
    """
    time_us = changes.pop("time_us", START_US + 500_000 * index)
    states = dict.fromkeys(CHANNELS, SensorState.OK if perceived else SensorState.STALE)
    states["CAM_BACK"] = SensorState.MISSING
    states |= changes.pop("states", {})
    sensors = {
        name: SensorStatus(
            name, modality, states[name], None if states[name] is SensorState.MISSING else 20_000, "as told"
        )
        for name, modality in CHANNELS.items()
    }
    given = frame(time_us, camera=perceived, lidar=perceived, radar=perceived)
    ego_pose_known = changes.pop("ego_pose_known", True)
    share = np.linspace(0.1, 0.5, GRID.num_cells, dtype=np.float32).reshape(GRID.shape)
    fields: dict[str, Any] = {
        "tick": Tick(index, time_us, time_us + 30_000, given, sensors, ego_pose_known, reset),
        "perceived": perceived,
        "boxes": found if perceived else found[:0],
        "candidates": found if perceived else found[:0],
        "modalities": KINDS,
        "attention": np.stack([share, share / 2, 1 - 1.5 * share]),
        "classes": CLASSES,
        "attributes": ATTRIBUTES,
        "trust": {
            name: share if perceived else 0.0
            for name, share in zip(changes.get("modalities", KINDS), (0.25, 0.5, 0.125), strict=True)
        },
    }
    return TickResult(**(fields | changes))
