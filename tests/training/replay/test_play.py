"""A replay promises one result a tick whatever the sensors do, and that speed changes nothing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from robustbev import Perception, PerceptionModel, perceive_frame
from robustbev.results.result import TickResult
from sensors.corruptions import Corruption
from sensors.frames import KINDS, History, SensorFrame
from sensors.health.monitor import HealthMode, HealthReport
from sensors.prepare import collate, prepare
from sensors.replay.tick import SensorState, Tick
from tests.small_replay import STEP_US, noise_frame, noise_tick, preparation
from tests.tiny_model import tiny_model
from training.replay.play import FrameChange, HealthWatch, Latencies, Pace, Perceiver, drain, replay
from training.replay.summary import StateCount

SUBSETS = [s for n in range(1, 4) for s in itertools.combinations(KINDS, n)]


@pytest.fixture(scope="module")
def model() -> PerceptionModel:
    return tiny_model()


def run(model: PerceptionModel, ticks: list[Tick], **options: Any) -> list[TickResult]:
    return list(
        replay(
            ticks,
            Perceiver(model, preparation()),
            **options,
        )
    )


def assert_same(got: TickResult, expected: TickResult) -> None:
    for part in fields(got.boxes):
        assert torch.equal(getattr(got.boxes, part.name), getattr(expected.boxes, part.name)), part.name
    np.testing.assert_array_equal(got.attention, expected.attention)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_a_silent_sensor_is_its_null_embedding_bit_for_bit(model: PerceptionModel, subset: tuple[str, ...]) -> None:
    """What the replay gives without a sensor is what the fuser gives where that sensor's features are None."""
    whole = collate([prepare(noise_frame(3), preparation())], preparation())
    with torch.inference_mode():
        features = model.encode(whole)
        kept = {name: f if name in subset else None for name, f in features.items()}
        expected: Perception = model.perceive_features(kept, 1)
    (result,) = run(model, [noise_tick(3, subset)])
    alone = perceive_frame(model, noise_frame(3, subset), preparation())
    assert torch.equal(alone.fused.features, expected.fused.features)
    np.testing.assert_array_equal(result.attention, expected.fused.attention[0].numpy())
    kept_boxes = expected.boxes[0].score > 0
    assert torch.equal(result.candidates.center_m, expected.boxes.center_m[0][kept_boxes])
    assert torch.equal(result.candidates.score, expected.boxes.score[0][kept_boxes])


def test_every_tick_has_one_result_and_without_sensors_it_says_no_perception(model: PerceptionModel) -> None:
    ticks = [noise_tick(0), noise_tick(1, ()), noise_tick(2, ("radar",))]
    results = run(model, ticks)
    assert [r.tick.index for r in results] == [0, 1, 2]
    assert [r.perceived for r in results] == [True, False, True]
    assert len(results[1].boxes) == 0
    assert all(np.isfinite(r.attention).all() for r in results)


def test_how_fast_it_runs_changes_no_bit(model: PerceptionModel) -> None:
    wall = [0.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        wall[0] += seconds

    ticks = [noise_tick(i) for i in range(3)]
    slow = run(model, ticks, pace=Pace(0.1, sleep, lambda: wall[0]))
    assert slept == pytest.approx([STEP_US * 1e-6 / 0.1] * 2)  # the first tick sets the clock
    for got, expected in zip(slow, run(model, ticks), strict=True):
        assert_same(got, expected)


@dataclass
class _Lost:
    """Takes the LiDAR away in the second of its calls; remembers what it was told."""

    times_s: list[float] = field(default_factory=list)
    pasts: list[int] = field(default_factory=list)

    def __call__(self, frame: SensorFrame, history: History, since_begin_s: float) -> SensorFrame:
        self.times_s.append(since_begin_s)
        self.pasts.append(next(n for n in itertools.count() if history(n + 1) is None))
        return replace(frame, lidar=None) if len(self.times_s) == 2 else frame


def test_a_sensor_that_a_fault_takes_away_is_said_to_be_gone(model: PerceptionModel) -> None:
    change: FrameChange = (lost := _Lost())
    results = run(model, [noise_tick(i) for i in range(3)], change=change)
    assert [r.tick.sensors["LIDAR_TOP"].state for r in results] == [SensorState.OK, SensorState.MISSING, SensorState.OK]
    assert lost.times_s == pytest.approx([0.0, 0.5, 1.0])
    assert_same(results[1], run(model, [noise_tick(1, ("camera", "radar"))])[0])


@pytest.mark.parametrize(
    ("points", "state", "reason"),
    [
        (np.zeros((0, 5)), SensorState.MISSING, "missing: no return in 1 sweep"),
        (np.zeros((40, 5)), SensorState.MALFORMED, "malformed: none of 40 points in 1 sweep is usable"),
        (
            np.full((40, 5), np.nan),
            SensorState.MALFORMED,
            "malformed: none of 40 points in 1 sweep is usable: 40 not finite",
        ),
    ],
)
def test_a_sweep_of_which_nothing_can_be_used_is_told_and_counts_as_none(
    model: PerceptionModel, points: NDArray[np.float64], state: SensorState, reason: str
) -> None:
    def change(frame: SensorFrame, history: History, since_begin_s: float) -> SensorFrame:
        assert frame.lidar is not None
        dead = replace(frame.lidar[0], points=points.astype(np.float32))
        return frame if since_begin_s != 0.5 else replace(frame, lidar=(dead,))

    results = run(model, [noise_tick(i) for i in range(3)], change=change)
    assert [r.tick.sensors["LIDAR_TOP"].state for r in results] == [SensorState.OK, state, SensorState.OK]
    assert_same(results[1], run(model, [noise_tick(1, ("camera", "radar"))])[0])
    counted = StateCount()
    for result in results:
        counted.write(result)
    assert counted.details["LIDAR_TOP"].startswith(reason)
    assert counted.used["LIDAR_TOP"] == 2


def test_after_a_jump_of_the_clock_faults_see_no_past(model: PerceptionModel) -> None:
    lost = _Lost()
    run(model, [noise_tick(0), noise_tick(1), noise_tick(2, reset=True), noise_tick(3)], change=lost)
    assert lost.pasts == [0, 1, 0, 1]


def test_a_corruption_needs_the_past_and_gets_it(model: PerceptionModel) -> None:
    lagging = Corruption("lidar_lagging", 1)
    results = run(model, [noise_tick(0), noise_tick(1)], change=lambda frame, history, _: lagging(frame, history))
    delivered = results[1].tick.frame.lidar
    first = noise_frame(0).lidar
    assert delivered is not None
    assert first is not None
    np.testing.assert_array_equal(delivered[0].points, first[0].points)


class _Monitor:
    """Finds the LiDAR frozen where there was a frame before."""

    thresholds = {"camera": 0.5, "lidar": 0.5, "radar": 0.5}  # noqa: RUF012

    def score(self, frame: SensorFrame, previous: SensorFrame | None) -> HealthReport:
        p = 0.0 if previous is None else 0.9
        name = "LIDAR_TOP"
        return HealthReport({name: p}, {name: f"frozen ({p:.2f})"}, {name: {"frozen": p}}, {name: "lidar"})


@pytest.mark.parametrize(("mode", "state"), [("report", SensorState.FLAGGED), ("act", SensorState.SICK)])
def test_the_monitor_reports_or_acts(model: PerceptionModel, mode: HealthMode, state: SensorState) -> None:
    results = run(model, [noise_tick(0), noise_tick(1)], health=HealthWatch(_Monitor(), mode))  # type: ignore[arg-type]
    assert [r.tick.sensors["LIDAR_TOP"].state for r in results] == [SensorState.OK, state]
    assert "frozen" in results[1].tick.sensors["LIDAR_TOP"].detail
    seen = ("camera", "lidar", "radar") if mode == "report" else ("camera", "radar")
    assert_same(results[1], run(model, [noise_tick(1, seen)])[0])


class _Writer:
    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.written = 0
        self.ended: list[str] = []

    def write(self, result: TickResult) -> None:
        if self.written == self.fails_at:
            raise OSError("disk full")
        self.written += 1

    def close(self) -> None:
        self.ended.append("closed")

    def abort(self) -> None:
        self.ended.append("aborted")


def test_writers_are_closed_at_the_end_and_all_taken_back_on_an_error(model: PerceptionModel, tmp_path: Path) -> None:
    results = run(model, [noise_tick(i) for i in range(2)])
    good, latencies = _Writer(), Latencies()
    assert drain(results, [good], latencies) == 2
    assert good.ended == ["closed"]
    other, failing = _Writer(), _Writer(fails_at=1)
    with pytest.raises(OSError, match="disk full"):
        drain(results, [other, failing], Latencies())
    assert (other.ended, failing.ended) == (["aborted"], ["aborted"])


def test_latencies_are_told_by_stage(model: PerceptionModel) -> None:
    latencies = Latencies()
    drain(run(model, [noise_tick(i) for i in range(3)], latencies=latencies), [_Writer()], latencies)
    rows = latencies.percentiles_ms()
    assert set(rows) == {"read", "model", "write", "total"}
    assert all(p50 <= p95 <= p99 for p50, p95, p99 in rows.values())
