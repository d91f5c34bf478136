"""Settings of an evaluation, and the subsets of the sensors that it measures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from robustbev import StrictModel
from robustbev.precision import PrecisionSetting
from sensors.batch import MODALITIES
from training.evaluation.submission import MAX_BOXES_PER_SAMPLE

if TYPE_CHECKING:
    pass


SUBSETS = (
    "camera+lidar+radar", "camera+lidar", "camera+radar", "lidar+radar", "camera", "lidar", "radar",
)  # fmt: skip


class EvaluationConfig(StrictModel):
    """Which subsets to measure, and how much of what the model finds is handed to the official evaluation."""

    subsets: Annotated[tuple[str, ...], Field(min_length=1)] = SUBSETS
    every_epochs: Annotated[int, Field(ge=1)] | None = None
    """While a run trains, measure a checkpoint after so many epochs and at the end, and keep the best one; null: never."""
    watch: tuple[str, ...] = ()  # the subsets measured then; none: all sensors that the model has, together
    best: Literal["mAP", "NDS"] = "mAP"  # the best checkpoint has the highest mean of this over `watch`
    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.01
    max_boxes_per_sample: Annotated[int, Field(ge=1, le=MAX_BOXES_PER_SAMPLE)] = 200
    batch_size: Annotated[int, Field(ge=1)] = 8
    limit: Annotated[int, Field(ge=1)] | None = None  # only the first so many samples of the split
    processes: Annotated[int, Field(ge=1)] = 2  # subsets are scored in so many processes at a time
    precision: PrecisionSetting = "auto"  # what the model computes in; auto: see `robustbev.choose_precision`
    metrics: Literal["devkit", "fast", "both"] = "devkit"
    """Who computes the figures: nuScenes' devkit; or, the same to the last bit, `training.evaluation.detection_metrics`; or both,
    with an error where they differ. The robustness matrix takes the fast one instead of the devkit."""

    @field_validator("subsets", "watch")
    @classmethod
    def _in_order(cls, subsets: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(subset_name(subset.split("+")) for subset in subsets))


def subset_name(modalities: Iterable[str]) -> str:
    """("radar", "camera") -> "camera+radar"; ValueError for a name that is no modality, and for none at all."""
    names = [name.strip() for name in modalities]
    unknown = [name for name in names if name not in MODALITIES]
    if unknown or not names:
        got = repr(unknown[0]) if unknown else "nothing"
        raise ValueError(f"expected some of {', '.join(MODALITIES)} joined by '+', got {got}")
    return "+".join(name for name in MODALITIES if name in names)
