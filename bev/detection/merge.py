"""One list of boxes out of several detectors'.

Letters: B samples, D detectors, K classes, T boxes, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor

from ..grid import BEVGrid
from .boxes import Boxes
from .suppression import greedy_suppression, near

_FIELDS = tuple(f.name for f in fields(Boxes))


def merge_boxes(
    detections: Sequence[Boxes], coverage: Sequence[Tensor], grid: BEVGrid, *, radius_m: Tensor, max_boxes: int
) -> Boxes:
    """The `max_boxes` best of several detectors' boxes, those of one object as one; sorted by score.

    As in Weighted Boxes Fusion (Solovyev et al., Image and Vision Computing 2021) a box's score becomes the mean over the
    detectors of the best score that each gives the object, 0 where one finds none: what all see is surer than what one
    claims. Unlike there, only detectors whose sensor covers the place are asked, weighted by that coverage, and the geometry
    is that of the box which its own detector was surest of. Boxes of one class and of different detectors are one object
    where the better one has the other within its class's radius, or within a cell.

    Args:
        detections: D times [B, T], scores 0 for boxes that are none; none at all for a detector whose sensor is absent.
        coverage: D times [B, X, Y] of the detector's sensor.
        grid: on which coverage lies.
        radius_m: [K], as of `suppression.near`.
        max_boxes: how many come back, if so many went in.
    """
    boxes = _join(detections)
    count = boxes.label.shape[1]
    per_detector = [d.label.shape[1] for d in detections]
    owner = torch.cat([torch.full((n,), i, device=boxes.score.device) for i, n in enumerate(per_detector)])
    same = _same_object(boxes, owner, radius_m, grid)
    found = torch.where(same, boxes.score[:, None], 0.0).split(per_detector, dim=-1)
    cell = grid.flat_index(boxes.center_m[..., :2])
    total, asked = torch.zeros_like(boxes.score), torch.zeros_like(boxes.score)
    for i, (scores, covered) in enumerate(zip(found, coverage, strict=True)):
        # Who found a box is asked in any case: its centre may lie in a cell that the sensor does not cover.
        weight = torch.where(owner == i, 1.0, F.pad(covered.float().flatten(1), (0, 1)).gather(1, cell))
        total, asked = total + weight * scores.amax(-1), asked + weight
    score = torch.where(boxes.score > 0, total / asked.clamp(min=1e-6), 0.0)
    # Boxes of one object mostly end with one score; that of the surest detector is to come first.
    surest = _by_score(boxes.score)
    order = surest.gather(1, _by_score(score.gather(1, surest)))[:, : min(max_boxes, count)]
    boxes, score, owner = _take(boxes, order), score.gather(1, order), owner[order]
    same = _same_object(boxes, owner, radius_m, grid)
    score = torch.where(greedy_suppression(same), score, 0.0)
    order = _by_score(score)
    return _blank(_take(boxes, order), score.gather(1, order))


def no_boxes(batch_size: int, count: int, device: torch.device) -> Boxes:
    """[B, T] boxes of score 0."""
    blank = torch.zeros(batch_size, count, device=device)
    return Boxes(
        center_m=blank[..., None].repeat(1, 1, 3),
        size_m=blank[..., None].repeat(1, 1, 3),
        yaw_rad=blank,
        velocity_mps=blank[..., None].repeat(1, 1, 2),
        label=blank.long(),
        attribute=blank.long() - 1,
        score=blank,
    )


def _same_object(boxes: Boxes, owner: Tensor, radius_m: Tensor, grid: BEVGrid) -> Tensor:
    """[B, T, T] bool: of one class within its radius or a cell; of one detector's boxes, each is its own object."""
    itself = torch.eye(boxes.label.shape[1], dtype=torch.bool, device=owner.device)
    apart = owner[..., :, None] != owner[..., None, :]
    return (near(boxes, radius_m, at_least_m=grid.cell_m) & apart) | itself


def _join(detections: Sequence[Boxes]) -> Boxes:
    return Boxes(*(torch.cat([getattr(d, name) for d in detections], dim=1) for name in _FIELDS))


def _by_score(score: Tensor) -> Tensor:
    return score.argsort(dim=1, descending=True, stable=True)


def _take(boxes: Boxes, order: Tensor) -> Boxes:
    rows = torch.arange(order.shape[0], device=order.device)[:, None]
    return Boxes(*(getattr(boxes, name)[rows, order] for name in _FIELDS))


def _blank(boxes: Boxes, score: Tensor) -> Boxes:
    """`boxes` with `score`; what scores 0 is `no_boxes`, so that it tells nothing of what it was."""
    blank = no_boxes(score.shape[0], score.shape[1], score.device)
    real = score > 0
    values = {}
    for name in _FIELDS:
        mine, none = getattr(boxes, name), getattr(blank, name)
        values[name] = torch.where(real.view(*real.shape, *[1] * (mine.ndim - 2)), mine, none)
    return Boxes(**values | {"score": score})
