"""Contrastive alignment: what two sensors say of the same object should lie close, what they say of different ones apart.

Letters: B samples, C channels, D dimensions of the shared sphere, M boxes (padded), N = B x M objects, X and Y cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import BEVFeatures
from .named import NamedModule, NamedModules, key_of

AlignmentMode = Literal["pairs", "anchor"]
"""Which modalities are bound to one another: every two, or each to an anchor alone."""
START_TEMPERATURE = 0.07
MAX_LOG_SCALE = math.log(100.0)


class ObjectAlignment(NamedModule):
    """Symmetric InfoNCE between the modalities' features at the cells of object centres, with a learned temperature.

    Every modality has a linear projection onto one unit sphere. Two embeddings of one object are a positive pair; those of all
    other objects in the batch are its negatives (CLIP: Radford et al., ICML 2021, with its start temperature of 0.07 and its
    limit of 100 on the scale). Under DistributedDataParallel the negatives are those of the rank's own batch.

    `mode="pairs"` binds every two modalities. `mode="anchor"` binds each modality to one anchor alone (ImageBind: Girdhar et
    al., CVPR 2023), so that the alignment of the others with one another is never trained.

    Args:
        channels: channels of each modality's features by its name; at least two modalities.
        dim: D.
        mode: which pairs of modalities are trained.
        anchor: the modality that the others are bound to; used by "anchor" alone.

    Raises:
        ValueError: fewer than two modalities, or an unknown mode or anchor.
    """

    def __init__(
        self, channels: Mapping[str, int], dim: int = 64, *, mode: AlignmentMode = "pairs", anchor: str = "lidar"
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"alignment needs at least two modalities, got {', '.join(channels) or 'none'}")
        if mode not in ("pairs", "anchor"):
            raise ValueError(f"alignment mode: expected pairs or anchor, got {mode!r}")
        if mode == "anchor" and anchor not in channels:
            raise ValueError(f"alignment anchor: expected one of {', '.join(channels)}, got {anchor!r}")
        self.mode: AlignmentMode = mode
        self.dim = dim
        self.modalities = tuple(channels)
        self.pairs = tuple(pair for pair in combinations(channels, 2) if mode == "pairs" or anchor in pair)
        self.heads = NamedModules({name: nn.Linear(count, dim) for name, count in channels.items()})
        self.log_scale = nn.Parameter(torch.tensor(-math.log(START_TEMPERATURE)))

    @property
    def scale(self) -> Tensor:
        """[] what cosines are multiplied by, the inverse of the temperature, at most 100."""
        return self.log_scale.float().clamp(max=MAX_LOG_SCALE).exp()

    def embed(self, modality: str, sensed: BEVFeatures, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors [B, M, D] float32 at flat cells [B, M], and [B, M] bool where the modality covers the cell.

        Where it does not, the vector means nothing, though it is finite whatever the features hold there.

        Args:
            modality: its name.
            sensed: [B, C, X, Y] and coverage [B, X, Y].
            cell: [B, M] int64, ix * Y + iy.
        """
        head, (features, covered) = self.heads[key_of(modality)], at_cells(sensed, cell)
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(head(features.to(self.log_scale.dtype)).float(), dim=-1), covered

    def forward(self, features: Mapping[str, BEVFeatures | None], cell: Tensor, valid: Tensor) -> Tensor:
        """The loss, [] float32: a mean over the objects of each pair of modalities, then over the pairs that are given.

        Args:
            features: of each modality, [B, C, X, Y]; None where the batch has none, which leaves its pairs out.
            cell: [B, M] int64 flat cell (ix * Y + iy) of each object's centre; where not valid, anything.
            valid: [B, M] bool: a real object. One that either modality of a pair does not cover is no part of that pair.

        Without any object that two modalities see, the loss is 0 and so is its gradient.
        """
        if self.training:
            # Here and not by `scale` alone, whose gradient ends beyond the limit: what is past it could not come back.
            with torch.no_grad():
                self.log_scale.clamp_(max=MAX_LOG_SCALE)
        cell = torch.where(valid, cell, 0)
        seen = {name: self.embed(name, f, cell) for name in self.modalities if (f := features.get(name)) is not None}
        same = same_place(cell)
        losses = [
            info_nce(
                seen[a][0].flatten(0, 1), seen[b][0].flatten(0, 1), self.scale,
                use=(valid & seen[a][1] & seen[b][1]).flatten(), same=same,
            )
            for a, b in self.pairs
            if a in seen and b in seen
        ]  # fmt: skip
        return torch.stack(losses).mean() if losses else 0.0 * self.log_scale.float()


def at_cells(sensed: BEVFeatures, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Features [B, M, C] float32 at flat cells [B, M], zeros where coverage is 0, and [B, M] bool where it is not."""
    covered = sensed.coverage.flatten(1).gather(1, cell) > 0
    rows = sensed.features.permute(0, 2, 3, 1).flatten(1, 2)  # [B, XY, C], no copy of what lies channels-last
    found = rows.gather(1, cell[..., None].expand(-1, -1, rows.shape[2])).float()
    return torch.where(covered[..., None], found, 0.0), covered


def same_place(cell: Tensor) -> Tensor:
    """[B, M] flat cells -> [N, N] bool: objects that share a cell of a sample, so that nothing could tell them apart."""
    sample = torch.arange(cell.shape[0], device=cell.device)[:, None].expand_as(cell).flatten()
    place = cell.flatten()
    return (place[:, None] == place) & (sample[:, None] == sample)


def info_nce(a: Tensor, b: Tensor, scale: Tensor, *, use: Tensor, same: Tensor) -> Tensor:
    """Symmetric InfoNCE of unit vectors [N, D] twice: the cross-entropy of finding each row's partner, in both directions.

    Args:
        a, b: row i of both is object i.
        scale: [] factor on the cosines.
        use: [N] bool: objects that take part, as positives and as negatives.
        same: [N, N] bool: pairs that are no negatives of one another (the diagonal may be either).

    InfoNCE: van den Oord et al., 2018. Shapes do not depend on how many take part; with none the loss is 0.
    """
    itself = torch.eye(len(use), dtype=torch.bool, device=use.device)
    # An object's own partner always stays, so that no row is empty and none gives NaN, used or not.
    candidates = itself | (use & ~same)
    with torch.autocast(a.device.type, enabled=False):
        logits = scale * (a @ b.T)
    loss = _row_entropy(logits, candidates) + _row_entropy(logits.T, candidates)
    count = use.sum().clamp(min=1)
    return torch.where(use, loss, 0.0).sum() / (2 * count)


def _row_entropy(logits: Tensor, candidates: Tensor) -> Tensor:
    """[N, N] -> [N]: how surely each row's diagonal stands out among its candidates."""
    return logits.masked_fill(~candidates, -math.inf).logsumexp(1) - logits.diagonal()
