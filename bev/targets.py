"""What the detection head should say, from true boxes, as fixed-shape tensors on any device.

Gaussian targets as in CenterNet (Zhou et al., 2019) with CenterPoint's radius (overlap 0.1, at least two cells).

Letters: B samples, M boxes (padded), K classes, X and Y cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import Boxes
from .grid import BEVGrid
from .heads import REGRESSION_CHANNELS

_MAX_RADIUS_CELLS = 8


@dataclass(frozen=True)
class DetectionTargets:
    heatmap: Tensor  # [B, K, X, Y] 0..1, 1 at the cell of a centre
    cell: Tensor  # [B, M] int64 flat cell of each box, 0 where not valid
    valid: Tensor  # [B, M] bool: a box whose centre lies in the grid
    regression: Tensor  # [B, M, 10] in the layout of `bev.heads`
    known: Tensor  # [B, M, 10] float32 0 where a value is not known (velocity NaN)
    attribute: Tensor  # [B, M] int64, -1 none


def gaussian_radius_cells(length_cells: Tensor, width_cells: Tensor, min_overlap: float = 0.1) -> Tensor:
    """The radius within which a shifted box still overlaps the true one by `min_overlap` IoU (CornerNet's three cases)."""
    total, area = length_cells + width_cells, length_cells * width_cells
    b1, c1 = total, area * (1 - min_overlap) / (1 + min_overlap)
    r1 = (b1 - (b1.square() - 4 * c1).clamp(min=0).sqrt()) / 2
    b2, c2 = 2 * total, (1 - min_overlap) * area
    r2 = (b2 - (b2.square() - 16 * c2).clamp(min=0).sqrt()) / 8
    a3, b3, c3 = 4 * min_overlap, -2 * min_overlap * total, (min_overlap - 1) * area
    r3 = (b3 + (b3.square() - 4 * a3 * c3).clamp(min=0).sqrt()) / (2 * a3)
    return torch.minimum(torch.minimum(r1, r2), r3)


def make_targets(
    boxes: Boxes, box_valid: Tensor, grid: BEVGrid, num_classes: int, *, min_radius_cells: int = 2
) -> DetectionTargets:
    """True boxes [B, M] with their mask [B, M] -> targets. Boxes whose centre is outside the grid are left out."""
    x_cells, y_cells = grid.shape
    cell = grid.flat_index(boxes.center_m[..., :2])
    valid = box_valid & (cell < grid.num_cells)
    cell = torch.where(valid, cell, 0)
    position = torch.where(valid[..., None], grid.cells(boxes.center_m[..., :2]), 0.0)
    corner = torch.stack([cell // y_cells, cell % y_cells], dim=-1)
    values = torch.cat(
        [
            position - corner,
            boxes.center_m[..., 2:3],
            boxes.size_m.clamp(min=0.01).log(),
            boxes.yaw_rad.sin()[..., None],
            boxes.yaw_rad.cos()[..., None],
            boxes.velocity_mps,
        ],
        dim=-1,
    )
    assert values.shape[-1] == REGRESSION_CHANNELS
    known = values.isfinite() & valid[..., None]
    return DetectionTargets(
        heatmap=_heatmap(boxes, corner, valid, grid, num_classes, min_radius_cells),
        cell=cell,
        valid=valid,
        regression=torch.where(known, values, 0.0),
        known=known.float(),
        attribute=torch.where(valid, boxes.attribute, -1),
    )


def _heatmap(
    boxes: Boxes, corner: Tensor, valid: Tensor, grid: BEVGrid, num_classes: int, min_radius_cells: int
) -> Tensor:
    """Every box draws its Gaussian in a window around its cell; where they meet, the larger value stays."""
    x_cells, y_cells = grid.shape
    size_cells = torch.where(valid[..., None], boxes.size_m[..., :2], 1.0) / grid.cell_m
    radius = gaussian_radius_cells(size_cells[..., 1], size_cells[..., 0]).floor()
    radius = radius.clamp(min_radius_cells, _MAX_RADIUS_CELLS)
    sigma = (2 * radius + 1) / 6
    steps = torch.arange(-_MAX_RADIUS_CELLS, _MAX_RADIUS_CELLS + 1, device=corner.device)
    dx, dy = torch.meshgrid(steps, steps, indexing="ij")  # [W, W]
    ix = corner[..., 0, None, None] + dx
    iy = corner[..., 1, None, None] + dy
    value = torch.exp(-(dx * dx + dy * dy) / (2 * sigma[..., None, None] ** 2))
    reach = radius[..., None, None]
    draw = (dx.abs() <= reach) & (dy.abs() <= reach) & valid[..., None, None]
    draw = draw & (ix >= 0) & (ix < x_cells) & (iy >= 0) & (iy < y_cells)
    samples = corner.shape[0]
    plane = torch.arange(samples, device=corner.device)[:, None] * num_classes + boxes.label.clamp(0, num_classes - 1)
    sentinel = samples * num_classes * grid.num_cells
    index = plane[..., None, None] * grid.num_cells + ix * y_cells + iy
    index = torch.where(draw, index, sentinel)
    heatmap = torch.zeros(sentinel + 1, device=corner.device)
    heatmap = heatmap.scatter_reduce(0, index.flatten(), value.flatten(), "amax", include_self=True)
    return heatmap[:-1].view(samples, num_classes, x_cells, y_cells)
