"""Sensor data as tensors, the model's only input.

Letters: B samples, N cameras, L LiDARs, R radars, P points (padded), S azimuth sectors, H and W pixels, X and Y cells.
All geometry is float32 in the reference frame of `sensors.frames`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from bev.lift.table import LiftTable

_RADAR_HEIGHT_MARGIN_M = 5.0  # radars measure no height worth the name: their z must not lose them a point

_T = TypeVar("_T")


def map_tensors(value: _T, change: Callable[[Tensor], Tensor]) -> _T:
    """`value` with every tensor in it changed, however deep in dataclasses and mappings."""
    if isinstance(value, Tensor):
        return change(value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: map_tensors(getattr(value, f.name), change) for f in fields(value)})
    if isinstance(value, Mapping):
        return {key: map_tensors(part, change) for key, part in value.items()}  # type: ignore[return-value]
    return value


class TensorBatch:
    """A dataclass of tensors, of more such dataclasses, and of what has nothing to do with a device."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on `device`; `non_blocking` helps where it comes from pinned memory."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def copied(self) -> Self:
        """The same batch in memory of its own."""
        return map_tensors(self, torch.clone)

    def tensors(self) -> list[Tensor]:
        """All tensors in it, in the order of the fields; of two batches that have the same parts, in the same order."""
        tensors: list[Tensor] = []

        def kept(tensor: Tensor) -> Tensor:
            tensors.append(tensor)
            return tensor

        map_tensors(self, kept)
        return tensors

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, from where a GPU copies while the host goes on; a DataLoader asks for it."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class CameraBatch(TensorBatch):
    """Pictures of N cameras at the network's size."""

    images: Tensor  # [B, N, 3, H, W] uint8 RGB
    intrinsics: Tensor  # [B, N, 3, 3] px
    reference_T_camera: Tensor  # [B, N, 4, 4]; with BEV augmentation it holds flip, rotation and scale too
    present: Tensor  # [B, N] bool
    lift: LiftTable | None = None  # computed from the calibration where None


@dataclass(frozen=True)
class LidarBatch(TensorBatch):
    """Points of all LiDARs and sweeps, merged. Rows from `count` on are padding and may hold anything."""

    points: Tensor  # [B, P, 5] x_m, y_m, z_m, intensity (0..1), age_s (0 now, positive before)
    count: Tensor  # [B] int64
    present: Tensor  # [B, L] bool; points of absent LiDARs must not be among `points`
    sectors: Tensor  # [B, L, S] float32 0..1, how much of an azimuth sector each LiDAR covers, seen from the reference's origin;
    # sector s starts at -pi + s * 2 pi / S


def radar_heights_m(z_range_m: tuple[float, float]) -> tuple[float, float]:
    """The heights between which radar points are used, where LiDAR points are used between `z_range_m`."""
    return z_range_m[0] - _RADAR_HEIGHT_MARGIN_M, z_range_m[1] + _RADAR_HEIGHT_MARGIN_M


@dataclass(frozen=True)
class RadarBatch(TensorBatch):
    """Points of all radars and sweeps, merged. Rows from `count` on are padding and may hold anything."""

    points: Tensor  # [B, P, 7] x_m, y_m, z_m, rcs_dbsm, vx_mps, vy_mps (over ground, reference axes), age_s
    count: Tensor  # [B] int64
    present: Tensor  # [B, R] bool; points of absent radars must not be among `points`
    reference_T_radar: Tensor  # [B, R, 4, 4]


Part = CameraBatch | LidarBatch | RadarBatch


@dataclass(frozen=True)
class SensorBatch(TensorBatch):
    """What the model is given, by the names of its modalities."""

    parts: Mapping[str, Part]  # a modality without a part is absent for the whole batch, and its encoder is not run
    batch_size: int  # B, known even when every modality is absent

    def part(self, name: str) -> Any:
        """The batch of one modality, of the kind that its configuration says; None where it is absent."""
        return self.parts.get(name)

    def only(self, modalities: Collection[str]) -> SensorBatch:
        """The same batch with every modality that is not named absent."""
        return replace(self, parts={name: part for name, part in self.parts.items() if name in modalities})

    def having(self, **parts: Part | None) -> SensorBatch:
        """The same batch with other parts of the modalities named; None makes one absent."""
        merged = {**self.parts, **parts}
        return replace(self, parts={name: part for name, part in merged.items() if part is not None})
