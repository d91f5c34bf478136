"""Detection in training: its losses. Figures are the official evaluation's, see `training.tasks.detection.scoring`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bev.detection.head import DetectionLogits
from bev.detection.losses import focal_loss, regression_losses
from bev.detection.targets import DetectionTargets
from training.tasks.task import LossSettings, TrainingTask


class DetectionTraining(TrainingTask):
    """Heatmaps, and boxes at true centres."""

    def losses(
        self, views: Sequence[DetectionLogits], objects: DetectionTargets, truth: Tensor | None, settings: LossSettings
    ) -> dict[str, Tensor]:
        rows = [
            {
                "heatmap": focal_loss(logits.heatmap, objects.heatmap, balance=settings.class_balance),
                **regression_losses(logits, objects),
            }
            for logits in views
        ]
        return {name: torch.stack([row[name] for row in rows]).mean() for name in (rows[0] if rows else ())}

    def measure(self, output: Any, truth: Tensor | None, perceived: bool) -> Any:
        raise NotImplementedError  # the official evaluation measures boxes

    def figures(self, measured: Sequence[Any]) -> Mapping[str, float]:
        raise NotImplementedError
