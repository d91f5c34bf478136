"""What the model gives: of a batch in inference, and to the losses in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bev.detection.boxes import Boxes
from bev.detection.suppression import cross_class_nms
from fusion import BEVFeatures, FusedBEV
from robustbev.config import DETECTION
from sensors.batch import map_tensors
from sensors.points import SensorUse


@dataclass(frozen=True)
class TaskMap:
    """What a task says of every cell."""

    values: NDArray[np.float32]  # [X, Y], NaN where nothing is known
    low: float  # drawn as nothing
    high: float  # drawn as full

    @property
    def shares(self) -> NDArray[np.float32]:
        """[X, Y] from 0, `low` and less, to 1, `high` and more; NaN stays."""
        return np.clip((self.values - self.low) / (self.high - self.low), 0, 1)


@dataclass(frozen=True)
class Perception:
    """What the model sees.

    `perceived` is False for a sample of which no sensor covers any cell: its boxes have score 0 and mean "no perception",
    not "nothing there".
    """

    outputs: Mapping[str, Any]  # of every task by its name, a dataclass of tensors [B, ...]
    fused: FusedBEV  # attention [B, M, X, Y]
    modalities: tuple[str, ...]  # M names, in the order of the attention
    perceived: Tensor  # [B] bool
    trust: Tensor | None = None  # [B, M], see `trust_in`
    sensor_coverage: Mapping[str, Tensor] = field(default_factory=dict)
    """[B, K] of the modalities that are there, see `sensors.modality.SensorFeatures`."""
    sensors: Mapping[str, SensorUse] | None = None  # of a frame (`perceive_frame`), by channel; a batch has no channels
    cross_class_iou: float = 1.0  # of `shown`; see `DetectionConfig`

    @property
    def boxes(self) -> Boxes:
        """[B, T], sorted by score, reference frame: the output of detection."""
        boxes = self.outputs[DETECTION]
        assert isinstance(boxes, Boxes)
        return boxes

    def found(self, sample: int) -> Boxes:
        """The boxes [T] of one sample without those that are none; no box where nothing was perceived."""
        boxes = self.boxes[sample]
        return boxes[(boxes.score > 0) & self.perceived[sample]]

    def shown(self, sample: int) -> Boxes:
        """Of `found`, one box a place: the better one where a vehicle was found as truck, bus and trailer.

        For people and robots. Evaluations rank every class by itself, and measure `found`.
        """
        return cross_class_nms(self.found(sample), self.cross_class_iou)

    def maps(self, sample: int) -> dict[str, TaskMap]:
        """One sample's by TASK/FIELD, see `robustbev.tasks.task.Task`; where nothing was perceived, unknown in every cell.

        Raises:
            ValueError: a map does not lie on the grid.
        """
        perceived = bool(self.perceived[sample])
        maps = {}
        for task, output in self.outputs.items():
            for name, (low, high) in getattr(output, "maps", {}).items():
                values = getattr(output, name)[sample].float().cpu().numpy()
                grid = tuple(self.fused.coverage.shape[1:])
                if values.shape != grid:
                    raise ValueError(
                        f"map {task}/{name}: expected a value for each of the grid's cells, {list(grid)}, got "
                        f"{list(values.shape)}: give the task's output in cells of the grid, or leave the field out of `maps`"
                    )
                maps[f"{task}/{name}"] = TaskMap(values if perceived else np.full_like(values, np.nan), low, high)
        return maps

    def to(self, device: torch.device | str) -> Perception:
        return map_tensors(self, lambda tensor: tensor.to(device))


def trust_in(features: Mapping[str, BEVFeatures | None], fused: FusedBEV, modalities: Sequence[str]) -> Tensor:
    """[B, M] each modality's share of the attention, as far as it covers the cell, mean over the cells that any sensor covers.

    What is missing to 1 went to the nulls of what does not see there; all 0 where nobody sees anything.
    """
    nobody = torch.zeros_like(fused.coverage[:, 0, 0])
    given = [
        nobody if (seen := features.get(name)) is None else (fused.attention[:, i] * seen.coverage).sum((1, 2))
        for i, name in enumerate(modalities)
    ]
    return torch.stack(given, 1) / (fused.coverage > 0).sum((1, 2)).clamp(min=1)[:, None]


@dataclass(frozen=True)
class TrainingOutputs:
    """The logits that the losses are made of."""

    logits: dict[str, tuple[Any, ...]]  # of each task, one a view of the batch, see `PerceptionModel.training_outputs`
    auxiliary: dict[str, Tensor]  # heatmap logits [B, K, X, Y] by modality
    depth_logits: dict[str, Tensor]  # [B, N, h, w, D] by modality, of cameras
    image: dict[str, Tensor]  # [B, N, K, h, w] heatmap logits of objects in the pictures, by modality
