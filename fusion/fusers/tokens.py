"""What fusers are made of, those on a coarse grid most of all.

Letters: B samples, C channels, H heads, c channels of a head, M modalities, N tokens, Q queries, X and Y cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features import BEVFeatures, FusedBEV, Fuser
from ..kernels.devices import widened
from ..kernels.norms import SameDtypeNorm
from ..nulls import Absent, ModalityTokens


class TokenFuser(Fuser):
    """A fuser of the modalities' tokens at every cell; how, `_fuse` says."""

    def __init__(self, channels: Mapping[str, int], out_channels: int, absent: Absent) -> None:
        super().__init__()
        self.tokens = ModalityTokens(channels, out_channels, absent)
        self.modalities, self.in_channels = self.tokens.modalities, self.tokens.in_channels
        self.out_channels, self.absent = out_channels, absent

    def forward(
        self,
        features: Mapping[str, BEVFeatures | None],
        *,
        grid_shape: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> FusedBEV:
        """As `Fuser.forward`; `attention` is the share that `_fuse` tells of."""
        tokens, coverage = self.tokens(features, grid_shape, batch_size)
        fused, share = self._fuse(tokens, coverage)
        return FusedBEV(features=fused.permute(0, 3, 1, 2), attention=share, coverage=coverage.amax(0))

    def _fuse(self, tokens: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [M, B, X, Y, C], coverage [M, B, X, Y] -> the fused grid [B, X, Y, C], each modality's share [B, M, X, Y]."""
        raise NotImplementedError


def feed_forward(channels: int) -> nn.Sequential:
    """Norm and two layers, to be added to what goes in."""
    return nn.Sequential(
        SameDtypeNorm(channels), nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels)
    )


def check_heads(out_channels: int, heads: int) -> None:
    """ValueError where channels cannot be shared out among heads and axes."""
    if heads < 1:
        raise ValueError(f"heads: expected at least 1, got {heads}")
    if out_channels % heads or out_channels % 4:
        raise ValueError(f"out_channels must be a multiple of heads ({heads}) and of 4, got {out_channels}")


def pooled_tokens(tokens: Tensor, coverage: Tensor, factor: int, *, masked: bool) -> tuple[Tensor, Tensor]:
    """Mean of `factor` x `factor` cells, of fewer at the far edges.

    Args:
        tokens: [M, B, X, Y, C].
        coverage: [M, B, X, Y].
        factor: side of the square of cells that become one.
        masked: average the covered cells alone.

    Returns:
        [B, M, x, y, C] and which coarse cells have any covered cell [B, M, x, y] bool.
    """
    modalities, samples = tokens.shape[:2]
    weight = (coverage > 0).float() if masked else torch.ones_like(coverage)
    grids = (tokens * weight[..., None].to(tokens.dtype)).permute(1, 0, 4, 2, 3).flatten(0, 1)  # [B * M, C, X, Y]
    totals = F.avg_pool2d(widened(grids), factor, ceil_mode=True)
    counts = F.avg_pool2d(weight.transpose(0, 1).flatten(0, 1)[:, None], factor, ceil_mode=True)
    covered = F.max_pool2d((coverage > 0).float().transpose(0, 1), factor, ceil_mode=True) > 0
    mean = (totals / counts.clamp(min=1e-6)).to(tokens.dtype)
    return mean.permute(0, 2, 3, 1).unflatten(0, (samples, modalities)), covered


def masked_softmax(logits: Tensor, seen: Tensor | None) -> Tensor:
    """[.., N] in float32 at least, over the last axis; 0, not NaN, where `seen` (bool, broadcast) leaves nothing."""
    logits = widened(logits)
    if seen is not None:
        logits = logits.masked_fill(~seen, -math.inf)
    top = logits.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    weight = (logits - top).exp()
    return weight / weight.sum(-1, keepdim=True).clamp(min=1e-30)


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Plain attention that tells its weights: [B, H, Q, c], [B, H, N, c] twice, `seen` [B, N] bool -> [B, H, Q, c], weights."""
    logits = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
    weight = masked_softmax(logits, None if seen is None else seen[:, None, None])
    return weight.to(value.dtype) @ value, weight


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, C] -> [B, H, N, c]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, H, N, c] -> [B, N, C]."""
    return x.transpose(1, 2).flatten(-2)
