"""A sensor added to a trained model without a change to what the model does without it.

Letters: B samples, C channels, H heads, c channels of a head, M modalities, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features import BEVFeatures, FusedBEV, Fuser
from ..kernels.devices import projected
from ..kernels.neighbours import neighbour_attention
from ..named import NamedParameters
from ..nulls import ModalityTokens, check_features
from .tokens import check_heads, feed_forward


class GatedAttention(nn.Module):
    """Cross-attention of a fused cell to the added modalities' tokens, and a feed-forward, each behind a gate tanh(g), g = 0.

    Beside the tokens stands one that says nothing, so that a cell may take as little as it likes.
    """

    def __init__(self, channels: Mapping[str, int], out_channels: int, *, heads: int, neighbourhood: int) -> None:
        super().__init__()
        check_heads(out_channels, heads)
        if neighbourhood not in (1, 3):
            raise ValueError(f"neighbourhood: expected 1 or 3, got {neighbourhood}")
        self.tokens = ModalityTokens(channels, out_channels, "mask")
        self.heads, self.neighbourhood = heads, neighbourhood
        self.modality = NamedParameters(tuple(channels), torch.randn(len(channels), out_channels) * 0.02)
        self.nothing = nn.Parameter(torch.zeros(out_channels))  # its key; its value is 0
        self.query_norm = nn.LayerNorm(out_channels)
        self.token_norm = nn.LayerNorm(out_channels)
        self.query = nn.Linear(out_channels, out_channels)
        self.key_value = nn.Linear(out_channels, 2 * out_channels)
        self.out = nn.Linear(out_channels, out_channels)
        self.feed_forward = feed_forward(out_channels)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.feed_forward_gate = nn.Parameter(torch.zeros(1))

    def forward(self, fused: Tensor, tokens: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, X, Y], [M, B, X, Y, C], [M, B, X, Y] -> [B, C, X, Y] and the share of each added modality [B, M, X, Y]."""
        cells = fused.permute(0, 2, 3, 1)
        query = self.query(self.query_norm(cells)).unflatten(-1, (self.heads, -1))
        normed = self.token_norm(tokens) + self.modality.stacked()[:, None, None, None]
        key, value = self.key_value(normed).chunk(2, dim=-1)
        key = torch.cat([key, self.nothing.to(key.dtype).expand(1, *key.shape[1:])])
        value = F.pad(value, (0,) * 9 + (1,))
        seen = torch.cat([coverage > 0, torch.ones_like(coverage[:1], dtype=torch.bool)])
        key, value = (t.unflatten(-1, (self.heads, -1)) for t in (key, value))
        attended, weight = neighbour_attention(query, key, value, seen, self.neighbourhood)
        gate = self.attention_gate.tanh()
        taken = cells + (gate * projected(self.out, attended.flatten(-2))).to(cells.dtype)
        taken = taken + (self.feed_forward_gate.tanh() * self.feed_forward(taken)).to(cells.dtype)
        reached = (coverage > 0).any(0)
        after = torch.where(reached[..., None], taken, cells)  # elsewhere not a bit is changed
        share = gate.abs() * weight[:, :-1] * reached[:, None]
        return after.permute(0, 3, 1, 2), share


class GatedFusion(Fuser):
    """A base fuser of some modalities, and others that are added to what it gives, behind gates that start closed.

    The zero-initialised tanh gates of Flamingo (Alayrac et al., NeurIPS 2022). At the first step the result is the base's bit
    for bit, and it stays so wherever no added modality covers the cell. With the base frozen, a sensor is added to a trained
    model that loses nothing when the sensor is lost again.

    Args:
        base: built for the base modalities.
        channels: channels of each added modality by name.
        out_channels: C of the base's grid [B, C, X, Y].
        heads, neighbourhood: of the attention to the added modalities.
        modalities: all names, in the order in which `attention` tells of them.

    Raises:
        ValueError: a modality that is both of the base and added, a base of other `out_channels`, another argument out of its
            range, or, in `forward`, features that do not fit (says expected and got).
    """

    def __init__(
        self,
        base: Fuser,
        channels: Mapping[str, int],
        out_channels: int,
        *,
        modalities: Sequence[str],
        heads: int = 4,
        neighbourhood: int = 1,
    ) -> None:
        super().__init__()
        lacking = [name for name in ("modalities", "in_channels", "out_channels") if not hasattr(base, name)]
        if lacking:
            raise ValueError(
                f"base: expected a Fuser that says its {lacking[0]}, got {type(base).__name__}: set it there"
            )
        both = sorted(set(base.modalities) & set(channels))
        if both:
            raise ValueError(f"{both[0]} is a modality of the base already and cannot be added to it")
        if sorted(modalities) != sorted((*base.modalities, *channels)):
            raise ValueError(
                f"modalities: expected those of the base ({', '.join(base.modalities)}) and the added ones "
                f"({', '.join(channels)}), got {', '.join(modalities)}"
            )
        if base.out_channels != out_channels:
            raise ValueError(
                f"out_channels: expected {base.out_channels}, as many as the base gives, got {out_channels}: what the added "
                "sensors say is added to the base's grid"
            )
        self.base = base
        self.added = GatedAttention(channels, out_channels, heads=heads, neighbourhood=neighbourhood)
        self.modalities, self.out_channels = tuple(modalities), out_channels
        counts = {**base.in_channels, **channels}
        self.in_channels = {name: counts[name] for name in modalities}

    def forward(
        self,
        features: Mapping[str, BEVFeatures | None],
        *,
        grid_shape: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> FusedBEV:
        """As `Fuser.forward`; of the attention, the added ones have what their gate lets through."""
        tokens_of = self.added.tokens
        check_features(features, self.in_channels)
        given = next((f.features for f in features.values() if f is not None), None)
        if given is not None:
            batch_size, grid_shape = given.shape[0], (given.shape[2], given.shape[3])
        of_base = {name: f for name, f in features.items() if name in self.base.modalities}
        base: FusedBEV = self.base(of_base, grid_shape=grid_shape, batch_size=batch_size)
        of_added = {name: f for name, f in features.items() if name in tokens_of.modalities}
        if all(f is None for f in of_added.values()):
            none = dict.fromkeys(tokens_of.modalities, torch.zeros_like(base.attention[:, :1]))
            return FusedBEV(base.features, self._in_order(base.attention, none), base.coverage)
        tokens, coverage = tokens_of(of_added, grid_shape, batch_size)
        fused, share = self.added(base.features, tokens, coverage)
        left = base.attention * (1 - share.sum(1, keepdim=True))
        shares = dict(zip(tokens_of.modalities, share.split(1, dim=1), strict=True))
        return FusedBEV(fused, self._in_order(left, shares), torch.maximum(base.coverage, coverage.amax(0)))

    def _in_order(self, base: Tensor, added: Mapping[str, Tensor]) -> Tensor:
        shares = dict(zip(self.base.modalities, base.split(1, dim=1), strict=True)) | dict(added)
        return torch.cat([shares[name] for name in self.modalities], dim=1)
