"""Random input of a model's shapes: to trace a graph with, and to try what was exported on.

Letters: B samples, N cameras, H and W pixels, P points, L LiDARs, R radars, S azimuth sectors, M modalities, X and Y cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robustbev.export.graphs import RigGraph
from robustbev.model import PerceptionModel
from sensors.batch import CameraBatch, LidarBatch, Part, RadarBatch, SensorBatch
from sensors.camera.config import CameraConfig
from sensors.frames import SECTORS
from sensors.lidar.config import LidarConfig
from sensors.radar.config import RadarConfig


def random_batch(
    model: PerceptionModel,
    counts: Mapping[str, int],
    *,
    seed: int = 0,
    batch_size: int = 2,
    points: int = 700,
) -> SensorBatch:
    """Noise for every modality of the model, on a rig of level cameras and radars that look all around; all are there.

    `counts`: of the sensors of each modality. Of several LiDARs each covers the sectors of its own part of the turn.
    """
    draw = torch.Generator().manual_seed(seed)
    parts: dict[str, Part] = {}
    for name, modality in model.config.modalities.items():
        match modality:
            case CameraConfig():
                parts[name] = _cameras(modality.image_size, counts[name], batch_size, draw)
            case LidarConfig():
                parts[name] = _lidar(model, counts[name], batch_size, points, draw)
            case RadarConfig():
                parts[name] = _radar(model, counts[name], batch_size, points // 8 + 1, draw)
    return SensorBatch(parts, batch_size)


def masked(batch: SensorBatch, modalities: Iterable[str], present: Tensor) -> SensorBatch:
    """The batch without what `present` [B, M] takes away."""
    parts: dict[str, Part] = dict(batch.parts)
    for name, here in zip(modalities, present.unbind(1), strict=True):
        part = parts.get(name)
        if part is not None:
            # The table of a rig knows of the cameras that were there when it was made; it is made anew.
            anew: dict[str, Any] = {"lift": None} if isinstance(part, CameraBatch) else {}
            parts[name] = replace(part, present=part.present & here[:, None], **anew)
    return SensorBatch(parts, batch.batch_size)


def rig_inputs(cameras: CameraBatch) -> dict[str, Tensor]:
    """A batch's calibration as the inputs of the rig's graph."""
    tensors = (cameras.intrinsics, cameras.reference_T_camera, cameras.present)
    return dict(zip(RigGraph.inputs, tensors, strict=True))


def fuser_inputs(
    channels: Mapping[str, int], grid: tuple[int, int], *, seed: int = 0, batch_size: int = 2
) -> dict[str, Tensor]:
    """Noise for every modality; each covers a part of the grid, and all are there."""
    draw = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    for name, count in channels.items():
        inputs[f"{name}_features"] = torch.randn(batch_size, count, *grid, generator=draw)
        covered = torch.rand(batch_size, *grid, generator=draw)
        inputs[f"{name}_coverage"] = torch.where(covered < 0.3, 0.0, covered)
    inputs["present"] = torch.ones(batch_size, len(channels), dtype=torch.bool)
    return inputs


def _turned(yaw_rad: float) -> tuple[float, float]:
    return math.cos(yaw_rad), math.sin(yaw_rad)


def _cameras(size_px: tuple[int, int], count: int, batch_size: int, draw: torch.Generator) -> CameraBatch:
    height, width = size_px
    intrinsics = torch.tensor([
        [0.7 * width, 0.0, width / 2 - 0.7], [0.0, 0.7 * width, height / 2 + 0.3], [0.0, 0.0, 1.0]
    ])  # fmt: skip
    poses = torch.eye(4).repeat(count, 1, 1)
    for n in range(count):
        cos, sin = _turned(2 * math.pi * n / count + 0.013)
        # Columns: the camera's right, down and forward in the reference frame, and where it sits.
        poses[n, :3] = torch.tensor([[sin, 0, cos, 0.5 * cos], [-cos, 0, sin, 0.5 * sin], [0, -1, 0, 1.5]])
    return CameraBatch(
        images=torch.randint(0, 256, (batch_size, count, 3, height, width), generator=draw, dtype=torch.uint8),
        intrinsics=intrinsics.repeat(batch_size, count, 1, 1),
        reference_T_camera=poses.repeat(batch_size, 1, 1, 1),
        present=torch.ones(batch_size, count, dtype=torch.bool),
    )


def _points(
    model: PerceptionModel, batch_size: int, points: int, others: list[tuple[float, float]], draw: torch.Generator
) -> Tensor:
    """[B, P, 3 + len(others)] in and somewhat around the grid, the other columns between the bounds given."""
    grid, config = model.grid, model.config.grid
    bounds = [
        (grid.x_min_m - 1, grid.x_max_m + 1),
        (grid.y_min_m - 1, grid.y_max_m + 1),
        (config.z_min_m - 0.5, config.z_max_m + 0.5),
        *others,
    ]
    low, high = torch.tensor(bounds).T
    return low + (high - low) * torch.rand(batch_size, points, len(bounds), generator=draw)


def _counts(batch_size: int, points: int) -> Tensor:
    """The last tenth of the rows is padding, and the last of several samples has no point at all."""
    count = torch.full((batch_size,), points - points // 10)
    if batch_size > 1:
        count[-1] = 0
    return count


def _lidar(model: PerceptionModel, lidars: int, batch_size: int, points: int, draw: torch.Generator) -> LidarBatch:
    owner = torch.arange(SECTORS) * lidars // SECTORS
    return LidarBatch(
        points=_points(model, batch_size, points, [(0.0, 1.0), (0.0, 0.5)], draw),
        count=_counts(batch_size, points),
        present=torch.ones(batch_size, lidars, dtype=torch.bool),
        sectors=(owner == torch.arange(lidars)[:, None]).float().repeat(batch_size, 1, 1),
    )


def _radar(model: PerceptionModel, radars: int, batch_size: int, points: int, draw: torch.Generator) -> RadarBatch:
    mounts = torch.eye(4).repeat(batch_size, radars, 1, 1)
    for r in range(radars):
        cos, sin = _turned(2 * math.pi * r / radars)
        mounts[:, r, :2] = torch.tensor([[cos, -sin, 0, cos], [sin, cos, 0, sin]])
    others = [(-5.0, 30.0), (-10.0, 10.0), (-10.0, 10.0), (0.0, 0.5)]
    return RadarBatch(
        points=_points(model, batch_size, points, others, draw),
        count=_counts(batch_size, points),
        present=torch.ones(batch_size, radars, dtype=torch.bool),
        reference_T_radar=mounts,
    )
