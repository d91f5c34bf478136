"""The bird's-eye-view grid: the one place where metres become cells.

Letters: X cells forward, Y cells to the left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BEVGrid:
    """A grid of square cells in the reference (ego) frame, x forward and y left, in metres.

    Ranges are half-open: a point at `x_max_m` is outside. Tensors on the grid have axes [..., X, Y]: axis -2 counts cells
    along x from `x_min_m`, axis -1 cells along y from `y_min_m`. The flat index of a cell is `ix * Y + iy`; points
    outside get the sentinel index `X * Y`, so that a canvas of X * Y + 1 cells takes every point without a branch.

    Raises:
        ValueError: a range is empty or is no whole number of cells.
    """

    x_min_m: float
    x_max_m: float
    y_min_m: float
    y_max_m: float
    cell_m: float

    def __post_init__(self) -> None:
        if not 0 < self.cell_m < math.inf:
            raise ValueError(f"grid: cell_m must be > 0 and finite, got {self.cell_m}")
        for axis, low, high in (("x", self.x_min_m, self.x_max_m), ("y", self.y_min_m, self.y_max_m)):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"grid: {axis}_min_m must be < {axis}_max_m and finite, got {low} and {high}")
            cells = (high - low) / self.cell_m
            if round(cells) < 1 or abs(cells - round(cells)) > 1e-6:
                raise ValueError(
                    f"grid: the {axis} range {low}..{high} m is {cells:.4f} cells of {self.cell_m} m; "
                    "choose a range that is a whole number of cells"
                )
        if self.num_cells > 2**24:
            raise ValueError(
                f"grid: {self.shape[0]} x {self.shape[1]} cells; expected at most {2**24:,}, which float32 can number: "
                "choose longer cells or a shorter range"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(X, Y), the number of cells forward and to the left."""
        return (
            round((self.x_max_m - self.x_min_m) / self.cell_m),
            round((self.y_max_m - self.y_min_m) / self.cell_m),
        )

    @property
    def num_cells(self) -> int:
        """X * Y, which is also the sentinel index."""
        return self.shape[0] * self.shape[1]

    @property
    def radius_m(self) -> float:
        """The distance from the origin within which every direction is inside the grid; 0 where the origin is not."""
        return max(0.0, min(-self.x_min_m, self.x_max_m, -self.y_min_m, self.y_max_m))

    def coarser(self, factor: int) -> BEVGrid:
        """The grid of the same range with cells `factor` times as long; ValueError where they do not fit."""
        return BEVGrid(self.x_min_m, self.x_max_m, self.y_min_m, self.y_max_m, self.cell_m * factor)

    def cells(self, xy_m: Tensor) -> Tensor:
        """[..., 2] metres -> [..., 2] position in cells, fractional: cell i spans [i, i + 1)."""
        x_m, y_m = xy_m.unbind(-1)
        # Plain numbers, no tensor made of them: on a GPU that would be a copy to wait for.
        cell_m = self._divisor_m(x_m)
        return torch.stack([(x_m - self.x_min_m) / cell_m, (y_m - self.y_min_m) / cell_m], dim=-1)

    def flat_index(self, xy_m: Tensor) -> Tensor:
        """[..., 2] metres -> [...] int64 flat cell index, `num_cells` for points outside the grid and for NaN.

        Inside is decided in metres on the half-open ranges. The index is clamped after `floor`, because float32 can round
        a point just below `x_max_m` up to cell X.
        """
        x_cells, y_cells = self.shape
        x_m, y_m = xy_m.to(torch.promote_types(xy_m.dtype, torch.float32)).unbind(-1)  # a half cannot number the cells
        inside = (x_m >= self.x_min_m) & (x_m < self.x_max_m) & (y_m >= self.y_min_m) & (y_m < self.y_max_m)
        cell_m = self._divisor_m(x_m)
        ix = ((x_m - self.x_min_m) / cell_m).floor().clamp(0, x_cells - 1)
        iy = ((y_m - self.y_min_m) / cell_m).floor().clamp(0, y_cells - 1)
        # NaN is outside, and so never becomes an integer.
        return torch.where(inside, ix * y_cells + iy, self.num_cells).long()

    def _divisor_m(self, like: Tensor) -> Tensor | float:
        """`cell_m`, such that a point lies in the same cell on every device: CUDA multiplies by the inverse of a plain number."""
        return like.new_full((), self.cell_m) if like.device.type == "cuda" else self.cell_m

    def centers_m(self, device: torch.device | None = None) -> Tensor:
        """[X, Y, 2] float32, the cell centres in metres."""
        x_cells, y_cells = self.shape
        x_m = self.x_min_m + self.cell_m * (torch.arange(x_cells, device=device, dtype=torch.float32) + 0.5)
        y_m = self.y_min_m + self.cell_m * (torch.arange(y_cells, device=device, dtype=torch.float32) + 0.5)
        return torch.stack(torch.meshgrid(x_m, y_m, indexing="ij"), dim=-1)
