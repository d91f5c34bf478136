"""How much a replay found of what was there, as average precision, where a log has annotated boxes.

Truth comes at the annotations' times, ticks at their own: an object's place at a tick lies between its annotations before and
after. At a tick that no two annotated instants enclose, truth is not known and nothing is counted.

Letters: N annotations of one object, K found boxes, T truth boxes, D distances.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bev.detection.boxes import Boxes
from bev.grid import BEVGrid
from robustbev.results.result import ResultWriter, TickResult
from sensors.calibration import apply, inverse_rigid, pose_fault, transforms
from sensors.logs.messages import SceneBoxes, TruthBox
from sensors.nuscenes.config import DETECTION_CLASS_OF_CATEGORY
from training.tasks.detection.matching import match
from training.tasks.detection.rules import CLASS_RANGE_M, DISTANCES_M, MIN_PRECISION, MIN_RECALL

GAP_S = 0.6  # annotations of nuScenes are 0.5 s apart
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class _Track:
    """An object over time, in the global frame."""

    times_us: list[int]  # [N] rising
    center_m: Float64  # [N, 3]
    heading: Float64  # [N, 3] the direction of its length
    boxes: list[TruthBox]  # [N]

    def at(self, time_us: int, gap_us: int) -> tuple[Float64, Float64, TruthBox] | None:
        """Centre [3], heading [3] and the nearer annotation; None where it is not annotated on both sides, or too far off."""
        after = bisect.bisect_left(self.times_us, time_us)
        if after < len(self.times_us) and self.times_us[after] == time_us:
            return self.center_m[after], self.heading[after], self.boxes[after]
        if after in (0, len(self.times_us)) or self.times_us[after] - self.times_us[after - 1] >= gap_us:
            return None
        before = after - 1
        share = (time_us - self.times_us[before]) / (self.times_us[after] - self.times_us[before])
        center_m = (1 - share) * self.center_m[before] + share * self.center_m[after]
        nearer = before if share < 0.5 else after
        return center_m, _turned(self.heading[before], self.heading[after], share), self.boxes[nearer]


def _turned(a: Float64, b: Float64, share: float) -> Float64:
    """From direction a towards b, on the shorter way and at an even pace; from a about the vertical where they are opposed."""
    angle = float(np.arccos(np.clip(a @ b, -1, 1)))
    side = b - (a @ b) * a
    length = float(np.linalg.norm(side))
    if length < 1e-9:
        if angle < 1:
            return a
        side, length = np.cross([0.0, 0.0, 1.0], a), 1.0
    return np.cos(share * angle) * a + np.sin(share * angle) * side / length


class AnnotatedTracks:
    """The annotated boxes of a log, at any time between two annotated instants.

    Args:
        messages: all of one frame, in any order; of equal times the later holds.

    Raises:
        ValueError: boxes of several frames, or one that cannot be a box.
    """

    def __init__(self, messages: Iterable[SceneBoxes], gap_s: float = GAP_S) -> None:
        self._gap_us = round(gap_s * 1e6)
        instants = {(message.stamp_ns + 500) // 1000: message for message in messages}
        frames = sorted({message.frame_id for message in instants.values()})
        if len(frames) > 1:
            raise ValueError(f"truth: expected boxes of one frame, got {' and '.join(frames)}; map one topic of them")
        self._instants_us = sorted(instants)
        self._tracks = _tracks((time_us, instants[time_us]) for time_us in self._instants_us)

    def __len__(self) -> int:
        """The number of annotated instants."""
        return len(self._instants_us)

    def at(self, time_us: int) -> list[tuple[TruthBox, Float64, Float64]] | None:
        """Of each object its nearer annotation, centre [3] and heading [3] in the boxes' frame; None where truth is not known.

        An object that is annotated on one side of the time only is not among them.
        """
        if not self._known(time_us):
            return None
        places = (track.at(time_us, self._gap_us) for track in self._tracks)
        return [(box, center_m, heading) for center_m, heading, box in filter(None, places)]

    def _known(self, time_us: int) -> bool:
        after = bisect.bisect_left(self._instants_us, time_us)
        if after < len(self._instants_us) and self._instants_us[after] == time_us:
            return True
        inner = 0 < after < len(self._instants_us)
        return inner and self._instants_us[after] - self._instants_us[after - 1] < self._gap_us


class ReplayTruth:
    """The annotated boxes of a log, at any time between two annotated instants.

    Args:
        messages: all of one frame, that of `global_T_reference`, in any order; of equal times the later holds.
        classes: the model's, which number the labels.
        class_map: category -> class; a category that is a class already is taken as it is, others are left out.
        grid: boxes whose centre lies outside are left out.
        radius_m: class -> distance from the car within which boxes count; classes not named have no limit.

    Raises:
        ValueError: boxes of several frames, or one that cannot be a box.
    """

    def __init__(
        self,
        messages: Iterable[SceneBoxes],
        *,
        classes: Sequence[str],
        grid: BEVGrid,
        class_map: Mapping[str, str] = DETECTION_CLASS_OF_CATEGORY,
        radius_m: Mapping[str, float] | None = None,
        gap_s: float = GAP_S,
    ) -> None:
        self.classes = tuple(classes)
        self._grid = grid
        self._annotated = AnnotatedTracks(messages, gap_s)
        self._radius_m = np.array([(radius_m or {}).get(name, np.inf) for name in classes])
        self._label_of = {name: n for n, name in enumerate(classes)}
        self._label_of |= {c: self._label_of[name] for c, name in class_map.items() if name in self._label_of}

    def __len__(self) -> int:
        """The number of annotated instants."""
        return len(self._annotated)

    def at(self, time_us: int, global_T_reference: NDArray[np.floating[Any]]) -> Boxes | None:
        """T boxes in the reference frame, those with points in them where the log says; None where truth is not known.

        An object that is annotated on one side of the time only is not among them.
        """
        known = self._annotated.at(time_us)
        if known is None:
            return None
        reference_T_global = inverse_rigid(np.asarray(global_T_reference, float))
        annotated = [
            (box, center_m, heading, label)
            for box, center_m, heading in known
            if (label := self._label_of.get(box.category)) is not None
            and (box.num_points is None or box.num_points > 0)
        ]
        if not annotated:
            return Boxes.empty()
        center = apply(reference_T_global, np.stack([center_m for _, center_m, _, _ in annotated]))
        heading = np.stack([direction for _, _, direction, _ in annotated]) @ reference_T_global[:3, :3].T
        labels = np.array([label for *_, label in annotated])
        boxes = Boxes(
            center_m=torch.from_numpy(center).float(),
            size_m=torch.tensor([box.size_m for box, *_ in annotated]),
            yaw_rad=torch.from_numpy(np.arctan2(heading[:, 1], heading[:, 0])).float(),
            velocity_mps=torch.full((len(annotated), 2), torch.nan),
            label=torch.from_numpy(labels),
            attribute=torch.full((len(annotated),), -1),
            score=torch.ones(len(annotated)),
        )
        return self.counted(boxes)

    def counted(self, boxes: Boxes) -> Boxes:
        """The boxes on the grid and within their class's range."""
        xy_m = boxes.center_m[:, :2]
        inside = self._grid.flat_index(xy_m) < self._grid.num_cells
        return boxes[inside & (xy_m.double().norm(dim=1) < torch.from_numpy(self._radius_m)[boxes.label])]


def _tracks(instants: Iterable[tuple[int, SceneBoxes]]) -> list[_Track]:
    rows: dict[str, list[tuple[int, TruthBox]]] = {}
    for time_us, message in instants:
        for box in message.boxes:
            fault = pose_fault([*box.center_m, *box.rotation_wxyz])
            if fault is None and not all(0 < side < 1e4 for side in box.size_m):
                fault = f"expected sizes above 0 m, got {box.size_m}"
            if fault:
                raise ValueError(
                    f"truth: box {box.id} at {time_us} us: {fault}. Correct it, or leave truth out of the mapping"
                )
            rows.setdefault(box.id, []).append((time_us, box))
    tracks = []
    for sightings in rows.values():
        boxes = [box for _, box in sightings]
        poses = transforms([[*box.center_m, *box.rotation_wxyz] for box in boxes])
        tracks.append(_Track([time_us for time_us, _ in sightings], poses[:, :3, 3], poses[:, :3, 0], boxes))
    return tracks


@dataclass(frozen=True)
class ReplayScore:
    """How well a replay saw. Average precision is nuScenes' mean over the distances, of the ticks at which truth is known."""

    mean_ap: float  # over the classes that were there; NaN where none was
    class_ap: dict[str, float]  # of the classes that were there, in the model's order
    ticks: int  # at which truth is known


@dataclass(frozen=True)
class _Row:
    """One tick's found boxes [K] and which of them took a truth box, at each distance."""

    score: NDArray[np.float32]  # [K]
    label: NDArray[np.int16]  # [K]
    hits: NDArray[np.bool_]  # [K, distances]
    there: Counter[int]  # label -> truth boxes


@dataclass
class TruthScore(ResultWriter):
    """Listens to a replay; `score` tells what it comes to. A tick without perception has found nothing of what was there."""

    truth: ReplayTruth
    _rows: list[_Row] = field(default_factory=list)

    def write(self, result: TickResult) -> None:
        if result.classes != self.truth.classes:
            raise ValueError(
                f"truth is numbered as {', '.join(self.truth.classes)}, the results as {', '.join(result.classes)}: "
                "expected the same classes in the same order"
            )
        tick = result.tick
        truth = self.truth.at(tick.time_us, tick.frame.global_T_reference)
        if truth is None:
            return
        boxes = self.truth.counted(result.candidates)
        hits = np.stack([_hit(boxes, truth, distance_m) for distance_m in DISTANCES_M], axis=1)
        there = Counter(truth.label.tolist())
        self._rows.append(_Row(boxes.score.float().numpy(), boxes.label.numpy().astype(np.int16), hits, there))

    def score(self) -> ReplayScore:
        """The figures of the ticks so far."""
        rows = self._rows
        there = sum((row.there for row in rows), Counter[int]())
        class_ap: dict[str, float] = {}
        if there:
            score, label = np.concatenate([row.score for row in rows]), np.concatenate([row.label for row in rows])
            hits = np.concatenate([row.hits for row in rows])
            for n, name in enumerate(self.truth.classes):
                if there[n]:
                    of_class = label == n
                    distances = range(hits.shape[1])
                    class_ap[name] = float(
                        np.mean([average_precision(score[of_class], hits[of_class, d], there[n]) for d in distances])
                    )
        mean_ap = float(np.mean(list(class_ap.values()))) if class_ap else float("nan")
        return ReplayScore(mean_ap, class_ap, len(rows))


def class_radius_m(grid: BEVGrid) -> dict[str, float]:
    """The official class ranges, cut to the grid's radius: what `ReplayTruth` needs for figures that compare with `evaluate`."""
    return {name: min(official, grid.radius_m) for name, official in CLASS_RANGE_M.items()}


def average_precision(score: NDArray[np.floating[Any]], hit: NDArray[np.bool_], there: int) -> float:
    """NuScenes' AP at one distance: precision at 101 recalls, those of 0.1 and less left out, what is below 0.1 cut off.

    Args:
        score, hit: of K found boxes of one class of all samples, whether each took a truth box.
        there: truth boxes of the class, more than 0.
    """
    order = np.argsort(score, kind="stable")[::-1]
    hits = np.cumsum(hit[order]).astype(float)
    if not len(hits) or hits[-1] == 0:
        return 0.0
    precision = hits / np.arange(1, len(hits) + 1)
    curve = np.interp(np.linspace(0, 1, 101), hits / there, precision, right=0)
    kept = curve[round(100 * MIN_RECALL) + 1 :] - MIN_PRECISION
    return float(np.mean(np.maximum(kept, 0))) / (1 - MIN_PRECISION)


def _hit(boxes: Boxes, truth: Boxes, distance_m: float) -> NDArray[np.bool_]:
    """[K] whether each box takes a truth box; only those with one near enough are matched one by one."""
    hit = np.zeros(len(boxes), bool)
    if not len(boxes) or not len(truth):
        return hit
    gaps = torch.cdist(boxes.center_m[:, :2].double(), truth.center_m[:, :2].double())
    near = ((gaps < distance_m) & (boxes.label[:, None] == truth.label[None])).any(dim=1)
    hit[near.numpy()] = (match(boxes[near], truth, distance_m) >= 0).numpy()
    return hit
