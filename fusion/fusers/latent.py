"""Fusion through a few latent tokens per sensor.

Letters: B samples, C channels, H heads, L latents of a modality, M modalities, N coarse cells, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..named import NamedParameters
from ..nulls import Absent, present_mean
from .cross_attention import placed
from .tokens import TokenFuser, attend, check_heads, feed_forward, join_heads, pooled_tokens, split_heads


class LatentFusion(TokenFuser):
    """Each sensor's grid is resampled into a fixed number of latents, to which every cell attends beside its own mean.

    The resampling is that of the Perceiver (Jaegle et al., ICML 2021) as in Flamingo's resampler (Alayrac et al., NeurIPS
    2022): learned latents attend to the sensor's tokens, here averaged over `pool` x `pool` cells. What the cells pay for
    attending does not grow with the grid of the sensors. An absent modality's latents summarise its stand-in tokens; with
    `absent="mask"` neither they nor uncovered cells are attended to.

    Args:
        channels: channels of each modality by name.
        out_channels: C of the fused grid [B, C, X, Y], a multiple of `heads` and of 4.
        heads: attention heads.
        latents: L, latent tokens of each modality.
        pool: cells along each axis that are averaged before they are summarised.
        absent: what stands for an absent sensor.

    Raises:
        ValueError: an argument out of its range, or, in `forward`, features that do not fit (says expected and got).
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        out_channels: int,
        *,
        heads: int = 4,
        latents: int = 8,
        pool: int = 4,
        absent: Absent = "null",
    ) -> None:
        check_heads(out_channels, heads)
        if latents < 1 or pool < 1:
            raise ValueError(f"latents and pool: expected at least 1, got {latents} and {pool}")
        super().__init__(channels, out_channels, absent)
        self.heads, self.pool = heads, pool
        self.modality = NamedParameters(self.modalities, torch.randn(len(channels), out_channels) * 0.02)
        start = torch.randn(len(channels), latents, out_channels) * out_channels**-0.5
        self.latents = NamedParameters(self.modalities, start)
        self.position = nn.Linear(out_channels, out_channels, bias=False)
        self.token_norm = nn.LayerNorm(out_channels)
        self.latent_norm = nn.LayerNorm(out_channels)
        self.summary_query = nn.Linear(out_channels, out_channels)
        self.summary_key_value = nn.Linear(out_channels, 2 * out_channels)
        self.summary_out = nn.Linear(out_channels, out_channels)
        self.summary_feed_forward = feed_forward(out_channels)
        self.summary_norm = nn.LayerNorm(out_channels)
        self.query_norm = nn.LayerNorm(out_channels)
        self.query = nn.Linear(out_channels, out_channels)
        self.key_value = nn.Linear(out_channels, 2 * out_channels)
        self.out = nn.Linear(out_channels, out_channels)
        self.feed_forward = feed_forward(out_channels)

    def _fuse(self, tokens: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
        """See `TokenFuser._fuse`; the share is that of a modality's latents, mean over heads."""
        modalities, samples, x_cells, y_cells, _ = tokens.shape
        latents, seen = self._summarise(tokens, coverage)  # [B, M, L, C], [B, M] or None
        mean = present_mean(tokens, coverage)
        query = self.query(self.query_norm(mean + placed(self.position, (x_cells, y_cells)))).flatten(1, 2)
        key, value = self.key_value(self.summary_norm(latents.flatten(1, 2))).chunk(2, dim=-1)
        visible = None if seen is None else seen.repeat_interleave(latents.shape[2], dim=1)
        query, key, value = (split_heads(t, self.heads) for t in (query, key, value))
        attended, weight = attend(query, key, value, visible)  # [B, H, X * Y, c], [B, H, X * Y, M * L]
        fused = mean + self.out(join_heads(attended)).view(samples, x_cells, y_cells, -1)
        fused = fused + self.feed_forward(fused)
        share = weight.mean(1).unflatten(-1, (modalities, -1)).sum(-1).transpose(1, 2)
        return fused, share.reshape(samples, modalities, x_cells, y_cells)

    def _summarise(self, tokens: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor | None]:
        """-> latents [B, M, L, C] and, with a mask, which modalities cover anything [B, M]."""
        masked = self.absent == "mask"
        coarse, covered = pooled_tokens(tokens, coverage, self.pool, masked=masked)
        samples, modalities, x_coarse, y_coarse, _ = coarse.shape
        place = placed(self.position, (x_coarse, y_coarse))
        said = self.token_norm(coarse) + self.modality.stacked()[:, None, None] + place
        key, value = self.summary_key_value(said).view(samples * modalities, x_coarse * y_coarse, -1).chunk(2, dim=-1)
        start = self.latents.stacked().expand(samples, -1, -1, -1).flatten(0, 1)  # [B * M, L, C]
        query = self.summary_query(self.latent_norm(start))
        query, key, value = (split_heads(t, self.heads) for t in (query, key, value))
        attended, _ = attend(query, key, value, covered.flatten(0, 1).flatten(1) if masked else None)
        latents = start + self.summary_out(join_heads(attended))
        latents = latents + self.summary_feed_forward(latents)
        return latents.unflatten(0, (samples, modalities)), covered.flatten(2).any(-1) if masked else None
