"""Settings of an evaluation, and the subsets of the sensors that it measures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from robustbev import StrictModel
from robustbev.inference import subsets_of
from robustbev.precision import PrecisionSetting
from training.tasks.detection.rules import DISTANCES_M, ERROR_DISTANCE_M, Rules, is_official, rules
from training.tasks.detection.submission import MAX_BOXES_PER_SAMPLE

Metres = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class EvaluationConfig(StrictModel):
    """Which subsets to measure, and how much of what the model finds is handed to the official evaluation, or its formulas."""

    subsets: tuple[str, ...] = ()
    """As camera+radar; none: of up to three modalities every subset, of more all together, each alone and all but each."""
    every_epochs: Annotated[int, Field(ge=1)] | None = None
    """While a run trains, measure a checkpoint after so many epochs and at the end, and keep the best one; null: never."""
    watch: tuple[str, ...] = ()  # the subsets measured then; none: all sensors that the model has, together
    best: Literal["mAP", "NDS"] = "mAP"  # the best checkpoint has the highest mean of this over `watch`
    # Three of nuScenes, whose own these are; where one is another there is no NDS, nor with classes of one's own.
    class_range_m: dict[str, Metres] = Field(default={})  # of some classes; of others nuScenes', or all of the grid
    distances_m: Annotated[tuple[Metres, ...], Field(min_length=1)] = DISTANCES_M  # within which AP counts as found
    error_distance_m: Metres = ERROR_DISTANCE_M  # of these, the one at which errors of what was found are measured
    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.01
    max_boxes_per_sample: Annotated[int, Field(ge=1, le=MAX_BOXES_PER_SAMPLE)] = 200
    batch_size: Annotated[int, Field(ge=1)] = 8
    limit: Annotated[int, Field(ge=1)] | None = None  # only the first so many samples of the split
    processes: Annotated[int, Field(ge=1)] = 2  # subsets are scored in so many processes at a time
    precision: PrecisionSetting = "auto"  # what the model computes in; auto: see `robustbev.choose_precision`
    metrics: Literal["devkit", "fast"] = "devkit"
    """Who computes the figures: nuScenes' devkit; or, the same to the last bit, `training.tasks.detection.metrics`, which the
    robustness matrix takes in any case."""

    @model_validator(mode="after")
    def _check(self) -> EvaluationConfig:
        if self.error_distance_m not in self.distances_m:
            known = ", ".join(f"{distance:g}" for distance in self.distances_m)
            raise ValueError(f"error_distance_m: expected one of distances_m ({known}), got {self.error_distance_m:g}")
        return self

    def is_official(self, classes: Collection[str]) -> bool:
        """Whether a model of these classes is measured by all that is nuScenes', so that NDS is defined."""
        return is_official(classes, self.class_range_m, self.distances_m, self.error_distance_m)

    def rules(self, classes: Collection[str], class_map: Mapping[str, str], radius_m: float) -> Rules:
        """See `training.tasks.detection.rules.rules`."""
        return rules(classes, class_map, radius_m, self.class_range_m, self.distances_m, self.error_distance_m)


def every_subset(modalities: Sequence[str]) -> tuple[str, ...]:
    """The subsets that are measured where none is named, larger ones first."""
    return tuple(map("+".join, subsets_of(modalities)))


def subset_name(names: Iterable[str], modalities: Sequence[str]) -> str:
    """("radar", "camera") -> "camera+radar", in the order of the model's `modalities`.

    Raises:
        ValueError: a name is none of the model's, or there is none.
    """
    asked = [name.strip() for name in names]
    unknown = [name for name in asked if name not in modalities]
    if unknown or not asked:
        got = repr(unknown[0]) if unknown else "nothing"
        raise ValueError(f"expected some of the model's modalities {', '.join(modalities)} joined by '+', got {got}")
    return "+".join(name for name in modalities if name in asked)
