"""The network on the fused grid: a small U of residual blocks.

Letters: B samples, C channels, X and Y cells.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvBlock, ResidualBlock


class BEVBackbone(nn.Module):
    """[B, C, X, Y] -> [B, C, X, Y]: `blocks` residual blocks at each of three scales, joined again at the finest."""

    def __init__(self, channels: int, *, blocks: int = 1, widths: tuple[int, int] = (96, 128)) -> None:
        super().__init__()
        middle, coarse = widths
        self.fine = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.middle = nn.Sequential(
            ConvBlock(channels, middle, stride=2), *(ResidualBlock(middle) for _ in range(blocks))
        )
        self.coarse = nn.Sequential(
            ConvBlock(middle, coarse, stride=2), *(ResidualBlock(coarse) for _ in range(blocks))
        )
        self.from_coarse = ConvBlock(coarse, middle, kernel=1)
        self.from_middle = ConvBlock(middle, channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        middle = middle + _resize(self.from_coarse(coarse), middle)
        return fine + _resize(self.from_middle(middle), fine)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    # Autocast would widen what goes in and what comes out; a GPU's kernel does that by itself, number by number.
    with torch.autocast("cuda", enabled=False) if x.device.type == "cuda" else nullcontext():
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False).to(x.dtype)
