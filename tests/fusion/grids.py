"""Random features of three modalities on a small grid.

Letters: B samples, C channels, X and Y cells.
"""

from __future__ import annotations

import torch

from fusion import BEVFeatures

CHANNELS = {"camera": 8, "lidar": 8, "radar": 8}
SHAPE = (5, 6)


def random_features(
    seed: int = 0, *, batch_size: int = 2, channels: dict[str, int] = CHANNELS
) -> dict[str, BEVFeatures | None]:
    """Coverage of every kind: the camera sees part of the grid, the LiDAR all of it, the radar some cells by half."""
    generator = torch.Generator().manual_seed(seed)
    coverage = {
        "camera": (torch.rand(batch_size, *SHAPE, generator=generator) < 0.6).float(),
        "lidar": torch.ones(batch_size, *SHAPE),
        "radar": (torch.rand(batch_size, *SHAPE, generator=generator) * 4).floor() / 3,
    }
    return {
        name: BEVFeatures(torch.randn(batch_size, count, *SHAPE, generator=generator), coverage[name])
        for name, count in channels.items()
    }
