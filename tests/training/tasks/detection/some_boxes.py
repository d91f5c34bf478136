"""Boxes of which a test says only what it is about."""

from __future__ import annotations

import dataclasses

import torch

from bev.detection.boxes import Boxes


def some_boxes(n: int, **fields: torch.Tensor) -> Boxes:
    base = Boxes(
        torch.zeros(n, 3), torch.ones(n, 3), torch.zeros(n), torch.zeros(n, 2), torch.zeros(n, dtype=torch.long),
        torch.full((n,), -1), torch.ones(n),
    )  # fmt: skip
    return dataclasses.replace(base, **fields)
