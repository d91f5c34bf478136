"""What one training or evaluation step is given.

Letters: B samples, N cameras, M boxes (padded) or modalities, V views, h and w feature pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from bev.detection.boxes import Boxes
from sensors.batch import SensorBatch, TensorBatch
from sensors.points import DroppedPoints


@dataclass(frozen=True)
class TrainingBatch(TensorBatch):
    """Sensor data with its truth, all in the (perhaps augmented) reference frame."""

    sensors: SensorBatch
    boxes: Boxes  # padded to [B, M]; rows that are not valid hold zeros, label 0
    box_valid: Tensor  # [B, M] bool
    depth_m: Mapping[
        str, Tensor
    ]  # of camera modalities, by name: [B, N, h, w] metres along z, 0 unknown; empty: no LiDAR
    tokens: tuple[str, ...]  # B sample tokens
    indices: tuple[int, ...]  # B positions in the reader's split
    dropped: DroppedPoints  # what the network cannot use, summed over the batch
    truth: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # of tasks whose truth are not the boxes, by name: [B, ...]
    views: Tensor | None = None
    """[V, B, M] bool, the modalities that the fuser may see; `TrainingStep.draw` adds them."""
