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

from ..grid import BEVGrid
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
def _linear(matrix, ROW: tl.constexpr):
    """The nine numbers of the upper left 3 x 3 of a matrix whose rows have ROW numbers."""
    return (
        tl.load(matrix), tl.load(matrix + 1), tl.load(matrix + 2),
        tl.load(matrix + ROW), tl.load(matrix + ROW + 1), tl.load(matrix + ROW + 2),
        tl.load(matrix + 2 * ROW), tl.load(matrix + 2 * ROW + 1), tl.load(matrix + 2 * ROW + 2),
    )  # fmt: skip


@triton.jit
def _inverse(a, b, c, d, e, f, g, h, i):
    """`bev.lift.table.inverse` of a matrix of nine numbers, row by row."""
    determinant = a * (e * i - f * h) + b * (f * g - d * i) + c * (d * h - e * g)
    return (
        (e * i - f * h) / determinant, (c * h - b * i) / determinant, (b * f - c * e) / determinant,
        (f * g - d * i) / determinant, (a * i - c * g) / determinant, (c * d - a * f) / determinant,
        (d * h - e * g) / determinant, (b * g - a * h) / determinant, (a * e - b * d) / determinant,
    )  # fmt: skip


@triton.jit
def _ray(intrinsics, pose, u, v):
    """Of pixels (u, v) of a camera: their rays in the reference frame, a metre of depth long."""
    a, b, c, d, e, f, g, h, i = _linear(intrinsics, 3)
    a, b, c, d, e, f, g, h, i = _inverse(a, b, c, d, e, f, g, h, i)
    x, y, z = a * u + b * v + c, d * u + e * v + f, g * u + h * v + i
    a, b, c, d, e, f, g, h, i = _linear(pose, 4)
    return a * x + b * y + c * z, d * x + e * y + f * z, g * x + h * y + i * z


@triton.jit
def _place_points(
    intrinsics, poses, present, rows, entries, points, x_min_m, y_min_m, cell_m, z_min_m, z_max_m, depth_min_m, depth_step_m,
    cameras, R, X: tl.constexpr, Y: tl.constexpr, D: tl.constexpr, ACROSS: tl.constexpr, ALONG: tl.constexpr,
    W: tl.constexpr, STRIDE: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Into which cell of all samples' each point of one camera's frustum falls, R outside; and of which depth bin it is."""
    camera = tl.program_id(1)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    there = p < points
    column, step = p // (D * ALONG), p % (D * ALONG)
    depth_m = depth_min_m + depth_step_m * (step.to(tl.float32) + 0.5)
    pixel = column // ACROSS
    across = tl.div_rn((column % ACROSS).to(tl.float32) + 0.5, tl.full((BP,), ACROSS, tl.float32)) - 0.5
    u = (pixel % W).to(tl.float32) * STRIDE + 0.5 * (STRIDE - 1) + across * STRIDE
    v = (pixel // W).to(tl.float32) * STRIDE + 0.5 * (STRIDE - 1)
    pose = poses + camera * 16
    ray_x, ray_y, ray_z = _ray(intrinsics + camera * 9, pose, u, v)
    x_m, y_m = tl.load(pose + 3) + ray_x * depth_m, tl.load(pose + 7) + ray_y * depth_m
    z_m = tl.load(pose + 11) + ray_z * depth_m
    x, y = tl.div_rn(x_m - x_min_m, cell_m), tl.div_rn(y_m - y_min_m, cell_m)
    inside = (x >= 0) & (x < X) & (y >= 0) & (y < Y) & (z_m >= z_min_m) & (z_m < z_max_m)
    inside = inside & (tl.load(present + camera) != 0)
    # A point that is not finite is outside by now, and what its conversion gives is not used.
    i, j = tl.floor(x).to(tl.int32), tl.floor(y).to(tl.int32)
    row = tl.where(inside, (camera // cameras) * (X * Y) + i * Y + j, R)
    at = camera.to(tl.int64) * points + p
    tl.store(rows + at, row, mask=there)
    entry = (camera * (points // (D * ALONG * ACROSS)) + pixel) * D + step // ALONG
    tl.store(entries + at, entry, mask=there)


@triton.jit
def _see_cells(
    intrinsics, poses, present, visible, width_px, height_px, x_min_m, y_min_m, cell_m, HEIGHTS_M: tl.constexpr,
    X: tl.constexpr, Y: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Whether the middle of each cell, at any of the heights over ground, falls into one camera's picture."""
    camera = tl.program_id(1)
    cell = tl.program_id(0) * BC + tl.arange(0, BC)
    x_m = x_min_m + cell_m * ((cell // Y).to(tl.float32) + 0.5)
    y_m = y_min_m + cell_m * ((cell % Y).to(tl.float32) + 0.5)
    pose = poses + camera * 16
    a, b, c, d, e, f, g, h, i = _linear(pose, 4)
    a, b, c, d, e, f, g, h, i = _inverse(a, b, c, d, e, f, g, h, i)
    o_x, o_y, o_z = tl.load(pose + 3), tl.load(pose + 7), tl.load(pose + 11)
    # On the ground, in the camera's frame; and what a metre of height adds.
    x = a * x_m + b * y_m - (a * o_x + b * o_y + c * o_z)
    y = d * x_m + e * y_m - (d * o_x + e * o_y + f * o_z)
    z = g * x_m + h * y_m - (g * o_x + h * o_y + i * o_z)
    k_a, k_b, k_c, k_d, k_e, k_f, k_g, k_h, k_i = _linear(intrinsics + camera * 9, 3)
    seen = cell < 0
    for k in tl.static_range(len(HEIGHTS_M)):
        at_x, at_y, at_z = x + HEIGHTS_M[k] * c, y + HEIGHTS_M[k] * f, z + HEIGHTS_M[k] * i
        u, v = k_a * at_x + k_b * at_y + k_c * at_z, k_d * at_x + k_e * at_y + k_f * at_z
        depth_m = k_g * at_x + k_h * at_y + k_i * at_z
        inside = (u >= -0.5 * depth_m) & (u < (width_px - 0.5) * depth_m)
        inside = inside & (v >= -0.5 * depth_m) & (v < (height_px - 0.5) * depth_m)
        seen = seen | (inside & (depth_m > 0.1))
    seen = seen & (tl.load(present + camera) != 0)
    tl.store(visible + camera.to(tl.int64) * (X * Y) + cell, seen.to(tl.uint8), mask=cell < X * Y)


@triton.jit
def _look_along(intrinsics, poses, rays, pixels, W: tl.constexpr, STRIDE: tl.constexpr, BP: tl.constexpr):
    """The unit rays [pixels, 6] of one camera's feature pixels, and its place in 10 m."""
    camera = tl.program_id(1)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    there = p < pixels
    pose = poses + camera * 16
    u = (p % W).to(tl.float32) * STRIDE + 0.5 * (STRIDE - 1)
    v = (p // W).to(tl.float32) * STRIDE + 0.5 * (STRIDE - 1)
    x, y, z = _ray(intrinsics + camera * 9, pose, u, v)
    norm = tl.sqrt_rn(x * x + y * y + z * z)
    at = rays + (camera.to(tl.int64) * pixels + p) * 6
    tl.store(at, tl.div_rn(x, norm), mask=there)
    tl.store(at + 1, tl.div_rn(y, norm), mask=there)
    tl.store(at + 2, tl.div_rn(z, norm), mask=there)
    nothing = tl.zeros((BP,), tl.float32)
    tl.store(at + 3, nothing + tl.load(pose + 3) / 10, mask=there)
    tl.store(at + 4, nothing + tl.load(pose + 7) / 10, mask=there)
    tl.store(at + 5, nothing + tl.load(pose + 11) / 10, mask=there)


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
    intrinsics: Tensor,
    reference_T_camera: Tensor,
    present: Tensor | None,
    *,
    image_size: tuple[int, int],
    stride: int,
    grid: BEVGrid,
    z_range_m: tuple[float, float],
    depth_min_m: float,
    depth_step_m: float,
    bins: int,
    samples: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Cells of all points of all frustums, and their depth bins, both int32 [points], as `bev.lift.table.LiftTable` has them.

    Args:
        intrinsics, reference_T_camera, present: [B, N, 3, 3] px, [B, N, 4, 4] and [B, N] bool.
        image_size, stride: height and width of a picture, and of a feature pixel, px.
        grid, z_range_m: into what, and heights from and to.
        depth_min_m, depth_step_m: where the nearest depth bin begins, and how far the points of a column lie apart.
        bins: D.
        samples: columns of a feature pixel, points of a depth bin.
    """
    across, along = samples
    batch_size, cameras = intrinsics.shape[:2]
    w = image_size[1] // stride
    points = image_size[0] // stride * w * across * bins * along  # of a camera
    rows = torch.empty(batch_size * cameras * points, dtype=torch.int32, device=intrinsics.device)
    entries = torch.empty_like(rows)
    x_cells, y_cells = grid.shape
    block = 1024
    numbers = (grid.x_min_m, grid.y_min_m, grid.cell_m, *z_range_m, depth_min_m, depth_step_m)
    launch(
        _place_points, (triton.cdiv(points, block), batch_size * cameras),
        *_rig(intrinsics, reference_T_camera, present), rows, entries, points,
        *map(float, numbers),  # whole ones would be compiled in
        cameras, batch_size * x_cells * y_cells, X=x_cells, Y=y_cells, D=bins, ACROSS=across, ALONG=along, W=w,
        STRIDE=stride, BP=block, num_warps=8,
    )  # fmt: skip
    return rows, entries


def see_cells(
    intrinsics: Tensor,
    reference_T_camera: Tensor,
    present: Tensor | None,
    *,
    image_size: tuple[int, int],
    grid: BEVGrid,
    heights_m: tuple[float, ...],
) -> Tensor:
    """`bev.lift.table.visible_cells` [B, N, X, Y] bool, of cameras that are present alone."""
    batch_size, cameras = intrinsics.shape[:2]
    x_cells, y_cells = grid.shape
    visible = torch.empty(batch_size, cameras, x_cells, y_cells, dtype=torch.bool, device=intrinsics.device)
    numbers = (image_size[1], image_size[0], grid.x_min_m, grid.y_min_m, grid.cell_m)
    launch(
        _see_cells, (triton.cdiv(x_cells * y_cells, 256), batch_size * cameras),
        *_rig(intrinsics, reference_T_camera, present), visible.view(torch.uint8), *map(float, numbers),
        HEIGHTS_M=heights_m, X=x_cells, Y=y_cells, BC=256, num_warps=4,
    )  # fmt: skip
    return visible


def look_along(intrinsics: Tensor, reference_T_camera: Tensor, *, image_size: tuple[int, int], stride: int) -> Tensor:
    """[B, N, h * w, 6] float32: the unit ray of each feature pixel in the reference frame, and the camera's place in 10 m."""
    batch_size, cameras = intrinsics.shape[:2]
    height, width = (side // stride for side in image_size)
    rays = torch.empty(batch_size, cameras, height * width, 6, dtype=torch.float32, device=intrinsics.device)
    launch(
        _look_along, (triton.cdiv(height * width, 128), batch_size * cameras),
        *_rig(intrinsics, reference_T_camera, None)[:2], rays, height * width, W=width, STRIDE=stride, BP=128,
        num_warps=4,
    )  # fmt: skip
    return rays


def _rig(intrinsics: Tensor, reference_T_camera: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """As kernels read it."""
    here = torch.ones_like(intrinsics[..., 0, 0], dtype=torch.bool) if present is None else present
    return intrinsics.float().contiguous(), reference_T_camera.float().contiguous(), here.contiguous().view(torch.uint8)
