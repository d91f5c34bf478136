"""Pillars promise: every point counts, padding never does, and a cell says the same whatever the rest of the batch holds."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bev.grid import BEVGrid
from bev.pillars import PillarEncoder, point_cells, scatter_max, scatter_max_reference

GRID = BEVGrid(-4, 4, -3, 3, 0.5)
Z_RANGE_M = (-1.0, 2.0)
SCALE = (0.1, 0.1, 0.5, 1.0)


def encoder(channels: int = 7) -> PillarEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pillars = PillarEncoder(SCALE, channels, GRID, Z_RANGE_M)
        torch.nn.init.normal_(pillars.norm.weight)
        torch.nn.init.normal_(pillars.norm.bias)
    return pillars


def random_points(samples: int = 2, padded: int = 200, seed: int = 0) -> Tensor:
    """Some out of the grid, some too high; clustered, so that cells hold several."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(samples, padded, 4, generator=generator) * torch.tensor([10.0, 8.0, 4.0, 1.0])
    points -= torch.tensor([5.0, 4.0, 1.5, 0.0])
    points[:, ::3, :2] = points[:, :1, :2] + 0.3 * points[:, ::3, :2]
    return points


def naive(pillars: PillarEncoder, points: Tensor, count: Tensor) -> Tensor:
    """One cell at a time."""
    x_cells, y_cells = GRID.shape
    channels = pillars.linear.out_features + 1
    canvas = torch.zeros(points.shape[0], channels, x_cells, y_cells)
    for b in range(points.shape[0]):
        used = points[b, : count[b]]
        used = used[(used[:, 2] >= Z_RANGE_M[0]) & (used[:, 2] < Z_RANGE_M[1])]
        for ix in range(x_cells):
            for iy in range(y_cells):
                low = torch.tensor([GRID.x_min_m + ix * GRID.cell_m, GRID.y_min_m + iy * GRID.cell_m])
                here = used[((used[:, :2] >= low) & (used[:, :2] < low + GRID.cell_m)).all(1)]
                if len(here) == 0:
                    continue
                to_center_m = here[:, :2] - (low + GRID.cell_m / 2)
                to_mean_m = here[:, :3] - here[:, :3].mean(0)
                constant = torch.ones(len(here), 1)
                decorated = torch.cat([here * torch.tensor(SCALE), to_center_m, to_mean_m, constant], dim=1)
                encoded = F.relu(pillars.norm(pillars.linear(decorated)))
                canvas[b, :-1, ix, iy] = encoded.amax(0)
                canvas[b, -1, ix, iy] = math.log1p(len(here))
    return canvas


def test_pillars_agree_with_a_loop_over_cells() -> None:
    pillars, points, count = encoder(), random_points(), torch.tensor([200, 90])
    canvas, occupied = pillars(points, count)
    expected = naive(pillars, points, count)
    torch.testing.assert_close(canvas, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(occupied, expected[:, -1] > 0)
    assert occupied.any()
    assert not occupied.all()


def features_of(pillars: PillarEncoder, point: list[float]) -> Tensor:
    """[C] of the cell of a point that is alone in the world, without the number of points."""
    canvas, occupied = pillars(torch.tensor([[point]]), torch.tensor([1]))
    return canvas.detach().permute(0, 2, 3, 1)[occupied][0, :-1]


def test_every_feature_of_a_point_alone_and_all_of_them_scaled_change_what_is_said() -> None:
    """LayerNorm takes away the common factor of all that goes in. The points are in the middles of cells, where offsets are 0."""
    pillars, first = encoder(64), [0.25, 0.25, 0.3, 0.1]
    others = [[0.75, 0.25, 0.3, 0.1], [0.25, 0.75, 0.3, 0.1], [0.25, 0.25, 0.9, 0.1], [0.25, 0.25, 0.3, 0.3]]
    scaled = [[factor * value for value in first] for factor in (3, 5)]
    said = features_of(pillars, first)
    for other in others + scaled:
        assert (features_of(pillars, other) - said).norm() > 0.03 * said.norm(), other


def test_gradients_agree_with_a_loop_over_cells() -> None:
    pillars, points, count = encoder(), random_points(), torch.tensor([200, 90])
    gradients = []
    for canvas in (pillars(points, count)[0], naive(pillars, points, count)):
        weight = torch.linspace(-1, 1, canvas.numel()).view(canvas.shape)
        gradients.append(torch.autograd.grad((canvas * weight).sum(), list(pillars.parameters())))
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30, 0.1])
def test_padding_may_hold_anything(garbage: float) -> None:
    pillars, points, count = encoder(), random_points(), torch.tensor([150, 0])
    dirty = points.clone()
    dirty[0, 150:] = garbage
    dirty[1] = garbage
    clean_out, dirty_out = pillars(points, count), pillars(dirty, count)
    assert torch.equal(clean_out[0], dirty_out[0])
    assert torch.equal(clean_out[1], dirty_out[1])
    dirty_out[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pillars.parameters())


def test_a_point_with_nan_in_its_place_is_left_out() -> None:
    pillars, points, count = encoder(), random_points(), torch.tensor([200, 200])
    for axis in range(3):
        dirty = points.clone()
        dirty[:, 7, axis] = math.nan
        away = points.clone()
        away[:, 7] = 100.0
        assert torch.equal(pillars(dirty, count)[0], pillars(away, count)[0])


def test_more_padding_changes_nothing() -> None:
    pillars, points, count = encoder(), random_points(), torch.tensor([200, 90])
    longer = torch.cat([points, torch.full((2, 57, 4), math.nan)], dim=1)
    torch.testing.assert_close(pillars(longer, count)[0], pillars(points, count)[0])


def test_no_points_at_all_is_an_empty_canvas() -> None:
    pillars = encoder()
    for points, count in (
        (torch.zeros(2, 0, 4), torch.zeros(2, dtype=torch.long)),
        (torch.zeros(2, 5, 4), torch.zeros(2, dtype=torch.long)),
        (torch.full((2, 5, 4), 50.0), torch.full((2,), 5)),
    ):
        canvas, occupied = pillars(points, count)
        assert canvas.shape == (2, 7, *GRID.shape)
        assert not canvas.any()
        assert not occupied.any()


def test_samples_do_not_mix() -> None:
    pillars, points, count = encoder(), random_points(), torch.tensor([200, 90])
    together = pillars(points, count)[0]
    for b in range(2):
        torch.testing.assert_close(pillars(points[b : b + 1], count[b : b + 1])[0], together[b : b + 1])


def test_the_order_of_points_does_not_matter() -> None:
    pillars, points, count = encoder(), random_points(), torch.tensor([200, 200])
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pillars(points[:, order], count)[0], pillars(points, count)[0], rtol=1e-4, atol=1e-5)


def test_points_on_the_edge_follow_the_grid() -> None:
    """The lower edge is inside, the upper one is not, in x, y and z."""
    below_top = torch.nextafter(torch.tensor(2.0), torch.tensor(0.0)).item()
    points = torch.tensor(
        [[-4.0, -3.0, 0.0], [4.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, -1.0], [0.0, 0.0, 2.0], [0.0, 0.0, below_top]]
    )
    rows = point_cells(points[None], torch.tensor([6]), GRID, Z_RANGE_M)
    middle = 8 * 12 + 6
    assert rows.tolist() == [0, GRID.num_cells, GRID.num_cells, middle, GRID.num_cells, middle]


def test_rows_of_the_second_sample_follow_the_first_sample_and_its_sentinel() -> None:
    points = torch.tensor([[[0.0, 0.0, 0.0]], [[-4.0, -3.0, 0.0]]])
    rows = point_cells(points, torch.tensor([0, 1]), GRID, Z_RANGE_M)
    assert rows.tolist() == [GRID.num_cells, GRID.num_cells + 1]


def test_scatter_max_of_nothing_is_zero() -> None:
    rows = torch.zeros(0, dtype=torch.long)
    assert torch.equal(scatter_max(torch.zeros(0, 5), rows, 3), torch.zeros(3, 5))
    assert torch.equal(scatter_max_reference(torch.zeros(0, 5), rows, 3), torch.zeros(3, 5))


@pytest.mark.parametrize("points", [1, 60])
def test_scatter_max_agrees_with_its_reference(points: int) -> None:
    generator = torch.Generator().manual_seed(points)
    rows = torch.randint(0, 9, (points,), generator=generator)
    outputs, gradients = [], []
    for scatter in (scatter_max, scatter_max_reference):
        features = torch.rand(points, 5, generator=generator.manual_seed(points + 1)).requires_grad_()
        output = scatter(features, rows, 11)
        (gradient,) = torch.autograd.grad((output * torch.arange(55.0).view(11, 5)).sum(), features)
        outputs.append(output.detach())
        gradients.append(gradient)
    assert torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])
