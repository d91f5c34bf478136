"""The devkit's own detection evaluation, its ground truth loaded once and shared by many submissions.

Everything that decides a figure is the devkit's unmodified code: the filters and `DetectionEval.evaluate`, whose formulas take
any class. What is ours is that ground truth is loaded and filtered once, by the data set's own map of classes, that the samples
may be fewer than the split's, and that classes and distances may be others than nuScenes': then there is no NDS. The same
figures come faster from `training.tasks.detection.metrics`, where those are asked for.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBox, EvalBoxes
from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes, load_prediction_of_sample_tokens
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionConfig, DetectionMetrics
from nuscenes.eval.detection.evaluate import DetectionEval

from sensors.nuscenes.config import DETECTION_ATTRIBUTES
from sensors.nuscenes.tables import open_devkit
from training.files.atomic import write_json
from training.tasks.detection.metrics import FastMetrics
from training.tasks.detection.result import TP_ERRORS, SubsetResult
from training.tasks.detection.rules import Rules

Metrics = Literal["devkit", "fast"]  # fast: `training.tasks.detection.metrics`
_OFFICIAL_REFERENCE = "LIDAR_TOP"


def open_tables(root: Path, version: str) -> NuScenes:
    """The devkit's tables, loaded without its console output.

    Raises:
        ValueError: there is no such data set; the message says what was expected where.
    """
    if not (root / version).is_dir():
        raise ValueError(
            f"{root / version}: no nuScenes tables there. Expected a data root with a folder {version!r} of JSON tables; "
            "see nuscenes.org for the data set, or run `make demo`, which needs none"
        )
    nusc = open_devkit(root, version)
    for row in nusc.sample_annotation:
        if len(row["attribute_tokens"]) > 1:  # the devkit refuses the whole set
            known = [t for t in row["attribute_tokens"] if nusc.get("attribute", t)["name"] in DETECTION_ATTRIBUTES]
            row["attribute_tokens"] = known[:1]
    return nusc


def detection_config(rules: Rules) -> DetectionConfig:
    """`detection_cvpr_2019` with the classes, ranges and distances of `rules`."""
    config = config_factory("detection_cvpr_2019")
    config.class_range = dict(rules.class_range_m)
    config.class_names = config.class_range.keys()
    config.dist_ths, config.dist_th_tp = list(rules.distances_m), rules.error_distance_m
    return config


class _OwnBox(DetectionBox):  # type: ignore[misc]
    """A box of any class and attribute; the devkit's own refuses all but nuScenes'."""

    def __init__(
        self,
        *,
        detection_name: str = "",
        detection_score: float = -1.0,
        attribute_name: str = "",
        **box: Any,
    ) -> None:
        EvalBox.__init__(self, **box)
        self.detection_name, self.detection_score = detection_name, detection_score
        self.attribute_name = attribute_name


class _SharedEval(DetectionEval):  # type: ignore[misc]
    """DetectionEval on boxes that are loaded and filtered already; `evaluate` is the devkit's."""

    def __init__(self, config: DetectionConfig, gt_boxes: EvalBoxes, pred_boxes: EvalBoxes) -> None:
        self.cfg = config
        self.gt_boxes = gt_boxes
        self.pred_boxes = pred_boxes
        self.verbose = False


class OfficialEvaluation:
    """Ground truth of some samples, ready to measure submissions against.

    Args:
        nusc: the devkit's tables.
        tokens: the samples to evaluate.
        rules: classes, ranges and distances.
        reference_channel: the channel from whose ego pose ranges are measured, as `NuScenesConfig.reference_channel`.
        metrics: who computes them, see `Metrics`.

    Raises:
        ValueError: a token is not in the tables, or a sample has no record of the reference channel.
    """

    def __init__(
        self,
        nusc: NuScenes,
        tokens: Sequence[str],
        rules: Rules,
        reference_channel: str = _OFFICIAL_REFERENCE,
        metrics: Metrics = "devkit",
    ) -> None:
        self.tokens = tuple(tokens)
        self._metrics = metrics
        self.config = detection_config(rules)
        self.rules = rules
        self._box = DetectionBox if rules.official else _OwnBox
        self._nusc = nusc
        self._check_tokens(reference_channel)
        self._truth = self._filtered(self._load_truth())
        self._unknown = set() if rules.official else self._unknown_errors()
        there = {box.detection_name for box in self._truth.all}
        self.classes_without_truth = tuple(name for name in self.config.class_names if name not in there)

    def _check_tokens(self, reference_channel: str) -> None:
        if not self.tokens:
            raise ValueError(f"evaluation: no samples to evaluate in {self._nusc.dataroot} {self._nusc.version}")
        known = {sample["token"] for sample in self._nusc.sample}
        for token in self.tokens:
            if token not in known:
                raise ValueError(f"evaluation: sample {token} is not in {self._nusc.dataroot} {self._nusc.version}")
            data = self._nusc.get("sample", token)["data"]
            if reference_channel not in data:
                raise ValueError(
                    f"evaluation: sample {token} has no {reference_channel} record, from whose ego pose the official evaluation "
                    "measures the class ranges; keep the sample_data row even where the file is missing, or name another "
                    "channel in data.nuscenes.reference_channel"
                )
            data[_OFFICIAL_REFERENCE] = data[reference_channel]  # the devkit knows no other name for it

    def _load_truth(self) -> EvalBoxes:
        """As the devkit loads it, but by the data set's own map of classes."""
        class_of, boxes = dict(self.rules.class_of_category), EvalBoxes()
        for token in self.tokens:
            rows = [self._nusc.get("sample_annotation", row) for row in self._nusc.get("sample", token)["anns"]]
            named = [row for row in rows if class_of.get(row["category_name"]) in self.config.class_range]
            boxes.add_boxes(token, [self._truth_box(token, row, class_of[row["category_name"]]) for row in named])
        return boxes

    def _truth_box(self, token: str, row: Mapping[str, Any], name: str) -> DetectionBox:
        attributes = [self._nusc.get("attribute", attribute)["name"] for attribute in row["attribute_tokens"]]
        if self.rules.official:
            attributes = [attribute for attribute in attributes if attribute in DETECTION_ATTRIBUTES]
        return self._box(
            sample_token=token,
            translation=row["translation"],
            size=row["size"],
            rotation=row["rotation"],
            velocity=self._nusc.box_velocity(row["token"])[:2],
            num_pts=row["num_lidar_pts"] + row["num_radar_pts"],
            detection_name=name,
            attribute_name=attributes[0] if attributes else "",
        )

    def _unknown_errors(self) -> set[tuple[str, str]]:
        """(class, error) of what no true box of the class tells: for nuScenes' own classes the devkit's code says which."""
        known = {(box.detection_name, "attr_err") for box in self._truth.all if box.attribute_name}
        known |= {(box.detection_name, "vel_err") for box in self._truth.all if not any(map(math.isnan, box.velocity))}
        return {(name, error) for name in self.config.class_names for error in ("attr_err", "vel_err")} - known

    def _filtered(self, boxes: EvalBoxes) -> EvalBoxes:
        """The devkit's filters; it refuses to look at boxes when there is not one, where there is nothing to filter."""
        if not any(boxes.boxes.values()):
            return boxes
        boxes = add_center_dist(self._nusc, boxes)
        return filter_eval_boxes(self._nusc, boxes, self.config.class_range)

    def measure(
        self, result_path: Path, content: Mapping[str, Any] | None = None
    ) -> tuple[DetectionMetrics, dict[str, Any]]:
        """The metrics of a result file and its `meta`, as `DetectionEval(...).evaluate()` gives them.

        `content` is what the file holds, where that is known: the fast metrics need not read it then.

        Raises:
            ValueError: the file is no submission for these samples.
        """
        try:
            if self._metrics == "fast":
                content = content or json.loads(result_path.read_bytes())
                metrics, meta = self._fast.measure(content["results"]), content["meta"]
            else:
                predictions, meta = load_prediction_of_sample_tokens(
                    str(result_path), self.config.max_boxes_per_sample, self._box, sample_tokens=list(self.tokens)
                )
                metrics = _SharedEval(self.config, self._truth, self._filtered(predictions)).evaluate()[0]
        except (AssertionError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{result_path}: not a nuScenes submission for these samples: {error}") from error
        for name, of in self._unknown:
            metrics.add_label_tp(name, of, math.nan)
        return metrics, meta

    @cached_property
    def _fast(self) -> FastMetrics:
        return FastMetrics(self._nusc, self.tokens, self._truth, self.config, any_attribute=not self.rules.official)

    def evaluate(
        self,
        subset: str,
        result_path: Path,
        no_perception: Iterable[str] = (),
        content: Mapping[str, Any] | None = None,
    ) -> SubsetResult:
        """Measure `result_path` (see `measure`) and write metrics_summary.json beside it."""
        metrics, meta = self.measure(result_path, content)
        blind = tuple(no_perception)
        figures = _serialized(metrics)
        if not self.rules.official:
            del figures["nd_score"], figures["tp_scores"]
        summary = {
            **figures,
            "meta": copy.deepcopy(meta),
            "subset": subset,
            "ranges": self.rules.note,
            "samples": len(self.tokens),
            "no_perception": list(blind),
            "classes_without_truth": list(self.classes_without_truth),
        }
        write_json(result_path.with_name("metrics_summary.json"), summary)
        return subset_result(subset, summary)


def _serialized(metrics: DetectionMetrics) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)  # an error that no class knows
        return dict(metrics.serialize())


def subset_result(subset: str, summary: Mapping[str, Any]) -> SubsetResult:
    """The figures of a metrics summary."""
    return SubsetResult(
        subset=subset,
        mean_ap=float(summary["mean_ap"]),
        nds=float(summary["nd_score"]) if "nd_score" in summary else None,
        errors={ours: float(summary["tp_errors"].get(theirs, math.nan)) for theirs, ours in TP_ERRORS.items()},
        class_ap={name: float(ap) for name, ap in summary["mean_dist_aps"].items()},
        ranges=str(summary["ranges"]),
        samples=int(summary["samples"]),
        no_perception=tuple(summary["no_perception"]),
        classes_without_truth=tuple(summary.get("classes_without_truth", ())),
    )
