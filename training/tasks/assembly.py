"""What training asks of the tasks of a model, by their kind."""

from __future__ import annotations

from robustbev import DetectionConfig, ModelConfig
from robustbev.tasks.assembly import AnyTaskConfig
from training.tasks.detection.task import DetectionTraining
from training.tasks.task import TrainingTask


def training_tasks(model: ModelConfig) -> dict[str, TrainingTask]:
    """Of every task of a model, by its name."""
    return {name: _training_task(config, model) for name, config in model.tasks.items()}


def _training_task(config: AnyTaskConfig, model: ModelConfig) -> TrainingTask:
    match config:
        case DetectionConfig():
            return DetectionTraining()
