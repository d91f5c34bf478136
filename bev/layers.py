"""Small building blocks of convolutional networks on the grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of each cell, [B, C, X, Y] -> same.

    Chosen over batch and group statistics on purpose: what one cell says does not depend on the rest of the batch or of
    the grid, so a sensor lost behind the car changes nothing in front of it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        # In the dtype that comes in: the kernel keeps its statistics in float32 by itself, and autocast would return
        # float32 only for the next convolution to cast it back.
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.norm.weight.to(x.dtype), self.norm.bias.to(x.dtype)
            y = F.layer_norm(x.permute(0, 2, 3, 1), self.norm.normalized_shape, weight, bias, self.norm.eps)
        return y.permute(0, 3, 1, 2)


class ConvBlock(nn.Sequential):
    """Convolution, LayerNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
            LayerNorm2d(outputs),
            nn.ReLU(),  # not in place: the norm returns a view, and autograd copies the whole of a view that is written to
        )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))
