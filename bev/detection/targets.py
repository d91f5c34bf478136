"""What the detection head should say, from true boxes, as fixed-shape tensors on any device.

Gaussian targets as in CenterNet (Zhou et al., 2019) with CenterPoint's radius (overlap 0.1, at least two cells).

Letters: B samples, M boxes (padded), K classes, X and Y cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..grid import BEVGrid
from ..lift.table import inverse
from .boxes import Boxes
from .head import REGRESSION_CHANNELS, VELOCITY_UNIT_MPS

_MAX_RADIUS_CELLS = 8
_MAX_IMAGE_RADIUS = 4  # feature pixels


@dataclass(frozen=True)
class DetectionTargets:
    """What the losses compare the head's logits with."""

    heatmap: Tensor  # [B, K, X, Y] 0..1, 1 at the cell of a centre
    cell: Tensor  # [B, M] int64 flat cell of each box, 0 where its centre is not in the grid
    regression: Tensor  # [B, M, 12] in the layout of `bev.detection.head`
    known: Tensor  # [B, M, 12] float32 0 where a value is not known (velocity NaN), all of a box whose centre is not in the grid
    attribute: Tensor  # [B, M] int64, -1 none
    label: Tensor  # [B, M] int64, 0 likewise


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
    y_cells = grid.shape[1]
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
            (2 * boxes.yaw_rad).sin()[..., None],
            (2 * boxes.yaw_rad).cos()[..., None],
            boxes.yaw_rad.sin()[..., None],
            boxes.yaw_rad.cos()[..., None],
            boxes.velocity_mps / VELOCITY_UNIT_MPS,
        ],
        dim=-1,
    )
    assert values.shape[-1] == REGRESSION_CHANNELS
    known = values.isfinite() & valid[..., None]
    return DetectionTargets(
        heatmap=_heatmap(boxes, corner, valid, grid, num_classes, min_radius_cells),
        cell=cell,
        regression=torch.where(known, values, 0.0),
        known=known.float(),
        attribute=torch.where(valid, boxes.attribute, -1),
        label=torch.where(valid, boxes.label, 0),
    )


def _heatmap(
    boxes: Boxes, corner: Tensor, valid: Tensor, grid: BEVGrid, num_classes: int, min_radius_cells: int
) -> Tensor:
    size_cells = torch.where(valid[..., None], boxes.size_m[..., :2], 1.0) / grid.cell_m
    radius = gaussian_radius_cells(size_cells[..., 1], size_cells[..., 0]).floor()
    radius = radius.clamp(min_radius_cells, _MAX_RADIUS_CELLS)
    return draw_gaussians(corner, radius, boxes.label, valid, num_classes, grid.shape)


def draw_gaussians(
    center: Tensor,
    radius: Tensor,
    label: Tensor,
    valid: Tensor,
    num_classes: int,
    shape: tuple[int, int],
    *,
    max_radius: int = _MAX_RADIUS_CELLS,
) -> Tensor:
    """[B, K, *shape]: every object draws a Gaussian of deviation (2 r + 1) / 6 in the window of its radius.

    `center` [B, M, 2] int64 along the axes of `shape`, `radius` [B, M] in cells, `label` and `valid` [B, M]. Where windows meet,
    the larger value stays. No radius may exceed `max_radius`, whose square is what this costs.
    """
    rows, columns = shape
    sigma = (2 * radius + 1) / 6
    steps = torch.arange(-max_radius, max_radius + 1, device=center.device)
    di, dj = torch.meshgrid(steps, steps, indexing="ij")  # [W, W]
    i = center[..., 0, None, None] + di
    j = center[..., 1, None, None] + dj
    value = torch.exp(-(di * di + dj * dj) / (2 * sigma[..., None, None] ** 2))
    reach = radius[..., None, None]
    draw = (di.abs() <= reach) & (dj.abs() <= reach) & valid[..., None, None]
    draw = draw & (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
    samples = center.shape[0]
    plane = torch.arange(samples, device=center.device)[:, None] * num_classes + label.clamp(0, num_classes - 1)
    sentinel = samples * num_classes * rows * columns
    index = torch.where(draw, plane[..., None, None] * (rows * columns) + i * columns + j, sentinel)
    heatmap = torch.zeros(sentinel + 1, device=center.device)
    heatmap = heatmap.scatter_reduce(0, index.flatten(), value.flatten(), "amax", include_self=True)
    return heatmap[:-1].view(samples, num_classes, rows, columns)


def make_image_targets(
    boxes: Boxes,
    box_valid: Tensor,
    intrinsics: Tensor,
    reference_T_camera: Tensor,
    present: Tensor,
    num_classes: int,
    *,
    image_size: tuple[int, int],
    stride: int,
) -> Tensor:
    """[B, N, K, h, w] heatmaps of the boxes' centres as each camera sees them, whether or not something stands before them.

    Boxes [B, M] in the reference frame, `box_valid` [B, M]; `intrinsics` [B, N, 3, 3] px, `reference_T_camera` [B, N, 4, 4].
    A camera that is not `present` [B, N] sees nothing, whatever its calibration says.
    The perspective supervision of BEVFormer v2 (Yang et al., CVPR 2023), with heatmaps.
    """
    samples, cameras = present.shape
    height, width = image_size[0] // stride, image_size[1] // stride
    matrix = present[:, :, None, None]
    intrinsics = torch.where(matrix, intrinsics, torch.eye(3, device=present.device))
    reference_T_camera = torch.where(matrix, reference_T_camera, torch.eye(4, device=present.device))
    to_pixels = intrinsics.float() @ inverse(reference_T_camera.float())[..., :3, :]  # [B, N, 3, 4]
    center_m = torch.where(box_valid[..., None], boxes.center_m, 0.0)
    position = torch.einsum("bnij,bmj->bnmi", to_pixels[..., :3], center_m) + to_pixels[:, :, None, :, 3]
    depth_m = position[..., 2].clamp(min=0.5)
    # A feature pixel of stride s spans -1/2 .. s - 1/2 pixels, as pixel centres lie on whole numbers.
    feature = (position[..., :2] / depth_m[..., None] + 0.5) / stride
    column, row = feature.floor().clamp(-1e6, 1e6).long().unbind(-1)
    seen = (position[..., 2] > 0.5) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    seen = seen & box_valid[:, None] & present[..., None]
    focal_px = intrinsics[..., 1, 1].abs()[..., None]
    extent = focal_px * boxes.size_m.amax(-1)[:, None] / depth_m / stride  # feature pixels
    radius = (extent / 4).floor().clamp(1, _MAX_IMAGE_RADIUS)
    label = boxes.label[:, None].expand(-1, cameras, -1)
    heatmap = draw_gaussians(
        torch.stack([row, column], dim=-1).flatten(0, 1),
        radius.flatten(0, 1),
        label.flatten(0, 1),
        seen.flatten(0, 1),
        num_classes,
        (height, width),
        max_radius=_MAX_IMAGE_RADIUS,
    )
    return heatmap.unflatten(0, (samples, cameras))
