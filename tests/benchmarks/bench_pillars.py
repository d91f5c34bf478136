"""Dynamic pillars straight into a dense canvas against the `torch.unique` way, at nuScenes size.

Letters: B samples, P points, C channels, V pillars that hold a point, X and Y cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bev.grid import BEVGrid
from bev.pillars import PillarEncoder
from tests.benchmarks.conftest import Compare

GRID = BEVGrid(-54.0, 54.0, -54.0, 54.0, 0.6)  # 180 x 180
Z_RANGE_M = (-5.0, 3.0)
CHANNELS, SWEEPS, BEAMS, AZIMUTHS = 64, 10, 32, 1084


def drive(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[1, P, 5] and [1]: ten sweeps of a 32-beam LiDAR at 1.84 m over flat ground, with something in the way every so often."""
    elevation = torch.linspace(math.radians(-30.67), math.radians(10.67), BEAMS)[None, :, None]
    azimuth = (torch.arange(AZIMUTHS) * 2 * math.pi / AZIMUTHS)[None, None]
    obstacle_m = 3.0 + 97.0 * torch.rand(1, 1, AZIMUTHS // 4, generator=generator).repeat_interleave(4, dim=2) ** 2
    ground_m = torch.where(elevation < 0, 1.84 / torch.tan(-elevation).clamp(min=1e-3), math.inf)
    range_m = torch.minimum(obstacle_m, ground_m) + 0.02 * torch.randn(SWEEPS, BEAMS, AZIMUTHS, generator=generator)
    x = range_m * azimuth.cos() + 0.5 * torch.arange(SWEEPS)[:, None, None]  # ego motion between sweeps
    y = range_m * azimuth.sin()
    z = range_m * elevation.tan() + 1.84
    intensity = torch.rand(range_m.shape, generator=generator)
    age_s = (0.05 * torch.arange(SWEEPS)[:, None, None]).expand_as(range_m)
    points = torch.stack([x, y, z, intensity, age_s], dim=-1).reshape(1, -1, 5)
    return points, torch.tensor([points.shape[1]])


def unique_pillars(encoder: PillarEncoder, points: Tensor, count: Tensor, **unique: int) -> Tensor:
    """As OpenPCDet's DynamicPillarVFE, with the encoder's own weights: only pillars that hold a point exist, and are then
    scattered into the canvas. `unique` may hold `dim=0`, as OpenPCDet calls it.
    """
    x_cells, y_cells = GRID.shape
    used = torch.arange(points.shape[1]) < count[:, None]
    sample = torch.arange(len(points))[:, None].expand_as(used)[used]
    points = points[used]
    position = (points[:, :2] - torch.tensor([GRID.x_min_m, GRID.y_min_m])) / GRID.cell_m
    cell = position.floor().long()
    inside = ((cell >= 0) & (cell < torch.tensor(GRID.shape))).all(dim=1)
    inside &= (points[:, 2] >= Z_RANGE_M[0]) & (points[:, 2] < Z_RANGE_M[1])
    points, position, cell, sample = points[inside], position[inside], cell[inside], sample[inside]
    merged = sample * GRID.num_cells + cell[:, 0] * y_cells + cell[:, 1]
    pillar, inverse, counts = torch.unique(merged, return_inverse=True, return_counts=True, **unique)
    sums = torch.zeros(len(pillar), 3).index_add(0, inverse, points[:, :3])
    mean_m = sums / counts[:, None]
    to_center_m = (position - cell - 0.5) * GRID.cell_m
    offsets = [to_center_m, points[:, :3] - mean_m[inverse]]
    decorated = torch.cat([points * encoder.scale, *offsets, torch.ones(len(points), 1)], dim=1)
    encoded = F.relu(encoder.norm(encoder.linear(decorated)))
    index = inverse[:, None].expand_as(encoded)
    pillars = encoded.new_zeros(len(pillar), encoded.shape[1]).scatter_reduce(
        0, index, encoded, "amax", include_self=True
    )
    pillars = torch.cat([pillars, counts.float().log1p()[:, None]], dim=1)
    canvas = pillars.new_zeros(int(sample.max()) * GRID.num_cells + GRID.num_cells, CHANNELS)
    canvas[pillar] = pillars
    return canvas.view(-1, x_cells, y_cells, CHANNELS).permute(0, 3, 1, 2)


def contenders() -> dict[str, Callable[[], Tensor]]:
    """The ways to a canvas, checked to give the same."""
    torch.manual_seed(0)
    encoder = PillarEncoder((0.05, 0.05, 0.3, 1.0, 2.0), CHANNELS, GRID, Z_RANGE_M)
    points, count = drive(torch.Generator().manual_seed(0))
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: encoder(points, count)[0],
        "torch.unique": lambda: unique_pillars(encoder, points, count),
        "torch.unique,_dim=0": lambda: unique_pillars(encoder, points, count, dim=0),
    }
    expected = ways["torch.unique"]()
    for name, way in ways.items():
        torch.testing.assert_close(way(), expected, rtol=1e-4, atol=1e-4, msg=name)
    return ways


def forward(way: Callable[[], Tensor]) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            way()

    return run


def forward_backward(way: Callable[[], Tensor]) -> Callable[[], object]:
    return lambda: way().sum().backward()


@pytest.mark.parametrize("direction", ["fwd", "fwd+bwd"])
def bench_pillars(direction: str, compare: Compare) -> None:
    timed = forward if direction == "fwd" else forward_backward
    result = compare(f"pillars {direction}, 10 sweeps, 180 x 180", 9, **{n: timed(w) for n, w in contenders().items()})
    assert result.ratio("torch.unique") >= 2
