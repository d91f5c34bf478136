"""nuScenes' detection metrics on columns, not on an object a box: the devkit's figures, bit for bit, in a fraction of the time.

A prediction is matched to the nearest box of truth that is left, by falling score; samples and classes do not meet. So distances
are computed for all pairs at once, and only those within reach are walked through. The devkit's own functions do the rest.

Letters: S samples, K boxes, E pairs of a prediction and a box of truth, M matches.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nuscenes import NuScenes
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import cummean
from nuscenes.eval.detection.algo import calc_ap, calc_tp
from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES, TP_METRICS
from nuscenes.eval.detection.data_classes import DetectionConfig, DetectionMetricData, DetectionMetrics
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion

Row = Mapping[str, Any]
Float64 = NDArray[np.float64]
Index = NDArray[np.int64]

_IN_RACKS = ("bicycle", "motorcycle")  # the devkit leaves them out where they stand in a rack
_NOT_MEASURED = {"traffic_cone": ("attr_err", "vel_err", "orient_err"), "barrier": ("attr_err", "vel_err")}


# A quaternion's matrix, and its conjugate's, in products: which element, and its sign.
_ELEMENT = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]])
_LEFT = np.array([[1, -1, -1, -1], [1, 1, -1, 1], [1, 1, 1, -1], [1, -1, 1, 1]])
_RIGHT = np.array([[1, -1, -1, -1], [1, 1, 1, -1], [1, -1, 1, 1], [1, 1, -1, 1]])


@dataclass(frozen=True)
class _Columns:
    """Boxes sample by sample."""

    sample: Index  # [K] 0..S - 1
    label: Index  # [K] of `DetectionConfig.class_names`
    center_m: Float64  # [K, 3]
    size_m: Float64  # [K, 3]
    rotation: Float64  # [K, 4]
    velocity_mps: Float64  # [K, 2]
    score: Float64  # [K]
    attribute: Index  # [K] a number a name, 0: none

    def __getitem__(self, rows: Any) -> _Columns:
        return _Columns(*(getattr(self, f.name)[rows] for f in fields(self)))


def _columns(results: Sequence[Sequence[Row]], classes: Sequence[str], attributes: Mapping[str, int]) -> _Columns:
    rows = list(chain.from_iterable(results))
    label = {name: i for i, name in enumerate(classes)}

    def numbers(key: str, width: int) -> Float64:
        values = np.fromiter(chain.from_iterable(row[key] for row in rows), np.float64, len(rows) * width)
        return values.reshape(-1, width)

    return _Columns(
        sample=np.repeat(np.arange(len(results)), [len(sample) for sample in results]),
        label=np.array([label[row["detection_name"]] for row in rows], np.int64),
        center_m=numbers("translation", 3),
        size_m=numbers("size", 3),
        rotation=numbers("rotation", 4),
        velocity_mps=numbers("velocity", 2),
        score=np.array([row["detection_score"] for row in rows], np.float64),
        attribute=np.array([attributes[row["attribute_name"]] for row in rows], np.int64),
    )


class FastMetrics:
    """Truth of some samples, ready to measure submissions against.

    Args:
        nusc: the devkit's tables.
        tokens: the S samples.
        truth: their boxes, filtered by the devkit.
        config: classes, ranges and thresholds.
        any_attribute: not nuScenes' alone.
    """

    def __init__(
        self,
        nusc: NuScenes,
        tokens: Sequence[str],
        truth: EvalBoxes,
        config: DetectionConfig,
        *,
        any_attribute: bool = False,
    ) -> None:
        self._tokens, self._config = tuple(tokens), config
        self._classes = list(config.class_names)
        self._attributes = defaultdict[str, int](None, {name: i for i, name in enumerate(("", *ATTRIBUTE_NAMES))})
        if any_attribute:
            self._attributes.default_factory = self._attributes.__len__  # the next number
        rows = [[box.serialize() for box in truth[token]] for token in tokens]
        self._truth = _columns(rows, self._classes, self._attributes)
        samples = [nusc.get("sample", token) for token in tokens]
        poses = [nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"] for sample in samples]
        self._ego_m = np.array([nusc.get("ego_pose", pose)["translation"] for pose in poses], np.float64)  # [S, 3]
        self._racks = [_racks(nusc, sample["anns"]) for sample in samples]

    def measure(self, results: Mapping[str, Sequence[Row]]) -> DetectionMetrics:
        """The metrics of a submission's `results`, as `DetectionEval.evaluate` gives them."""
        started = time.time()
        metrics, found = DetectionMetrics(self._config), self._filtered(results)
        for label, name in enumerate(self._classes):
            truth, mine = self._truth[self._truth.label == label], found[found.label == label]
            mine = mine[
                np.lexsort((np.arange(len(mine.score)), mine.score))[::-1]
            ]  # by falling score, as the devkit does
            pairs = _pairs(truth, mine, max(self._config.dist_ths))
            for reach_m in self._config.dist_ths:
                data = _metric_data(truth, mine, pairs, reach_m, name, errors=reach_m == self._config.dist_th_tp)
                ap = calc_ap(data, self._config.min_recall, self._config.min_precision)
                metrics.add_label_ap(name, reach_m, ap)
                if reach_m == self._config.dist_th_tp:
                    for error in TP_METRICS:
                        known = error not in _NOT_MEASURED.get(name, ())
                        value = calc_tp(data, self._config.min_recall, error) if known else np.nan
                        metrics.add_label_tp(name, error, value)
        metrics.add_runtime(time.time() - started)
        return metrics

    def _filtered(self, results: Mapping[str, Sequence[Row]]) -> _Columns:
        """The devkit's filters of range and bicycle racks."""
        most = self._config.max_boxes_per_sample
        assert all(len(rows) <= most for rows in results.values()), f"only <= {most} boxes per sample allowed"
        found = _columns([results[token] for token in self._tokens], self._classes, self._attributes)
        away_m = found.center_m - self._ego_m[found.sample]
        range_m = np.array([self._config.class_range[name] for name in self._classes], np.float64)
        kept = np.sqrt(away_m[:, 0] ** 2 + away_m[:, 1] ** 2) < range_m[found.label]
        in_racks = [label for label, name in enumerate(self._classes) if name in _IN_RACKS]
        for i in np.flatnonzero(kept & np.isin(found.label, in_racks)):
            point = found.center_m[i, :, None]
            kept[i] = not any(points_in_box(rack, point).any() for rack in self._racks[found.sample[i]])
        return found[kept]


def _racks(nusc: NuScenes, annotations: Sequence[str]) -> list[Box]:
    rows = [nusc.get("sample_annotation", token) for token in annotations]
    return [
        Box(row["translation"], row["size"], Quaternion(row["rotation"]))
        for row in rows
        if row["category_name"] == "static_object.bicycle_rack"
    ]


def _squares(vectors: Float64) -> Float64:
    """[E, n] -> [E] sums, by BLAS' product of two vectors as the devkit has them: numpy's own sum differs in the last bit."""
    products: Float64 = np.matmul(vectors[:, None], vectors[:, :, None])
    return products[:, 0, 0]


def _norm(vectors: Float64) -> Float64:
    return np.sqrt(_squares(vectors))


def _yaw_rad(rotation: Float64) -> Float64:
    """[M, 4] -> [M], by the products of matrices that pyquaternion takes."""
    squares = _squares(rotation)[:, None]
    unit = np.where((np.abs(1 - squares) < 1e-14) | (squares == 0), rotation, rotation / np.sqrt(squares))
    # Contiguous, for otherwise numpy multiplies without BLAS.
    left, right = (np.ascontiguousarray(unit[:, _ELEMENT] * sign) for sign in (_LEFT, _RIGHT))
    ahead = np.matmul(left, right.swapaxes(1, 2))[:, 1:3, 1] + 0.0  # no -0, for which arctan2 has another side
    return np.arctan2(ahead[:, 1], ahead[:, 0])


def _pairs(truth: _Columns, found: _Columns, reach_m: float) -> tuple[Index, Index, Float64]:
    """(prediction, truth, metres) [E] of one sample each and nearer than `reach_m`: by prediction, the nearest first."""
    start = np.searchsorted(truth.sample, found.sample)
    count = np.searchsorted(truth.sample, found.sample, side="right") - start
    mine = np.repeat(np.arange(len(count)), count)
    theirs = np.arange(count.sum()) + np.repeat(start - np.cumsum(count) + count, count)
    away_m = _norm(found.center_m[mine, :2] - truth.center_m[theirs, :2])
    near = np.flatnonzero(away_m < reach_m)
    near = near[np.lexsort((theirs[near], away_m[near], mine[near]))]
    return mine[near], theirs[near], away_m[near]


def _matches(pairs: tuple[Index, Index, Float64], reach_m: float) -> tuple[Index, Index]:
    """(prediction, truth) [M]: each prediction in turn takes the nearest box that is left."""
    near = pairs[2] < reach_m
    matched, taken = [], {}
    last = -1
    for mine, theirs in zip(pairs[0][near].tolist(), pairs[1][near].tolist(), strict=True):
        if mine != last and theirs not in taken:
            taken[theirs] = last = mine
            matched.append(theirs)
    return np.array([taken[theirs] for theirs in matched], np.int64), np.array(matched, np.int64)


def _metric_data(
    truth: _Columns, found: _Columns, pairs: tuple[Index, Index, Float64], reach_m: float, name: str, *, errors: bool
) -> DetectionMetricData:
    """What the devkit's `accumulate` gives; without `errors` those are ones, which nobody asks for."""
    mine, theirs = _matches(pairs, reach_m)
    data = DetectionMetricData.no_predictions()
    if not len(mine):
        return data
    hit = np.zeros(len(found.score), np.int64)
    hit[mine] = 1
    hits, misses = np.cumsum(hit).astype(float), np.cumsum(1 - hit).astype(float)
    recall = hits / float(len(truth.score))
    data.precision = np.interp(data.recall, recall, hits / (misses + hits), right=0)
    data.confidence = np.interp(data.recall, recall, found.score, right=0)
    if errors:
        score = found.score[mine]
        for error, values in _errors(truth[theirs], found[mine], name).items():
            mean = cummean(values)
            setattr(data, error, np.interp(data.confidence[::-1], score[::-1], mean[::-1])[::-1])
    return data


def _errors(truth: _Columns, found: _Columns, name: str) -> dict[str, Float64]:
    """[M] of each kind."""
    volumes = [
        sizes[:, 0] * sizes[:, 1] * sizes[:, 2]
        for sizes in (np.minimum(truth.size_m, found.size_m), truth.size_m, found.size_m)
    ]
    period = np.pi if name == "barrier" else 2 * np.pi
    turn_rad = (_yaw_rad(truth.rotation) - _yaw_rad(found.rotation) + period / 2) % period - period / 2
    wrong = 1 - (truth.attribute == found.attribute).astype(float)
    return {
        "trans_err": _norm(found.center_m[:, :2] - truth.center_m[:, :2]),
        "vel_err": _norm(found.velocity_mps - truth.velocity_mps),
        "scale_err": 1 - volumes[0] / (volumes[1] + volumes[2] - volumes[0]),
        "orient_err": np.abs(turn_rad),
        "attr_err": np.where(truth.attribute == 0, np.nan, wrong),
    }
