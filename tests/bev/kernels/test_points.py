"""Points in cells by kernels promise the rows of their plain twins to the bit, and their sums within rounding.

Letters: B samples, P points, F features of a point.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bev.grid import BEVGrid
from bev.pillars import PillarEncoder, point_cells

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
from bev.kernels.points import sum_rows

GRID = BEVGrid(-4.8, 4.8, -3.2, 3.2, 0.8)  # neither edges nor cells are whole in float32
Z_RANGE_M = (-1.1, 2.3)
SCALE = (0.1, 0.1, 0.5, 1.0)


def just_below(value: float) -> float:
    return float(torch.nextafter(torch.tensor(value), torch.tensor(-math.inf)))


def _edges(low_m: float, cells: int, step_m: float) -> list[float]:
    edges = [low_m + i * step_m for i in range(cells + 1)]
    return [*edges, *map(just_below, edges), math.nan, math.inf, -math.inf, 1e30]


coordinates_m = st.tuples(
    *(st.one_of(st.sampled_from(values), st.floats(low - 1, -low + 1, width=32))
      for low, values in ((-5.0, _edges(-4.8, 12, 0.8)), (-3.0, _edges(-3.2, 8, 0.8)), (-2.0, _edges(-1.1, 2, 1.7))))
)  # fmt: skip


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None]:
    """Points [B, P, 4], count [B], valid [B, P] or None."""
    samples, padded = draw(st.integers(1, 3)), draw(st.integers(0, 12))
    flat = draw(st.lists(coordinates_m, min_size=samples * padded, max_size=samples * padded))
    points = torch.zeros(samples, padded, 4)
    points[..., :3] = torch.tensor(flat, dtype=torch.float32).reshape(samples, padded, 3)
    points[..., 3] = torch.arange(padded) / 16
    count = torch.tensor(draw(st.lists(st.integers(0, padded), min_size=samples, max_size=samples)))
    valid = draw(st.none() | st.lists(st.booleans(), min_size=samples * padded, max_size=samples * padded))
    return points, count, None if valid is None else torch.tensor(valid, dtype=torch.bool).view(samples, padded)


@settings(deadline=None)
@given(batches())
def test_rows_are_those_of_the_plain_twin_and_sums_their_points(batch: tuple[Tensor, Tensor, Tensor | None]) -> None:
    points, count, valid = batch
    rows, sums = sum_rows(points, count, GRID, Z_RANGE_M, valid)
    assert torch.equal(rows, point_cells(points, count, GRID, Z_RANGE_M, valid))
    used = rows % (GRID.num_cells + 1) != GRID.num_cells
    values = torch.cat([torch.ones(len(rows), 1), points.flatten(0, 1)[:, :3]], dim=1)[used]
    expected = torch.zeros(len(points) * (GRID.num_cells + 1), 4).index_add(0, rows[used], values)
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=1e-6)


def encoder(channels: int) -> PillarEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pillars = PillarEncoder(SCALE, channels, GRID, Z_RANGE_M)
        torch.nn.init.normal_(pillars.norm.weight)
        torch.nn.init.normal_(pillars.norm.bias)
    return pillars


def crowd(padded: int = 200) -> Tensor:
    """[2, P, 4], several in a cell, some outside."""
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(2, padded, 4, generator=draw) * torch.tensor([2.0, 1.5, 0.8, 0.5])
    points[:, 10], points[:, 20, 1], points[:, 30, 0] = math.nan, math.inf, -math.inf
    return points


@pytest.mark.parametrize("channels", [5, 8, 16])
@pytest.mark.parametrize("with_valid", [True, False])
def test_pillars_and_what_their_weights_learn(channels: int, with_valid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pillars, points, count = encoder(channels), crowd(), torch.tensor([200, 90])
    valid = torch.rand(2, 200, generator=torch.Generator().manual_seed(1)) < 0.8 if with_valid else None
    results = []
    for kernels in (True, False):
        monkeypatch.setattr("bev.pillars.in_triton", lambda _, kernels=kernels: kernels)
        canvas, occupied = pillars(points, count, valid)
        upward = torch.linspace(-1, 1, canvas.numel()).view(canvas.shape)
        results.append((occupied, canvas, *torch.autograd.grad((canvas * upward).sum(), list(pillars.parameters()))))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert results[0][0].any()


def test_points_that_learn_take_the_plain_way() -> None:
    points = torch.rand(1, 20, 4).requires_grad_()
    encoder(8)(points, torch.tensor([20]))[0].sum().backward()
    assert points.grad is not None
    assert points.grad.any()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_padding_may_hold_anything(garbage: float) -> None:
    pillars, points, count = encoder(8), torch.rand(2, 40, 4), torch.tensor([25, 0])
    dirty = points.clone()
    dirty[0, 25:], dirty[1] = garbage, garbage
    (canvas, occupied), (expected, expected_occupied) = pillars(dirty, count), pillars(points, count)
    torch.testing.assert_close(canvas, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(occupied, expected_occupied)
    canvas.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pillars.parameters())


@pytest.mark.parametrize("padded", [0, 5])
def test_no_points_are_an_empty_canvas(padded: int) -> None:
    canvas, occupied = encoder(8)(torch.full((2, padded, 4), math.nan), torch.zeros(2, dtype=torch.long))
    assert canvas.shape == (2, 8, *GRID.shape)
    assert not canvas.any()
    assert not occupied.any()
