"""The head promises: what the targets say is what decoding returns, and of one object only the best box stays."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev.detection.boxes import Boxes
from bev.detection.head import (
    AXIS,
    HEADING,
    MOTION,
    REGRESSION_CHANNELS,
    DetectionHead,
    DetectionLogits,
    HeatmapHead,
    boxes_at,
    decode,
)
from bev.detection.targets import make_targets
from bev.grid import BEVGrid
from tests.tiny_model import random_boxes

GRID = BEVGrid(-8, 8, -6, 6, 0.5)
CLASSES, ATTRIBUTES = 4, 3
MOTION_SIZE = MOTION.stop - MOTION.start

angles = st.floats(-3.1, 3.1)
speeds = st.floats(-20, 20)


@st.composite
def scenes(draw: st.DrawFn) -> Boxes:
    """[1, M] boxes, no two of them in one cell."""
    cells = draw(st.lists(st.tuples(st.integers(0, 31), st.integers(0, 23)), min_size=1, max_size=12, unique=True))
    shares = st.floats(0.01, 0.99)
    rows = [
        (
            GRID.x_min_m + (ix + draw(shares)) * GRID.cell_m, GRID.y_min_m + (iy + draw(shares)) * GRID.cell_m,
            draw(st.floats(-2, 4)), *draw(st.tuples(*[st.floats(0.1, 15)] * 3)), draw(angles), draw(speeds), draw(speeds),
        )
        for ix, iy in cells
    ]  # fmt: skip
    kinds = [(draw(st.integers(0, CLASSES - 1)), draw(st.integers(0, ATTRIBUTES - 1))) for _ in cells]
    values, kind = torch.tensor([rows]), torch.tensor([kinds])
    return Boxes(
        center_m=values[..., :3], size_m=values[..., 3:6], yaw_rad=values[..., 6], velocity_mps=values[..., 7:],
        label=kind[..., 0], attribute=kind[..., 1], score=torch.ones(1, len(cells)),
    )  # fmt: skip


def channels(classes: int) -> int:
    """Of `DetectionLogits.regression`."""
    return MOTION.start + MOTION_SIZE * classes


def perfect_logits(boxes: Boxes) -> DetectionLogits:
    """What a head that has learned the targets by heart would say."""
    samples, count = boxes.label.shape
    targets = make_targets(boxes, torch.ones(samples, count, dtype=torch.bool), GRID, CLASSES)
    regression = torch.zeros(samples, channels(CLASSES), GRID.num_cells)
    for b, m in product(range(samples), range(count)):
        cell, mine = targets.cell[b, m], MOTION.start + MOTION_SIZE * targets.label[b, m]
        regression[b, : MOTION.start, cell] = targets.regression[b, m, : MOTION.start]
        regression[b, mine : mine + MOTION_SIZE, cell] = targets.regression[b, m, MOTION]
    attributes = torch.zeros(samples, ATTRIBUTES, GRID.num_cells)
    for b in range(samples):
        attributes[b, boxes.attribute[b], targets.cell[b]] = 5.0
    shape = GRID.shape
    return DetectionLogits(
        torch.logit(targets.heatmap, eps=1e-3), regression.unflatten(2, shape), attributes.unflatten(2, shape)
    )


@settings(deadline=None)
@given(scenes())
def test_decoding_the_targets_returns_the_boxes(boxes: Boxes) -> None:
    found = decode(perfect_logits(boxes), GRID, max_boxes=40)
    assert (found.score[:, :-1] >= found.score[:, 1:]).all()
    sure = found[0][found.score[0] > 0.99]
    assert len(sure) == len(boxes)
    # Match by place: two boxes may not share a cell, so the nearest is the one.
    order = torch.cdist(boxes.center_m[0], sure.center_m, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert len(order.unique()) == len(boxes)
    sure = sure[order]
    torch.testing.assert_close(sure.center_m, boxes.center_m[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sure.size_m, boxes.size_m[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sure.yaw_rad, boxes.yaw_rad[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sure.velocity_mps, boxes.velocity_mps[0])
    assert torch.equal(sure.label, boxes.label[0])
    assert torch.equal(sure.attribute, boxes.attribute[0])


@given(angles, st.floats(0.1, 5.0), st.floats(-1.2, 1.2), st.booleans())
def test_the_yaw_is_that_end_of_the_axis_that_is_nearer_to_the_heading(
    yaw_rad: float, length: float, off_rad: float, turned: bool
) -> None:
    """However long the heading is and however badly it fits: off by less than a right angle changes nothing."""
    seen_rad = yaw_rad + off_rad + (math.pi if turned else 0.0)
    regression = torch.zeros(1, REGRESSION_CHANNELS, *GRID.shape)
    regression[0, AXIS] = torch.tensor([math.sin(2 * yaw_rad), math.cos(2 * yaw_rad)])[:, None, None]
    regression[0, HEADING] = length * torch.tensor([math.sin(seen_rad), math.cos(seen_rad)])[:, None, None]
    logits = DetectionLogits(torch.zeros(1, 1, *GRID.shape), regression, torch.zeros(1, 0, *GRID.shape))
    cell = torch.tensor([[3]])
    found_rad = boxes_at(logits, cell, GRID, label=cell * 0, score=torch.ones(1, 1)).yaw_rad.item()
    assert math.cos(found_rad - yaw_rad) == pytest.approx(-1.0 if turned else 1.0, abs=1e-4)


@given(angles, angles, st.floats(0.1, 5.0))
def test_without_an_axis_the_yaw_is_the_heading(axis_rad: float, heading_rad: float, length: float) -> None:
    regression = torch.zeros(1, REGRESSION_CHANNELS, *GRID.shape)
    regression[0, AXIS] = 1e-6 * torch.tensor([math.sin(axis_rad), math.cos(axis_rad)])[:, None, None]
    regression[0, HEADING] = length * torch.tensor([math.sin(heading_rad), math.cos(heading_rad)])[:, None, None]
    logits = DetectionLogits(torch.zeros(1, 1, *GRID.shape), regression, torch.zeros(1, 0, *GRID.shape))
    cell = torch.tensor([[3]])
    found_rad = boxes_at(logits, cell, GRID, label=cell * 0, score=torch.ones(1, 1)).yaw_rad.item()
    assert math.cos(found_rad - heading_rad) == pytest.approx(1.0, abs=1e-4)


def test_suppressed_boxes_come_last_with_score_zero() -> None:
    boxes = random_boxes(1, 2, classes=1, attributes=ATTRIBUTES)
    boxes.center_m[0, :, :2] = torch.tensor([[0.2, 0.2], [1.7, 0.2]])  # three cells apart
    boxes.attribute.clamp_(min=0)
    logits = perfect_logits(boxes)
    logits.heatmap[0, 0, 19, 12] -= 1  # the second box is less sure
    found = decode(logits, GRID, max_boxes=10, nms_radius_m=torch.tensor([2.0] + [0.0] * (CLASSES - 1)))
    torch.testing.assert_close(found.center_m[0, 0, :2], torch.tensor([0.2, 0.2]))
    assert found.score[0, 0] > 0.99
    assert (found.score[0, :-1] >= found.score[0, 1:]).all()
    near = (found.center_m[0, :, :2] - torch.tensor([1.7, 0.2])).norm(dim=-1) < 1e-3
    same = near & (found.label[0] == 0)
    assert not found.score[0][same].any()


def test_every_field_follows_the_order_of_scores_after_suppression() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = DetectionLogits(
        torch.randn(2, CLASSES, *GRID.shape, generator=generator),
        torch.randn(2, channels(CLASSES), *GRID.shape, generator=generator),
        torch.randn(2, ATTRIBUTES, *GRID.shape, generator=generator),
    )
    plain = decode(logits, GRID, max_boxes=50)
    found = decode(logits, GRID, max_boxes=50, nms_radius_m=torch.full((CLASSES,), 2.0))
    rows = {
        (k, *c): i for i, (k, c) in enumerate(zip(plain.label[0].tolist(), plain.center_m[0].tolist(), strict=True))
    }
    for i in range(50):
        j = rows[int(found.label[0, i]), *found.center_m[0, i].tolist()]
        for name in ("size_m", "yaw_rad", "velocity_mps"):
            assert torch.equal(getattr(found, name)[0, i], getattr(plain, name)[0, j])
    kept = found.score[0] > 0
    assert 0 < kept.sum() < 50


def test_more_boxes_asked_for_than_cells_gives_every_cell() -> None:
    grid = BEVGrid(0, 2, 0, 2, 1)
    logits = DetectionLogits(torch.zeros(1, 2, 2, 2), torch.zeros(1, channels(2), 2, 2), torch.zeros(1, 1, 2, 2))
    assert len(decode(logits, grid, max_boxes=100)) == 8


def test_a_wild_size_stays_finite_and_no_attributes_is_none() -> None:
    regression = torch.full((1, REGRESSION_CHANNELS, *GRID.shape), 1e6)
    logits = DetectionLogits(torch.zeros(1, 1, *GRID.shape), regression, torch.zeros(1, 0, *GRID.shape))
    cell = torch.tensor([[0, 5]])
    boxes = boxes_at(logits, cell, GRID, label=cell * 0, score=torch.ones(1, 2))
    assert boxes.size_m.isfinite().all()
    assert boxes.attribute.tolist() == [[-1, -1]]


@pytest.mark.parametrize("attributes", [0, ATTRIBUTES])
def test_the_heads_give_their_shapes_and_start_doubtful(attributes: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 8, 6, 5)
    logits = DetectionHead(8, CLASSES, attributes)(features)
    assert logits.heatmap.shape == (2, CLASSES, 6, 5)
    assert logits.regression.shape == (2, channels(CLASSES), 6, 5)
    assert logits.attributes.shape == (2, attributes, 6, 5)
    auxiliary = HeatmapHead(8, CLASSES)(features)
    assert auxiliary.shape == (2, CLASSES, 6, 5)
    for heatmap in (logits.heatmap, auxiliary):
        # The focal loss begins near its prior of 0.05.
        assert heatmap.sigmoid().mean().item() == pytest.approx(0.05, abs=0.05)


def test_classes_begin_alike_and_learn_to_move_by_themselves() -> None:
    torch.manual_seed(0)
    head, features = DetectionHead(8, CLASSES, 0).eval(), torch.randn(1, 8, 6, 5)
    cell, label = torch.full((1, CLASSES), 7), torch.arange(CLASSES)[None]
    values = head(features).regressed(cell, label)[0]
    assert torch.equal(values, values[:1].expand_as(values))
    with torch.no_grad():
        head.motion_of_class.weight[MOTION_SIZE : 2 * MOTION_SIZE] += 1.0
        head.motion_of_class.bias[MOTION_SIZE : 2 * MOTION_SIZE] += 1.0  # type: ignore[index]
    changed = (head(features).regressed(cell, label)[0] != values).any(1)
    assert changed.tolist() == [number == 1 for number in range(CLASSES)]
    with torch.no_grad():
        head.motion_of_all.weight += 1.0
    assert (head(features).regressed(cell, label)[0, :, MOTION] != values[:, MOTION]).all()


def test_measured_motion_changes_motion_alone_and_says_nothing_before_training() -> None:
    torch.manual_seed(0)
    head, features, measured = DetectionHead(8, CLASSES, 0, 3), torch.randn(2, 8, 6, 5), torch.randn(2, 3, 6, 5)
    head.eval()
    nothing = torch.zeros_like(measured)
    fresh = head(features, measured)
    assert torch.equal(fresh.regression, head(features, nothing).regression)
    assert torch.equal(fresh.regression, head(features).regression)
    with torch.no_grad():
        for name in ("motion.0", "motion_of_all", "motion_of_class"):
            head.get_parameter(f"{name}.weight").add_(0.1)
    with_motion, without = head(features, measured), head(features, nothing)
    changed = (with_motion.regression != without.regression).flatten(2).any(2).all(0)
    assert changed.tolist() == [False] * MOTION.start + [True] * (MOTION_SIZE * CLASSES)
    assert torch.equal(with_motion.heatmap, without.heatmap)


def attributes_found(label: list[int], allowed: list[list[bool]], sure: int) -> list[int]:
    """What attribute boxes of these classes get, at cells that are surest of `sure`, then of the ones before it."""
    logits = DetectionLogits(
        torch.zeros(1, CLASSES, *GRID.shape),
        torch.zeros(1, channels(CLASSES), *GRID.shape),
        torch.zeros(1, ATTRIBUTES, *GRID.shape) - (torch.arange(ATTRIBUTES) - sure).abs()[:, None, None],
    )
    labels = torch.tensor([label])
    boxes = boxes_at(
        logits, labels * 0, GRID, label=labels, score=torch.ones(labels.shape), allowed=torch.tensor(allowed)
    )
    return boxes.attribute[0].tolist()


def test_an_attribute_is_the_likeliest_of_those_that_the_class_can_have() -> None:
    allowed = [[True, True, True], [True, False, False], [False, True, False], [False, False, False]]
    assert attributes_found([0, 1, 2, 3, 0], allowed, sure=2) == [2, 0, 1, -1, 2]


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.booleans()] * ATTRIBUTES), min_size=CLASSES, max_size=CLASSES), st.integers(0, 2**16))
def test_decoding_never_gives_an_attribute_that_the_class_cannot_have(
    allowed: list[tuple[bool, ...]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    heatmap, regression, attributes = (
        torch.randn(1, n, *GRID.shape, generator=generator) for n in (CLASSES, channels(CLASSES), ATTRIBUTES)
    )
    found = decode(DetectionLogits(heatmap, regression, attributes), GRID, max_boxes=40, allowed=torch.tensor(allowed))
    for label, attribute in zip(found.label[0].tolist(), found.attribute[0].tolist(), strict=True):
        assert allowed[label][attribute] if attribute >= 0 else not any(allowed[label])


def test_a_peak_is_one_along_both_axes() -> None:
    """A ridge along x and one along y: of each only its top is a peak, whichever axis a neighbour lies on."""
    heatmap = torch.full((1, 1, *GRID.shape), -9.0)
    ridge = torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0])
    heatmap[0, 0, 4:9, 6], heatmap[0, 0, 20, 10:15] = ridge, ridge
    logits = DetectionLogits(heatmap, torch.zeros(1, REGRESSION_CHANNELS, *GRID.shape), torch.zeros(1, 0, *GRID.shape))
    found = decode(logits, GRID, max_boxes=12)
    tops = found.center_m[0, found.score[0] > 0.4, :2]
    expected = [[GRID.x_min_m + 0.5 * x, GRID.y_min_m + 0.5 * y] for x, y in ((6, 6), (20, 12))]
    assert sorted(tops.tolist()) == sorted(expected)


def test_objects_on_diagonal_cells_are_both_found_and_the_flank_of_one_is_not() -> None:
    heatmap = torch.full((1, 1, *GRID.shape), -9.0)
    heatmap[0, 0, 2, 2], heatmap[0, 0, 3, 3] = 3.0, 2.0  # two objects
    heatmap[0, 0, 2, 3], heatmap[0, 0, 3, 2] = 1.0, 1.0  # between them
    logits = DetectionLogits(heatmap, torch.zeros(1, REGRESSION_CHANNELS, *GRID.shape), torch.zeros(1, 0, *GRID.shape))
    found = decode(logits, GRID, max_boxes=4).score[0] > 0.5
    assert found.sum() == 2
