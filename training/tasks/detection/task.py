"""Detection in training: its losses. Figures are the official evaluation's, see `training.tasks.detection.scoring`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bev.detection.head import DetectionLogits
from bev.detection.losses import focal_loss, regression_losses
from bev.detection.targets import DetectionTargets
from training.tasks.detection.distillation import distillation_loss
from training.tasks.task import LossSettings, TrainingTask


class DetectionTraining(TrainingTask):
    """Heatmaps, boxes at true centres, and what the view of all sensors teaches the others."""

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
        parts = {name: torch.stack([row[name] for row in rows]).mean() for name in (rows[0] if rows else ())}
        if settings.distil and len(views) > 1:
            *students, teacher = (logits.heatmap for logits in views)
            taught = [distillation_loss(student, teacher, objects.heatmap) for student in students]
            parts["distillation"] = torch.stack(taught).mean()
        return parts

    def measure(self, output: Any, truth: Tensor | None, perceived: bool) -> Any:
        raise NotImplementedError  # the official evaluation measures boxes

    def figures(self, measured: Sequence[Any]) -> Mapping[str, float]:
        raise NotImplementedError
