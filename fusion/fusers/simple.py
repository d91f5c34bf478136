"""Simpler ways to fuse, under the interface of `CrossAttentionFusion`.

Letters: B samples, C channels, M modalities, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..features import BEVFeatures, FusedBEV, Fuser
from ..kernels.devices import widened
from ..named import NamedConv, NamedParameters
from ..nulls import Absent, ModalityTokens, present_mean


def coverage_share(coverage: Tensor) -> Tensor:
    """[M, B, X, Y] -> [B, M, X, Y]: each modality's part of what covers the cell, 0 where nothing does.

    Stands in for attention where a fuser has none: it tells who was there, not who was trusted.
    """
    return (coverage / coverage.sum(0).clamp(min=1e-6)).transpose(0, 1)


class ConcatFusion(Fuser):
    """Concatenation and one 3 x 3 convolution, as the ConvFuser of BEVFusion (Liu et al., ICRA 2023).

    An absent modality's channels hold its null embedding or zeros; a convolution cannot leave them out.

    Args:
        channels: channels of each modality by name; any number of modalities, any names.
        out_channels: C of the fused grid [B, C, X, Y].
        absent: what stands for an absent sensor, but for "mask".

    Raises:
        ValueError: an argument out of its range, or, in `forward`, features that do not fit (says expected and got).
    """

    def __init__(self, channels: Mapping[str, int], out_channels: int, *, absent: Absent = "null") -> None:
        super().__init__()
        if absent == "mask":
            raise ValueError("concatenation cannot mask a modality: choose absent null or zeros")
        self.tokens = ModalityTokens(channels, out_channels, absent)
        self.modalities, self.in_channels = self.tokens.modalities, self.tokens.in_channels
        self.out_channels = out_channels
        self.mix = NamedConv(self.modalities, out_channels, 3)
        self.norm = nn.LayerNorm(out_channels)

    def forward(
        self,
        features: Mapping[str, BEVFeatures | None],
        *,
        grid_shape: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> FusedBEV:
        """As `Fuser.forward`; `attention` is the share of coverage."""
        tokens, coverage = self.tokens(features, grid_shape, batch_size)
        stacked = tokens.permute(1, 0, 4, 2, 3).flatten(1, 2)
        fused = self.norm(self.mix(stacked).permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2)
        return FusedBEV(features=fused, attention=coverage_share(coverage), coverage=coverage.amax(0))


class MeanFusion(Fuser):
    """The mean of the modalities' tokens. With `absent="mask"` of the present ones only.

    The plainest way to be indifferent to what is missing, as the averaging of hetero-modal networks (HeMIS: Havaei et al.,
    MICCAI 2016).

    Args:
        channels: channels of each modality by name; any number of modalities, any names.
        out_channels: C of the fused grid [B, C, X, Y].
        absent: what stands for an absent sensor.

    Raises:
        ValueError: an argument out of its range, or, in `forward`, features that do not fit (says expected and got).
    """

    def __init__(self, channels: Mapping[str, int], out_channels: int, *, absent: Absent = "mask") -> None:
        super().__init__()
        self.tokens = ModalityTokens(channels, out_channels, absent)
        self.modalities, self.in_channels = self.tokens.modalities, self.tokens.in_channels
        self.out_channels = out_channels
        self.absent = absent

    def forward(
        self,
        features: Mapping[str, BEVFeatures | None],
        *,
        grid_shape: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> FusedBEV:
        """As `Fuser.forward`; `attention` is the share of coverage."""
        tokens, coverage = self.tokens(features, grid_shape, batch_size)
        mean = present_mean(tokens, coverage) if self.absent == "mask" else tokens.mean(0)
        return FusedBEV(mean.permute(0, 3, 1, 2), coverage_share(coverage), coverage.amax(0))


class ChannelWeightFusion(Fuser):
    """A learned weight per modality and channel, the same at all cells: UniBEV's channel-normalised weights.

    The weights of a channel are a softmax over the modalities (Wang et al., IV 2024). With `absent="mask"`, as there, over
    those alone that cover the cell, so that what is left weighs 1 again; otherwise what stands for an absent modality keeps
    its weight.

    Args:
        channels: channels of each modality by name; any number of modalities, any names.
        out_channels: C of the fused grid [B, C, X, Y].
        absent: what stands for an absent sensor.

    Raises:
        ValueError: an argument out of its range, or, in `forward`, features that do not fit (says expected and got).
    """

    def __init__(self, channels: Mapping[str, int], out_channels: int, *, absent: Absent = "mask") -> None:
        super().__init__()
        self.tokens = ModalityTokens(channels, out_channels, absent)
        self.modalities, self.in_channels = self.tokens.modalities, self.tokens.in_channels
        self.out_channels = out_channels
        self.absent = absent
        self.weight = NamedParameters(self.modalities, torch.zeros(len(channels), out_channels))

    def forward(
        self,
        features: Mapping[str, BEVFeatures | None],
        *,
        grid_shape: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> FusedBEV:
        """As `Fuser.forward`; `attention` is a modality's weight, mean over channels."""
        tokens, coverage = self.tokens(features, grid_shape, batch_size)
        seen = (coverage > 0).float() if self.absent == "mask" else torch.ones_like(coverage)
        weight = widened(self.weight.stacked())  # [M, C]
        share = (weight - weight.detach().amax(0)).exp()  # before it is normalised
        present = seen[..., None] * share[:, None, None, None]  # [M, B, X, Y, C]
        weight = present / present.sum(0).clamp(min=1e-30)
        fused = (weight.to(tokens.dtype) * tokens).sum(0)
        return FusedBEV(fused.permute(0, 3, 1, 2), weight.mean(-1).transpose(0, 1), coverage.amax(0))
