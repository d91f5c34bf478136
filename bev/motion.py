"""What points tell of motion by themselves, before anything is learned: how places move from sweep to sweep, and Doppler.

A walker of 1.3 m/s moves a third of a metre between two sweeps a quarter of a second apart, less than a cell is long; the mean of
what stands in a window around the cell shows it all the same. Of a truck, which is longer than most windows, it shows
little; the classes of the detection head learn by themselves what to make of it.

Letters: B samples, P points (padded), S sums, W windows, X and Y cells.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .grid import BEVGrid
from .kernels import in_triton
from .pillars import point_cells

_WINDOWS_M = (2.4, 4.0, 7.2)
_OVER_GROUND_M = 0.3  # rings on the ground keep their distance from the vehicle, and seem to go with it
_LEAST_POINTS = 4
_LEAST_VARIANCE_S2 = 1e-3  # of ages: of two sweeps 0.063 s apart; what moves in less is less than a LiDAR is exact
_STANDS_MPS = 0.5  # slower returns are of what stands, or noise, and so is their line of sight
_STILL_RETURNS = 0.05  # in every direction, which say that nothing moves: lines that are nearly one tell little across
_FASTEST_MPS, _UNIT_MPS = 15.0, 5.0

MOTION_CHANNELS = 3 * len(_WINDOWS_M)


@torch.no_grad()
def point_drift(
    points: Tensor,
    age_s: Tensor,
    count: Tensor,
    grid: BEVGrid,
    z_range_m: tuple[float, float],
    valid: Tensor | None = None,
) -> Tensor:
    """[B, 3 W, X, Y] float32: velocity x and y in 5 m/s, and whether they are known (1, else all 0), by window of
    2.4, 4 and 7.2 m.

    `points` [B, P, 3 or more] begin with x, y, z (m), where the motion of the vehicle has been taken out of them; `age_s` [B, P];
    of each sample the first `count` [B] count, without what is not `valid` [B, P], below 0.3 m or outside `z_range_m`.
    """
    if in_triton(points.device):
        heights_m = (max(z_range_m[0], _OVER_GROUND_M), z_range_m[1])
        return _by_kernels(points, age_s, count, grid, heights_m, valid)
    use = (points[..., 2] >= _OVER_GROUND_M) & _inside(points, count, grid, z_range_m, valid)
    x_m, y_m, t_s = points[..., 0], points[..., 1], age_s
    moments = torch.stack([torch.ones_like(t_s), t_s, x_m, y_m, t_s * t_s, t_s * x_m, t_s * y_m], dim=-1)
    return torch.cat([_fit(sums) for sums in _windows(points, moments, use, grid)], dim=1)


@torch.no_grad()
def point_velocity(
    points: Tensor, velocity_mps: Tensor, count: Tensor, grid: BEVGrid, z_range_m: tuple[float, float]
) -> Tensor:
    """[B, 3 W, X, Y] float32, as `point_drift`, of points whose velocity over ground is measured along their lines of sight.

    `velocity_mps` [B, P, 2] lies along the line, as Doppler tells it. Radars in several places see an object along several
    lines, and so is seen what is long and near: the velocity is the one that fits all returns in the window that move best
    (after Kellner et al., "Instantaneous lateral velocity estimation of a vehicle using Doppler radar", FUSION 2013), and 0
    across where all lines are one. Where all returns stand, it is known to be 0. What is not finite is no return.
    """
    if in_triton(points.device):
        return _by_kernels(points, velocity_mps, count, grid, z_range_m, None)
    speed = velocity_mps.norm(dim=-1, keepdim=True)
    use = _inside(points, count, grid, z_range_m, None) & (speed < math.inf)[..., 0]
    moving = torch.where(speed > _STANDS_MPS, velocity_mps, 0.0)
    x, y = (moving / speed.clamp(min=_STANDS_MPS)).unbind(-1)
    measured = torch.stack([torch.ones_like(x), x * x, x * y, y * y, *moving.unbind(-1)], dim=-1)
    return torch.cat([_solve(sums) for sums in _windows(points, measured, use, grid)], dim=1)


def _by_kernels(
    points: Tensor,
    values: Tensor,
    count: Tensor,
    grid: BEVGrid,
    z_range_m: tuple[float, float],
    valid: Tensor | None,
) -> Tensor:
    """Of ages [B, P] their drift, of velocities [B, P, 2] the one that fits them."""
    from .kernels.motion import window_motion

    return window_motion(
        points.float(), values.float(), count, grid, z_range_m, valid, reaches=_reaches(grid), least_points=_LEAST_POINTS,
        least_variance_s2=_LEAST_VARIANCE_S2, stands_mps=_STANDS_MPS, still_returns=_STILL_RETURNS,
        fastest_mps=_FASTEST_MPS, unit_mps=_UNIT_MPS,
    )  # fmt: skip


def _reaches(grid: BEVGrid) -> list[int]:
    """Cells from the middle of each window to its edge."""
    return [max(1, round((window_m / grid.cell_m - 1) / 2)) for window_m in _WINDOWS_M]


def _inside(
    points: Tensor, count: Tensor, grid: BEVGrid, z_range_m: tuple[float, float], valid: Tensor | None
) -> Tensor:
    """[B, P] bool, which points lie in a cell."""
    rows = point_cells(points, count, grid, z_range_m, valid).view(points.shape[:2])
    return rows % (grid.num_cells + 1) != grid.num_cells


def _windows(points: Tensor, values: Tensor, use: Tensor, grid: BEVGrid) -> list[Tensor]:
    """Of each window [B, S, X, Y], the sums of `values` [B, P, S] of its points that are in `use` [B, P]."""
    samples = points.shape[0]
    # Points that are not used add nothing, each to another cell: on a GPU those that share one wait for each other.
    anywhere = torch.arange(points.shape[1], device=points.device) % grid.num_cells
    cell = torch.where(use, grid.flat_index(points[..., :2]), anywhere)
    rows = (cell + torch.arange(samples, device=cell.device)[:, None] * grid.num_cells).flatten()
    used = torch.where(use[..., None], values, 0.0).flatten(0, 1).float()  # padding may be NaN
    sums = torch.zeros(samples * grid.num_cells, used.shape[1], device=used.device).index_add(0, rows, used)
    maps = sums.view(samples, *grid.shape, -1).permute(0, 3, 1, 2)
    return [_sum_around(maps, reach) for reach in _reaches(grid)]


def _sum_around(maps: Tensor, reach: int) -> Tensor:
    """Of each cell the sum of those at most `reach` away along each axis; one axis first, so that terms are few."""
    side = 2 * reach + 1
    along_x = F.avg_pool2d(maps, (side, 1), stride=1, padding=(reach, 0))
    return F.avg_pool2d(along_x, (1, side), stride=1, padding=(0, reach)) * side**2


def _fit(sums: Tensor) -> Tensor:
    """[B, 7, X, Y] sums of a window's moments -> [B, 3, X, Y]."""
    points, *moments = sums.unbind(1)
    t, x, y, tt, tx, ty = (s / points.clamp(min=1.0) for s in moments)
    variance = tt - t * t
    known = (points > _LEAST_POINTS - 0.5) & (variance > _LEAST_VARIANCE_S2)
    # Older points lie where it was: place falls with age as fast as it moves.
    velocity = torch.stack([t * x - tx, t * y - ty], dim=1) / torch.where(known, variance, 1.0)[:, None]
    return torch.cat([torch.where(known[:, None], _in_units(velocity), 0.0), known[:, None].float()], dim=1)


def _solve(sums: Tensor) -> Tensor:
    """[B, 6, X, Y] sums of a window's lines of sight and velocities -> [B, 3, X, Y]."""
    points, xx, xy, yy, x, y = sums.unbind(1)
    xx, yy = xx + _STILL_RETURNS, yy + _STILL_RETURNS
    velocity = torch.stack([yy * x - xy * y, xx * y - xy * x], dim=1) / (xx * yy - xy * xy)[:, None]
    known = (points > 0.5)[:, None]
    return torch.cat([torch.where(known, _in_units(velocity), 0.0), known.float()], dim=1)


def _in_units(velocity_mps: Tensor) -> Tensor:
    return velocity_mps.clamp(-_FASTEST_MPS, _FASTEST_MPS) / _UNIT_MPS
