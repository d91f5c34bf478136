"""Suppression promises: of several boxes on one object the best stays, and nobody is taken for part of a neighbour."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon
from torch import Tensor

from bev.detection.boxes import Boxes
from bev.detection.suppression import circle_nms, cross_class_nms, footprint_iou
from tests.tiny_model import random_boxes

# Usual sizes of nuScenes' classes: width and length in metres.
FOOTPRINT_M = {
    "car": (1.95, 4.62), "truck": (2.51, 6.93), "bus": (2.94, 11.2), "trailer": (2.87, 12.3),
    "construction_vehicle": (2.73, 6.37), "pedestrian": (0.67, 0.73), "motorcycle": (0.77, 2.11),
    "bicycle": (0.60, 1.70), "traffic_cone": (0.41, 0.41), "barrier": (2.53, 0.50),
}  # fmt: skip


def boxes_of(*rows: tuple[float, ...]) -> Boxes:
    """[T] by falling score from rows of x, y, width, length, yaw and class."""
    values = torch.tensor(rows).reshape(-1, 6)
    tall = torch.ones(len(rows), 1)
    return Boxes(
        center_m=torch.cat([values[:, :2], tall], dim=1), size_m=torch.cat([values[:, 2:4], tall], dim=1),
        yaw_rad=values[:, 4], velocity_mps=torch.zeros(len(rows), 2), label=values[:, 5].long(),
        attribute=torch.full((len(rows),), -1), score=torch.linspace(0.9, 0.1, max(len(rows), 2))[: len(rows)],
    )  # fmt: skip


def naive_nms(xy_m: Tensor, label: Tensor, radius_m: Tensor) -> list[bool]:
    kept: list[bool] = []
    for i in range(len(label)):
        beaten = any(
            kept[j] and label[j] == label[i] and math.dist(xy_m[i].tolist(), xy_m[j].tolist()) < radius_m[label[i]]
            for j in range(i)
        )
        kept.append(not beaten)
    return kept


def crowd(samples: int = 2, count: int = 60, seed: int = 0) -> Boxes:
    """Boxes of two classes in 6 x 6 m, far from the origin, where a careless distance loses its last digits."""
    boxes = random_boxes(samples, count, seed, classes=2)
    boxes.center_m[..., :2] = boxes.center_m[..., :2] * (3 / 11) + 50
    return boxes


def test_circle_nms_agrees_with_a_loop() -> None:
    boxes, radius_m = crowd(), torch.tensor([1.5, 0.3])
    kept = circle_nms(boxes, radius_m)
    for b in range(2):
        assert kept[b].tolist() == naive_nms(boxes.center_m[b, :, :2], boxes.label[b], radius_m)
    assert kept.any()
    assert not kept.all()


def test_distances_are_exact_to_the_millimetre_far_out_and_in_a_crowd() -> None:
    """Distances by matrix product, torch's choice above 25 points, were off by a millimetre at 0.3 m and by 20 at 0."""
    boxes = random_boxes(1, 200, classes=1)
    pairs = torch.arange(100, dtype=torch.float32)
    boxes.center_m[0, :100, :2] = torch.stack([49.87 + 2.3 * (pairs % 10), 38.13 + 2.3 * (pairs // 10)], dim=-1)
    boxes.center_m[0, 100:, :2] = boxes.center_m[0, :100, :2]
    boxes.center_m[0, 100:, 0] += torch.where(pairs % 2 == 0, 0.2999, 0.3001)
    kept = circle_nms(boxes, torch.tensor([0.3]))[0]
    assert kept[:100].all()
    assert torch.equal(kept[100:], pairs % 2 == 1)


def test_a_suppressed_box_suppresses_nobody() -> None:
    boxes = random_boxes(1, 3)
    boxes.center_m[0, :, :2] = torch.tensor([[0.0, 0.0], [0.9, 0.0], [1.8, 0.0]])
    boxes.label[:] = 0
    assert circle_nms(boxes, torch.tensor([1.0])).tolist() == [[True, False, True]]


def test_radius_zero_suppresses_nothing_and_other_classes_do_not_meet() -> None:
    boxes = crowd()
    assert circle_nms(boxes, torch.zeros(2)).all()
    boxes.label[:] = torch.arange(60)
    assert circle_nms(boxes, torch.full((60,), 100.0)).all()


@pytest.mark.parametrize("name", FOOTPRINT_M)
def test_a_class_without_a_radius_takes_its_boxes_own_size(name: str) -> None:
    """As large as the published radii of nuScenes' ten are for theirs, so that nobody gets no suppression at all."""
    width, length = FOOTPRINT_M[name]
    half = math.sqrt(width * length) / 2
    for apart, kept in ((0.98 * half, False), (1.02 * half, True)):
        pair = boxes_of((10, 5, width, length, 0.4, 0), (10 + apart, 5, width, length, 0.4, 0))
        batch = Boxes(*(getattr(pair, f)[None] for f in Boxes.__dataclass_fields__))
        assert circle_nms(batch, torch.tensor([math.nan])).tolist() == [[True, kept]]
        assert circle_nms(batch, torch.tensor([0.0])).tolist() == [[True, True]]


outlines = st.tuples(
    st.floats(-3, 3), st.floats(-3, 3), st.floats(0.1, 5), st.floats(0.1, 12), st.floats(-4, 4), st.integers(0, 1)
)
SQUARE = (0.0, 0.0, 2.0, 2.0, 0.0, 0.0)


@settings(deadline=None, max_examples=300)
@given(outlines, outlines)
@example(SQUARE, SQUARE)
@example((1.3, -2.7, 1.9, 4.6, 0.7, 0.0), (1.3, -2.7, 1.9, 4.6, 0.7, 1.0))
@example((1.3, -2.7, 1.9, 4.6, 0.7, 0.0), (1.3, -2.7, 1.9, 4.6, 0.7 + math.pi, 1.0))
@example(SQUARE, (2.0, 0.0, 2.0, 2.0, 0.0, 1.0))  # side by side
@example(SQUARE, (0.5, 0.0, 2.0, 1.0, 0.0, 1.0))  # inside, three sides in common
@example(SQUARE, (0.0, 0.0, 0.5, 0.5, 0.3, 1.0))  # inside
def test_overlap_is_that_of_the_outlines(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    first, second = boxes_of(a), boxes_of(b)
    polygons = [Polygon(box.corners_m()[0, :4, :2].double().tolist()) for box in (first, second)]
    expected = polygons[0].intersection(polygons[1]).area / polygons[0].union(polygons[1]).area
    # Corners are float32 at some 10 m, so that an outline is known to a micrometre, of at least 0.01 m2.
    assert footprint_iou(first, second).item() == pytest.approx(expected, abs=1e-3)
    assert footprint_iou(second, first).item() == pytest.approx(expected, abs=1e-3)


def test_equal_outlines_overlap_by_no_more_than_all() -> None:
    """Classes that peak in one cell have one box there; a limit of 1 keeps them all."""
    boxes = random_boxes(1, 2000)[0]
    overlap = footprint_iou(boxes, boxes)
    assert (overlap <= 1).all()
    torch.testing.assert_close(overlap, torch.ones(2000), atol=1e-3, rtol=0)


def test_of_one_vehicle_found_as_three_kinds_the_best_stays() -> None:
    """As the head finds it: the cells of the peaks are neighbours, and what they regress is nearly one box."""
    of_it = [(20.0, 3.0, 2.9, 9.0, 0.3, 1), (20.6, 3.2, 2.8, 9.8, 0.33, 2), (19.5, 2.9, 2.9, 10.4, 0.28, 3)]
    car = (8.0, 3.0, 1.9, 4.6, 0.0, 0)
    found = cross_class_nms(boxes_of(*of_it, car), 0.3)
    assert found.label.tolist() == [1, 0]
    torch.testing.assert_close(found.center_m[0, 0].item(), 20.0)
    assert cross_class_nms(boxes_of(*of_it, car), 1.0).label.tolist() == [1, 2, 3, 0]


def test_boxes_of_one_class_are_left_to_their_own_suppression() -> None:
    assert len(cross_class_nms(boxes_of(*[(0, 0, 2, 4, 0, 5)] * 3), 0.0)) == 3


@settings(deadline=None)
@given(
    st.sampled_from(["car", "truck", "bus", "trailer", "construction_vehicle"]),
    st.sampled_from(["pedestrian", "traffic_cone", "bicycle"]),
    st.floats(-1, 1), st.floats(-1, 1), st.floats(-3.1, 3.1), st.booleans(),
)  # fmt: skip
def test_whoever_is_at_a_vehicle_stays(
    vehicle: str, small: str, ahead: float, left: float, yaw: float, first: bool
) -> None:
    """Wherever they stand, and were it within its box, which may be drawn too wide."""
    width, length = FOOTPRINT_M[vehicle]
    rows = [(0, 0, width, length, 0, 0), (ahead * length / 2, left * width / 2, *FOOTPRINT_M[small], yaw, 1)]
    assert len(cross_class_nms(boxes_of(*(rows if first else rows[::-1])), 0.3)) == 2


def test_a_trailer_behind_its_truck_stays_also_at_an_angle() -> None:
    truck, trailer = FOOTPRINT_M["truck"], FOOTPRINT_M["trailer"]
    for yaw in (0.0, 0.4, 1.2):
        hitch = -truck[1] / 2
        middle = (hitch - trailer[1] / 2 * math.cos(yaw), -trailer[1] / 2 * math.sin(yaw))
        assert len(cross_class_nms(boxes_of((*middle, *trailer, yaw, 3), (0, 0, *truck, 0, 1)), 0.3)) == 2


@settings(deadline=None)
@given(st.lists(outlines, max_size=12))
def test_what_is_left_does_not_overlap_and_what_went_was_covered_by_something_better(
    rows: list[tuple[float, ...]],
) -> None:
    boxes = boxes_of(*rows)
    left = cross_class_nms(boxes, 0.4)
    kept = torch.isin(boxes.score, left.score)
    assert torch.equal(boxes[kept].center_m, left.center_m)
    for i in range(len(boxes)):
        rivals = [j for j in range(i) if kept[j] and boxes.label[j] != boxes.label[i]]
        assert bool(kept[i]) == all(footprint_iou(boxes[i : i + 1], boxes[j : j + 1]) <= 0.4 for j in rivals)
