"""Points into cells in Triton: the row of each point, the sums of each row, and what a pillar says of its points.

Letters: B samples, P points (padded), F features of a point, R rows of the canvas, X and Y cells.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..grid import BEVGrid
from . import launch

_POINTS, _WARPS = 128, 4  # points a program takes on


@triton.jit
def cell_of(x_m, y_m, x_min_m, x_max_m, y_min_m, y_max_m, cell_m, X: tl.constexpr, Y: tl.constexpr):
    """`BEVGrid.flat_index` in the same operations, to the bit: int32, X * Y outside and for NaN."""
    inside = (x_m >= x_min_m) & (x_m < x_max_m) & (y_m >= y_min_m) & (y_m < y_max_m)
    # What is outside may be infinite or NaN, and is never converted.
    x = tl.floor(tl.div_rn(tl.where(inside, x_m, x_min_m) - x_min_m, cell_m))
    y = tl.floor(tl.div_rn(tl.where(inside, y_m, y_min_m) - y_min_m, cell_m))
    i = tl.minimum(tl.maximum(x.to(tl.int32), 0), X - 1)
    j = tl.minimum(tl.maximum(y.to(tl.int32), 0), Y - 1)
    return tl.where(inside, i * Y + j, X * Y)


@triton.jit
def _sum_rows(
    points, valid, count, rows, sums, x_min_m, x_max_m, y_min_m, y_max_m, cell_m, z_min_m, z_max_m, P,
    F: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, VALID: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """The row of each point; and into `sums` [R, 4], which starts at zero, how many there are, and their x, y and z."""
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
    use = use & (z_m >= z_min_m) & (z_m < z_max_m)
    cell = tl.where(use, cell_of(x_m, y_m, x_min_m, x_max_m, y_min_m, y_max_m, cell_m, X, Y), X * Y)
    row = b * (X * Y + 1) + cell
    tl.store(rows + at, row, mask=there)
    # All that is left out shares a row that nobody reads, and would wait for each other there.
    use = use & (cell < X * Y)
    column = tl.arange(0, 4)
    value = tl.load(
        points + at[:, None] * F + column[None, :] - 1, mask=use[:, None] & (column > 0)[None, :], other=1.0
    )
    tl.atomic_add(sums + row[:, None] * 4 + column[None, :], value, mask=use[:, None], sem="relaxed")


@triton.jit
def _decorate(
    points, rows, sums, scale, square, decorated, x_min_m, y_min_m, cell_m, eps, P,
    F: tl.constexpr, CELLS: tl.constexpr, BF: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Points [P, F] -> [P, F + 6], each divided by the root mean square of its channels, and zero where it is of no cell."""
    p = (tl.program_id(0) * BP + tl.arange(0, BP)).to(tl.int64)
    f = tl.arange(0, BF)
    there = p < P
    row = tl.load(rows + p, mask=there, other=0)
    use = there & (row % (CELLS + 1) != CELLS)
    x_m = tl.load(points + p * F, mask=use, other=0.0)
    y_m = tl.load(points + p * F + 1, mask=use, other=0.0)
    z_m = tl.load(points + p * F + 2, mask=use, other=0.0)
    x, y = tl.div_rn(x_m - x_min_m, cell_m), tl.div_rn(y_m - y_min_m, cell_m)
    points_here = tl.load(sums + row * 4, mask=use, other=1.0)
    mean_x_m = tl.div_rn(tl.load(sums + row * 4 + 1, mask=use, other=0.0), points_here)
    mean_y_m = tl.div_rn(tl.load(sums + row * 4 + 2, mask=use, other=0.0), points_here)
    mean_z_m = tl.div_rn(tl.load(sums + row * 4 + 3, mask=use, other=0.0), points_here)
    given = use[:, None] & (f < F)[None, :]
    value = tl.load(points + p[:, None] * F + f[None, :], mask=given, other=0.0)
    value = value * tl.load(scale + f, mask=f < F, other=0.0)[None, :]
    value = tl.where((f == F)[None, :], ((x - tl.floor(x) - 0.5) * cell_m)[:, None], value)
    value = tl.where((f == F + 1)[None, :], ((y - tl.floor(y) - 0.5) * cell_m)[:, None], value)
    value = tl.where((f == F + 2)[None, :], (x_m - mean_x_m)[:, None], value)
    value = tl.where((f == F + 3)[None, :], (y_m - mean_y_m)[:, None], value)
    value = tl.where((f == F + 4)[None, :], (z_m - mean_z_m)[:, None], value)
    value = tl.where((f == F + 5)[None, :], 1.0, value)
    value = tl.where(use[:, None], value, 0.0)
    W: tl.constexpr = F + 6
    form = tl.load(square + f[:, None] * W + f[None, :], mask=(f < W)[:, None] & (f < W)[None, :], other=0.0)
    mean_square = tl.sum(tl.dot(value, form, input_precision="ieee") * value, 1)
    value = value * tl.rsqrt(tl.maximum(mean_square, 0.0) + eps)[:, None]
    tl.store(decorated + p[:, None] * W + f[None, :], value, mask=there[:, None] & (f < W)[None, :])


def sum_rows(
    points: Tensor, count: Tensor, grid: BEVGrid, z_range_m: tuple[float, float], valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`bev.pillars.point_cells` of points [B, P, F] float32; and [R, 4] of each row the number of its points and the sums of
    their x, y and z, 0 for the rows of what is left out.
    """
    samples, padded, features = points.shape
    x_cells, y_cells = grid.shape
    rows = torch.empty(samples * padded, dtype=torch.long, device=points.device)
    sums = torch.zeros(samples * (grid.num_cells + 1), 4, dtype=torch.float32, device=points.device)
    edges = (grid.x_min_m, grid.x_max_m, grid.y_min_m, grid.y_max_m, grid.cell_m, *z_range_m)
    launch(
        _sum_rows, (triton.cdiv(padded, _POINTS), samples),
        points.contiguous(), points if valid is None else valid.contiguous().view(torch.uint8), count.contiguous(),
        rows, sums, *map(float, edges), padded, F=features, X=x_cells, Y=y_cells, VALID=valid is not None, BP=_POINTS,
        num_warps=_WARPS,
    )  # fmt: skip
    return rows, sums


class TritonDecorate(torch.autograd.Function):
    """Points [P, F] float32 with rows and sums of `sum_rows`, and square [F + 6, F + 6] -> [P, F + 6] float32.

    What `bev.pillars.PillarEncoder` adds to its points, scaled as `bev.pillars.normalised_linear` does; only `square` learns.
    """

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, rows: Tensor, sums: Tensor, scale: Tensor, square: Tensor, eps: float, grid: BEVGrid
    ) -> Tensor:
        count, features = points.shape
        decorated = torch.empty(count, features + 6, dtype=torch.float32, device=points.device)
        launch(
            _decorate, (triton.cdiv(count, _POINTS),),
            points.contiguous(), rows, sums, scale.contiguous(), square.contiguous(), decorated,
            *map(float, (grid.x_min_m, grid.y_min_m, grid.cell_m, eps)), count,
            F=features, CELLS=grid.num_cells, BF=max(16, triton.next_power_of_2(features + 6)), BP=_POINTS, num_warps=_WARPS,
        )  # fmt: skip
        ctx.save_for_backward(decorated)
        return decorated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (decorated,) = ctx.saved_tensors
        # Of u = p (p' S p + eps)^-1/2: dS = -1/2 (g' u) u u', whatever the factor was.
        along = (grads[0] * decorated).sum(1, keepdim=True)
        with torch.autocast(decorated.device.type, enabled=False):
            of_square = (decorated * along).T @ decorated * -0.5
        return None, None, None, None, of_square, None, None
