"""What a submission holds of what was found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bev.detection.boxes import Boxes
from robustbev import NUSCENES_ATTRIBUTES, NUSCENES_CLASSES
from tests.training.tasks.detection.some_boxes import some_boxes
from training.tasks.detection.submission import submission_boxes


def test_a_submission_keeps_the_best_boxes_and_only_valid_attributes() -> None:
    n = 700
    boxes = some_boxes(
        n, label=torch.arange(n) % 10, attribute=torch.arange(n) % 9 - 1, score=torch.linspace(0, 1, n),
        velocity_mps=torch.full((n, 2), math.nan),
    )  # fmt: skip
    rows = submission_boxes("t", boxes, np.eye(4), NUSCENES_CLASSES, NUSCENES_ATTRIBUTES)
    assert len(rows) == 500
    assert rows[0]["detection_score"] == 1.0
    assert type(rows[0]["detection_score"]) is float
    first = {"car": "vehicle", "pedestrian": "pedestrian", "bicycle": "cycle", "barrier": "", "traffic_cone": ""}
    for row in rows:
        assert row["velocity"] == [0.0, 0.0]
        if row["detection_name"] in first:
            assert row["attribute_name"].split(".")[0] == first[row["detection_name"]]
    few = submission_boxes(
        "t", boxes, np.eye(4), NUSCENES_CLASSES, NUSCENES_ATTRIBUTES, score_threshold=0.999, max_boxes=9
    )
    assert len(few) == 1
    assert submission_boxes("t", Boxes.empty(), np.eye(4), NUSCENES_CLASSES, NUSCENES_ATTRIBUTES) == []


def test_a_submission_is_in_the_global_frame() -> None:
    quarter_turn = np.eye(4)
    quarter_turn[:2, :2] = [[0, -1], [1, 0]]
    quarter_turn[:3, 3] = [100, 200, 3]
    boxes = some_boxes(
        1, center_m=torch.tensor([[10.0, 1.0, 0.5]]), velocity_mps=torch.tensor([[2.0, 0.0]]),
        size_m=torch.tensor([[2.0, 4.0, 1.5]]),
    )  # fmt: skip
    row = submission_boxes("t", boxes, quarter_turn, NUSCENES_CLASSES, NUSCENES_ATTRIBUTES)[0]
    assert row["translation"] == pytest.approx([99.0, 210.0, 3.5])
    assert row["velocity"] == pytest.approx([0.0, 2.0])
    assert row["size"] == pytest.approx([2.0, 4.0, 1.5])  # width, length, height
    assert row["rotation"] == pytest.approx([math.sqrt(0.5), 0, 0, math.sqrt(0.5)], abs=1e-6)  # w, x, y, z
    assert row["attribute_name"] == "vehicle.moving"


def test_a_broken_model_is_named_with_the_sample() -> None:
    boxes = some_boxes(2, center_m=torch.tensor([[0.0, 0.0, 0.0], [math.nan, 0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"sample abc: .* center_m is NaN"):
        submission_boxes("abc", boxes, np.eye(4), NUSCENES_CLASSES, NUSCENES_ATTRIBUTES)
