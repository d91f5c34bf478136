"""Radar to the grid: pillars with Doppler, RCS and age.

Letters: B samples, P points, R radars, C channels, X and Y cells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bev.grid import BEVGrid
from bev.kernels import in_triton
from bev.layers import ConvBlock, ResidualBlock
from bev.motion import point_velocity
from bev.pillars import PillarEncoder
from sensors.batch import RadarBatch, radar_heights_m
from sensors.modality import MovingFeatures

# x and y in 50 m, z in 2 m, RCS in 20 dBsm, velocity in 3.3 m/s, age in 0.2 s
_SCALE = (0.02, 0.02, 0.5, 0.05, 0.3, 0.3, 5.0)


class RadarEncoder(nn.Module):
    """`RadarBatch` -> `MovingFeatures`. A cell is covered if it lies in the field of view of a radar that is present."""

    def __init__(
        self,
        *,
        grid: BEVGrid,
        z_range_m: tuple[float, float],
        width: int,
        channels: int,
        blocks: int,
        half_view_rad: float,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.half_view_rad = half_view_rad
        self.pillars = PillarEncoder(_SCALE, width, grid, radar_heights_m(z_range_m))
        self.bev = nn.Sequential(
            ConvBlock(width, width),
            *(ResidualBlock(width) for _ in range(blocks)),
            ConvBlock(width, channels, kernel=1),
        )

    def forward(self, batch: RadarBatch) -> MovingFeatures:
        if batch.points.ndim != 3 or batch.points.shape[-1] != len(_SCALE):
            raise ValueError(f"radar.points: expected [B, P, {len(_SCALE)}], got {list(batch.points.shape)}")
        count = torch.where(batch.present.any(1), batch.count, 0)
        canvas, _ = self.pillars(batch.points, count)
        coverage = self._coverage(batch)
        return MovingFeatures(
            self.bev(canvas.contiguous(memory_format=torch.channels_last)),
            coverage.any(1).float(),
            coverage.float().mean((2, 3)),
            point_velocity(batch.points, batch.points[..., 4:6], count, self.grid, self.pillars.z_range_m),
        )

    def _coverage(self, batch: RadarBatch) -> Tensor:
        """[B, R, X, Y] bool."""
        if in_triton(batch.present.device):
            from bev.kernels.sectors import cells_in_view

            return cells_in_view(batch.reference_T_radar, batch.present, self.grid, self.half_view_rad)
        matrix = batch.present[:, :, None, None]
        mount = torch.where(matrix, batch.reference_T_radar, torch.eye(4, device=matrix.device)).float()
        return radar_view(mount, self.grid, self.half_view_rad) & matrix


def radar_view(reference_T_radar: Tensor, grid: BEVGrid, half_view_rad: float) -> Tensor:
    """[B, R, 4, 4] -> [B, R, X, Y] bool: cell centres within the angle around each radar's x axis, seen from above."""
    centers_m = grid.centers_m(reference_T_radar.device)
    ahead = reference_T_radar[..., :2, 0]
    ahead = ahead / ahead.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    offset_m = centers_m - reference_T_radar[:, :, None, None, :2, 3]
    along_m = torch.einsum("brxyi,bri->brxy", offset_m, ahead)
    return along_m >= offset_m.norm(dim=-1) * math.cos(half_view_rad)
