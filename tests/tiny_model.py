"""A model and a rig small enough for tests, and random input for them.

Letters: B samples, N cameras, P points, S azimuth sectors, R radars, M boxes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bev.detection.boxes import Boxes
from robustbev import ModelConfig, PerceptionModel, build
from sensors.batch import CameraBatch, LidarBatch, Part, RadarBatch, SensorBatch
from sensors.points import DroppedPoints
from training.data.batch import TrainingBatch

IMAGE_SIZE = (32, 64)
CAMERAS, RADARS, SECTORS = 6, 5, 12
RADAR_YAWS_DEG = (0.0, 45.0, -45.0, 135.0, -135.0)


def tiny_config(**changes: Any) -> ModelConfig:
    """16 x 16 cells of 1.6 m, 16 channels; `changes` replace whole entries of `ModelConfig`, or modalities by their names."""
    values: dict[str, Any] = {
        "grid": {"x_min_m": -12.8, "x_max_m": 12.8, "y_min_m": -12.8, "y_max_m": 12.8, "cell_m": 1.6},
        "channels": 16,
        "fuser": {"heads": 2},
        "backbone": {"widths": (16, 16)},
        "tasks": {"detection": {"max_boxes": 20}},
    }  # fmt: skip
    modalities: dict[str, Any] = {
        "camera": {
            "image_height_px": IMAGE_SIZE[0], "image_width_px": IMAGE_SIZE[1], "dim": 16, "depth": 2, "heads": 2,
            "feature_channels": 16, "depth_bins": {"min_m": 1.0, "max_m": 13.0, "count": 12},
        },
        "lidar": {"pillar_channels": 8},
        "radar": {"width": 8},
    }  # fmt: skip
    modalities |= {name: changes.pop(name) for name in modalities if name in changes}
    return ModelConfig.model_validate({"modalities": modalities} | values | changes)


def tiny_model(seed: int = 0, **changes: Any) -> PerceptionModel:
    """The tiny model in evaluation mode, its weights drawn from `seed` without touching the global random state."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(tiny_config(**changes)).eval()


def camera_pose(yaw_rad: float, height_m: float = 1.5, ahead_m: float = 0.5) -> Tensor:
    """[4, 4] reference_T_camera of a level camera that looks along `yaw_rad` from `ahead_m` before the origin."""
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    pose = torch.eye(4)
    # Columns: the camera's right, down and forward in the reference frame, and where it sits.
    pose[:3] = torch.tensor([[sin, 0, cos, ahead_m * cos], [-cos, 0, sin, ahead_m * sin], [0, -1, 0, height_m]])
    return pose


def random_cameras(batch_size: int = 2, seed: int = 0) -> CameraBatch:
    """Six cameras, 60 degrees apart, camera 0 ahead; every picture is noise."""
    generator = torch.Generator().manual_seed(seed)
    height, width = IMAGE_SIZE
    intrinsics = torch.tensor([[45.0, 0.0, width / 2 - 0.7], [0.0, 45.0, height / 2 + 0.3], [0.0, 0.0, 1.0]])
    poses = torch.stack([camera_pose(i * math.pi / 3 + 0.013) for i in range(CAMERAS)])
    return CameraBatch(
        images=torch.randint(0, 256, (batch_size, CAMERAS, 3, height, width), generator=generator, dtype=torch.uint8),
        intrinsics=intrinsics.repeat(batch_size, CAMERAS, 1, 1),
        reference_T_camera=poses.repeat(batch_size, 1, 1, 1),
        present=torch.ones(batch_size, CAMERAS, dtype=torch.bool),
    )


def random_lidar(batch_size: int = 2, seed: int = 0, points: int = 300) -> LidarBatch:
    """Points in and somewhat around the grid; the last tenth of the rows is padding."""
    generator = torch.Generator().manual_seed(seed + 1)
    low, high = torch.tensor([-14.0, -14.0, -2.5, 0.0, 0.0]), torch.tensor([14.0, 14.0, 4.5, 1.0, 0.5])
    return LidarBatch(
        points=low + (high - low) * torch.rand(batch_size, points, 5, generator=generator),
        count=torch.full((batch_size,), points - points // 10),
        present=torch.ones(batch_size, 1, dtype=torch.bool),
        sectors=torch.ones(batch_size, 1, SECTORS),
    )


def random_radar(batch_size: int = 2, seed: int = 0, points: int = 40) -> RadarBatch:
    """Five radars in nuScenes' places; the last tenth of the rows is padding."""
    generator = torch.Generator().manual_seed(seed + 2)
    low = torch.tensor([-14.0, -14.0, -0.5, -5.0, -10.0, -10.0, 0.0])
    high = torch.tensor([14.0, 14.0, 1.5, 30.0, 10.0, 10.0, 0.5])
    mounts = torch.eye(4).repeat(batch_size, RADARS, 1, 1)
    for i, yaw_deg in enumerate(RADAR_YAWS_DEG):
        cos, sin = math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))
        mounts[:, i, :2] = torch.tensor([[cos, -sin, 0, cos], [sin, cos, 0, sin]])
    return RadarBatch(
        points=low + (high - low) * torch.rand(batch_size, points, 7, generator=generator),
        count=torch.full((batch_size,), points - points // 10),
        present=torch.ones(batch_size, RADARS, dtype=torch.bool),
        reference_T_radar=mounts,
    )


def random_sensors(batch_size: int = 2, seed: int = 0) -> SensorBatch:
    """All three modalities, all of them present."""
    parts: dict[str, Part] = {
        "camera": random_cameras(batch_size, seed),
        "lidar": random_lidar(batch_size, seed),
        "radar": random_radar(batch_size, seed),
    }
    return SensorBatch(parts, batch_size)


def random_boxes(
    batch_size: int = 2, boxes: int = 6, seed: int = 0, *, classes: int = 10, attributes: int = 8
) -> Boxes:
    """[B, M] boxes within 11 m, each of another kind."""
    generator = torch.Generator().manual_seed(seed + 3)
    shape = (batch_size, boxes)

    def uniform(low: float, high: float, *last: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, *last, generator=generator)

    return Boxes(
        center_m=torch.cat([uniform(-11, 11, 2), uniform(0, 1, 1)], dim=-1),
        size_m=uniform(0.5, 5.0, 3),
        yaw_rad=uniform(-math.pi, math.pi),
        velocity_mps=uniform(-5, 5, 2),
        label=torch.randint(0, classes, shape, generator=generator),
        attribute=torch.randint(-1, attributes, shape, generator=generator),
        score=torch.ones(shape),
    )


def random_training_batch(batch_size: int = 2, seed: int = 0, sensors: SensorBatch | None = None) -> TrainingBatch:
    """Random sensors with random truth: the last box of every sample is padding, one velocity is not known."""
    boxes = random_boxes(batch_size, seed=seed)
    boxes.velocity_mps[:, 0] = math.nan
    box_valid = torch.ones_like(boxes.label, dtype=torch.bool)
    box_valid[:, -1] = False
    generator = torch.Generator().manual_seed(seed + 4)
    depth_m = 15 * torch.rand(batch_size, CAMERAS, IMAGE_SIZE[0] // 8, IMAGE_SIZE[1] // 8, generator=generator)
    return TrainingBatch(
        sensors=random_sensors(batch_size, seed) if sensors is None else sensors,
        boxes=boxes,
        box_valid=box_valid,
        depth_m={"camera": torch.where(depth_m < 10, depth_m, 0.0)},
        tokens=tuple(f"sample-{i}" for i in range(batch_size)),
        indices=tuple(range(batch_size)),
        dropped=DroppedPoints(),
    )
