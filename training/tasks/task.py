"""What training asks of a task: its truth, its losses, its figures. The model's side is `robustbev.tasks.task.Task`.

Letters: B samples, M boxes (padded), X and Y cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bev.detection.boxes import Boxes
from bev.detection.targets import DetectionTargets
from sensors.nuscenes.reader import NuScenesReader


@dataclass(frozen=True)
class LossSettings:
    """What `training.loop.step.StepConfig` says of every task's losses."""

    class_balance: float  # as of `bev.detection.losses.focal_loss`


class TrainingTask(ABC):
    """One task of a model, by the name that its configuration gives it.

    Truth is one tensor a sample, of one shape for all samples of a run: they are stacked to [B, ...]. A task whose truth are the
    boxes of the sample needs none of its own.
    """

    def truth(
        self, reader: NuScenesReader, index: int, boxes: Boxes, bev_change: NDArray[np.float64] | None
    ) -> Tensor | None:
        """Of one sample, made where the data are read; None: the boxes say all.

        Args:
            reader: of the split.
            index: of the sample in it.
            boxes: [M] of the sample, after `bev_change`.
            bev_change: [4, 4] changed_T_reference, by which the sample was flipped, turned and scaled; None: not at all.
        """
        return None

    @abstractmethod
    def losses(
        self, views: Sequence[Any], objects: DetectionTargets, truth: Tensor | None, settings: LossSettings
    ) -> dict[str, Tensor]:
        """Scalars by name, of the logits of every view of a batch."""

    @abstractmethod
    def measure(self, output: Any, truth: Tensor | None, perceived: bool) -> Any:
        """Of one sample's output, without batch axis and on the CPU: what `figures` needs of it, small and picklable."""

    @abstractmethod
    def figures(self, measured: Sequence[Any]) -> Mapping[str, float]:
        """Over all samples, the main one first."""

    def truth_maps(self, truth: Tensor | None) -> Mapping[str, Tensor]:
        """Of one sample, [X, Y] by the names of the output's maps, to be drawn beside them."""
        return {}
