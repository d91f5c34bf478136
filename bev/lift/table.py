"""Lift-Splat with a look-up table (Philion and Fidler, "Lift, Splat, Shoot", ECCV 2020), without the frustum tensor.

Every feature pixel predicts a context vector and a distribution over depth bins. The table, computed from the calibration alone,
lists which (pixel, depth bin) falls into which BEV cell; a weighted `embedding_bag` sums context x probability per cell.

Letters: B samples, N cameras, h and w feature pixels, D depth bins, E table entries, C channels, X and Y cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..grid import BEVGrid
from ..kernels import in_triton

# Of the cameras of a sample whose frustums are looked up together on a CPU: fewer cost more calls than work, more its cache.
_POINTS_AT_ONCE = 1 << 18
_HEIGHTS_M = (0.0, 1.0, 2.0)  # over ground, at which a cell is looked at


@dataclass(frozen=True)
class DepthBins:
    """D bins of equal width between `min_m` and `max_m`, metres along the camera's z axis."""

    min_m: float
    max_m: float
    count: int

    def __post_init__(self) -> None:
        if not (0 < self.min_m < self.max_m and self.count >= 2):
            raise ValueError(
                f"depth bins: expected 0 < min_m < max_m and count >= 2, got {self.min_m}, {self.max_m}, {self.count}"
            )

    @property
    def width_m(self) -> float:
        return (self.max_m - self.min_m) / self.count

    def centers_m(self, device: torch.device | None = None) -> Tensor:
        """[D] float32."""
        return self.min_m + self.width_m * (torch.arange(self.count, device=device, dtype=torch.float32) + 0.5)

    def index(self, depth_m: Tensor) -> Tensor:
        """int64 bin of each depth, -1 outside the half-open range and for NaN."""
        inside = (depth_m >= self.min_m) & (depth_m < self.max_m)
        position = torch.nan_to_num((depth_m - self.min_m) / self.width_m, nan=0.0, posinf=0.0, neginf=0.0)
        return torch.where(inside, position.floor().clamp(0, self.count - 1).long(), -1)


@dataclass(frozen=True)
class LiftTable:
    """Which depth-bin entries of which feature pixels fall into which cell, sorted by cell.

    `entry` indexes the depth distribution laid out as [B, N, h, w, D] and flattened; `entry // D` is the pixel. The entries of
    flat cell b * X * Y + cell are `entry[offsets[i]:offsets[i + 1]]`. `visible` is where a camera looks at all.
    The backward pass goes through the same entries by pixel: those of pixel p are at pixel_offsets[p]:pixel_offsets[p + 1] of
    `pixel_entry`, and fall into the cells `pixel_cell`.

    On a GPU E is that of all points of all frustums, for how many of them fall into the grid depends on the calibration, and the
    host would have to wait for it: those that fall nowhere lie beyond the last of `offsets`, and have the `pixel_cell` B * X * Y.
    """

    entry: Tensor  # [E] int32
    offsets: Tensor  # [B * X * Y + 1] int32
    visible: Tensor  # [B, N, X, Y] bool
    pixel_entry: Tensor  # [E] int32, `entry` by pixel
    pixel_cell: Tensor  # [E] int32 b * X * Y + cell of each
    pixel_offsets: Tensor  # [B * N * h * w + 1] int32


@dataclass(frozen=True)
class Frustums:
    """What of a camera's picture is lifted, and into what."""

    image_size: tuple[int, int]  # height and width, px
    stride: int  # px of a feature pixel
    bins: DepthBins
    grid: BEVGrid
    z_range_m: tuple[float, float]
    samples: tuple[int, int] = (1, 1)
    """(across, along): a feature pixel is looked at in `across` columns that share its width, a depth bin at `along` depths that
    share its length."""


def inverse(matrix: Tensor) -> Tensor:
    """The inverse of [.., 3, 3], or of affine [.., 4, 4] (last row 0 0 0 1); of a singular matrix, infinite or NaN.

    By cofactors: `torch.linalg.inv` does not export, and on a GPU makes the host wait to hear whether the matrix was singular.
    """
    rows = matrix[..., :3, :3].unbind(-2)
    cofactors = [torch.linalg.cross(rows[(i + 1) % 3], rows[(i + 2) % 3], dim=-1) for i in range(3)]
    determinant = (rows[0] * cofactors[0]).sum(-1)[..., None, None]
    linear = torch.stack(cofactors, dim=-1) / determinant
    if matrix.shape[-1] == 3:
        return linear
    return torch.cat([torch.cat([linear, -linear @ matrix[..., :3, 3:]], dim=-1), matrix[..., 3:, :]], dim=-2)


def feature_pixels(image_size: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
    """[h, w, 3] float32 homogeneous image position (u, v, 1) of the centre of each `stride` x `stride` feature pixel.

    Pixel centres lie on whole numbers, as in the nuScenes intrinsics, so a feature pixel's centre is half a pixel short of
    the middle of its span.
    """
    height, width = image_size
    if height % stride or width % stride:
        raise ValueError(f"image size {height} x {width} px is no multiple of the feature stride {stride} px")
    v = torch.arange(height // stride, device=device, dtype=torch.float32) * stride + (stride - 1) / 2
    u = torch.arange(width // stride, device=device, dtype=torch.float32) * stride + (stride - 1) / 2
    vv, uu = torch.meshgrid(v, u, indexing="ij")
    return torch.stack([uu, vv, torch.ones_like(uu)], dim=-1)


def frustum_cells(intrinsics: Tensor, reference_T_camera: Tensor, of: Frustums) -> Tensor:
    """[B, N, h * w * across, D * along] int64 flat cell of every point of every frustum, `num_cells` outside.

    `intrinsics` [B, N, 3, 3] px; `reference_T_camera` [B, N, 4, 4], any affine map (BEV augmentation may mirror and scale).
    """
    device, along = intrinsics.device, of.samples[1]
    steps_m = ((torch.arange(along, device=device) + 0.5) / along - 0.5) * of.bins.width_m
    depths_m = (of.bins.centers_m(device)[:, None] + steps_m).flatten()
    origin = reference_T_camera[..., :3, 3, None, None].float()
    # A plane for each coordinate, depth last: all that follows runs along it.
    points_m = (
        origin + _rays(intrinsics, reference_T_camera, of)[..., None] * depths_m
    )  # [B, N, 3, h * w * across, D * along]
    z_m, cells = points_m[:, :, 2], of.grid.flat_index(points_m[:, :, :2].movedim(2, -1))
    return torch.where((z_m >= of.z_range_m[0]) & (z_m < of.z_range_m[1]), cells, of.grid.num_cells)


def _rays(intrinsics: Tensor, reference_T_camera: Tensor, of: Frustums) -> Tensor:
    """[B, N, 3, h * w * across] in the reference frame, a metre of depth long."""
    across = of.samples[0]
    columns_px = ((torch.arange(across, device=intrinsics.device) + 0.5) / across - 0.5) * of.stride
    u, v, one = feature_pixels(of.image_size, of.stride, intrinsics.device).flatten(0, 1)[:, None].unbind(-1)
    pixels = torch.stack(torch.broadcast_tensors(u + columns_px, v, one)).flatten(1)  # [3, h * w * across]
    return reference_T_camera[..., :3, :3].float() @ (inverse(intrinsics.float()) @ pixels)


def pixel_rays(intrinsics: Tensor, reference_T_camera: Tensor, *, image_size: tuple[int, int], stride: int) -> Tensor:
    """[B, N, h * w, 6] float32: the unit ray of each feature pixel in the reference frame, and its camera's place in 10 m."""
    if in_triton(intrinsics.device):
        from ..kernels.lift import look_along

        return look_along(intrinsics, reference_T_camera, image_size=image_size, stride=stride)
    pixels = feature_pixels(image_size, stride, intrinsics.device)
    rays = torch.einsum("bnij,hwj->bnhwi", inverse(intrinsics), pixels)
    rays = torch.einsum("bnij,bnhwj->bnhwi", reference_T_camera[..., :3, :3], rays)
    rays = rays / rays.norm(dim=-1, keepdim=True)
    place = (reference_T_camera[:, :, None, None, :3, 3] / 10).expand_as(rays)
    return torch.cat([rays, place], dim=-1).flatten(2, 3)


def visible_cells(
    intrinsics: Tensor,
    reference_T_camera: Tensor,
    *,
    image_size: tuple[int, int],
    grid: BEVGrid,
    heights_m: tuple[float, ...] = _HEIGHTS_M,
) -> Tensor:
    """[B, N, X, Y] bool: does the middle of the cell, at any of the heights over ground, fall into the camera's picture?"""
    height, width = image_size
    x_m, y_m = grid.centers_m(intrinsics.device).flatten(0, 1).unbind(-1)
    to_pixels = intrinsics.float() @ inverse(reference_T_camera.float())[..., :3, :]  # [B, N, 3, 4]
    flat = torch.cat([to_pixels[..., :2], to_pixels[..., 3:]], dim=-1)
    ground = flat @ torch.stack([x_m, y_m, torch.ones_like(x_m)])  # [B, N, 3, X * Y] at height 0
    visible = torch.zeros((), dtype=torch.bool, device=intrinsics.device)
    for height_m in heights_m:
        u, v, depth_m = (ground + height_m * to_pixels[..., 2, None]).unbind(2)
        inside = (u >= -0.5 * depth_m) & (u < (width - 0.5) * depth_m)
        inside &= (v >= -0.5 * depth_m) & (v < (height - 0.5) * depth_m)
        visible = visible | (inside & (depth_m > 0.1))
    return visible.unflatten(-1, grid.shape)


@dataclass(frozen=True)
class LiftPoints:
    """The points of frustums that fall into the grid, by feature pixel."""

    entry: Tensor  # [E] int64 depth bin of each, as in `LiftTable.entry`; those of one pixel follow each other
    cell: Tensor  # [E] int64, b * X * Y + cell
    visible: Tensor  # [B, N, X, Y] bool


def lift_points(intrinsics: Tensor, reference_T_camera: Tensor, present: Tensor | None, of: Frustums) -> LiftPoints:
    """What a lift looks up, of B rigs of N cameras; for the arguments see `build_lift_table`. Exports."""
    cells, inside, visible = _looked_at(intrinsics, reference_T_camera, present, of)
    first_cell = torch.arange(cells.shape[0], device=cells.device).view(-1, 1, 1, 1) * of.grid.num_cells
    point = inside.flatten().nonzero().squeeze(1)
    cell = (cells + first_cell).flatten()[point]
    entry = _entries(inside.numel(), of, cells.device)[point]
    return LiftPoints(entry, cell, visible)


def _looked_at(
    intrinsics: Tensor, reference_T_camera: Tensor, present: Tensor | None, of: Frustums
) -> tuple[Tensor, Tensor, Tensor]:
    """`frustum_cells`, which of them are in the grid (bool), and `visible_cells`: an absent camera has none of either."""
    if present is not None:
        # An absent camera's calibration may hold anything, a singular matrix too.
        matrix = present[:, :, None, None]
        intrinsics = torch.where(matrix, intrinsics, torch.eye(3, device=intrinsics.device))
        reference_T_camera = torch.where(matrix, reference_T_camera, torch.eye(4, device=intrinsics.device))
    cells = frustum_cells(intrinsics, reference_T_camera, of)
    inside = cells < of.grid.num_cells
    visible = visible_cells(intrinsics, reference_T_camera, image_size=of.image_size, grid=of.grid)
    if present is not None:
        inside = inside & present[:, :, None, None]
        visible = visible & present[:, :, None, None]
    return cells, inside, visible


def _entries(points: int, of: Frustums, device: torch.device) -> Tensor:
    """[points] int64, the depth bin of each: they lie as pixel, column within it, depth bin, depth within it."""
    across, along = of.samples
    entries = torch.arange(points // (across * along), device=device).view(-1, 1, of.bins.count, 1)
    return entries.expand(-1, across, -1, along).reshape(-1)


@torch.no_grad()
def build_lift_table(
    intrinsics: Tensor,
    reference_T_camera: Tensor,
    present: Tensor | None = None,
    *,
    image_size: tuple[int, int],
    stride: int,
    bins: DepthBins,
    grid: BEVGrid,
    z_range_m: tuple[float, float],
    samples: tuple[int, int] = (1, 1),
    by_camera: bool | None = None,
) -> LiftTable:
    """The table for B rigs of N cameras, on the device of their calibration, on which alone it depends.

    `intrinsics` [B, N, 3, 3] px at the network's image size; `reference_T_camera` [B, N, 4, 4]; `present` [B, N] bool leaves out
    the entries of absent cameras. Entries outside the grid or `z_range_m` are left out.

    `samples` (across, along): points taken of each depth bin of each feature pixel, each an entry of the table. With one alone,
    cells shorter than a bin or a far pixel is wide stay empty in a moire pattern (a third of all cells that cameras
    see, with the tiny model's 1 m bins and 0.8 m cells).

    `by_camera`: some cameras at a time, which stay in the cache of a processor, or all at once, in sizes that do not depend on
    data (see `LiftTable`); None chooses by the device.

    Raises:
        ValueError: the batch has more depth bins or cells than int32 can number.
    """
    of = Frustums(image_size, stride, bins, grid, z_range_m, samples)
    batch_size, cameras = intrinsics.shape[:2]
    pixels_each = (image_size[0] // stride) * (image_size[1] // stride)
    pixels = batch_size * cameras * pixels_each
    points = pixels * bins.count * samples[0] * samples[1]
    if max(points, batch_size * grid.num_cells) >= 2**31:
        raise ValueError(
            f"a batch of {batch_size} samples has {points:,} points in depth bins and {batch_size * grid.num_cells:,} "
            "cells; a lift table numbers fewer than 2**31 of each: use smaller batches"
        )
    if not (intrinsics.device.type == "cpu" if by_camera is None else by_camera):
        return _padded_table(intrinsics, reference_T_camera, present, of)

    def points_of(b: slice, n: slice) -> LiftPoints:
        here = None if present is None else present[b, n]
        points = lift_points(intrinsics[b, n], reference_T_camera[b, n], here, of)
        first = (b.start * cameras + n.start) * pixels_each * bins.count
        return LiftPoints((points.entry + first).int(), (points.cell + b.start * grid.num_cells).int(), points.visible)

    at_once = max(1, _POINTS_AT_ONCE * batch_size * cameras // max(points, 1))
    chunks = [slice(n, min(n + at_once, cameras)) for n in range(0, cameras, at_once)]
    samples_of = [[points_of(slice(b, b + 1), n) for n in chunks] for b in range(batch_size)]
    entry, cell, by_cell, sorted_cells = [], [], [], []
    for parts in samples_of:
        entry.append(torch.cat([part.entry for part in parts]))
        cell.append(torch.cat([part.cell for part in parts]))
        # A stable sort keeps the order of summation, and so every bit of the output, the same from run to run.
        in_order, order = torch.sort(cell[-1], stable=True)
        sorted_cells.append(in_order)
        by_cell.append(entry[-1][order])
    visible = torch.cat([part.visible.flatten(0, 1) for parts in samples_of for part in parts])
    pixel_entry = torch.cat(entry)
    cell_edges = torch.arange(batch_size * grid.num_cells + 1, device=visible.device, dtype=torch.int32)
    pixel_edges = torch.arange(pixels + 1, device=visible.device, dtype=torch.int32)
    return LiftTable(
        entry=torch.cat(by_cell),
        offsets=torch.searchsorted(torch.cat(sorted_cells), cell_edges, out_int32=True),
        visible=visible.unflatten(0, (batch_size, cameras)),
        pixel_entry=pixel_entry,
        pixel_cell=torch.cat(cell),
        pixel_offsets=torch.searchsorted(pixel_entry // bins.count, pixel_edges, out_int32=True),
    )


def _padded_table(intrinsics: Tensor, reference_T_camera: Tensor, present: Tensor | None, of: Frustums) -> LiftTable:
    """`build_lift_table` in sizes that do not depend on the calibration: points that fall nowhere stay."""
    batch_size = intrinsics.shape[0]
    device, rows = intrinsics.device, batch_size * of.grid.num_cells
    if in_triton(device):
        from ..kernels.lift import place_points, see_cells

        rig = intrinsics, reference_T_camera, present
        cell, entry = place_points(
            *rig, image_size=of.image_size, stride=of.stride, grid=of.grid, z_range_m=of.z_range_m,
            depth_min_m=of.bins.min_m, depth_step_m=of.bins.width_m / of.samples[1], bins=of.bins.count,
            samples=of.samples,
        )  # fmt: skip
        visible = see_cells(*rig, image_size=of.image_size, grid=of.grid, heights_m=_HEIGHTS_M)
    else:
        cells, inside, visible = _looked_at(intrinsics, reference_T_camera, present, of)
        first_cell = torch.arange(batch_size, device=device).view(-1, 1, 1, 1) * of.grid.num_cells
        cell = torch.where(inside, cells + first_cell, rows).flatten().int()
        entry = _entries(inside.numel(), of, device).int()
    # A sort by radix goes through the bits of its numbers: half of them do for a sample of 32,767 cells.
    number = torch.int16 if rows <= torch.iinfo(torch.int16).max else torch.int32
    in_order, order = torch.sort(cell.to(number), stable=True)
    of_each = of.samples[0] * of.bins.count * of.samples[1]  # points of a pixel
    return LiftTable(
        entry=entry[order],
        offsets=torch.searchsorted(in_order, torch.arange(rows + 1, device=device, dtype=number), out_int32=True),
        visible=visible,
        pixel_entry=entry,
        pixel_cell=cell,
        pixel_offsets=torch.arange(0, len(cell) + 1, of_each, device=device, dtype=torch.int32),
    )


def cells_of(table: LiftTable) -> Tensor:
    """[E] int64, b * X * Y + cell of each of `table.entry`, and the number of cells of what is none."""
    each = torch.arange(table.entry.numel(), device=table.entry.device, dtype=torch.int32)
    return torch.searchsorted(table.offsets, each, right=True) - 1


def lift_splat(context: Tensor, depth: Tensor, table: LiftTable) -> Tensor:
    """Sum context x depth probability into the grid: [B, N, h, w, C], [B, N, h, w, D] -> [B, C, X, Y] float32.

    Never forms the [.., D, C] frustum: each cell is one bag of a weighted `embedding_bag` over the feature pixels, or on a GPU
    the sum of one program.
    """
    samples, _, x_cells, y_cells = table.visible.shape
    channels, bins = context.shape[-1], depth.shape[-1]
    pixels, probabilities = context.reshape(-1, channels).float(), depth.reshape(-1).float()
    if in_triton(context.device):
        from ..kernels.lift import TritonSplat

        canvas = TritonSplat.apply(  # type: ignore[no-untyped-call]
            pixels, probabilities, table.entry, table.offsets, table.pixel_entry, table.pixel_cell, table.pixel_offsets
        )
    elif torch.compiler.is_compiling():  # which sees through embedding_bag, but not through a backward pass of our own
        weight = probabilities.index_select(0, table.entry)
        canvas = _weighted_sums(pixels, table.entry // bins, table.offsets, weight)
    else:
        canvas = _Splat.apply(pixels, probabilities, bins, table)  # type: ignore[no-untyped-call]
    return canvas.view(samples, x_cells, y_cells, channels).permute(0, 3, 1, 2)


def _weighted_sums(rows: Tensor, index: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Bag i is the sum of `rows[index] * weight` over offsets[i]:offsets[i + 1]; what lies beyond the last offset is none."""
    ends = F.pad(offsets, (0, 1), value=index.numel())  # one more bag, of what is none
    return F.embedding_bag(index, rows, ends, mode="sum", per_sample_weights=weight, include_last_offset=True)[:-1]


class _Splat(torch.autograd.Function):
    """Bags of pixels by cell forward; bags of cells by pixel backward, where `embedding_bag` alone would sort on every call."""

    @staticmethod
    def forward(ctx: Any, context: Tensor, depth: Tensor, bins: int, table: LiftTable) -> Tensor:
        ctx.save_for_backward(context, depth)
        ctx.table = table
        return _weighted_sums(context, table.entry // bins, table.offsets, depth.index_select(0, table.entry))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        context, depth = ctx.saved_tensors
        table: LiftTable = ctx.table
        with torch.enable_grad():
            weight = depth.index_select(0, table.pixel_entry).detach().requires_grad_()
            of_cells = F.pad(grads[0], (0, 0, 0, 1))  # and of what falls nowhere
            grad_context = _weighted_sums(of_cells, table.pixel_cell, table.pixel_offsets, weight)
            # <context of the pixel, gradient of the cell> is just what this sum's own weights would get for `context`.
            (grad_weight,) = torch.autograd.grad(grad_context, weight, context)
        grad_depth = torch.zeros_like(depth).index_add_(0, table.pixel_entry, grad_weight)
        return grad_context.detach(), grad_depth, None, None


def lift_splat_reference(context: Tensor, depth: Tensor, table: LiftTable) -> Tensor:
    """`lift_splat` by `index_add`: the plain twin."""
    samples, _, x_cells, y_cells = table.visible.shape
    channels, bins = context.shape[-1], depth.shape[-1]
    weighted = context.reshape(-1, channels).float()[table.entry // bins] * depth.reshape(-1, 1).float()[table.entry]
    canvas = weighted.new_zeros(samples * x_cells * y_cells + 1, channels).index_add(0, cells_of(table), weighted)
    return canvas[:-1].view(samples, x_cells, y_cells, channels).permute(0, 3, 1, 2)
