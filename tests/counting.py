"""A task beside detection for tests: how many objects stand in each cell. docs/tasks.md adds one by files and configuration.

Letters: B samples, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

import training.tasks.assembly
from bev.detection.targets import DetectionTargets
from bev.grid import BEVGrid
from fusion.runtime import TensorSpec
from robustbev import ModelConfig, PerceptionModel
from robustbev.tasks.task import CELLS, Task, TaskConfig
from training.tasks.task import LossSettings, TrainingTask


class CountsConfig(TaskConfig):
    """Of a kind that no list of the library knows."""

    kind: Literal["counts"] = "counts"


@dataclass(frozen=True)
class Counts:
    """Logits and output alike."""

    count: Tensor  # [B, X, Y], NaN where no sensor sees

    maps: ClassVar = {"count": (0.0, 2.0)}


class CountsTask(Task):
    """`dtype` is what its logits came in last."""

    def __init__(self, channels: int, grid: BEVGrid) -> None:
        super().__init__()
        self.grid, self.head = grid, nn.Conv2d(channels, 1, 1)
        self.dtype: torch.dtype | None = None

    def forward(self, features: Tensor, motion: Tensor) -> Counts:
        count = self.head(features)[:, 0]
        self.dtype = count.dtype
        return Counts(count)

    def decode(self, logits: Counts, coverage: Tensor) -> Counts:
        return Counts(torch.where(coverage > 0, logits.count, torch.nan))

    def interface(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("count", "float32", ("B", *self.grid.shape), "", CELLS, "objects"),)


class CountsTraining(TrainingTask):
    """Its truth are the centres of the boxes; what it measures are the sums in output and truth."""

    def __init__(self, grid: BEVGrid) -> None:
        self.grid = grid

    def truth(self, reader: Any, index: int, boxes: Any, bev_change: Any) -> Tensor:
        count = torch.bincount(self.grid.flat_index(boxes.center_m[:, :2]), minlength=self.grid.num_cells + 1)
        return count[: self.grid.num_cells].view(self.grid.shape).float()

    def losses(
        self, views: Sequence[Counts], objects: DetectionTargets, truth: Tensor | None, settings: LossSettings
    ) -> dict[str, Tensor]:
        assert truth is not None
        assert {logits.count.dtype for logits in views} == {torch.float32}
        return {"l1": torch.stack([(logits.count - truth).abs().mean() for logits in views]).mean()}

    def measure(self, output: Counts, truth: Tensor | None, perceived: bool) -> Any:
        assert truth is not None
        return (float(output.count.sum()) if perceived else None, float(truth.sum()))

    def figures(self, measured: Sequence[Any]) -> Mapping[str, float]:
        there = sum(truth for _, truth in measured)
        return {"there": torch.tensor(there), "blind": sum(found is None for found, _ in measured)}  # type: ignore[dict-item]

    def truth_maps(self, truth: Tensor | None) -> Mapping[str, Tensor]:
        assert truth is not None
        return {"count": truth}


def asked_for_counts(config: ModelConfig, patch: pytest.MonkeyPatch) -> ModelConfig:
    """The configuration with a task `counts`, and training that knows it."""
    known = training.tasks.assembly._training_task

    def with_counts(task: Any, model: ModelConfig) -> TrainingTask:
        return CountsTraining(model.grid.bev()) if isinstance(task, CountsConfig) else known(task, model)

    patch.setattr(training.tasks.assembly, "_training_task", with_counts)
    return config.model_copy(update={"tasks": {**config.tasks, "counts": CountsConfig()}})


def counting(model: PerceptionModel, patch: pytest.MonkeyPatch) -> PerceptionModel:
    """The model with a head for them."""
    model.config = asked_for_counts(model.config, patch)
    model.heads["counts"] = CountsTask(model.config.channels, model.grid)
    return model
