"""Lift-Splat with a table against the two usual ways, at nuScenes size.

Six cameras at 256 x 704 px, stride 16, is the input of BEVDet and of BEVFusion's smaller settings. The peers get the
frustum's cells ready-made, as we get our table: calibration is outside the timing for everyone.

Letters: B samples, N cameras, h and w feature pixels, D depth bins, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bev.grid import BEVGrid
from bev.lift.table import (
    DepthBins,
    Frustums,
    LiftTable,
    build_lift_table,
    frustum_cells,
    lift_splat,
    lift_splat_reference,
)
from tests.benchmarks.conftest import Compare

IMAGE, STRIDE, CAMERAS = (256, 704), 16, 6
Splat = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Scene:
    context: Tensor  # [1, N, h, w, C]
    depth: Tensor  # [1, N, h, w, D]
    cells: Tensor  # [N * h * w * D] flat cell, num_cells outside
    table: LiftTable
    num_cells: int


def scene(channels: int, bins: DepthBins, grid: BEVGrid) -> Scene:
    """Random features seen by six cameras around the car, 60 degrees apart, as wide as nuScenes' front camera."""
    intrinsics = torch.tensor([[557.0, 0.0, 352.0], [0.0, 557.0, 100.0], [0.0, 0.0, 1.0]]).expand(1, CAMERAS, 3, 3)
    reference_T_camera = torch.eye(4).repeat(1, CAMERAS, 1, 1)
    for camera in range(CAMERAS):
        yaw_rad = camera * math.pi / 3
        cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
        # Columns: the camera's right, down and forward in the reference frame, and where it sits.
        reference_T_camera[0, camera, :3] = torch.tensor(
            [[sin, 0.0, cos, cos], [-cos, 0.0, sin, sin], [0.0, -1.0, 0.0, 1.5]]
        )
    of = Frustums(IMAGE, STRIDE, bins, grid, z_range_m=(-5.0, 3.0))
    pixels = (1, CAMERAS, IMAGE[0] // STRIDE, IMAGE[1] // STRIDE)
    generator = torch.Generator().manual_seed(0)
    return Scene(
        context=torch.randn(*pixels, channels, generator=generator),
        depth=torch.randn(*pixels, bins.count, generator=generator).softmax(-1),
        cells=frustum_cells(intrinsics, reference_T_camera, of).flatten(),
        table=build_lift_table(intrinsics, reference_T_camera, **vars(of)),
        num_cells=grid.num_cells,
    )


def frustum(context: Tensor, depth: Tensor) -> Tensor:
    """[N * h * w * D, C]: context x probability at every point, the tensor that our way never forms."""
    return (depth[..., None] * context[..., None, :]).flatten(0, -2)


def cumulative_sum_splat(context: Tensor, depth: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """The splat of Philion and Fidler (ECCV 2020): sort by cell, running sum, differences where the cell changes."""
    points = frustum(context, depth)
    inside = cells < num_cells
    points, rank = points[inside], cells[inside]
    order = rank.argsort()
    points, rank = points[order], rank[order]
    return _last_of_each(points, rank, num_cells)


def cumulative_sum_splat_sorted(context: Tensor, depth: Tensor, order: Tensor, rank: Tensor, num_cells: int) -> Tensor:
    """The same with the sorting done beforehand, as later works do."""
    return _last_of_each(frustum(context, depth)[order], rank, num_cells)


def _last_of_each(points: Tensor, rank: Tensor, num_cells: int) -> Tensor:
    running = points.cumsum(0)
    last = torch.ones(len(rank), dtype=torch.bool)
    last[:-1] = rank[1:] != rank[:-1]
    running, rank = running[last], rank[last]
    sums = torch.cat([running[:1], running[1:] - running[:-1]])
    canvas = sums.new_zeros(num_cells, points.shape[1])
    canvas[rank] = sums
    return canvas


def index_add_splat(context: Tensor, depth: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """Every point of the frustum added to its cell, the last cell taking what is outside."""
    points = frustum(context, depth)
    return points.new_zeros(num_cells + 1, points.shape[1]).index_add(0, cells, points)[:-1]


SETTINGS = {
    "59 bins, 64 ch, 128 x 128": (64, DepthBins(1.0, 60.0, 59), BEVGrid(-51.2, 51.2, -51.2, 51.2, 0.8)),
    "118 bins, 80 ch, 180 x 180": (80, DepthBins(1.0, 60.0, 118), BEVGrid(-54.0, 54.0, -54.0, 54.0, 0.6)),
}


def contenders(data: Scene) -> dict[str, Splat]:
    """Every way to splat, checked to give the same canvas."""
    order = data.cells.argsort(stable=True)
    order = order[data.cells[order] < data.num_cells]
    rank = data.cells[order]
    ways: dict[str, Splat] = {
        "ours": lambda c, d: lift_splat(c, d, data.table),
        "cumulative_sum": lambda c, d: cumulative_sum_splat(c, d, data.cells, data.num_cells),
        "cumulative_sum,_sorted_beforehand": lambda c, d: cumulative_sum_splat_sorted(
            c, d, order, rank, data.num_cells
        ),
        "index_add": lambda c, d: index_add_splat(c, d, data.cells, data.num_cells),
        "index_add_over_our_table": lambda c, d: lift_splat_reference(c, d, data.table),
    }
    expected = ways["index_add"](data.context, data.depth)
    for name, way in ways.items():
        canvas = way(data.context, data.depth)
        canvas = canvas[0].flatten(1).T if canvas.dim() == 4 else canvas
        # Differences of a running sum over half a million float32 values lose three digits.
        torch.testing.assert_close(canvas, expected, rtol=1e-3, atol=2e-2 if "cumulative" in name else 1e-4, msg=name)
    return ways


def forward(way: Splat, data: Scene) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            way(data.context, data.depth)

    return run


def forward_backward(way: Splat, data: Scene) -> Callable[[], object]:
    context, depth = data.context.clone().requires_grad_(), data.depth.clone().requires_grad_()
    toward = torch.ones(())

    def run() -> None:
        context.grad = depth.grad = None
        canvas = way(context, depth)
        canvas.backward(toward.expand_as(canvas))

    return run


@pytest.mark.parametrize("setting", SETTINGS)
def bench_lift_forward(setting: str, compare: Compare) -> None:
    data = scene(*SETTINGS[setting])
    ways = contenders(data)
    result = compare(f"lift fwd, {setting}", 7, **{name: forward(way, data) for name, way in ways.items()})
    assert result.ratio("cumulative sum") >= 30


@pytest.mark.parametrize("setting", SETTINGS)
def bench_lift_forward_backward(setting: str, compare: Compare) -> None:
    data = scene(*SETTINGS[setting])
    ways = {name: way for name, way in contenders(data).items() if "cumulative" not in name}
    result = compare(f"lift fwd+bwd, {setting}", 7, **{name: forward_backward(way, data) for name, way in ways.items()})
    assert result.ratio("index add") >= 8
