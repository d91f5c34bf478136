"""Points promise the velocity of what stands by itself on its place, and say where they cannot know."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bev.grid import BEVGrid
from bev.motion import MOTION_CHANNELS, point_drift, point_velocity

GRID = BEVGrid(-51.2, 51.2, -51.2, 51.2, 0.8)
Z_RANGE_M = (-2.0, 4.0)
UNIT_MPS = 5.0


def walker(x_m: float, y_m: float, velocity_mps: tuple[float, float], ages_s: Tensor, each: int = 12) -> Tensor:
    """[P, 4] x, y, z and age of a column of points seen in each sweep."""
    generator = torch.Generator().manual_seed(0)
    body_m = torch.stack([0.2 * torch.randn(each, generator=generator) for _ in range(2)], dim=1)
    rows = []
    for age_s in ages_s.tolist():
        place_m = torch.tensor([x_m, y_m]) - age_s * torch.tensor(velocity_mps) + body_m
        rows.append(torch.cat([place_m, torch.linspace(0.4, 1.7, each)[:, None], torch.full((each, 1), age_s)], dim=1))
    return torch.cat(rows)


def drift_of(points: Tensor, grid: BEVGrid = GRID) -> Tensor:
    return point_drift(points[None, :, :3], points[None, :, 3], torch.tensor([len(points)]), grid, Z_RANGE_M)[0]


places = st.floats(-45.0, 45.0)
speeds = st.floats(-2.0, 2.0)


@settings(deadline=None)
@given(places, places, speeds, speeds, st.sampled_from([(0.0, 0.25), tuple(0.05 * i for i in range(10))]))
def test_it_is_the_velocity_of_what_stands_alone(
    x_m: float, y_m: float, vx_mps: float, vy_mps: float, ages_s: tuple[float, ...]
) -> None:
    drift = drift_of(walker(x_m, y_m, (vx_mps, vy_mps), torch.tensor(ages_s)))
    cell = GRID.flat_index(torch.tensor([[x_m, y_m]]))[0]
    small, *larger = drift.flatten(1)[:, cell].split(3)
    # Windows of 4 m and more hold every point of it; that of 2.4 m may cut off the oldest.
    for window in larger:
        assert window[2] == 1
        assert window[:2].tolist() == pytest.approx([vx_mps / UNIT_MPS, vy_mps / UNIT_MPS], abs=0.01)
    assert small[2] == 1


def test_it_is_not_known_where_nothing_is_and_from_one_sweep() -> None:
    assert not drift_of(torch.zeros(0, 4)).any()
    alone = drift_of(walker(3.0, 2.0, (1.0, 0.0), torch.tensor([0.0])))
    assert not alone.any()
    together = drift_of(walker(3.0, 2.0, (1.0, 0.0), torch.tensor([0.0, 0.05])))  # too soon after each other
    assert not together.any()
    three = walker(3.0, 2.0, (1.0, 0.0), torch.tensor([0.0, 0.25]), each=12)[[0, 5, 15]]
    assert not drift_of(three).any()


@pytest.mark.parametrize("spoil", ["ground", "padding", "invalid"])
def test_what_does_not_count_changes_nothing(spoil: str) -> None:
    points = walker(3.0, 2.0, (1.0, -1.0), torch.tensor([0.0, 0.25]))
    more = walker(3.0, 2.0, (-9.0, 9.0), torch.tensor([0.0, 0.25]))
    more[:, 2] = 0.1 if spoil == "ground" else torch.nan if spoil == "padding" else more[:, 2]
    both = torch.cat([points, more])[None]
    count = torch.tensor([len(points) if spoil == "padding" else both.shape[1]])
    valid = (torch.arange(both.shape[1]) < len(points))[None] if spoil == "invalid" else None
    found = point_drift(both[..., :3], both[..., 3], count, GRID, Z_RANGE_M, valid)[0]
    assert torch.equal(found, drift_of(points))


def test_samples_keep_to_themselves_and_speeds_are_bounded() -> None:
    slow = walker(3.0, 2.0, (1.0, 0.0), torch.tensor([0.0, 0.25]))
    fast = walker(3.0, 2.0, (5.0, 0.0), torch.tensor([0.0, 0.25]))
    fast[:12, 0] += 100.0 / 60  # as fast as nothing on a road
    both = torch.stack([slow, fast])
    found = point_drift(both[..., :3], both[..., 3], torch.tensor([len(slow)] * 2), GRID, Z_RANGE_M)
    assert found.shape == (2, MOTION_CHANNELS, *GRID.shape)
    assert torch.equal(found[0], drift_of(slow))
    assert found.abs().max() <= 3.0


def returns(velocity_mps: tuple[float, float], lines_rad: list[float]) -> Tensor:
    """[P, 2] the part of a velocity along each line of sight, as Doppler tells it."""
    lines = torch.tensor(lines_rad, dtype=torch.float64)
    sight = torch.stack([lines.cos(), lines.sin()], dim=1)
    return ((sight @ torch.tensor(velocity_mps, dtype=torch.float64))[:, None] * sight).float()


def velocity_at(x_m: float, y_m: float, velocity_mps: Tensor) -> Tensor:
    """[3 W, X, Y] of returns [P, 2] from one place, beside which there is padding."""
    count = len(velocity_mps)
    points = torch.tensor([x_m, y_m, 0.5]).expand(1, count + 1, 3).clone()
    points[0, count] = torch.nan
    padded = torch.cat([velocity_mps, torch.full((1, 2), torch.nan)])[None]
    return point_velocity(points, padded, torch.tensor([count]), GRID, Z_RANGE_M)[0]


@settings(deadline=None)
@given(places, places, st.floats(1.0, 10.0), st.floats(-3.1, 3.1), st.floats(-3.1, 3.1), st.integers(1, 9))
def test_along_one_line_nothing_is_known_across_it(
    x_m: float, y_m: float, speed_mps: float, line_rad: float, way_rad: float, count: int
) -> None:
    measured = returns((speed_mps * math.cos(way_rad), speed_mps * math.sin(way_rad)), [line_rad] * count)
    found = velocity_at(x_m, y_m, measured)
    cell = GRID.flat_index(torch.tensor([[x_m, y_m]]))[0]
    moving = measured[0] if measured[0].norm() > 0.5 else torch.zeros(2)
    for window in found.flatten(1)[:, cell].split(3):
        # A little slower than measured: the still return.
        expected = moving * count / (count + 0.05) / UNIT_MPS
        assert window.tolist() == pytest.approx([*expected.tolist(), 1.0], abs=1e-4)
    cells = found[2].sum().item()
    assert cells <= 9  # of 2.4 m, or less at the border
    assert not found[:3][:, found[2] == 0].any()


@settings(deadline=None)
@given(st.floats(3.0, 10.0), st.floats(-3.1, 3.1), st.floats(-3.1, 3.1), st.floats(0.5, 1.0))
def test_along_several_lines_the_whole_velocity_is_known(
    speed_mps: float, way_rad: float, line_rad: float, apart_rad: float
) -> None:
    velocity_mps = (speed_mps * math.cos(way_rad), speed_mps * math.sin(way_rad))
    measured = returns(velocity_mps, [line_rad + k * apart_rad for k in (-1, 0, 1)] * 4)
    measured = measured[measured.norm(dim=1) > 0.5]
    cell = GRID.flat_index(torch.tensor([[3.0, 2.0]]))[0]
    found = velocity_at(3.0, 2.0, measured).flatten(1)[:2, cell] * UNIT_MPS
    assert found.tolist() == pytest.approx(velocity_mps, abs=0.1 * speed_mps)
    mean = measured.mean(0)
    assert (found - torch.tensor(velocity_mps)).norm() <= (mean - torch.tensor(velocity_mps)).norm() + 1e-5


def test_what_stands_beside_what_moves_does_not_slow_it() -> None:
    cell = GRID.flat_index(torch.tensor([[3.0, 2.0]]))[0]
    moving, standing = returns((4.0, 2.0), [0.1, 0.8]), returns((0.3, 0.1), [0.1, 0.8, 1.5])
    alone, together = (velocity_at(3.0, 2.0, v).flatten(1)[:, cell] for v in (moving, torch.cat([moving, standing])))
    assert torch.equal(alone, together)
    assert velocity_at(3.0, 2.0, standing).flatten(1)[:, cell].tolist() == [0.0, 0.0, 1.0] * 3


def test_measured_speeds_are_bounded() -> None:
    assert velocity_at(3.0, 2.0, returns((90.0, -90.0), [0.1, 0.8])).abs().max() == 3.0
