"""What a tick says of every cell of the grid, in the layout that viewers expect.

Foxglove's Grid and ROS' OccupancyGrid have rows along +y and columns along +x, row 0 at the least y: the transpose of ours,
[X, Y], with the grid's corner (`x_min_m`, `y_min_m`) as origin and no rotation. Letters: M modalities, X and Y cells, T boxes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bev.detection.boxes import Boxes
from bev.grid import BEVGrid
from robustbev.results.result import TickResult


def check_grid(result: TickResult, grid: BEVGrid) -> None:
    """ValueError where the attention of a result does not lie on the grid."""
    expected = (len(result.modalities), *grid.shape)
    if result.attention.shape != expected:
        raise ValueError(
            f"tick {result.tick.index}: expected attention of shape {expected} (modalities {', '.join(result.modalities)}, "
            f"cells forward, cells to the left), got {result.attention.shape}. Give the writer the grid of the model"
        )


def rows_along_y(values: NDArray[Any]) -> NDArray[Any]:
    """[X, Y] -> [Y, X], contiguous: row by row from the least y on, in each from the least x on."""
    return np.ascontiguousarray(values.T)


def score_map(boxes: Boxes, grid: BEVGrid) -> NDArray[np.float32]:
    """[X, Y]: the score of the best box that covers the cell's centre or has its own centre in the cell; 0 where none is."""
    scores = np.zeros(grid.shape, np.float32)
    x_cells, y_cells = grid.shape
    rows = np.column_stack(
        [boxes.center_m[:, :2].numpy(), boxes.size_m[:, :2].numpy(), boxes.yaw_rad.numpy(), boxes.score.numpy()]
    ).astype(np.float64)
    own = grid.flat_index(boxes.center_m[:, :2]).numpy()
    for (x_m, y_m, width_m, length_m, yaw, score), cell in zip(rows, own, strict=True):
        reach_m = math.hypot(width_m, length_m) / 2
        columns = _cells(x_m - reach_m, x_m + reach_m, grid.x_min_m, grid.cell_m, x_cells)
        lines = _cells(y_m - reach_m, y_m + reach_m, grid.y_min_m, grid.cell_m, y_cells)
        dx = grid.x_min_m + grid.cell_m * (np.arange(columns.start, columns.stop) + 0.5)[:, None] - x_m
        dy = grid.y_min_m + grid.cell_m * (np.arange(lines.start, lines.stop) + 0.5)[None, :] - y_m
        along, across = math.cos(yaw) * dx + math.sin(yaw) * dy, math.cos(yaw) * dy - math.sin(yaw) * dx
        part = scores[columns, lines]
        part[(np.abs(along) <= length_m / 2) & (np.abs(across) <= width_m / 2) & (part < score)] = score
        if cell < grid.num_cells:
            flat = scores.reshape(-1)
            flat[cell] = max(flat[cell], np.float32(score))
    return scores


def _cells(low_m: float, high_m: float, start_m: float, cell_m: float, count: int) -> slice:
    """The cells, of `count`, that a span touches; empty where it lies beside the grid or is no number."""
    if not (math.isfinite(low_m) and math.isfinite(high_m)):
        return slice(0, 0)
    first, last = math.floor((low_m - start_m) / cell_m), math.floor((high_m - start_m) / cell_m) + 1
    return slice(min(max(first, 0), count), min(max(last, 0), count))
