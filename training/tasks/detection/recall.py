"""How many of the boxes that can be found were found.

Letters: K found boxes, N truth boxes of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bev.detection.boxes import Boxes
from bev.grid import BEVGrid


@dataclass(frozen=True)
class Recall:
    """Boxes found of boxes there, by class; classes with no box there are left out."""

    found: dict[str, int]
    total: dict[str, int]

    @property
    def share(self) -> float:
        """Found of all boxes of all classes; NaN where there was nothing to find."""
        return sum(self.found.values()) / sum(self.total.values()) if self.total else float("nan")


def match(found: Boxes, truth: Boxes, distance_m: float) -> Tensor:
    """[K] int64: the truth box that each found box takes, -1 for none.

    The devkit's matching (`nuscenes.eval.detection.algo.accumulate`): found boxes in order of falling score each take the
    nearest truth box of their class that is not taken yet, by centre distance on the ground, if it is nearer than `distance_m`.
    Ties of score go to the later box, as there.
    """
    taken = torch.zeros(len(truth), dtype=torch.bool)
    matches = torch.full((len(found),), -1, dtype=torch.long)
    if len(truth) == 0:
        return matches
    distance = torch.cdist(found.center_m[:, :2].double(), truth.center_m[:, :2].double())  # [K, N]
    distance[found.label[:, None] != truth.label[None, :]] = float("inf")
    for k in torch.argsort(found.score, stable=True).flip(0).tolist():
        free = torch.where(taken, float("inf"), distance[k])
        nearest = int(free.argmin())
        if free[nearest] < distance_m:
            taken[nearest] = True
            matches[k] = nearest
    return matches


def recall_by_class(
    found: Sequence[Boxes],
    truth: Sequence[Boxes],
    lidar_points: Sequence[Tensor],
    grid: BEVGrid,
    classes: Sequence[str],
    *,
    min_points: int = 5,
    distance_m: float = 1.0,
) -> Recall:
    """The share of truth boxes inside the grid with at least `min_points` LiDAR points that are found.

    Args:
        found, truth: one Boxes a sample, in the reference frame.
        lidar_points: one [N] a sample, the annotated number of LiDAR points in each truth box.
        distance_m: a found box this near, and of the right class, is a find.

    All truth boxes take part in the matching, so that a find of a box with few points does not count for its neighbour.
    """
    hits = dict.fromkeys(classes, 0)
    total = dict.fromkeys(classes, 0)
    for sample_found, sample_truth, points in zip(found, truth, lidar_points, strict=True):
        counted = (grid.flat_index(sample_truth.center_m[:, :2]) < grid.num_cells) & (points >= min_points)
        matched = torch.zeros(len(sample_truth), dtype=torch.bool)
        taken = match(sample_found, sample_truth, distance_m)
        matched[taken[taken >= 0]] = True
        for label, is_counted, is_matched in zip(
            sample_truth.label.tolist(), counted.tolist(), matched.tolist(), strict=True
        ):
            total[classes[label]] += is_counted
            hits[classes[label]] += is_counted and is_matched
    present = [name for name in classes if total[name]]
    return Recall({name: hits[name] for name in present}, {name: total[name] for name in present})
