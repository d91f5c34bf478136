"""The lift as an exported model computes it: entries of one cell in groups, each a small product.

Letters: B samples, N cameras, h and w feature pixels, D depth bins, E groups, C channels, X and Y cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..grid import BEVGrid
from .table import DepthBins, Frustums, LiftTable, cells_of, lift_points

GROUP = 8  # entries of one cell that an exported model adds up before it scatters


@dataclass(frozen=True)
class LiftGroups:
    """A `LiftTable` for an exported model: entries of one cell in groups, in any order. Out of range is nothing."""

    entry: Tensor  # [E, GROUP] int64, -1 where a cell has no more
    cell: Tensor  # [E] int64, b * X * Y + cell of each group
    visible: Tensor  # [B, N, X, Y] bool


def lift_groups(
    intrinsics: Tensor,
    reference_T_camera: Tensor,
    present: Tensor,
    *,
    image_size: tuple[int, int],
    stride: int,
    bins: DepthBins,
    grid: BEVGrid,
    z_range_m: tuple[float, float],
    samples: tuple[int, int] = (1, 1),
) -> LiftGroups:
    """`build_lift_table` in groups; exports."""
    of = Frustums(image_size, stride, bins, grid, z_range_m, samples)
    points = lift_points(intrinsics, reference_T_camera, present, of)
    cell, order = torch.sort(points.cell, stable=True)
    return _grouped(points.entry[order], cell, points.visible)


def groups_of(table: LiftTable) -> LiftGroups:
    """The same table in groups."""
    cell = cells_of(table)
    there = cell < len(table.offsets) - 1
    return _grouped(table.entry[there].long(), cell[there], table.visible)


def _grouped(entry: Tensor, cell: Tensor, visible: Tensor) -> LiftGroups:
    """Entries [P] and their cells, sorted by cell."""
    num_cells = visible.shape[0] * visible.shape[2] * visible.shape[3]
    count = torch.zeros(num_cells, dtype=torch.long, device=cell.device).index_add(0, cell, torch.ones_like(cell))
    groups = (count + GROUP - 1) // GROUP
    first_entry, first_group = count.cumsum(0) - count, groups.cumsum(0) - groups
    rank = torch.arange(cell.shape[0], device=cell.device) - first_entry[cell]
    slot = first_group[cell] * GROUP + rank
    most = cell.shape[0] // GROUP + num_cells  # no cell has more than one group that is not full
    entries = torch.full((most * GROUP,), -1, device=cell.device).scatter(0, slot, entry)
    cells = torch.full((most,), num_cells, device=cell.device).scatter(0, slot // GROUP, cell)
    used = (cells < num_cells).nonzero().squeeze(1)
    return LiftGroups(entries.view(-1, GROUP)[used], cells[used], visible)


def lift_splat_groups(context: Tensor, depth: Tensor, table: LiftGroups) -> Tensor:
    """`lift_splat`, the way that exports: a product for each group, then `index_add` of few rows.

    ONNX Runtime adds duplicate rows one value at a time (ScatterElements), or loses some on several threads (ScatterND).
    """
    samples, _, x_cells, y_cells = table.visible.shape
    channels, bins = context.shape[-1], depth.shape[-1]
    rows, probabilities = context.reshape(-1, channels).float(), depth.reshape(-1).float()
    num_rows, none = samples * x_cells * y_cells, probabilities.shape[0]
    # One more entry, of probability 0, and one more pixel, for what is none.
    rows, probabilities = F.pad(rows, (0, 0, 0, 1)), F.pad(probabilities, (0, 1))
    entry = torch.where((table.entry >= 0) & (table.entry < none), table.entry, none).flatten()
    weight = probabilities.index_select(0, entry).view(-1, 1, GROUP)
    said = rows.index_select(0, torch.div(entry, bins, rounding_mode="trunc")).view(-1, GROUP, channels)
    cell = torch.where((table.cell >= 0) & (table.cell < num_rows), table.cell, num_rows)
    canvas = rows.new_zeros(num_rows + 1, channels).index_add(0, cell, torch.bmm(weight, said)[:, 0])
    return canvas[:-1].view(samples, x_cells, y_cells, channels).permute(0, 3, 1, 2)
