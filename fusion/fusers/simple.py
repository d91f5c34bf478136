"""Simpler ways to fuse, under the interface of `CrossAttentionFusion`.

Letters: B samples, C channels, M modalities, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..kernels.devices import widened
from ..named import NamedConv, NamedParameters
from ..nulls import Absent, present_mean
from .tokens import TokenFuser


def coverage_share(coverage: Tensor) -> Tensor:
    """[M, B, X, Y] -> [B, M, X, Y]: each modality's part of what covers the cell, 0 where nothing does.

    Stands in for attention where a fuser has none: it tells who was there, not who was trusted.
    """
    return (coverage / coverage.sum(0).clamp(min=1e-6)).transpose(0, 1)


class ConcatFusion(TokenFuser):
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
        if absent == "mask":
            raise ValueError("concatenation cannot mask a modality: choose absent null or zeros")
        super().__init__(channels, out_channels, absent)
        self.mix = NamedConv(self.modalities, out_channels, 3)
        self.norm = nn.LayerNorm(out_channels)

    def _fuse(self, tokens: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
        """See `TokenFuser._fuse`; the share is that of coverage."""
        stacked = tokens.permute(1, 0, 4, 2, 3).flatten(1, 2)
        return self.norm(self.mix(stacked).permute(0, 2, 3, 1)).relu(), coverage_share(coverage)


class MeanFusion(TokenFuser):
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
        super().__init__(channels, out_channels, absent)

    def _fuse(self, tokens: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
        """See `TokenFuser._fuse`; the share is that of coverage."""
        mean = present_mean(tokens, coverage) if self.absent == "mask" else tokens.mean(0)
        return mean, coverage_share(coverage)


class ChannelWeightFusion(TokenFuser):
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
        super().__init__(channels, out_channels, absent)
        self.weight = NamedParameters(self.modalities, torch.zeros(len(channels), out_channels))

    def _fuse(self, tokens: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
        """See `TokenFuser._fuse`; the share is a modality's weight, mean over channels."""
        seen = (coverage > 0).float() if self.absent == "mask" else torch.ones_like(coverage)
        weight = widened(self.weight.stacked())  # [M, C]
        share = (weight - weight.detach().amax(0)).exp()  # before it is normalised
        present = seen[..., None] * share[:, None, None, None]  # [M, B, X, Y, C]
        weight = present / present.sum(0).clamp(min=1e-30)
        return (weight.to(tokens.dtype) * tokens).sum(0), weight.mean(-1).transpose(0, 1)
