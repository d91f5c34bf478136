"""Simpler ways to fuse, under the interface of `CrossAttentionFusion`.

Letters: B samples, C channels, M modalities, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .features import BEVFeatures, FusedBEV
from .nulls import Absent, ModalityTokens


def coverage_share(coverage: Tensor) -> Tensor:
    """[M, B, X, Y] -> [B, M, X, Y]: each modality's part of what covers the cell, 0 where nothing does.

    Stands in for attention where a fuser has none: it tells who was there, not who was trusted.
    """
    return (coverage / coverage.sum(0).clamp(min=1e-6)).transpose(0, 1)


class ConcatFusion(nn.Module):
    """Concatenation and one 3 x 3 convolution, as the ConvFuser of BEVFusion (Liu et al., ICRA 2023).

    An absent modality's channels hold its null embedding or zeros; a convolution cannot leave them out, so
    `absent="mask"` is a ValueError.
    """

    def __init__(self, channels: Mapping[str, int], out_channels: int, *, absent: Absent = "null") -> None:
        super().__init__()
        if absent == "mask":
            raise ValueError("concatenation cannot mask a modality: choose absent null or zeros")
        self.tokens = ModalityTokens(channels, out_channels, absent)
        self.modalities = self.tokens.modalities
        self.mix = nn.Conv2d(len(channels) * out_channels, out_channels, 3, padding=1)
        self.norm = nn.LayerNorm(out_channels)

    def forward(
        self,
        features: Mapping[str, BEVFeatures | None],
        *,
        grid_shape: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> FusedBEV:
        """As `CrossAttentionFusion.forward`; `attention` is the share of coverage."""
        tokens, coverage = self.tokens(features, grid_shape, batch_size)
        stacked = tokens.permute(1, 0, 4, 2, 3).flatten(1, 2)
        fused = self.norm(self.mix(stacked).permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2)
        return FusedBEV(features=fused, attention=coverage_share(coverage), coverage=coverage.amax(0))


class MeanFusion(nn.Module):
    """The mean of the modalities' tokens, normalised. With `absent="mask"` of the present ones only."""

    def __init__(self, channels: Mapping[str, int], out_channels: int, *, absent: Absent = "mask") -> None:
        super().__init__()
        self.tokens = ModalityTokens(channels, out_channels, absent)
        self.modalities = self.tokens.modalities
        self.absent = absent
        self.norm = nn.LayerNorm(out_channels)

    def forward(
        self,
        features: Mapping[str, BEVFeatures | None],
        *,
        grid_shape: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> FusedBEV:
        """As `CrossAttentionFusion.forward`; `attention` is the share of coverage."""
        tokens, coverage = self.tokens(features, grid_shape, batch_size)
        if self.absent == "mask":
            weight = (coverage > 0).float()[..., None]
            mean = torch.where(weight > 0, tokens, 0.0).sum(0) / weight.sum(0).clamp(min=1.0)
        else:
            mean = tokens.mean(0)
        return FusedBEV(self.norm(mean).permute(0, 3, 1, 2), coverage_share(coverage), coverage.amax(0))
