"""What goes into a fuser and what comes out of it.

Letters: B samples, C channels, M modalities, X and Y cells of the bird's-eye-view grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.export
from torch import Tensor

from .named import NamedModule


@dataclass(frozen=True)
class BEVFeatures:
    """What one modality says about the grid, and where it can see at all.

    Attributes:
        features: [B, C, X, Y] of any floating dtype, from an encoder of the user's. What stands where coverage is 0 is never
            read, NaN neither.
        coverage: [B, X, Y] in 0..1, without unit; 0 where this sensor, as it is now, is blind or absent. A mask of any dtype.

    X and Y count cells of one grid that all modalities share; which way they point and how long a cell is, is the user's. Nothing
    is checked here: a fuser checks what it is given, with a ValueError. Only the values of coverage are not looked at on a GPU,
    which would have to be waited for, and in graphs (torch.compile, torch.export): there NaN is taken for 0, and what lies
    outside 0..1 for the nearer bound.
    """

    features: Tensor
    coverage: Tensor


@dataclass(frozen=True)
class FusedBEV:
    """The fused grid, and whom it trusted.

    Attributes:
        features: [B, C, X, Y] in the fuser's dtype (under autocast, in what that chooses), finite everywhere, where nobody
            sees too.
        attention: [B, M, X, Y], the share of each modality in 0..1 in the order of `Fuser.modalities`; over M it sums to 1
            wherever any modality covers the cell. An absent modality's share is what its stand-in was given.
        coverage: [B, X, Y] in 0..1, the largest of any modality; 0 where nobody sees, and what `features` hold there is no
            perception.
    """

    features: Tensor
    attention: Tensor
    coverage: Tensor


# What torch.export takes into a graph and gives out of it must be known to it; an old torch has no such function.
if (_register := getattr(torch.export, "register_dataclass", None)) is not None:
    _register(BEVFeatures)
    _register(FusedBEV)


class Fuser(NamedModule):
    """What every fuser is: grids of some modalities in, one grid out.

    Attributes:
        modalities: M names, in the order of `FusedBEV.attention`.
        in_channels: channels of each modality's features by its name.
        out_channels: C of the fused grid.

    Raises:
        ValueError: in `forward`, before anything is computed: a modality that it was not built for, or features of another shape,
            dtype or device than expected.
    """

    modalities: tuple[str, ...]
    in_channels: Mapping[str, int]
    out_channels: int

    def forward(
        self,
        features: Mapping[str, BEVFeatures | None],
        *,
        grid_shape: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> FusedBEV:
        """Fuse what is there. A modality that is None or not named is absent.

        Args:
            features: by modality, each [B, C of that modality, X, Y] with its coverage [B, X, Y].
            grid_shape: (X, Y) cells, needed only where every modality is absent.
            batch_size: B, used only there.

        Returns:
            The fused grid [B, C, X, Y], the shares [B, M, X, Y] and the coverage [B, X, Y].

        Raises:
            ValueError: what is given does not fit; the message says what was expected, what was found and what to do.
        """
        raise NotImplementedError
