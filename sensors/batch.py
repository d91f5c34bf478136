"""Sensor data as tensors, the model's only input.

Letters: B samples, N cameras, R radars, P points (padded), S azimuth sectors, H and W pixels, X and Y cells.
All geometry is float32 in the reference frame of `sensors.frames`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from bev.lift import LiftTable

MODALITIES = ("camera", "lidar", "radar")

_T = TypeVar("_T")


def _move(value: _T, device: torch.device | str, non_blocking: bool) -> _T:
    """`value` with every tensor in it, however deep in dataclasses, on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=non_blocking)  # type: ignore[return-value]
    if hasattr(value, "__dataclass_fields__"):
        moved = {f.name: _move(getattr(value, f.name), device, non_blocking) for f in fields(value)}  # type: ignore[arg-type]
        return replace(value, **moved)  # type: ignore[type-var]
    return value


@dataclass(frozen=True)
class CameraBatch:
    """Pictures of N cameras at the network's size."""

    images: Tensor  # [B, N, 3, H, W] uint8 RGB
    intrinsics: Tensor  # [B, N, 3, 3] px
    reference_T_camera: Tensor  # [B, N, 4, 4]; with BEV augmentation it holds flip, rotation and scale too
    present: Tensor  # [B, N] bool
    lift: LiftTable | None = None  # computed from the calibration where None


@dataclass(frozen=True)
class LidarBatch:
    """Points of all sweeps, merged. Rows from `count` on are padding and may hold anything."""

    points: Tensor  # [B, P, 5] x_m, y_m, z_m, intensity (0..1), age_s (0 now, positive before)
    count: Tensor  # [B] int64
    present: Tensor  # [B] bool
    sectors: Tensor  # [B, S] float32, 1 where the azimuth sector works; s starts at -pi + s * 2 pi / S in the reference frame


@dataclass(frozen=True)
class RadarBatch:
    """Points of all radars and sweeps, merged. Rows from `count` on are padding and may hold anything."""

    points: Tensor  # [B, P, 7] x_m, y_m, z_m, rcs_dbsm, vx_mps, vy_mps (over ground, reference axes), age_s
    count: Tensor  # [B] int64
    present: Tensor  # [B, R] bool; points of absent radars must not be among `points`
    reference_T_radar: Tensor  # [B, R, 4, 4]


@dataclass(frozen=True)
class SensorBatch:
    """What the model is given. A modality that is None is absent for the whole batch and its encoder is not run."""

    cameras: CameraBatch | None
    lidar: LidarBatch | None
    radar: RadarBatch | None
    batch_size: int  # B, known even when every modality is absent

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> SensorBatch:
        return _move(self, device, non_blocking)

    def only(self, modalities: tuple[str, ...] | frozenset[str]) -> SensorBatch:
        """The same batch with every modality not named absent; ValueError for a name that is none of `MODALITIES`."""
        unknown = sorted(set(modalities) - set(MODALITIES))
        if unknown:
            raise ValueError(f"unknown modality {unknown[0]!r}; expected some of {', '.join(MODALITIES)}")
        return SensorBatch(
            cameras=self.cameras if "camera" in modalities else None,
            lidar=self.lidar if "lidar" in modalities else None,
            radar=self.radar if "radar" in modalities else None,
            batch_size=self.batch_size,
        )
