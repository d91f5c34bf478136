"""Small building blocks of convolutional networks, on pictures and on the grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """Convolution, batch normalisation, ReLU.

    Batch statistics are used in training alone. In evaluation the normalisation is a constant per channel, so that a sensor
    lost behind the car changes nothing in front of it, which group or instance statistics would. (LayerNorm over channels has
    that property in training too, but the image network learned depth from LiDAR markedly slower with it.)
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Said here, for torch.compile passes over `forward` of torch's own containers."""
        for layer in self:
            x = layer(x)
        return x


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))
