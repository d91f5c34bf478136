"""What an evaluation measured with one subset of the sensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

TP_ERRORS = {"trans_err": "mATE", "scale_err": "mASE", "orient_err": "mAOE", "vel_err": "mAVE", "attr_err": "mAAE"}


@dataclass(frozen=True)
class SubsetResult:
    """The figures of one subset of the sensors: nuScenes' of detection, and those of other tasks.

    `errors` has the five mean true-positive errors under their nuScenes names (mATE in m, mASE as 1 - IoU, mAOE in rad, mAVE in
    m/s, mAAE as 1 - accuracy). `class_ap` is the mean over the matching distances. NaN is "not defined".
    """

    subset: str  # "camera+lidar", in the order of the model's modalities
    mean_ap: float
    nds: float | None  # None: with classes, ranges or distances of one's own it is not defined
    errors: Mapping[str, float]
    class_ap: Mapping[str, float]
    ranges: str  # which class ranges the figures hold for
    samples: int
    boxes: int = 0
    no_perception: tuple[str, ...] = ()  # tokens of samples in which every sensor of the subset was absent
    classes_without_truth: tuple[str, ...] = ()  # of which no box lies in range; their AP is 0, whatever was found
    tasks: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # task beside detection -> its figures by name

    @property
    def mean_ap_of_truth(self) -> float:
        """The mean AP of the classes of which there is truth; NaN where there is none."""
        values = [value for name, value in self.class_ap.items() if name not in self.classes_without_truth]
        return sum(values) / len(values) if values else math.nan

    def of_task(self, task: str, name: str) -> float:
        """A figure of another task; NaN where it has none."""
        return self.tasks.get(task, {}).get(name, math.nan)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; what is not defined is null, because neither NaN nor infinity is JSON."""
        return {
            "mAP": self.mean_ap,
            **({} if self.nds is None else {"NDS": self.nds}),
            **{name: _none_unless_finite(value) for name, value in self.errors.items()},
            "AP": dict(self.class_ap),
            "ranges": self.ranges,
            "samples": self.samples,
            "boxes": self.boxes,
            "no_perception": list(self.no_perception),
            "classes_without_truth": list(self.classes_without_truth),
            "tasks": {task: {k: _none_unless_finite(v) for k, v in of.items()} for task, of in self.tasks.items()},
        }

    @staticmethod
    def from_json(subset: str, content: Mapping[str, Any]) -> SubsetResult:
        errors = {name: content.get(name) for name in TP_ERRORS.values()}
        return SubsetResult(
            subset=subset,
            mean_ap=float(content["mAP"]),
            nds=float(content["NDS"]) if "NDS" in content else None,
            errors={name: math.nan if value is None else float(value) for name, value in errors.items()},
            class_ap={name: float(value) for name, value in content.get("AP", {}).items()},
            ranges=str(content.get("ranges", "not stated")),
            samples=int(content.get("samples", 0)),
            boxes=int(content.get("boxes", 0)),
            no_perception=tuple(content.get("no_perception", ())),
            classes_without_truth=tuple(content.get("classes_without_truth", ())),
            tasks={
                task: {name: math.nan if value is None else float(value) for name, value in figures.items()}
                for task, figures in content.get("tasks", {}).items()
            },
        )


def main_figures(results: Iterable[SubsetResult]) -> dict[str, str]:
    """Name -> field of `SubsetResult`, of the figures that sum up detection: mAP, and NDS where any of `results` has it."""
    scored = any(result.nds is not None for result in results)
    return {"mAP": "mean_ap"} | ({"NDS": "nds"} if scored else {})


def figure_of(result: SubsetResult | None, field: str) -> float:
    """One of `main_figures`; NaN where it is not defined or there is no result, which tables show as such."""
    value = None if result is None else getattr(result, field)
    return math.nan if value is None else float(value)


def task_figures(results: Iterable[SubsetResult]) -> list[tuple[str, str]]:
    """The figures of tasks beside detection that any of `results` has, as task and name: columns of their tables."""
    tasks = [result.tasks for result in results]
    return list(dict.fromkeys((task, name) for by_task in tasks for task, of in by_task.items() for name in of))


def _none_unless_finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
