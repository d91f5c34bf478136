"""Dynamic pillars: points to a dense canvas, with no cap on points a pillar or pillars a frame.

After PointPillars (Lang et al., CVPR 2019) with dynamic voxelization (Zhou et al., CoRL 2019).

Letters: B samples, P points (padded), F features of a point, C channels, X and Y cells.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .grid import BEVGrid
from .kernels import in_triton


def point_cells(
    points_m: Tensor, count: Tensor, grid: BEVGrid, z_range_m: tuple[float, float], valid: Tensor | None = None
) -> Tensor:
    """[B, P, 3 or more], [B] -> [B * P] int64 row of a canvas of B * (X * Y + 1) rows.

    Padding, points outside the grid or the height range, NaN, and points that are not `valid` [B, P] go to the last row of
    their sample.
    """
    samples, padded = points_m.shape[:2]
    z_m = points_m[..., 2]
    use = torch.arange(padded, device=points_m.device) < count[:, None]
    if valid is not None:
        use = use & valid
    use = use & (z_m >= z_range_m[0]) & (z_m < z_range_m[1])
    cell = torch.where(use, grid.flat_index(points_m[..., :2]), grid.num_cells)
    first = torch.arange(samples, device=cell.device)[:, None] * (grid.num_cells + 1)
    return (cell + first).flatten()


def scatter_max(features: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """[P, C] non-negative features -> [num_rows, C] maximum of each row's points, 0 where a row has none."""
    canvas = features.new_zeros(num_rows, features.shape[1])
    return canvas.scatter_reduce(0, rows[:, None].expand_as(features), features, "amax", include_self=True)


def scatter_max_reference(features: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """`scatter_max`, one row at a time."""
    return torch.stack([
        features[rows == row].amax(0) if (rows == row).any() else features.new_zeros(features.shape[1])
        for row in range(num_rows)
    ])  # fmt: skip


def linear_max(points: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """max(0, maximum of `weight @ point + bias`) over each row's points: [P, F], [C, F], [C], [P] -> [num_rows, C] float32.

    Equals `linear_max_reference`, but keeps no [P, C] tensor for the backward pass, which computes it again: on a CPU in pieces
    that stay in the cache, on a GPU by a kernel. Ties share the gradient evenly. Export takes the reference.
    """
    given = points.float(), weight.float(), bias.float(), rows, num_rows
    result: Tensor
    if in_triton(points.device):
        from .kernels.pillars import TritonLinearMax

        result = TritonLinearMax.apply(*given)  # type: ignore[no-untyped-call]
    elif points.device.type == "cpu" and not torch.compiler.is_compiling():
        # Rows of whole vector registers: eleven features take a third longer than twelve of which one is zero.
        fill = (0, -points.shape[1] % 4)
        result = _LinearMax.apply(F.pad(given[0], fill), F.pad(given[1], fill), *given[2:])  # type: ignore[no-untyped-call]
    else:
        result = linear_max_reference(*given)
    return result


def linear_max_reference(points: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """`linear_max` in plain torch. The canvas starts at zero, so the maximum is a ReLU too."""
    with torch.autocast(points.device.type, enabled=False):
        return scatter_max(F.linear(points.float(), weight.float(), bias.float()), rows, num_rows)


_PIECE = 8192  # points; 2 MB of float32 at 64 channels


class _LinearMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, num_rows: int) -> Tensor:
        canvas = points.new_zeros(num_rows, weight.shape[0])
        with torch.autocast(points.device.type, enabled=False):
            for part, row in zip(points.split(_PIECE), rows.split(_PIECE), strict=True):
                said = F.linear(part, weight, bias)
                canvas.scatter_reduce_(0, row[:, None].expand_as(said), said, "amax", include_self=True)
        ctx.save_for_backward(points, weight, bias, rows, canvas)
        return canvas

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        points, weight, bias, rows, canvas = ctx.saved_tensors
        pieces = list(zip(points.split(_PIECE), rows.split(_PIECE), strict=True))
        with torch.autocast(points.device.type, enabled=False):
            wins = [F.linear(part, weight, bias) == canvas[row] for part, row in pieces]
            ties = torch.zeros_like(canvas)
            for (_, row), won in zip(pieces, wins, strict=True):
                ties.index_add_(0, row, won.to(canvas.dtype))
            # Where no point is above zero, the canvas keeps its zero and nobody learns.
            share = torch.where(canvas > 0, grads[0] / ties.clamp_(min=1.0), 0.0)
            grad_points, grad_weight, grad_bias = [], torch.zeros_like(weight), torch.zeros_like(bias)
            for (part, row), won in zip(pieces, wins, strict=True):
                into = share[row] * won
                grad_points.append(into @ weight)
                grad_weight.addmm_(into.T, part)
                grad_bias += into.sum(0)
        return torch.cat(grad_points), grad_weight, grad_bias, None, None


def normalised_linear(points: Tensor, linear: nn.Linear, norm: nn.LayerNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Points [P, F] scaled, weight [C, F] and bias [C], such that their linear map is `norm(linear(points))`.

    `linear` has no bias. LayerNorm subtracts the mean over channels, which is linear and goes into the weight, and divides by
    the root mean square, which is a quadratic form of the F features: one number a point instead of passes over C channels.
    """
    weight, square = _centred(linear)
    scale = torch.rsqrt(((points @ square) * points).sum(-1, keepdim=True).clamp(min=0.0) + norm.eps)
    return points * scale, weight * norm.weight[:, None], norm.bias


def _centred(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Of a linear map: its weight [C, F] without its mean over channels, and the mean square of its channels as a form [F, F]."""
    weight = (linear.weight - linear.weight.mean(0)).float()
    return weight, weight.T @ weight / weight.shape[0]


class PillarEncoder(nn.Module):
    """Points [B, P, F] to a canvas [B, C, X, Y]: per-point linear layer, maximum per cell, zero where a cell is empty.

    The first three features of a point are x, y and z in metres. Offsets to the cell's centre (2) and to the mean of the cell's
    points (3) are added, in metres, and a constant: LayerNorm(W a p) is LayerNorm(W p) for every a > 0, and without one the
    features of a point would be known up to a common factor. `scale` [F] brings the given features to a size of about one. The
    last channel of the canvas is log(1 + points in the cell), which a maximum cannot tell.
    """

    scale: Tensor

    def __init__(self, scale: tuple[float, ...], channels: int, grid: BEVGrid, z_range_m: tuple[float, float]) -> None:
        super().__init__()
        self.grid = grid
        self.z_range_m = z_range_m
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.linear = nn.Linear(len(scale) + 6, channels - 1, bias=False)
        self.norm = nn.LayerNorm(channels - 1)

    def forward(self, points: Tensor, count: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-> canvas [B, C, X, Y] float32, occupied [B, X, Y] bool. Points that are not `valid` [B, P] are left out."""
        samples, (x_cells, y_cells) = points.shape[0], self.grid.shape
        num_rows = samples * (self.grid.num_cells + 1)
        if in_triton(points.device) and not points.requires_grad:
            canvas, per_row = self._in_triton(points.detach().float(), count, valid, num_rows)
        else:
            canvas, per_row = self._in_torch(points, count, valid, num_rows)
        canvas = canvas.view(samples, -1, canvas.shape[1])[:, :-1].reshape(samples, x_cells, y_cells, -1)
        occupied = per_row.view(samples, -1)[:, :-1].reshape(samples, x_cells, y_cells) > 0
        return canvas.permute(0, 3, 1, 2), occupied

    def _in_torch(self, points: Tensor, count: Tensor, valid: Tensor | None, num_rows: int) -> tuple[Tensor, Tensor]:
        """-> [num_rows, C], and how many points each row has."""
        rows = point_cells(points[..., :3], count, self.grid, self.z_range_m, valid)
        flat = points.reshape(-1, points.shape[-1]).float()
        if not torch.compiler.is_exporting():
            # Padding may hold anything, NaN too. It stays in the last row, which nobody reads, but a gradient would carry it on.
            unused = (rows % (self.grid.num_cells + 1)) == self.grid.num_cells
            flat = torch.where(unused[:, None], 0.0, flat)
        decorated, per_row = self._decorate(flat, rows, num_rows)
        with torch.autocast(points.device.type, enabled=False):
            normalised = normalised_linear(decorated, self.linear, self.norm)
        return torch.cat([linear_max(*normalised, rows, num_rows), per_row.log1p()[:, None]], dim=1), per_row

    def _in_triton(self, points: Tensor, count: Tensor, valid: Tensor | None, num_rows: int) -> tuple[Tensor, Tensor]:
        """`_in_torch`, where nothing of points [B, P, F] float32 learns."""
        from .kernels.pillars import TritonLinearMax
        from .kernels.points import TritonDecorate, sum_rows

        rows, sums = sum_rows(points, count, self.grid, self.z_range_m, valid)
        with torch.autocast(points.device.type, enabled=False):
            weight, square = _centred(self.linear)
            weight = weight * self.norm.weight[:, None]
        decorated = TritonDecorate.apply(  # type: ignore[no-untyped-call]
            points.flatten(0, 1), rows, sums, self.scale, square, self.norm.eps, self.grid
        )
        bias, per_row = self.norm.bias.float(), sums[:, 0]
        canvas: Tensor = TritonLinearMax.apply(decorated, weight, bias, rows, num_rows, per_row)  # type: ignore[no-untyped-call]
        return canvas, per_row

    def _decorate(self, flat: Tensor, rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
        xyz_m = flat[:, :3]
        position = self.grid.cells(xyz_m[:, :2])
        to_center_m = (position - position.floor() - 0.5) * self.grid.cell_m
        ones = torch.ones_like(rows, dtype=torch.float32)
        per_row = torch.zeros(num_rows, device=flat.device).index_add(0, rows, ones)
        sums = torch.zeros(num_rows, 3, device=flat.device).index_add(0, rows, xyz_m)
        mean_m = (sums / per_row.clamp(min=1.0)[:, None]).index_select(0, rows)
        return torch.cat([flat * self.scale, to_center_m, xyz_m - mean_m, ones[:, None]], dim=1), per_row
