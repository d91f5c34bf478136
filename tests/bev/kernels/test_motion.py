"""Motion by kernels is that of plain torch, within the rounding of sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bev.grid import BEVGrid
from bev.motion import MOTION_CHANNELS, point_drift, point_velocity
from tests.bev.kernels.test_points import batches

GRID = BEVGrid(-4.8, 4.8, -3.2, 3.2, 3.2)  # few cells, for the interpreter goes through each window of each
Z_RANGE_M = (-1.1, 2.3)


def plain(function, *given: object) -> Tensor:  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bev.motion.in_triton", lambda _: False)
        result: Tensor = function(*given)
        return result


@settings(deadline=None, max_examples=10)
@given(batches(), st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75]), min_size=36, max_size=36))
def test_drift_and_velocity_of_any_points(batch: tuple[Tensor, Tensor, Tensor | None], ages_s: list[float]) -> None:
    points, count, valid = batch
    age_s = torch.tensor(ages_s)[: points.shape[0] * points.shape[1]].view(points.shape[:2])
    of = count, GRID, Z_RANGE_M
    got, expected = point_drift(points, age_s, *of, valid), plain(point_drift, points, age_s, *of, valid)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    velocity_mps = torch.stack([age_s * 30, -age_s], dim=-1)
    got, expected = point_velocity(points, velocity_mps, *of), plain(point_velocity, points, velocity_mps, *of)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell_m", [0.8, 1.6])
def test_a_crowd_of_two_samples_in_windows_of_several_sizes(cell_m: float) -> None:
    draw = torch.Generator().manual_seed(0)
    points = torch.rand(2, 400, 5, generator=draw) * torch.tensor([9.6, 6.4, 3.0, 1.0, 1.0]) - torch.tensor(
        [4.8, 3.2, 1.0, 0.0, 0.0]
    )
    points[..., 4] = (points[..., 4] * 4).floor() / 8  # ages, a column of what is given
    points[1, 100:] = torch.nan
    grid, count = BEVGrid(-1.6, 1.6, -3.2, 3.2, cell_m), torch.tensor([400, 100])
    got = point_drift(points, points[..., 4], count, grid, Z_RANGE_M)
    assert got.shape == (2, MOTION_CHANNELS, *grid.shape)
    assert got[:, 2::3].any()
    torch.testing.assert_close(
        got, plain(point_drift, points, points[..., 4], count, grid, Z_RANGE_M), rtol=1e-3, atol=1e-3
    )
    given = points, points[..., 3:5], count, grid, Z_RANGE_M
    torch.testing.assert_close(point_velocity(*given), plain(point_velocity, *given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_velocity_that_is_no_number_is_no_return(broken: float) -> None:
    points = torch.tensor([[[0.1, 0.1, 0.5], [-3.0, 0.1, 0.5]]])
    given = points, torch.tensor([[[broken, 1.0], [40.0, 1.0]]]), torch.tensor([2]), GRID, Z_RANGE_M
    expected = plain(point_velocity, *given)
    torch.testing.assert_close(point_velocity(*given), expected)
    torch.testing.assert_close(
        expected, plain(point_velocity, points[:, 1:], given[1][:, 1:], torch.tensor([1]), *given[3:])
    )
