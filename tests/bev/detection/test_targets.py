"""Targets promise: one peak of exactly 1 for every true box in the grid, nothing for any other, and no unknown value learned."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bev.detection.boxes import Boxes
from bev.detection.head import AXIS, HEADING, VELOCITY, VELOCITY_UNIT_MPS
from bev.detection.targets import DetectionTargets, gaussian_radius_cells, make_image_targets, make_targets
from bev.grid import BEVGrid
from sensors.batch import CameraBatch
from tests.tiny_model import IMAGE_SIZE, random_boxes, random_cameras

GRID = BEVGrid(-10, 10, -8, 8, 0.5)
CLASSES = 10


def radius_in_python(length: float, width: float, overlap: float = 0.1) -> float:
    """The largest shift or change of size, in every direction at once, that leaves an IoU of `overlap`, by bisection."""

    def smallest_iou(radius: float) -> float:
        shifted = (length - radius) * (width - radius)
        smaller = max(length - 2 * radius, 0) * max(width - 2 * radius, 0)
        area = length * width
        larger = (length + 2 * radius) * (width + 2 * radius)
        return min(shifted / (2 * area - shifted), smaller / area, area / larger)

    low, high = 0.0, min(length, width)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if smallest_iou(middle) >= overlap else (low, middle)
    return low


def naive_heatmap(boxes: Boxes, valid: Tensor) -> Tensor:
    x_cells, y_cells = GRID.shape
    heatmap = torch.zeros(valid.shape[0], CLASSES, x_cells, y_cells)
    for b, m in valid.nonzero().tolist():
        x_m, y_m, _ = boxes.center_m[b, m].tolist()
        if not (GRID.x_min_m <= x_m < GRID.x_max_m and GRID.y_min_m <= y_m < GRID.y_max_m):
            continue
        ix = math.floor((x_m - GRID.x_min_m) / GRID.cell_m)
        iy = math.floor((y_m - GRID.y_min_m) / GRID.cell_m)
        width, length, _ = (boxes.size_m[b, m] / GRID.cell_m).tolist()
        radius = min(max(math.floor(radius_in_python(length, width)), 2), 8)
        sigma = (2 * radius + 1) / 6
        for x in range(max(ix - radius, 0), min(ix + radius + 1, x_cells)):
            for y in range(max(iy - radius, 0), min(iy + radius + 1, y_cells)):
                value = math.exp(-((x - ix) ** 2 + (y - iy) ** 2) / (2 * sigma**2))
                here = heatmap[b, boxes.label[b, m], x, y]
                heatmap[b, boxes.label[b, m], x, y] = max(here.item(), value)
    return heatmap


def many_boxes(seed: int = 0) -> tuple[Boxes, Tensor]:
    """[3, 24] boxes of every size, a fifth of them out of the grid, with a mask that leaves some out."""
    boxes = random_boxes(3, 24, seed)
    generator = torch.Generator().manual_seed(seed)
    boxes = replace(boxes, size_m=0.3 + 12 * torch.rand(3, 24, 3, generator=generator).square())
    return boxes, torch.rand(3, 24, generator=generator) < 0.8


def inside(targets: DetectionTargets) -> Tensor:
    """[B, M] which boxes have a centre in the grid."""
    return targets.known.any(-1)


def test_the_heatmap_is_what_a_loop_over_boxes_draws() -> None:
    boxes, valid = many_boxes()
    targets = make_targets(boxes, valid, GRID, CLASSES)
    torch.testing.assert_close(targets.heatmap, naive_heatmap(boxes, valid))
    assert targets.heatmap.max() == 1
    assert (targets.heatmap == 1).sum() <= inside(targets).sum()


@given(st.floats(0.5, 60.0), st.floats(0.5, 60.0))
def test_the_radius_keeps_an_overlap_of_a_tenth(length: float, width: float) -> None:
    got = gaussian_radius_cells(torch.tensor(length), torch.tensor(width)).item()
    assert got == pytest.approx(radius_in_python(length, width), rel=1e-3, abs=1e-3)


def test_regression_says_where_in_its_cell_the_box_is_and_what_it_is_like() -> None:
    boxes, valid = many_boxes()
    targets = make_targets(boxes, valid, GRID, CLASSES)
    assert inside(targets).any()
    for b, m in inside(targets).nonzero().tolist():
        ix, iy = divmod(int(targets.cell[b, m]), GRID.shape[1])
        values = targets.regression[b, m]
        corner_m = torch.tensor([GRID.x_min_m + ix * GRID.cell_m, GRID.y_min_m + iy * GRID.cell_m])
        torch.testing.assert_close(corner_m + values[:2] * GRID.cell_m, boxes.center_m[b, m, :2], rtol=1e-5, atol=1e-4)
        assert ((values[:2] >= 0) & (values[:2] <= 1)).all()
        assert values[2] == boxes.center_m[b, m, 2]
        torch.testing.assert_close(values[3:6].exp(), boxes.size_m[b, m])
        twice_rad = 2 * boxes.yaw_rad[b, m]
        torch.testing.assert_close(values[AXIS], torch.stack([twice_rad.sin(), twice_rad.cos()]))
        torch.testing.assert_close(torch.atan2(*values[HEADING]), boxes.yaw_rad[b, m])
        torch.testing.assert_close(values[VELOCITY] * VELOCITY_UNIT_MPS, boxes.velocity_mps[b, m])
        assert targets.attribute[b, m] == boxes.attribute[b, m]


def test_boxes_out_of_the_grid_and_padding_leave_no_trace() -> None:
    boxes = random_boxes(1, 4)
    boxes.center_m[0, :, :2] = torch.tensor([[10.0, 0.0], [0.0, 8.0], [-10.01, 0.0], [math.nan, 0.0]])
    valid = torch.ones(1, 4, dtype=torch.bool)
    for targets in (
        make_targets(boxes, valid, GRID, CLASSES),
        make_targets(random_boxes(1, 4), ~valid, GRID, CLASSES),
    ):
        assert not targets.heatmap.any()
        assert not targets.known.any()
        assert not targets.regression.any()
        assert (targets.attribute == -1).all()
        assert (targets.cell == 0).all()


def test_a_box_on_the_lower_edge_is_inside() -> None:
    boxes = random_boxes(1, 1)
    boxes.center_m[0, 0, :2] = torch.tensor([-10.0, -8.0])
    targets = make_targets(boxes, torch.ones(1, 1, dtype=torch.bool), GRID, CLASSES)
    assert inside(targets).all()
    assert targets.heatmap[0, boxes.label[0, 0], 0, 0] == 1


def test_a_velocity_that_is_not_known_is_masked_and_nothing_else() -> None:
    boxes = random_boxes(1, 2)
    boxes.center_m[..., :2] = 1.0
    boxes.velocity_mps[0, 0] = math.nan
    targets = make_targets(boxes, torch.ones(1, 2, dtype=torch.bool), GRID, CLASSES)
    assert targets.known[0].tolist() == [[1.0] * VELOCITY.start + [0.0] * 2, [1.0] * VELOCITY.stop]
    assert targets.regression.isfinite().all()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_what_padding_rows_hold_does_not_matter(garbage: float) -> None:
    boxes, valid = many_boxes()
    clean = make_targets(boxes, valid, GRID, CLASSES)
    for name in ("center_m", "size_m", "yaw_rad", "velocity_mps"):
        getattr(boxes, name)[~valid] = garbage
    boxes.label[~valid] = -7
    boxes.attribute[~valid] = 99
    dirty = make_targets(boxes, valid, GRID, CLASSES)
    assert all(torch.equal(getattr(clean, name), getattr(dirty, name)) for name in clean.__dataclass_fields__)


def test_no_boxes_give_an_empty_heatmap() -> None:
    targets = make_targets(random_boxes(2, 0), torch.zeros(2, 0, dtype=torch.bool), GRID, CLASSES)
    assert targets.heatmap.shape == (2, CLASSES, *GRID.shape)
    assert not targets.heatmap.any()


# Heatmaps in the pictures


def image_targets(boxes: Boxes, valid: Tensor, cameras: CameraBatch) -> Tensor:
    return make_image_targets(
        boxes, valid, cameras.intrinsics, cameras.reference_T_camera, cameras.present, CLASSES,
        image_size=IMAGE_SIZE, stride=8,
    )  # fmt: skip


def test_a_box_peaks_in_the_feature_pixel_that_its_centre_projects_to() -> None:
    boxes, cameras = random_boxes(2, 12), random_cameras()
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[:, -1] = False
    heatmap = image_targets(boxes, valid, cameras)
    assert heatmap.shape == (2, 6, CLASSES, 4, 8)
    expected: set[tuple[int, ...]] = set()
    unsure: set[tuple[int, ...]] = set()
    for b, n, m in itertools.product(range(2), range(6), range(11)):
        point = torch.cat([boxes.center_m[b, m], torch.ones(1)]).double()
        in_camera = torch.linalg.inv(cameras.reference_T_camera[b, n].double()) @ point
        u, v, depth_m = (cameras.intrinsics[b, n].double() @ in_camera[:3]).tolist()
        if depth_m <= 0.5:
            continue
        # Pixel 0 begins at -1/2, and a feature pixel is 8 pixels wide.
        x, y = (u / depth_m + 0.5) / 8, (v / depth_m + 0.5) / 8
        if 0 <= x < 8 and 0 <= y < 4:
            place = (b, n, int(boxes.label[b, m]), math.floor(y), math.floor(x))
            (unsure if min(abs(x - round(x)), abs(y - round(y))) < 1e-4 else expected).add(place)
    assert len(expected) > 8
    assert set(map(tuple, (heatmap == 1).nonzero().tolist())) - unsure == expected


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 0.0])
def test_an_absent_camera_sees_no_boxes_whatever_its_calibration_says(garbage: float) -> None:
    boxes, cameras = random_boxes(2, 12), random_cameras()
    valid = torch.ones(2, 12, dtype=torch.bool)
    whole = image_targets(boxes, valid, cameras)
    cameras.present[0, :3] = False
    cameras.intrinsics[0, :3] = cameras.reference_T_camera[0, :3] = garbage
    heatmap = image_targets(boxes, valid, cameras)
    assert not heatmap[0, :3].any()
    assert torch.equal(heatmap[cameras.present], whole[cameras.present])
    assert not image_targets(boxes, torch.zeros_like(valid), cameras).any()
