"""Which found box is which true one. Letters: K found boxes, N truth boxes of one sample."""

from __future__ import annotations

import torch
from torch import Tensor

from bev.detection.boxes import Boxes


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
