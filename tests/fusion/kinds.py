"""Every fuser with every stand-in for the absent, small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from torch import Tensor, nn

from fusion import (
    Absent,
    BEVFeatures,
    ChannelWeightFusion,
    ConcatFusion,
    CrossAttentionFusion,
    Fuser,
    GatedFusion,
    JointFusion,
    LatentFusion,
    MeanFusion,
)

Build = Callable[[Mapping[str, int]], Fuser]


def gated(channels: Mapping[str, int], absent: Absent, neighbourhood: int) -> GatedFusion:
    """The radar, or whose name comes last in the alphabet, added to a fuser of the others, its gates open."""
    added = "radar" if "radar" in channels else max(channels)
    others = {name: count for name, count in channels.items() if name != added}
    base = CrossAttentionFusion(others, 8, heads=2, absent=absent)
    fuser = GatedFusion(
        base, {added: channels[added]}, 8, modalities=list(channels), heads=2, neighbourhood=neighbourhood
    )
    nn.init.constant_(fuser.added.attention_gate, 0.8)
    nn.init.constant_(fuser.added.feed_forward_gate, -0.5)
    return fuser


def of_kind(kind: str, absent: Absent) -> Build:
    def build(channels: Mapping[str, int]) -> Fuser:
        match kind:
            case "attention":
                return CrossAttentionFusion(channels, 8, heads=2, absent=absent)
            case "attention 3 x 3":
                return CrossAttentionFusion(channels, 8, heads=2, neighbourhood=3, absent=absent)
            case "concat":
                return ConcatFusion(channels, 8, absent=absent)
            case "mean":
                return MeanFusion(channels, 8, absent=absent)
            case "channel weights":
                return ChannelWeightFusion(channels, 8, absent=absent)
            case "latent":
                return LatentFusion(channels, 8, heads=2, latents=3, pool=2, absent=absent)
            case "joint":
                return JointFusion(channels, 8, heads=2, pool=4, absent=absent)
            case _:
                return gated(channels, absent, 3 if "3 x 3" in kind else 1)

    return build


KINDS = (
    "attention", "attention 3 x 3", "concat", "mean", "channel weights", "latent", "joint", "gated",
    "gated 3 x 3",
)  # fmt: skip
FUSERS: dict[str, Build] = {
    f"{kind} {absent}": of_kind(kind, absent)
    for absent in get_args(Absent)
    for kind in KINDS
    if (kind, absent) != ("concat", "mask")
}


class AsTensors(nn.Module):
    """A fuser from pairs of tensors by name to tensors, as torch.export and torch.compile take it."""

    def __init__(self, fuser: Fuser) -> None:
        super().__init__()
        self.fuser = fuser

    def forward(self, features: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        fused = self.fuser({name: BEVFeatures(*pair) for name, pair in features.items()})
        return fused.features, fused.attention, fused.coverage
