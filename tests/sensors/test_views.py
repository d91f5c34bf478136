"""What LiDARs and radars can see of, by kernels, is that of plain torch but for rounding at its edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev.grid import BEVGrid
from sensors.lidar.encoder import _in_sectors
from sensors.radar.encoder import radar_view

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
from bev.kernels.sectors import cells_in_view, in_sectors


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_points_are_in_the_sectors_of_their_azimuth(seed: int, count: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(2, 500, 5, generator=draw) * 30
    points[:, :4, :2] = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, -2.0], [0.0, 0.0]])
    covered = (torch.rand(2, count, generator=draw) - 0.4).clamp(min=0.0)
    turn = (torch.atan2(points[..., 1].double(), points[..., 0].double()) / (2 * math.pi) + 0.5) * count
    certain = (turn - turn.round()).abs() > 1e-5 * count
    assert certain.float().mean() > 0.95
    assert torch.equal(in_sectors(points, covered)[certain], _in_sectors(points, covered)[certain])


def test_what_has_no_place_is_in_no_sector() -> None:
    points = torch.tensor([[[torch.nan, 1.0, 0.0], [1.0, torch.inf, 0.0], [-torch.inf, 0.0, 0.0], [1.0, 1.0, 0.0]]])
    assert in_sectors(points, torch.ones(1, 36)).tolist() == [[False, False, False, True]]
    assert in_sectors(torch.zeros(2, 0, 5), torch.ones(2, 36)).shape == (2, 0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_cells_are_in_the_view_of_a_radar_that_is_there(seed: int) -> None:
    grid, half_view_rad = BEVGrid(-4.8, 4.8, -3.2, 3.2, 0.8), math.radians(60)
    draw = torch.Generator().manual_seed(seed)
    mounts = torch.eye(4).repeat(2, 3, 1, 1)
    mounts[..., :2, 0], mounts[..., :2, 3] = torch.randn(2, 3, 2, generator=draw), torch.randn(2, 3, 2, generator=draw)
    present = torch.tensor([[True, False, True], [False, False, True]])
    near = [radar_view(mounts, grid, half_view_rad + shift) for shift in (0.0, 1e-4, -1e-4)]
    certain = (near[0] == near[1]) & (near[0] == near[2])
    mounts[~present] = torch.nan
    view = cells_in_view(mounts, present, grid, half_view_rad)
    assert torch.equal(view[certain], (near[0] & present[:, :, None, None])[certain])
    assert certain.float().mean() > 0.95
