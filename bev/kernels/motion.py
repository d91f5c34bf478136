"""What points tell of motion, in Triton: moments of each cell's points, and fits of the windows around each cell.

Letters: B samples, P points (padded), F features of a point, S sums of a cell, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..grid import BEVGrid
from . import launch
from .points import cell_of

_POINTS, _CELLS = 128, 32  # that a program takes on
_SUMS = 8  # columns of a cell, of which drift has seven and velocity six


@triton.jit
def _sum_moments(
    points, values, valid, count, sums, x_min_m, x_max_m, y_min_m, y_max_m, cell_m, z_min_m, z_max_m, P, stride_b, stride_p,
    F: tl.constexpr, S: tl.constexpr, DRIFT: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, VALID: tl.constexpr,
    STANDS_MPS: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Into `sums` [B * X * Y, S], which starts at zero: of the points of each cell 1, t, x, y, tt, tx, ty; of returns 1, products
    xx, xy, yy of the line of sight of what moves, vx, vy.
    """
    b = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    there = p < P
    at = b * P + p
    use = there & (p < tl.load(count + b))
    if VALID:
        use = use & (tl.load(valid + at, mask=there, other=0) != 0)
    x_m = tl.load(points + at * F, mask=use, other=0.0)
    y_m = tl.load(points + at * F + 1, mask=use, other=0.0)
    z_m = tl.load(points + at * F + 2, mask=use, other=0.0)
    cell = cell_of(x_m, y_m, x_min_m, x_max_m, y_min_m, y_max_m, cell_m, X, Y)
    use = use & (z_m >= z_min_m) & (z_m < z_max_m) & (cell < X * Y)
    c = tl.arange(0, S)[None, :]
    value = values + b * stride_b + p.to(tl.int64) * stride_p
    if DRIFT:
        t = tl.load(value, mask=use, other=0.0)[:, None]
        x, y = x_m[:, None], y_m[:, None]
        moment = tl.where(c == 0, 1.0, tl.where(c == 2, x, tl.where(c == 3, y, t)))
        moment = moment * tl.where(c == 4, t, tl.where(c == 5, x, tl.where(c == 6, y, 1.0)))
        keep = c < 7
    else:
        vx, vy = tl.load(value, mask=use, other=0.0), tl.load(value + 1, mask=use, other=0.0)
        speed = tl.sqrt_rn(vx * vx + vy * vy)
        use, moves = use & (speed < float("inf")), speed > STANDS_MPS
        vx, vy, least = tl.where(moves, vx, 0.0), tl.where(moves, vy, 0.0), tl.where(moves, speed, 1.0)
        x, y = tl.div_rn(vx, least)[:, None], tl.div_rn(vy, least)[:, None]
        line = tl.where(c == 1, x * x, tl.where(c == 2, x * y, y * y))
        moment = tl.where(c == 0, 1.0, tl.where(c == 4, vx[:, None], tl.where(c == 5, vy[:, None], line)))
        keep = c < 6
    row = b * (X * Y) + cell
    tl.atomic_add(sums + row[:, None] * S + c, moment, mask=use[:, None] & keep, sem="relaxed")


@triton.jit
def _column(sums, c, k: tl.constexpr):
    """[BY] of [BY, S]."""
    return tl.sum(tl.where(c == k, sums, 0.0), 1)


@triton.jit
def _in_units(velocity_mps, FASTEST_MPS: tl.constexpr, UNIT_MPS: tl.constexpr):
    """Comparisons, which leave NaN as it is."""
    velocity_mps = tl.where(velocity_mps > FASTEST_MPS, FASTEST_MPS, velocity_mps)
    velocity_mps = tl.where(velocity_mps < -FASTEST_MPS, -FASTEST_MPS, velocity_mps)
    return velocity_mps / UNIT_MPS


@triton.jit
def _store_fit(
    sums, c, out, here, DRIFT: tl.constexpr, LEAST_POINTS: tl.constexpr, LEAST_VARIANCE: tl.constexpr,
    STILL: tl.constexpr, FASTEST_MPS: tl.constexpr, UNIT_MPS: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """Velocity x and y, and whether they are known, of one window's sums [BY, S] into three planes of the cells."""
    number = _column(sums, c, 0)
    if DRIFT:
        least = tl.maximum(number, 1.0)
        t, x, y = _column(sums, c, 1), _column(sums, c, 2), _column(sums, c, 3)
        t, x, y = tl.div_rn(t, least), tl.div_rn(x, least), tl.div_rn(y, least)
        variance = tl.div_rn(_column(sums, c, 4), least) - t * t
        known = (number > LEAST_POINTS - 0.5) & (variance > LEAST_VARIANCE)
        variance = tl.where(known, variance, 1.0)
        vx = tl.div_rn(t * x - tl.div_rn(_column(sums, c, 5), least), variance)
        vy = tl.div_rn(t * y - tl.div_rn(_column(sums, c, 6), least), variance)
        vx, vy = _in_units(vx, FASTEST_MPS, UNIT_MPS), _in_units(vy, FASTEST_MPS, UNIT_MPS)
        vx, vy = tl.where(known, vx, 0.0), tl.where(known, vy, 0.0)
    else:
        known = number > 0.5
        xx, xy, yy = _column(sums, c, 1) + STILL, _column(sums, c, 2), _column(sums, c, 3) + STILL
        x, y, area = _column(sums, c, 4), _column(sums, c, 5), xx * yy - xy * xy
        vx = _in_units(tl.div_rn(yy * x - xy * y, area), FASTEST_MPS, UNIT_MPS)
        vy = _in_units(tl.div_rn(xx * y - xy * x, area), FASTEST_MPS, UNIT_MPS)
        vx, vy = tl.where(known, vx, 0.0), tl.where(known, vy, 0.0)
    tl.store(out, vx, mask=here)
    tl.store(out + CELLS, vy, mask=here)
    tl.store(out + 2 * CELLS, known.to(tl.float32), mask=here)


@triton.jit
def _fit_windows(
    sums, out, R1: tl.constexpr, R2: tl.constexpr, R3: tl.constexpr, S: tl.constexpr, DRIFT: tl.constexpr,
    LEAST_POINTS: tl.constexpr, LEAST_VARIANCE: tl.constexpr, STILL: tl.constexpr, FASTEST_MPS: tl.constexpr,
    UNIT_MPS: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, BY: tl.constexpr,
):  # fmt: skip
    """The fits of the windows of R1 <= R2 <= R3 cells to each side, of BY cells."""
    x, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    y, c = tl.program_id(0) * BY + tl.arange(0, BY), tl.arange(0, S)[None, :]
    total_1 = tl.zeros((BY, S), tl.float32)
    total_2 = tl.zeros((BY, S), tl.float32)
    total_3 = tl.zeros((BY, S), tl.float32)
    for i in range(tl.maximum(x - R3, 0), tl.minimum(x + R3 + 1, X)):
        line_1 = tl.zeros((BY, S), tl.float32)
        line_2 = tl.zeros((BY, S), tl.float32)
        line_3 = tl.zeros((BY, S), tl.float32)
        for dy in tl.static_range(-R3, R3 + 1):
            j = y + dy
            at = ((b * X + i) * Y + j)[:, None] * S + c
            cell = tl.load(sums + at, mask=((j >= 0) & (j < Y))[:, None], other=0.0)
            line_3 += cell
            if dy >= -R2 and dy <= R2:
                line_2 += cell
            if dy >= -R1 and dy <= R1:
                line_1 += cell
        total_3 += line_3
        total_2 += tl.where((i >= x - R2) & (i <= x + R2), line_2, 0.0)
        total_1 += tl.where((i >= x - R1) & (i <= x + R1), line_1, 0.0)
    CELLS: tl.constexpr = X * Y
    here = y < Y
    at = out + b * (9 * CELLS) + x * Y + y
    _store_fit(total_1, c, at, here, DRIFT, LEAST_POINTS, LEAST_VARIANCE, STILL, FASTEST_MPS, UNIT_MPS, CELLS)
    _store_fit(
        total_2, c, at + 3 * CELLS, here, DRIFT, LEAST_POINTS, LEAST_VARIANCE, STILL, FASTEST_MPS, UNIT_MPS, CELLS
    )
    _store_fit(
        total_3, c, at + 6 * CELLS, here, DRIFT, LEAST_POINTS, LEAST_VARIANCE, STILL, FASTEST_MPS, UNIT_MPS, CELLS
    )


def window_motion(
    points: Tensor,
    values: Tensor,
    count: Tensor,
    grid: BEVGrid,
    z_range_m: tuple[float, float],
    valid: Tensor | None,
    *,
    reaches: Sequence[int],
    least_points: float,
    least_variance_s2: float,
    stands_mps: float,
    still_returns: float,
    fastest_mps: float,
    unit_mps: float,
) -> Tensor:
    """[B, 9, X, Y] float32, as of `bev.motion.point_drift` where `values` are ages [B, P], of `point_velocity` where [B, P, 2].

    `points` [B, P, F] float32, `count` [B], `valid` [B, P] bool; `reaches`: cells from a window's middle to its edge, from the
    smallest up.
    """
    samples, padded, features = points.shape
    x_cells, y_cells = grid.shape
    drift = values.ndim == 2
    if values.ndim == 3 and values.stride(2) != 1:
        values = values.contiguous()
    sums = torch.zeros(samples * grid.num_cells, _SUMS, dtype=torch.float32, device=points.device)
    out = torch.empty(samples, 9, x_cells, y_cells, dtype=torch.float32, device=points.device)
    edges = (grid.x_min_m, grid.x_max_m, grid.y_min_m, grid.y_max_m, grid.cell_m, *z_range_m)
    of = {"S": _SUMS, "DRIFT": drift, "X": x_cells, "Y": y_cells}
    launch(
        _sum_moments, (triton.cdiv(padded, _POINTS), samples),
        points.contiguous(), values, points if valid is None else valid.contiguous().view(torch.uint8), count.contiguous(),
        sums, *map(float, edges), padded, values.stride(0), values.stride(1), F=features, VALID=valid is not None,
        STANDS_MPS=stands_mps, BP=_POINTS, num_warps=4, **of,
    )  # fmt: skip
    launch(
        _fit_windows, (triton.cdiv(y_cells, _CELLS), x_cells, samples), sums, out,
        R1=reaches[0], R2=reaches[1], R3=reaches[2], LEAST_POINTS=float(least_points), LEAST_VARIANCE=least_variance_s2,
        STILL=still_returns, FASTEST_MPS=fastest_mps, UNIT_MPS=unit_mps, BY=_CELLS, num_warps=2, **of,
    )  # fmt: skip
    return out
