"""What one training or evaluation step is given.

Letters: B samples, N cameras, M boxes (padded), h and w feature pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bev.boxes import Boxes
from sensors.batch import SensorBatch
from sensors.prepare import DroppedPoints


@dataclass(frozen=True)
class TrainingBatch:
    """Sensor data with its truth, all in the (perhaps augmented) reference frame."""

    sensors: SensorBatch
    boxes: Boxes  # padded to [B, M]; rows that are not valid hold zeros, label 0
    box_valid: Tensor  # [B, M] bool
    depth_m: Tensor | None  # [B, N, h, w] metres along the camera's z axis, 0 unknown; None: no LiDAR or no camera
    tokens: tuple[str, ...]  # B sample tokens
    indices: tuple[int, ...]  # B positions in the reader's split
    dropped: DroppedPoints  # what `prepare` left out, summed over the batch

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TrainingBatch:
        return TrainingBatch(
            sensors=self.sensors.to(device, non_blocking=non_blocking),
            boxes=self.boxes.to(device),
            box_valid=self.box_valid.to(device, non_blocking=non_blocking),
            depth_m=None if self.depth_m is None else self.depth_m.to(device, non_blocking=non_blocking),
            tokens=self.tokens,
            indices=self.indices,
            dropped=self.dropped,
        )
