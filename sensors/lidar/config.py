"""Settings of a LiDAR modality."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from sensors.settings import LayersOrNone, ModalityConfig, Positive


class LidarConfig(ModalityConfig):
    """Pillars on half the grid's cell length, sparse stages, 2D blocks."""

    kind: Literal["lidar"] = "lidar"
    pillar_channels: Positive = 32
    blocks: LayersOrNone = 1
    sparse_blocks: LayersOrNone = 0  # submanifold stages before the dense canvas
    backend: Literal["dense", "spconv"] = "dense"  # what computes the sparse stages

    @model_validator(mode="after")
    def _check(self) -> LidarConfig:
        if self.backend == "spconv" and self.sparse_blocks == 0:
            raise ValueError("backend spconv needs sparse_blocks >= 1: without them there is nothing for it to compute")
        return self
