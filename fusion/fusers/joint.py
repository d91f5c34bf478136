"""Fusion by self-attention over all tokens of all modalities, on a coarse grid.

Letters: B samples, C channels, H heads, M modalities, X and Y cells, x and y coarse cells, N = M * x * y tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..named import NamedParameters
from ..nulls import Absent, present_mean
from .cross_attention import placed
from .tokens import TokenFuser, check_heads, feed_forward, join_heads, masked_softmax, pooled_tokens, split_heads


class JointFusion(TokenFuser):
    """One sequence of every modality's tokens attends to itself; each coarse cell then weighs its modalities.

    Tokens of all modalities in one transformer, as the joint-stream models do (Kim et al., ViLT, ICML 2021), here averaged
    over `pool` x `pool` cells, for the cost grows with the square of the tokens. What comes out is interpolated back and
    added to the mean of what is present at the fine cell. With `absent="mask"` neither absent modalities nor uncovered
    coarse cells are attended to.

    Args:
        channels: channels of each modality by name.
        out_channels: C of the fused grid [B, C, X, Y], a multiple of `heads` and of 4.
        heads: attention heads.
        pool: cells along each axis that become one token.
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
        pool: int = 4,
        absent: Absent = "null",
    ) -> None:
        check_heads(out_channels, heads)
        if pool < 1:
            raise ValueError(f"pool: expected at least 1, got {pool}")
        super().__init__(channels, out_channels, absent)
        self.heads, self.pool = heads, pool
        self.modality = NamedParameters(self.modalities, torch.randn(len(channels), out_channels) * 0.02)
        self.position = nn.Linear(out_channels, out_channels, bias=False)
        self.attention_norm = nn.LayerNorm(out_channels)
        self.query_key_value = nn.Linear(out_channels, 3 * out_channels)
        self.attention_out = nn.Linear(out_channels, out_channels)
        self.token_feed_forward = feed_forward(out_channels)
        self.score = nn.Linear(out_channels, 1)
        self.out = nn.Linear(out_channels, out_channels)
        self.feed_forward = feed_forward(out_channels)

    def _fuse(self, tokens: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
        """See `TokenFuser._fuse`; the share is the weight of a modality when its coarse cell is read."""
        masked = self.absent == "mask"
        coarse, covered = pooled_tokens(tokens, coverage, self.pool, masked=masked)  # [B, M, x, y, C], [B, M, x, y]
        said = self._converse(coarse, covered if masked else None)
        by_cell = covered.permute(0, 2, 3, 1) if masked else None
        weight = masked_softmax(self.score(said)[..., 0].permute(0, 2, 3, 1), by_cell).permute(0, 3, 1, 2)
        read = self.out((weight[..., None].to(said.dtype) * said).sum(1))  # [B, x, y, C]
        mean = present_mean(tokens, coverage)
        fine = self._enlarge(read.permute(0, 3, 1, 2), mean.shape[1:3], "bilinear").to(mean.dtype)
        fused = mean + fine.permute(0, 2, 3, 1)
        fused = fused + self.feed_forward(fused)
        share = self._enlarge(weight, mean.shape[1:3], "nearest")
        return fused, share

    def _converse(self, coarse: Tensor, covered: Tensor | None) -> Tensor:
        """One transformer block over the tokens [B, M, x, y, C] of a sample."""
        place = placed(self.position, (coarse.shape[2], coarse.shape[3]))
        said = coarse + place.to(coarse.dtype) + self.modality.stacked()[:, None, None].to(coarse.dtype)
        said = said.flatten(1, 3)  # [B, N, C]
        query, key, value = (
            split_heads(t, self.heads) for t in self.query_key_value(self.attention_norm(said)).chunk(3, dim=-1)
        )
        hidden = None
        if covered is not None:
            # Finite, so that a row with nothing to attend to is no NaN; halved, so that no logit takes it beyond.
            least = torch.finfo(query.dtype).min / 2
            hidden = query.new_zeros(covered.shape).masked_fill(~covered, least).flatten(1)[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=hidden)
        said = said + self.attention_out(join_heads(attended))
        said = said + self.token_feed_forward(said)
        return said.view(coarse.shape)

    def _enlarge(self, grids: Tensor, shape: torch.Size, mode: str) -> Tensor:
        """[B, C, x, y] -> [B, C, X, Y]; coarse cells that reach over the edge are cut."""
        kept = {} if mode == "nearest" else {"align_corners": False}
        enlarged = F.interpolate(grids, scale_factor=float(self.pool), mode=mode, **kept)
        return enlarged[..., : shape[0], : shape[1]]
