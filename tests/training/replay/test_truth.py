"""Truth over a replay: interpolated where it is known, nowhere invented, and scored as nuScenes scores."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import center_distance
from nuscenes.eval.detection.algo import accumulate, calc_ap
from nuscenes.eval.detection.data_classes import DetectionBox

from bev.detection.boxes import Boxes
from bev.grid import BEVGrid
from robustbev.results.result import TickResult
from sensors.calibration import transforms
from sensors.frames import SensorFrame
from sensors.logs.messages import SceneBoxes, TruthBox
from sensors.replay.tick import Tick
from training.replay.truth import ReplayScore, ReplayTruth, TruthScore, average_precision, class_radius_m
from training.tasks.detection.rules import CLASS_RANGE_M, DISTANCES_M, ERROR_DISTANCE_M, MIN_PRECISION, MIN_RECALL

CLASSES = ("car", "pedestrian")
GRID = BEVGrid(-50, 50, -50, 50, 0.5)
BEGIN_US = 1_600_000_000_000_000
HALF_US = 500_000
HERE = np.eye(4)


def truth_box(
    id: str, x_m: float, y_m: float = 0.0, *, yaw: float = 0.0, category: str = "vehicle.car", points: int | None = 5
) -> TruthBox:
    turn = (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))
    return TruthBox(id, category, (x_m, y_m, 0.5), (2.0, 4.0, 1.5), turn, num_points=points)


def instant(number: float, *boxes: TruthBox) -> SceneBoxes:
    """Annotations at `number` half seconds after the beginning."""
    return SceneBoxes(round(BEGIN_US + number * HALF_US) * 1000, "map", boxes)


def truth_of(*messages: SceneBoxes, grid: BEVGrid = GRID, radius_m: dict[str, float] | None = None) -> ReplayTruth:
    return ReplayTruth(messages, classes=CLASSES, grid=grid, radius_m=radius_m)


def at(truth: ReplayTruth, number: float, pose: NDArray[np.float64] = HERE) -> Boxes:
    boxes = truth.at(round(BEGIN_US + number * HALF_US), pose)
    assert boxes is not None
    return boxes


def found(*rows: tuple[float, float, str, float]) -> Boxes:
    """Boxes by x, y, class and score."""
    n = len(rows)
    return Boxes(
        center_m=torch.tensor([(x, y, 0.5) for x, y, _, _ in rows]).reshape(n, 3), size_m=torch.ones(n, 3),
        yaw_rad=torch.zeros(n), velocity_mps=torch.zeros(n, 2),
        label=torch.tensor([CLASSES.index(name) for *_, name, _ in rows], dtype=torch.long),
        attribute=torch.full((n,), -1), score=torch.tensor([score for *_, score in rows]),
    )  # fmt: skip


def result(number: float, boxes: Boxes, *, perceived: bool = True) -> TickResult:
    time_us = round(BEGIN_US + number * HALF_US)
    frame = SensorFrame("tick", time_us, None, None, None, HERE)
    tick = Tick(round(number * 10), time_us, time_us, frame, {}, True)
    return TickResult(
        tick, perceived, Boxes.empty(), boxes, ("camera",), np.zeros((1, 1, 1), np.float32), CLASSES, (), {}
    )


def score_replay(results: list[TickResult], truth: ReplayTruth) -> ReplayScore:
    scorer = TruthScore(truth)
    for one in results:
        scorer.write(one)
    return scorer.score()


# --- where things are between their annotations ---------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(-3.1, 3.1), st.floats(-3.0, 3.0))
def test_between_annotations_a_box_moves_evenly_and_turns_on_the_shorter_way(
    share: float, yaw: float, turn: float
) -> None:
    truth = truth_of(instant(0, truth_box("a", 10, yaw=yaw)), instant(1, truth_box("a", 14, 2, yaw=yaw + turn)))
    boxes = at(truth, share)
    exact = round(share * HALF_US) / HALF_US
    assert boxes.center_m[0].tolist() == pytest.approx([10 + 4 * exact, 2 * exact, 0.5], abs=1e-4)
    off = (boxes.yaw_rad[0].item() - yaw - exact * turn + math.pi) % (2 * math.pi) - math.pi
    assert off == pytest.approx(0, abs=1e-5)
    assert boxes.size_m[0].tolist() == [2.0, 4.0, 1.5]


def test_boxes_come_in_the_reference_frame_of_the_tick() -> None:
    pose = transforms([100.0, 50.0, 0.0, np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)])  # looks along the map's y
    boxes = at(truth_of(instant(0, truth_box("a", 98, 60, yaw=math.pi / 2))), 0, pose)
    assert boxes.center_m[0].tolist() == pytest.approx([10, 2, 0.5], abs=1e-5)
    assert boxes.yaw_rad[0].item() == pytest.approx(0, abs=1e-6)


def test_truth_is_not_known_outside_the_annotations_nor_in_a_gap_of_theirs() -> None:
    box = truth_box("a", 10)
    truth = truth_of(instant(0, box), instant(1, box), instant(3, box), instant(4, box))
    known = {n / 4: truth.at(round(BEGIN_US + n / 4 * HALF_US), HERE) is not None for n in range(-2, 20)}
    assert [n for n, is_known in known.items() if is_known] == [0, 0.25, 0.5, 0.75, 1, 3, 3.25, 3.5, 3.75, 4]
    assert truth_of().at(BEGIN_US, HERE) is None


def test_nothing_there_is_another_thing_than_not_known() -> None:
    assert len(at(truth_of(instant(0), instant(1)), 0.5)) == 0


def test_an_object_annotated_on_one_side_only_is_not_there_in_between() -> None:
    truth = truth_of(instant(0, truth_box("a", 10), truth_box("b", 20)), instant(1, truth_box("a", 10)))
    assert len(at(truth, 0)) == 2
    assert at(truth, 0.5).center_m[:, 0].tolist() == [10]


def test_only_detection_classes_with_points_on_the_grid_and_in_range_count() -> None:
    boxes = [
        truth_box("car", 10), truth_box("unknown points", 12, points=None), truth_box("hidden", 14, points=0),
        truth_box("animal", 16, category="animal"), truth_box("bus", 18, category="vehicle.bus.rigid"),
        truth_box("outside", 50), truth_box("child", 20, category="human.pedestrian.child"),
        truth_box("class by name", 22, category="pedestrian"), truth_box("far child", 45, category="pedestrian"),
    ]  # fmt: skip
    truth = truth_of(instant(0, *boxes), radius_m={"pedestrian": 40.0})
    counted = at(truth, 0)
    assert counted.center_m[:, 0].tolist() == [10, 12, 20, 22]
    assert counted.label.tolist() == [0, 0, 1, 1]


def test_the_official_ranges_are_cut_to_the_grid() -> None:
    ranges = class_radius_m(BEVGrid(-32, 32, -32, 32, 0.5))
    assert ranges["car"] == 32
    assert ranges["barrier"] == 30


def test_ranges_distances_and_cuts_are_those_of_the_official_evaluation() -> None:
    official = pytest.importorskip("nuscenes.eval.common.config").config_factory("detection_cvpr_2019")
    assert official.class_range == CLASS_RANGE_M
    assert (tuple(official.dist_ths), official.dist_th_tp) == (DISTANCES_M, ERROR_DISTANCE_M)
    assert (official.min_recall, official.min_precision) == (MIN_RECALL, MIN_PRECISION)


@pytest.mark.parametrize(
    ("box", "told"),
    [
        (replace(truth_box("a", 1), rotation_wxyz=(0, 0, 0, 0)), "truth: box a at .* norm 1"),
        (replace(truth_box("a", 1), center_m=(math.nan, 0, 0)), "expected finite numbers"),
        (replace(truth_box("a", 1), size_m=(1, 0, 1)), "expected sizes above 0 m"),
    ],
)
def test_a_box_that_cannot_be_is_refused_by_name(box: TruthBox, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        truth_of(instant(0, box))


def test_boxes_of_two_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="expected boxes of one frame, got base_link and map"):
        truth_of(instant(0), replace(instant(1), frame_id="base_link"))


# --- figures -----------------------------------------------------------------------------------------------------------------


def devkit_ap(ticks: list[tuple[Boxes, Boxes]], name: str) -> float:
    """Mean AP of a class over the distances by the devkit's own code; ticks are (truth, found)."""
    config = config_factory("detection_cvpr_2019")
    sides = EvalBoxes(), EvalBoxes()
    for number, pair in enumerate(ticks):
        for side, boxes in zip(sides, pair, strict=True):
            side.add_boxes(str(number), [
                DetectionBox(
                    str(number), tuple(c), (1, 1, 1), (1, 0, 0, 0), (0, 0),
                    detection_name=CLASSES[label], detection_score=score,
                )
                for c, label, score in zip(
                    boxes.center_m.tolist(), boxes.label.tolist(), boxes.score.tolist(), strict=True
                )
            ])  # fmt: skip
    data = [accumulate(*sides, name, center_distance, distance_m) for distance_m in config.dist_ths]
    return float(np.mean([calc_ap(one, config.min_recall, config.min_precision) for one in data]))


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_average_precision_is_that_of_the_devkit(seed: int) -> None:
    """Random drives in which most objects are found, some twice, some by the wrong class, with equal scores among them."""
    random = np.random.default_rng(seed)
    messages, results, pairs = [], [], []
    for number in range(6):
        places = random.uniform(-40, 40, (int(random.integers(0, 8)), 2))
        names = random.choice(CLASSES, len(places))
        rows = [
            (*(place + random.normal(0, 1.5, 2)), name if random.random() < 0.9 else "car", round(random.random(), 1))
            for place, name in zip(places, names, strict=True)
            for _ in range(int(random.integers(0, 3)))
        ]
        messages.append(
            instant(2 * number, *(
                truth_box(f"{number}-{n}", x, y, category=str(name))
                for n, ((x, y), name) in enumerate(zip(places.tolist(), names, strict=True))
            ))
        )  # fmt: skip
        results.append(result(2 * number, found(*[(float(x), float(y), str(name), s) for x, y, name, s in rows])))
    truth = truth_of(*messages)
    for one in results:
        there = truth.at(one.tick.time_us, HERE)
        assert there is not None
        pairs.append((there, truth.counted(one.candidates)))
    score = score_replay(results, truth)
    for name, ap in score.class_ap.items():
        assert ap == pytest.approx(devkit_ap(pairs, name), abs=1e-12)
    assert set(score.class_ap) == {CLASSES[n] for there, _ in pairs for n in there.label.tolist()}
    if score.class_ap:
        assert score.mean_ap == pytest.approx(np.mean(list(score.class_ap.values())))


def test_a_perfect_replay_scores_one_and_a_blind_one_nothing() -> None:
    truth = truth_of(*(instant(n, truth_box("a", 10 + n)) for n in range(4)))
    seeing = [result(n / 2, found((10 + n / 2, 0, "car", 0.9))) for n in range(7)]
    blind = [replace(r, candidates=Boxes.empty(), perceived=False) for r in seeing]
    assert score_replay(seeing, truth).mean_ap == pytest.approx(1)
    score = score_replay(blind, truth)
    assert score.mean_ap == 0


def test_without_truth_there_is_no_figure() -> None:
    score = score_replay([result(9, found((1, 1, "car", 0.9)))], truth_of(instant(0), instant(1)))
    assert math.isnan(score.mean_ap)
    assert (score.class_ap, score.ticks) == ({}, 0)


def test_results_numbered_otherwise_than_truth_are_refused() -> None:
    with pytest.raises(ValueError, match="truth is numbered as car, pedestrian, the results as pedestrian, car"):
        score_replay([replace(result(0, found()), classes=CLASSES[::-1])], truth_of(instant(0)))


def test_no_hit_is_no_precision() -> None:
    assert average_precision(np.zeros(0), np.zeros(0, bool), 3) == 0
    assert average_precision(np.ones(2), np.zeros(2, bool), 3) == 0
