"""Of several boxes on one object, which stays.

Letters: B samples, K classes, T boxes, N pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import in_triton
from .boxes import Boxes


def circle_nms(boxes: Boxes, radius_m: Tensor) -> Tensor:
    """[B, T] bool: boxes, sorted by score, that no better kept box of their class has within `radius_m` [K] of them."""
    return greedy_suppression(near(boxes, radius_m))


def near(boxes: Boxes, radius_m: Tensor) -> Tensor:
    """[B, T, T] bool: who is of one class with whom, and nearer than that class's `radius_m` [K].

    A class whose radius is NaN takes it from the boxes themselves: half the side of a square as large as the footprint, the
    mean of the two boxes'. That is about what is usual for nuScenes' classes: 1.5 m of a car, 0.35 m of a pedestrian.
    """
    xy_m = boxes.center_m[..., :2]
    of_class = radius_m.to(xy_m)[boxes.label]
    of_box = boxes.size_m[..., :2].prod(-1).sqrt() / 2
    radius = torch.where(of_class.isnan(), of_box, of_class)
    close = distances_m(xy_m) < (radius[:, :, None] + radius[:, None]) / 2
    return close & (boxes.label[:, :, None] == boxes.label[:, None])


def distances_m(xy_m: Tensor) -> Tensor:
    """[B, T, 2] -> [B, T, T].

    By differences: the matrix product that torch prefers for many points loses digits far from the origin, TF32 most of all.
    """
    if torch.compiler.is_exporting() or xy_m.device.type == "cuda":
        # Coordinate by coordinate: onnxruntime took 6 ms over a last axis of 2 where the whole model takes 70, and an H200's
        # `cdist` 0.12 ms for 300 boxes, as long as all else of their suppression.
        along, across = ((axis[:, :, None] - axis[:, None]).square() for axis in xy_m.unbind(-1))
        return (along + across).sqrt()
    return torch.cdist(xy_m, xy_m, compute_mode="donot_use_mm_for_euclid_dist")


def greedy_suppression(close: Tensor) -> Tensor:
    """[B, T, T] bool, who is close to whom, best first -> [B, T] bool: those that no better kept one is close to."""
    if torch.compiler.is_exporting():
        return _settled_suppression(close)
    if in_triton(close.device):
        from ..kernels.suppression import suppress

        return suppress(close)
    return greedy_suppression_reference(close)


def greedy_suppression_reference(close: Tensor) -> Tensor:
    """`greedy_suppression`, box after box."""
    kept = torch.ones(close.shape[:-1], dtype=torch.bool, device=close.device)
    for i in range(1, kept.shape[1]):
        beaten = (close[:, i, :i] & kept[:, :i]).any(dim=1)
        kept[:, i] = ~beaten
    return kept


def _settled_suppression(close: Tensor) -> Tensor:
    """`greedy_suppression` as one loop of few rounds instead of T steps unrolled.

    Each round asks all boxes at once who is beaten by those that the last round kept. After round n at least the best n are
    settled, and what a round leaves as it was is the answer; it mostly comes after three or four.
    """
    from torch._higher_order_ops import while_loop  # torch's only name for it; export alone needs it

    better = close.tril(-1).float()

    def goes_on(changed: Tensor, kept: Tensor) -> Tensor:
        return changed.any()

    def round_(changed: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        left = torch.bmm(better, kept.float()[..., None])[..., 0] == 0
        return (left != kept).any().reshape(1), left

    start = torch.ones(1, dtype=torch.bool, device=close.device), torch.ones_like(close[..., 0])
    return while_loop(goes_on, round_, start)[1]


def cross_class_nms(boxes: Boxes, max_iou: float) -> Boxes:
    """Those of the boxes [T], sorted by score, that no better kept box of another class covers.

    Two boxes cover each other where their footprints' intersection over union exceeds `max_iou`. Over the union, so that a
    large box never takes away a small one: a person beside a car stays even where the car's box was drawn too wide. For what
    people and robots look at; the number of boxes that come back depends on the data, so this is no part of an exported graph.
    """
    area_m2, reach_m = boxes.size_m[:, :2].prod(-1), boxes.size_m[:, :2].norm(dim=-1) / 2
    close = distances_m(boxes.center_m[None, :, :2])[0] < reach_m[:, None] + reach_m
    close &= boxes.label[:, None] != boxes.label
    # The smaller over the larger is the most that a pair can have.
    close &= torch.minimum(area_m2, area_m2[:, None]) >= max_iou * torch.maximum(area_m2, area_m2[:, None])
    first, second = torch.nonzero(close.triu(1)).unbind(-1)
    over = footprint_iou(boxes[first], boxes[second]) > max_iou
    kept = [True] * len(boxes)
    for better, worse in zip(first[over].tolist(), second[over].tolist(), strict=True):  # of the best box first
        kept[worse] &= not kept[better]
    return boxes[torch.tensor(kept, dtype=torch.bool, device=close.device)]


def footprint_iou(a: Boxes, b: Boxes) -> Tensor:
    """[N] intersection over union of the outlines on the ground, pair by pair."""
    corners_m = a.corners_m()[:, :4, :2] - b.center_m[:, None, :2]
    cos, sin = b.yaw_rad.cos()[:, None], b.yaw_rad.sin()[:, None]
    x, y = corners_m.unbind(-1)
    path = torch.stack([cos * x + sin * y, cos * y - sin * x], dim=-1)  # along and across b
    for axis, size_m in ((0, b.size_m[:, 1]), (1, b.size_m[:, 0])):
        path = _clipped(path, axis, size_m / 2)
    (x, y), (next_x, next_y) = path.unbind(-1), path.roll(-1, dims=1).unbind(-1)
    intersection = (x * next_y - y * next_x).sum(-1).abs() / 2
    union = a.size_m[:, :2].prod(-1) + b.size_m[:, :2].prod(-1) - intersection
    return (intersection / union).clamp(max=1.0)  # of equal outlines, rounding gives more


def _clipped(path: Tensor, axis: int, half_m: Tensor) -> Tensor:
    """[N, 3 P, 2]: closed paths [N, P, 2] cut where they cross +-half_m [N] along an axis, and what is beyond laid on that line.

    Going along a line and back encloses nothing, so that the area is that of the intersection, sides that coincide or not.
    """
    step, half_m = path.roll(-1, dims=1) - path, half_m[:, None]
    crossings = [
        ((limit - path[..., axis]) / step[..., axis]).nan_to_num(0.0).clamp(0, 1) for limit in (-half_m, half_m)
    ]
    shares = torch.stack([torch.zeros_like(crossings[0]), torch.minimum(*crossings), torch.maximum(*crossings)], dim=-1)
    points = list((path[:, :, None] + shares[..., None] * step[:, :, None]).flatten(1, 2).unbind(-1))
    points[axis] = torch.maximum(torch.minimum(points[axis], half_m), -half_m)
    return torch.stack(points, dim=-1)
