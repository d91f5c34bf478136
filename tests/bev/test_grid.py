"""The grid promises: a point in metres has exactly one cell or none, and the edge belongs to the cell above it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bev.grid import BEVGrid

INF = math.inf
CELLS_M = (0.075, 0.1, 0.2, 0.3, 0.4, 0.5, 0.512, 0.6, 0.8, 1.0, 1.6)


@st.composite
def grids(draw: st.DrawFn) -> BEVGrid:
    """Grids of 1 to 360 cells a side, on or off the origin, with cell lengths that float32 cannot represent, too."""
    cell_m = draw(st.sampled_from(CELLS_M))
    x_low, x_cells, y_low, y_cells = (draw(st.integers(*bounds)) for bounds in ((-200, 50), (1, 360)) * 2)
    return BEVGrid(x_low * cell_m, (x_low + x_cells) * cell_m, y_low * cell_m, (y_low + y_cells) * cell_m, cell_m)


def below(value: float) -> float:
    """The largest float32 under float32(value)."""
    return torch.nextafter(torch.tensor(value), torch.tensor(-INF)).item()


def index_of(grid: BEVGrid, x_m: float, y_m: float) -> int:
    return int(grid.flat_index(torch.tensor([x_m, y_m])))


@given(grids())
def test_every_centre_falls_into_its_own_cell(grid: BEVGrid) -> None:
    index = grid.flat_index(grid.centers_m())
    assert index.dtype == torch.int64
    assert torch.equal(index.flatten(), torch.arange(grid.num_cells))


@given(grids())
def test_ranges_are_half_open(grid: BEVGrid) -> None:
    x_cells, y_cells = grid.shape
    x_m, y_m = (grid.centers_m()[0, 0]).tolist()
    assert index_of(grid, grid.x_min_m, y_m) == 0
    assert index_of(grid, x_m, grid.y_min_m) == 0
    assert index_of(grid, below(grid.x_max_m), y_m) == (x_cells - 1) * y_cells
    assert index_of(grid, x_m, below(grid.y_max_m)) == y_cells - 1
    for outside in ((below(grid.x_min_m), y_m), (x_m, below(grid.y_min_m)), (grid.x_max_m, y_m), (x_m, grid.y_max_m)):
        assert index_of(grid, *outside) == grid.num_cells


@given(grids(), st.lists(st.tuples(*[st.floats(-0.25, 1.25, width=32)] * 2), min_size=1, max_size=50))
def test_a_point_lies_between_the_edges_of_its_cell(grid: BEVGrid, shares: list[tuple[float, float]]) -> None:
    low = torch.tensor([grid.x_min_m, grid.y_min_m])
    size_m = torch.tensor([grid.x_max_m, grid.y_max_m]) - low
    points = low + size_m * torch.tensor(shares)
    for (x_m, y_m), index in zip(points.tolist(), grid.flat_index(points).tolist(), strict=True):
        # In double precision; where a float32 of the point lies on an edge, either side is right by 1e-3 cells.
        x, y = (x_m - grid.x_min_m) / grid.cell_m, (y_m - grid.y_min_m) / grid.cell_m
        if index == grid.num_cells:
            assert min(x, grid.shape[0] - x, y, grid.shape[1] - y) < 1e-3
        else:
            ix, iy = divmod(index, grid.shape[1])
            assert ix - 1e-3 <= x < ix + 1 + 1e-3
            assert iy - 1e-3 <= y < iy + 1 + 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_falls_into_the_cell_of_the_same_number(dtype: torch.dtype) -> None:
    grid = BEVGrid(-54, 54, -54, 54, 0.6)
    points = (torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * 120 - 60).to(dtype)
    assert torch.equal(grid.flat_index(points), grid.flat_index(points.float()))


@given(grids(), st.tuples(*[st.floats(width=32, allow_nan=True, allow_infinity=True)] * 2))
def test_any_float_at_all_gets_an_index_of_a_canvas_with_a_sentinel(grid: BEVGrid, point: tuple[float, float]) -> None:
    assert 0 <= index_of(grid, *point) <= grid.num_cells


@pytest.mark.parametrize("bad", [math.nan, INF, -INF, 3e38, -3e38])
def test_what_is_no_place_gets_the_sentinel(bad: float) -> None:
    grid = BEVGrid(-5, 5, -5, 5, 0.5)
    assert index_of(grid, bad, 0.0) == grid.num_cells
    assert index_of(grid, 0.0, bad) == grid.num_cells
    assert index_of(grid, bad, bad) == grid.num_cells


def test_a_point_a_little_outside_is_not_in_cell_zero() -> None:
    """Truncation toward zero, a known bug elsewhere, puts points up to a cell before the grid into its first cell."""
    grid = BEVGrid(-5, 5, -5, 5, 0.5)
    assert index_of(grid, -5.3, -4.9) == grid.num_cells
    assert index_of(grid, -4.9, -5.3) == grid.num_cells


def test_a_point_just_inside_is_in_the_last_cell() -> None:
    """Rounding, another known bug, puts 4.96 m of a range to 5 m into a cell that is not there."""
    grid = BEVGrid(-5, 5, -5, 5, 0.1)
    assert index_of(grid, 4.96, 4.96) == grid.num_cells - 1


def test_axes_are_x_forward_then_y_left() -> None:
    grid = BEVGrid(0, 4, -1, 1, 1)
    assert grid.shape == (4, 2)
    assert [index_of(grid, 2.5, y_m) for y_m in (-0.5, 0.5)] == [4, 5]
    torch.testing.assert_close(grid.centers_m()[2, 1], torch.tensor([2.5, 0.5]))


def test_leading_axes_stay() -> None:
    points: Tensor = torch.zeros(2, 3, 5, 2)
    assert BEVGrid(-1, 1, -1, 1, 1).flat_index(points).shape == (2, 3, 5)


def test_coarser_keeps_the_range_and_refuses_what_does_not_fit() -> None:
    grid = BEVGrid(-6, 6, -3, 3, 0.5)
    assert grid.coarser(2) == BEVGrid(-6, 6, -3, 3, 1.0)
    with pytest.raises(ValueError, match="whole number of cells"):
        grid.coarser(5)


def test_the_radius_is_that_of_the_circle_inside_the_grid() -> None:
    assert BEVGrid(-51.2, 51.2, -40, 30, 0.8 / 4).radius_m == 30
    assert BEVGrid(2, 10, -5, 5, 1).radius_m == 0, "a grid that does not hold the origin sees no full circle"


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 10, 0, 10, 0), "cell_m"),
        ((0, 10, 0, 10, -1), "cell_m"),
        ((0, 10, 0, 10, math.nan), "cell_m"),
        ((0, 10, 0, 10, INF), "cell_m"),
        ((10, 0, 0, 10, 1), "x_min_m"),
        ((0, 10, 5, 5, 1), "y_min_m"),
        ((0, 10, math.nan, 5, 1), "y_min_m"),
        ((-INF, 10, 0, 5, 1), "x_min_m"),
        ((0, 10, 0, 10.3, 0.5), "20.6000 cells"),
        ((0, 1e-9, 0, 10, 1), "whole number of cells"),
        ((0, 5000, 0, 5000, 1), "5000 x 5000 cells; expected at most 16,777,216"),
    ],
)
def test_an_impossible_grid_is_refused_by_name(numbers: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BEVGrid(*numbers)
