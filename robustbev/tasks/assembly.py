"""Every task that a model can be asked, by its kind."""

from __future__ import annotations

from robustbev.tasks.detection import Detection, DetectionConfig
from robustbev.tasks.task import Question, Task

AnyTaskConfig = DetectionConfig  # of several: Annotated[A | B, Field(discriminator="kind")]


def build_task(config: AnyTaskConfig, question: Question) -> Task:
    """The task that `config` describes, with fresh weights."""
    match config:
        case DetectionConfig():
            return Detection(config, question)
