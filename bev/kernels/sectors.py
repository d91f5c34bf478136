"""What LiDARs and radars can see of, seen from above, in Triton: azimuth sectors of points, and cells in a radar's view.

Letters: B samples, P points (padded), F features of a point, S azimuth sectors, R radars, X and Y cells.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..grid import BEVGrid
from . import launch


@triton.jit
def _atan2(y, x):
    """To 3e-7 rad. By an odd polynomial, least squares at Chebyshev nodes, for the interpreter has no CUDA library."""
    ax, ay = tl.abs(x), tl.abs(y)
    high, low = tl.maximum(ax, ay), tl.minimum(ax, ay)
    t = tl.div_rn(low, tl.where(high > 0, high, 1.0))
    s = t * t
    p = 0.00293276194 * s - 0.0164131904
    p = p * s + 0.0432782418
    p = p * s - 0.075569002
    p = p * s + 0.106674869
    p = p * s - 0.142111061
    p = p * s + 0.199936943
    p = p * s - 0.33333138
    angle = (p * s + 0.999999994) * t
    angle = tl.where(ay > ax, 1.5707963267948966 - angle, angle)
    angle = tl.where(x < 0, 3.141592653589793 - angle, angle)
    return tl.where(y < 0, -angle, angle)


@triton.jit
def _find_sectors(points, covered, valid, P, HALF, F: tl.constexpr, S: tl.constexpr, BP: tl.constexpr):
    b = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    at = b * P + p
    x_m = tl.load(points + at * F, mask=p < P, other=0.0)
    y_m = tl.load(points + at * F + 1, mask=p < P, other=0.0)
    finite = (tl.abs(x_m) < float("inf")) & (tl.abs(y_m) < float("inf"))  # what is not lies in no cell either
    turn = (_atan2(tl.where(finite, y_m, 0.0), tl.where(finite, x_m, 0.0)) + HALF) / (2 * HALF)
    sector = tl.minimum(tl.maximum(tl.floor(turn * S).to(tl.int32), 0), S - 1)
    seen = finite & (tl.load(covered + b * S + sector, mask=p < P, other=0.0) > 0)
    tl.store(valid + at, seen.to(tl.uint8), mask=p < P)


@triton.jit
def _view_cells(
    mounts, present, view, x_min_m, y_min_m, cell_m, least_cosine, X: tl.constexpr, Y: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    radar = tl.program_id(1)
    cell = tl.program_id(0) * BC + tl.arange(0, BC)
    mount = mounts + radar * 16
    x_m = x_min_m + cell_m * ((cell // Y).to(tl.float32) + 0.5) - tl.load(mount + 3)
    y_m = y_min_m + cell_m * ((cell % Y).to(tl.float32) + 0.5) - tl.load(mount + 7)
    ahead_x, ahead_y = tl.load(mount), tl.load(mount + 4)
    norm = tl.maximum(tl.sqrt_rn(ahead_x * ahead_x + ahead_y * ahead_y), 1e-6)
    along_m = x_m * tl.div_rn(ahead_x, norm) + y_m * tl.div_rn(ahead_y, norm)
    seen = (along_m >= tl.sqrt_rn(x_m * x_m + y_m * y_m) * least_cosine) & (tl.load(present + radar) != 0)
    tl.store(view + radar.to(tl.int64) * (X * Y) + cell, seen.to(tl.uint8), mask=cell < X * Y)


def in_sectors(points: Tensor, covered: Tensor) -> Tensor:
    """[B, P, F], [B, S] float32 -> [B, P] bool, which points lie in azimuth sectors that are covered at all.

    Sector s starts at -pi + s * 2 pi / S. A point within 1e-6 rad of an edge may be taken for one of its neighbour; one that is
    not finite is of none.
    """
    samples, padded, features = points.shape
    valid = torch.empty(samples, padded, dtype=torch.bool, device=points.device)
    launch(
        _find_sectors, (triton.cdiv(padded, 256), samples),
        points.contiguous(), covered.contiguous(), valid.view(torch.uint8), padded, math.pi, F=features,
        S=covered.shape[1], BP=256, num_warps=4,
    )  # fmt: skip
    return valid


def cells_in_view(reference_T_radar: Tensor, present: Tensor, grid: BEVGrid, half_view_rad: float) -> Tensor:
    """[B, R, 4, 4], [B, R] bool -> [B, R, X, Y] bool: cell centres within the angle around each radar's x axis, from above."""
    samples, radars = present.shape
    x_cells, y_cells = grid.shape
    view = torch.empty(samples, radars, x_cells, y_cells, dtype=torch.bool, device=present.device)
    numbers = (grid.x_min_m, grid.y_min_m, grid.cell_m, math.cos(half_view_rad))
    launch(
        _view_cells, (triton.cdiv(x_cells * y_cells, 256), samples * radars),
        reference_T_radar.float().contiguous(), present.contiguous().view(torch.uint8), view.view(torch.uint8),
        *map(float, numbers), X=x_cells, Y=y_cells, BC=256, num_warps=4,
    )  # fmt: skip
    return view
