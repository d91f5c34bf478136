"""Merging promises: one box an object, surer where more detectors saw it, and no word from who was not there."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from bev.detection.boxes import Boxes
from bev.detection.merge import merge_boxes, no_boxes
from bev.grid import BEVGrid

GRID = BEVGrid(-8, 8, -8, 8, 0.5)
RADIUS_M = torch.tensor([1.0, 2.0])
ALL = torch.ones(1, *GRID.shape)


def boxes(*rows: tuple[float, float, int, float], count: int = 4) -> Boxes:
    """[1, count] boxes of (x, y, label, score), padded with boxes of score 0."""
    blank = no_boxes(1, count, torch.device("cpu"))
    for i, (x, y, label, score) in enumerate(rows):
        blank.center_m[0, i, :2] = torch.tensor([x, y])
        blank.label[0, i] = label
        blank.score[0, i] = score
    return blank


def listed(merged: Boxes) -> list[tuple[float, float, int, float]]:
    return [
        (*(round(v, 4) for v in c[:2]), k, round(s, 4))
        for c, k, s in zip(merged.center_m[0].tolist(), merged.label[0].tolist(), merged.score[0].tolist(), strict=True)
        if s > 0
    ]


def merge(*detections: Boxes, coverage: list[torch.Tensor] | None = None, max_boxes: int = 8) -> Boxes:
    seen = [ALL] * len(detections) if coverage is None else coverage
    return merge_boxes(detections, seen, GRID, radius_m=RADIUS_M, max_boxes=max_boxes)


def test_an_object_that_both_saw_is_one_box_of_the_surer_one_with_the_mean_score() -> None:
    merged = merge(boxes((1.0, 1.0, 0, 0.6)), boxes((1.5, 1.0, 0, 0.8)))
    assert listed(merged) == [(1.5, 1.0, 0, 0.7)]


def test_what_one_alone_claims_is_halved_and_comes_after_what_both_saw() -> None:
    merged = merge(boxes((1.0, 1.0, 0, 0.5), (-5.0, 0.0, 0, 0.9)), boxes((1.0, 1.0, 0, 0.5)))
    assert listed(merged) == [(1.0, 1.0, 0, 0.5), (-5.0, 0.0, 0, 0.45)]


def test_who_does_not_cover_the_place_is_not_asked() -> None:
    blind_there = ALL.clone()
    blind_there[0, : GRID.shape[0] // 2] = 0
    merged = merge(boxes((-5.0, 0.0, 0, 0.9), (5.0, 0.0, 0, 0.9)), boxes(), coverage=[ALL, blind_there])
    assert listed(merged) == [(-5.0, 0.0, 0, 0.9), (5.0, 0.0, 0, 0.45)]


def test_a_detector_whose_sensor_sees_nothing_is_as_none_at_all() -> None:
    """To the last bit, and whatever its empty boxes hold."""
    one = boxes((1.0, 1.0, 0, 0.6), (3.0, 1.0, 1, 0.3))
    nobody = boxes((1.0, 1.0, 0, 0.0), (7.0, 1.0, 1, 0.0))
    alone = merge(one, max_boxes=4)
    for merged in (
        merge(one, nobody, coverage=[ALL, torch.zeros_like(ALL)], max_boxes=4),
        merge(nobody, one, coverage=[torch.zeros_like(ALL), ALL], max_boxes=4),
    ):
        for field in fields(Boxes):
            assert torch.equal(getattr(merged, field.name), getattr(alone, field.name)), field.name


@pytest.mark.parametrize(
    ("second", "count"),
    [((1.9, 1.0, 0, 0.8), 1), ((2.1, 1.0, 0, 0.8), 2), ((1.0, 1.0, 1, 0.8), 2)],
    ids=["within the radius", "beyond it", "of another class"],
)
def test_what_is_one_object(second: tuple[float, float, int, float], count: int) -> None:
    assert len(listed(merge(boxes((1.0, 1.0, 0, 0.6)), boxes(second)))) == count


def test_two_boxes_of_one_detector_stay_two() -> None:
    """It suppressed its own already; two pedestrians stand close."""
    pair = boxes((1.0, 1.0, 0, 0.6), (1.4, 1.0, 0, 0.6))
    assert len(listed(merge(pair, boxes()))) == 2


def test_a_box_outside_the_grid_is_kept_as_its_detector_alone_said_it() -> None:
    assert listed(merge(boxes((9.0, 1.0, 0, 0.6)), boxes())) == [(9.0, 1.0, 0, 0.6)]


def test_the_best_come_back_sorted_and_no_more_than_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (
        boxes(*((8 * x, 8 * y, 0, s) for x, y, s in torch.rand(30, 3, generator=generator).tolist()), count=30)
        for _ in range(2)
    )
    merged = merge(first, second, max_boxes=10)
    assert merged.score.shape == (1, 10)
    assert (merged.score[:, :-1] >= merged.score[:, 1:]).all()
