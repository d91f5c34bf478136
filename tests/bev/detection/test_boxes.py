"""Boxes promise: width, length, height as in nuScenes, length along the heading, corners in a fixed order."""

from __future__ import annotations

import math

import torch

from bev.detection.boxes import Boxes
from tests.tiny_model import random_boxes


def box(yaw_rad: float) -> Boxes:
    """2 m wide, 4 m long, 1 m high, at (10, 20, 30)."""
    return Boxes(
        center_m=torch.tensor([[10.0, 20.0, 30.0]]),
        size_m=torch.tensor([[2.0, 4.0, 1.0]]),
        yaw_rad=torch.tensor([yaw_rad]),
        velocity_mps=torch.zeros(1, 2),
        label=torch.zeros(1, dtype=torch.long),
        attribute=torch.full((1,), -1),
        score=torch.ones(1),
    )


def test_corners_go_front_left_front_right_rear_right_rear_left_bottom_first() -> None:
    corners = box(0.0).corners_m()[0] - torch.tensor([10.0, 20.0, 30.0])
    bottom = [[2, 1, -0.5], [2, -1, -0.5], [-2, -1, -0.5], [-2, 1, -0.5]]
    top = [[x, y, 0.5] for x, y, _ in bottom]
    torch.testing.assert_close(corners, torch.tensor(bottom + top))


def test_yaw_turns_from_x_to_y() -> None:
    corners = box(math.pi / 2).corners_m()[0] - torch.tensor([10.0, 20.0, 30.0])
    torch.testing.assert_close(corners[0], torch.tensor([-1.0, 2.0, -0.5]))  # front left, heading to the left


def test_corners_of_any_box_have_its_size_and_centre() -> None:
    boxes = random_boxes(3, 5)
    corners = boxes.corners_m()
    assert corners.shape == (3, 5, 8, 3)
    torch.testing.assert_close(corners.mean(-2), boxes.center_m)
    width = (corners[..., 0, :] - corners[..., 1, :]).norm(dim=-1)
    length = (corners[..., 1, :] - corners[..., 2, :]).norm(dim=-1)
    height = (corners[..., 4, :] - corners[..., 0, :]).norm(dim=-1)
    torch.testing.assert_close(torch.stack([width, length, height], dim=-1), boxes.size_m)
    heading = corners[..., 0, :2] - corners[..., 3, :2]
    torch.testing.assert_close(torch.atan2(heading[..., 1], heading[..., 0]), boxes.yaw_rad, rtol=1e-4, atol=1e-4)


def test_indexing_takes_the_same_rows_of_every_field() -> None:
    boxes = random_boxes(2, 5)
    assert len(boxes) == 5
    one = boxes[1]
    assert len(one) == 5
    chosen = one[torch.tensor([3, 0])]
    assert len(chosen) == 2
    assert torch.equal(chosen.center_m, boxes.center_m[1, [3, 0]])
    assert torch.equal(chosen.score, boxes.score[1, [3, 0]])
    assert len(one[one.yaw_rad > 9]) == 0


def test_no_boxes_are_boxes_too() -> None:
    nothing = Boxes.empty()
    assert len(nothing) == 0
    assert nothing.corners_m().shape == (0, 8, 3)
    assert len(nothing.to("cpu")) == 0
