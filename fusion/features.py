"""What goes into a fuser and what comes out of it.

Letters: B samples, C channels, M modalities, X and Y cells of the bird's-eye-view grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class BEVFeatures:
    """What one modality says about the grid, and where it can see at all."""

    features: Tensor  # [B, C, X, Y]
    coverage: Tensor  # [B, X, Y] in 0..1; 0 where this sensor, as it is now, is blind or absent


@dataclass(frozen=True)
class FusedBEV:
    """The fused grid, and whom it trusted."""

    features: Tensor  # [B, C, X, Y]
    attention: Tensor  # [B, M, X, Y] share of each modality, summing to 1 over M where anything is present
    coverage: Tensor  # [B, X, Y] the largest coverage of any modality; 0 where nobody sees


class Fuser(nn.Module):
    """What every fuser is: grids of some modalities in, one grid out."""

    modalities: tuple[str, ...]  # M names, in the order of `FusedBEV.attention`

    def forward(
        self,
        features: Mapping[str, BEVFeatures | None],
        *,
        grid_shape: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> FusedBEV:
        """Fuse what is there. A modality that is None or not named is absent.

        `grid_shape` (X, Y) and `batch_size` are needed only where every modality is absent.
        """
        raise NotImplementedError
