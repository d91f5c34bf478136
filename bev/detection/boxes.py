"""Upright 3D boxes as tensors.

Letters: N boxes (any leading batch axes may stand before it).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Boxes:
    """Boxes in the reference (ego) frame, x forward, y left, z up.

    `size_m` is (width, length, height) as in nuScenes; length lies along the heading. `yaw_rad` turns from +x to +y.
    `label` and `attribute` index the class and attribute lists of the config; attribute -1 is "none". Truth has score 1.
    A velocity that is not known is NaN.
    """

    center_m: Tensor  # [..., N, 3] float32
    size_m: Tensor  # [..., N, 3] float32
    yaw_rad: Tensor  # [..., N] float32
    velocity_mps: Tensor  # [..., N, 2] float32
    label: Tensor  # [..., N] int64
    attribute: Tensor  # [..., N] int64
    score: Tensor  # [..., N] float32

    def __len__(self) -> int:
        return self.label.shape[-1]

    def __getitem__(self, index: Tensor | int | slice) -> Boxes:
        """Index the first axis of every field."""
        return Boxes(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> Boxes:
        return Boxes(*(getattr(self, f.name).to(device) for f in fields(self)))

    @staticmethod
    def empty() -> Boxes:
        zeros = torch.zeros
        return Boxes(
            center_m=zeros(0, 3), size_m=zeros(0, 3), yaw_rad=zeros(0), velocity_mps=zeros(0, 2),
            label=zeros(0, dtype=torch.long), attribute=zeros(0, dtype=torch.long), score=zeros(0),
        )  # fmt: skip

    def corners_m(self) -> Tensor:
        """[..., N, 8, 3]: bottom four, then top four, each front-left, front-right, rear-right, rear-left."""
        width, length, height = self.size_m.unbind(-1)
        along = torch.tensor([1.0, 1.0, -1.0, -1.0] * 2, device=self.size_m.device) / 2
        across = torch.tensor([1.0, -1.0, -1.0, 1.0] * 2, device=self.size_m.device) / 2
        up = torch.tensor([-1.0] * 4 + [1.0] * 4, device=self.size_m.device) / 2
        x = along * length[..., None]
        y = across * width[..., None]
        z = up * height[..., None]
        cos, sin = self.yaw_rad.cos()[..., None], self.yaw_rad.sin()[..., None]
        return torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=-1) + self.center_m[..., None, :]
