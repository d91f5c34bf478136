"""LiDAR to the grid: dynamic pillars and a small 2D network.

Letters: B samples, L LiDARs, P points, S azimuth sectors, C channels, X and Y cells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bev.grid import BEVGrid
from bev.kernels import in_triton
from bev.layers import ConvBlock, ResidualBlock
from bev.motion import point_drift
from bev.pillars import PillarEncoder
from sensors.batch import LidarBatch
from sensors.frames import SECTORS
from sensors.modality import MovingFeatures

# x and y in 50 m, z in 2 m, intensity 0..1 as it is, age in 0.2 s
_SCALE = (0.02, 0.02, 0.5, 1.0, 5.0)


class LidarEncoder(nn.Module):
    """`LidarBatch` -> `MovingFeatures`. A cell is covered as its azimuth sector is by the LiDAR that covers most of it.

    Pillars stand on cells of half the grid's length. `stages` (optional) are sparse stages on that canvas, see
    `sensors.lidar.sparse_pillars`; then a stride of two leads to the grid.
    """

    sector: Tensor

    def __init__(
        self,
        *,
        grid: BEVGrid,
        z_range_m: tuple[float, float],
        pillar_channels: int,
        channels: int,
        blocks: int,
        stages: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        fine = BEVGrid(grid.x_min_m, grid.x_max_m, grid.y_min_m, grid.y_max_m, grid.cell_m / 2)
        self.pillars = PillarEncoder(_SCALE, pillar_channels, fine, z_range_m)
        self.stages = stages
        self.register_buffer("sector", azimuth_sectors(grid, SECTORS), persistent=False)
        self.bev = nn.Sequential(
            ConvBlock(pillar_channels, channels, stride=2),
            *(ResidualBlock(channels) for _ in range(blocks)),
        )

    def forward(self, batch: LidarBatch) -> MovingFeatures:
        if batch.points.ndim != 3 or batch.points.shape[-1] != len(_SCALE):
            raise ValueError(f"lidar.points: expected [B, P, {len(_SCALE)}], got {list(batch.points.shape)}")
        count = torch.where(batch.present.any(1), batch.count, 0)
        sectors = torch.where(batch.present[..., None], batch.sectors.float(), 0.0)
        covered = sectors.amax(1)  # [B, S] by any LiDAR
        valid = _in_sectors(batch.points, covered)
        canvas, occupied = self.pillars(batch.points, count, valid)
        if self.stages is not None:
            canvas = self.stages(canvas, occupied)
        sector = self.sector  # a constant, which takes a dozen launches to make
        if covered.shape[1] != SECTORS:
            sector = azimuth_sectors(self.grid, covered.shape[1], covered.device)
        return MovingFeatures(
            self.bev(canvas.contiguous(memory_format=torch.channels_last)),
            covered[:, sector],
            sectors[..., sector].mean((2, 3)),
            point_drift(batch.points, batch.points[..., 4], count, self.grid, self.pillars.z_range_m, valid),
        )


def _in_sectors(points: Tensor, covered: Tensor) -> Tensor:
    """[B, P, 5], [B, S] -> [B, P] bool, which points lie in sectors that are covered at all."""
    if in_triton(points.device):
        from bev.kernels.sectors import in_sectors

        return in_sectors(points.float(), covered)
    return covered.gather(1, _sector(points[..., 0], points[..., 1], covered.shape[1])) > 0


def azimuth_sectors(grid: BEVGrid, count: int, device: torch.device | None = None) -> Tensor:
    """[X, Y] int64 azimuth sector of each cell's centre; sector s starts at -pi + s * 2 pi / count."""
    x_m, y_m = grid.centers_m(device).unbind(-1)
    return _sector(x_m, y_m, count)


def _sector(x_m: Tensor, y_m: Tensor, count: int) -> Tensor:
    turn = (torch.atan2(y_m, x_m) + math.pi) / (2 * math.pi)
    return (turn * count).floor().long().clamp(0, count - 1)
