"""No fusion of features: each sensor keeps a grid of its own, from which its own boxes are decoded.

Letters: B samples, C channels, M modalities, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..features import BEVFeatures, FusedBEV, Fuser
from ..named import NamedModules, NamedParameters
from ..nulls import Absent, ModalityTokens, present_mean
from .simple import coverage_share


class LateFusion(Fuser):
    """A detector per sensor, of which only the adapter is its own; the boxes are merged by whoever decodes them.

    The adapter is a norm and a layer per modality, plus its embedding, before the backbone and the head that all share. Late
    fusion of boxes is the oldest way to survive the loss of a sensor, which then takes its boxes with it and nothing else;
    for the merging see `bev.detection.merge`. `forward` gives the mean of the present sensors' adapted
    grids, which no detector uses.

    Args:
        channels: channels of each modality by name; any number of modalities, any names.
        out_channels: C of the fused grid [B, C, X, Y].
        absent: what stands for an absent sensor.

    Raises:
        ValueError: an argument out of its range, or, in `forward`, features that do not fit (says expected and got).
    """

    def __init__(self, channels: Mapping[str, int], out_channels: int, *, absent: Absent = "null") -> None:
        super().__init__()
        self.tokens = ModalityTokens(channels, out_channels, absent)
        self.modalities, self.in_channels = self.tokens.modalities, self.tokens.in_channels
        self.out_channels = out_channels
        self.modality = NamedParameters(self.modalities, torch.randn(len(channels), out_channels) * 0.02)
        self.adapters = NamedModules({
            name: nn.Sequential(nn.LayerNorm(out_channels), nn.Linear(out_channels, out_channels)) for name in channels
        })  # fmt: skip

    def separate(
        self,
        features: Mapping[str, BEVFeatures | None],
        *,
        grid_shape: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> tuple[BEVFeatures, ...]:
        """Each modality's adapted grid [B, C, X, Y], absent ones too (their coverage is 0). ValueError as `forward`."""
        tokens, coverage = self.tokens(features, grid_shape, batch_size)
        adapted = (
            t + adapter(t) + embedding.to(t.dtype)
            for t, adapter, embedding in zip(tokens, self.adapters.values(), self.modality.values(), strict=True)
        )
        return tuple(BEVFeatures(a.permute(0, 3, 1, 2), c) for a, c in zip(adapted, coverage, strict=True))

    def forward(
        self,
        features: Mapping[str, BEVFeatures | None],
        *,
        grid_shape: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> FusedBEV:
        """As `Fuser.forward`; `attention` is the share of coverage."""
        grids = self.separate(features, grid_shape=grid_shape, batch_size=batch_size)
        coverage = torch.stack([g.coverage for g in grids])
        mean = present_mean(torch.stack([g.features.permute(0, 2, 3, 1) for g in grids]), coverage)
        return FusedBEV(mean.permute(0, 3, 1, 2), coverage_share(coverage), coverage.amax(0))
