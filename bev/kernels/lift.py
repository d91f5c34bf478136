"""The lift in Triton: a program sums a cell forward, and a pixel backward, so that nothing of the grid is added atomically.

Letters: P feature pixels, D depth bins, E table entries, C channels, R cells of all samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import launch


@dataclass(frozen=True)
class Tile:
    """How many entries one program takes on at a time, and by how many warps. The fullest cell has forty times the mean's."""

    entries: int
    warps: int


CELL = Tile(entries=64, warps=1)
PIXEL = Tile(entries=16, warps=1)


@triton.jit
def _rows(base, index, there, c, C: tl.constexpr, WIDE: tl.constexpr):
    """[E, c] float32 of rows of C channels. WIDE: there are more than 32 bits can number."""
    if WIDE:
        index = index.to(tl.int64)
    return tl.load(base + index[:, None] * C + c[None, :], mask=there[:, None] & (c < C)[None, :], other=0.0).to(
        tl.float32
    )


@triton.jit
def _sum_cell(
    context, depth, entry, offsets, canvas, C: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    C1: tl.constexpr, C2: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """The sum of context x depth over the entries of one cell. Channels in two pieces, for 80 = 64 + 16 is no power of two."""
    cell = tl.program_id(0).to(tl.int64)
    first, second = tl.arange(0, C1), C1 + tl.arange(0, C2)
    begin, end = tl.load(offsets + cell), tl.load(offsets + cell + 1)
    total = tl.zeros((C1,), tl.float32)
    total_2 = tl.zeros((C2,), tl.float32)
    for start in range(begin, end, BE):
        e = start + tl.arange(0, BE)
        there = e < end
        at = tl.load(entry + e, mask=there, other=0)
        weight = tl.load(depth + at, mask=there, other=0.0)[:, None]
        total += tl.sum(_rows(context, at // D, there, first, C, WIDE) * weight, 0)
        if C1 < C:
            total_2 += tl.sum(_rows(context, at // D, there, second, C, WIDE) * weight, 0)
    tl.store(canvas + cell * C + first, total, mask=first < C)
    if C1 < C:
        tl.store(canvas + cell * C + second, total_2, mask=second < C)


@triton.jit
def _sum_pixel(
    context, depth, entry, cell, offsets, grad, of_context, of_depth, R, C: tl.constexpr, WIDE: tl.constexpr,
    C1: tl.constexpr, C2: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Of one pixel: its context's gradient, and that of the probability of each depth bin."""
    pixel = tl.program_id(0).to(tl.int64)
    first, second = tl.arange(0, C1), C1 + tl.arange(0, C2)
    begin, end = tl.load(offsets + pixel), tl.load(offsets + pixel + 1)
    mine = tl.load(context + pixel * C + first, mask=first < C, other=0.0).to(tl.float32)
    mine_2 = tl.load(context + pixel * C + second, mask=second < C, other=0.0).to(tl.float32)
    total = tl.zeros((C1,), tl.float32)
    total_2 = tl.zeros((C2,), tl.float32)
    for start in range(begin, end, BE):
        e = start + tl.arange(0, BE)
        row = tl.load(cell + e, mask=e < end, other=R)
        there = row < R
        at = tl.load(entry + e, mask=there, other=0)
        weight = tl.load(depth + at, mask=there, other=0.0)[:, None]
        rows = _rows(grad, row, there, first, C, WIDE)
        total += tl.sum(rows * weight, 0)
        product = tl.sum(rows * mine[None, :], 1)
        if C1 < C:
            rows_2 = _rows(grad, row, there, second, C, WIDE)
            total_2 += tl.sum(rows_2 * weight, 0)
            product += tl.sum(rows_2 * mine_2[None, :], 1)
        # Several points of one depth bin may fall into the grid.
        tl.atomic_add(of_depth + at, product, mask=there, sem="relaxed")
    tl.store(of_context + pixel * C + first, total, mask=first < C)
    if C1 < C:
        tl.store(of_context + pixel * C + second, total_2, mask=second < C)


@triton.jit
def _place_points(
    rays, origin, present, rows, entries, points, x_min_m, y_min_m, cell_m, z_min_m, z_max_m, depth_min_m, depth_step_m,
    cameras, R, X: tl.constexpr, Y: tl.constexpr, D: tl.constexpr, ACROSS: tl.constexpr, ALONG: tl.constexpr,
    BP: tl.constexpr,
):  # fmt: skip
    """Into which cell of all samples' each point of one camera's frustum falls, R outside; and of which depth bin it is."""
    camera = tl.program_id(1)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    there = p < points
    column, step = p // (D * ALONG), p % (D * ALONG)
    depth_m = depth_min_m + depth_step_m * (step.to(tl.float32) + 0.5)
    each = rays + camera.to(tl.int64) * 3 * (points // (D * ALONG)) + column
    x_m = tl.load(origin + camera * 3) + tl.load(each, mask=there, other=0.0) * depth_m
    y_m = tl.load(origin + camera * 3 + 1) + tl.load(each + points // (D * ALONG), mask=there, other=0.0) * depth_m
    z_m = (
        tl.load(origin + camera * 3 + 2) + tl.load(each + 2 * (points // (D * ALONG)), mask=there, other=0.0) * depth_m
    )
    x, y = tl.div_rn(x_m - x_min_m, cell_m), tl.div_rn(y_m - y_min_m, cell_m)
    inside = (x >= 0) & (x < X) & (y >= 0) & (y < Y) & (z_m >= z_min_m) & (z_m < z_max_m)
    inside = inside & (tl.load(present + camera) != 0)
    # A point that is not finite is outside by now, and what its conversion gives is not used.
    i, j = tl.floor(x).to(tl.int32), tl.floor(y).to(tl.int32)
    row = tl.where(inside, (camera // cameras) * (X * Y) + i * Y + j, R)
    at = camera.to(tl.int64) * points + p
    tl.store(rows + at, row, mask=there)
    entry = (camera * (points // (D * ALONG * ACROSS)) + column // ACROSS) * D + step // ALONG
    tl.store(entries + at, entry, mask=there)


def _pieces(channels: int) -> dict[str, int]:
    """Powers of two that together hold the channels."""
    first = 1 << (channels.bit_length() - 1)
    return {"C1": first, "C2": triton.next_power_of_2(max(channels - first, 1))}


class TritonSplat(torch.autograd.Function):
    """context [P, C] and depth [P * D], both float32, and the parts of a `LiftTable` -> [R, C] float32."""

    @staticmethod
    def forward(
        ctx: Any, context: Tensor, depth: Tensor, entry: Tensor, offsets: Tensor, pixel_entry: Tensor, pixel_cell: Tensor,
        pixel_offsets: Tensor,
    ) -> Tensor:  # fmt: skip
        context, depth = context.contiguous(), depth.contiguous()
        cells, channels = offsets.numel() - 1, context.shape[1]
        canvas = torch.empty(cells, channels, device=context.device, dtype=torch.float32)
        launch(
            _sum_cell, (cells,),
            context, depth, entry, offsets, canvas, C=channels, D=depth.numel() // max(len(context), 1),
            WIDE=context.numel() >= 2**31, **_pieces(channels), BE=CELL.entries, num_warps=CELL.warps,
        )  # fmt: skip
        ctx.save_for_backward(context, depth, pixel_entry, pixel_cell, pixel_offsets)
        return canvas

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        context, depth, entry, cell, offsets = ctx.saved_tensors
        pixels, channels = context.shape
        of_context, of_depth = torch.empty_like(context), torch.zeros_like(depth)
        grad = grads[0].contiguous()
        launch(
            _sum_pixel, (pixels,),
            context, depth, entry, cell, offsets, grad, of_context, of_depth, len(grad), C=channels,
            WIDE=grad.numel() >= 2**31, **_pieces(channels), BE=PIXEL.entries, num_warps=PIXEL.warps,
        )  # fmt: skip
        return of_context, of_depth, None, None, None, None, None


def place_points(
    rays: Tensor,
    origin: Tensor,
    present: Tensor,
    *,
    cell_m: float,
    low_m: tuple[float, float],
    shape: tuple[int, int],
    z_range_m: tuple[float, float],
    depth_min_m: float,
    depth_step_m: float,
    bins: int,
    samples: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Cells of all points of all frustums, and their depth bins, both int32 [points], as `bev.lift.table.LiftTable` has them.

    Args:
        rays: [B, N, 3, columns] in the reference frame, a metre of depth long.
        origin: [B, N, 3] the cameras' places, metres.
        present: [B, N] bool.
        cell_m, low_m, shape: the grid's cells, where it begins in x and y, and (X, Y).
        z_range_m: heights from and to.
        depth_min_m, depth_step_m: where the nearest depth bin begins, and how far the points of a column lie apart.
        bins: D.
        samples: columns of a feature pixel, points of a depth bin.
    """
    across, along = samples
    batch_size, cameras = origin.shape[:2]
    points = rays.shape[-1] * bins * along  # of a camera
    rows = torch.empty(batch_size * cameras * points, dtype=torch.int32, device=rays.device)
    entries = torch.empty_like(rows)
    x_cells, y_cells = shape
    block = 1024
    numbers = map(float, (*low_m, cell_m, *z_range_m, depth_min_m, depth_step_m))  # whole ones would be compiled in
    launch(
        _place_points, (triton.cdiv(points, block), batch_size * cameras),
        rays.contiguous(), origin.contiguous(), present.contiguous().view(torch.uint8), rows, entries, points, *numbers,
        cameras, batch_size * x_cells * y_cells, X=x_cells, Y=y_cells, D=bins, ACROSS=across, ALONG=along, BP=block,
        num_warps=8,
    )  # fmt: skip
    return rows, entries
