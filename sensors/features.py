"""What encoders give besides `fusion.BEVFeatures`.

Letters: B samples, Q channels, X and Y cells.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fusion.features import BEVFeatures


@dataclass(frozen=True)
class MovingFeatures(BEVFeatures):
    """The grid of a sensor that measures motion by itself.

    What it measures goes past the fuser to the heads. Among the features it got lost on the way: of pedestrians' true velocity
    0.14 came out in a short training, past them 0.42 (by LiDAR; 24 development drives, configs/tiny.yaml, seed 0).
    """

    motion: Tensor  # [B, Q, X, Y] float32, see `bev.motion`; read where `coverage` is not 0
