"""What a model answered with one subset of its sensors, to be measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bev.detection.boxes import Boxes

Progress = Callable[[str, int, int | None], None]  # what is done, how many so far, of how many (None: unknown)


@dataclass
class Predictions:
    """By sample token, on the CPU."""

    boxes: dict[str, Boxes] = field(default_factory=dict)  # [K] in the reference frame
    no_perception: list[str] = field(default_factory=list)  # samples in which every sensor of the subset was absent
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Task beside detection -> token -> what `training.tasks.task.TrainingTask.measure` makes of the sample."""

    def update(self, others: Predictions) -> None:
        """Take in what another process found of other samples."""
        self.boxes.update(others.boxes)
        self.no_perception.extend(others.no_perception)
        for task, measured in others.measured.items():
            self.measured.setdefault(task, {}).update(measured)
