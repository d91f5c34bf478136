"""A robot's own code around `fusion`: its sensors, its encoders, its training step. Checked by strict type checkers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion import (
    Absent,
    BEVFeatures,
    ChannelWeightFusion,
    ConcatFusion,
    CrossAttentionFusion,
    FusedBEV,
    Fuser,
    GatedFusion,
    JointFusion,
    LatentFusion,
    MeanFusion,
    drop_members,
    drop_modalities,
    hide,
)

CHANNELS: dict[str, int] = {"thermal": 4, "ultrasonic": 2, "depth": 8}
CELLS = (6, 5)


@dataclass(frozen=True)
class Trust:
    """Share of each sensor, by name."""

    shares: Mapping[str, float]


def fuser_for(absent: Absent) -> Fuser:
    return CrossAttentionFusion(CHANNELS, 16, heads=4, neighbourhood=3, absent=absent)


def others() -> list[Fuser]:
    base = MeanFusion({"thermal": 4, "depth": 8}, 16)
    return [
        ConcatFusion(CHANNELS, 16, absent="zeros"),
        ChannelWeightFusion(CHANNELS, 16),
        LatentFusion(CHANNELS, 16, latents=2, pool=2),
        JointFusion(CHANNELS, 16, pool=2),
        GatedFusion(base, {"ultrasonic": 2}, 16, modalities=tuple(CHANNELS)),
    ]


def sense() -> dict[str, BEVFeatures | None]:
    everywhere = torch.ones(1, *CELLS)
    return {name: BEVFeatures(torch.zeros(1, count, *CELLS), everywhere) for name, count in CHANNELS.items()}


def trusted(fuser: Fuser, features: Mapping[str, BEVFeatures | None]) -> Trust:
    fused: FusedBEV = fuser.forward(features, grid_shape=CELLS, batch_size=1)
    shares: Tensor = fused.attention.mean(dim=(0, 2, 3))
    return Trust({name: float(share) for name, share in zip(fuser.modalities, shares, strict=True)})


class Robot(nn.Module):
    """A fuser and a head."""

    def __init__(self, fuser: Fuser) -> None:
        super().__init__()
        self.fuser = fuser
        self.head = nn.Conv2d(16, 1, kernel_size=1)

    def forward(self, features: Mapping[str, BEVFeatures | None]) -> Tensor:
        fused = self.fuser.forward(features)
        return self.head.forward(fused.features)


def without_some(features: Mapping[str, BEVFeatures], generator: torch.Generator) -> dict[str, BEVFeatures | None]:
    by_place: Tensor = drop_modalities(1, [0.3] * len(features), generator)
    by_name: dict[str, Tensor] = drop_modalities(1, dict.fromkeys(features, 0.3), generator)
    return hide(hide(features, by_place), by_name)


def some_cameras(generator: torch.Generator) -> Tensor:
    return drop_members(torch.ones(1, 3, dtype=torch.bool), 0.1, generator)
