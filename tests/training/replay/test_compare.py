"""Replays side by side: the figures are the benchmark's, and the files say what happened."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from bev.detection.boxes import Boxes
from robustbev.results.result import TickResult
from sensors.replay.tick import SensorState
from tests.robustbev.results.replay_results import GRID, START_US, TWO, boxes, result
from training.replay.compare import replay_table, tick_table, write_comparison
from training.replay.series import ReplaySeries, SeriesRecorder
from training.replay.truth import TruthScore

TRUTH = boxes((10.0, 3.0, 0.5, 0, 1.0), (5.0, -6.0, 0.0, 2, 1.0), (60.0, 0.0, 0.0, 0, 1.0))  # the last outside the grid


@dataclass(frozen=True)
class Known:
    """Stands for `ReplayTruth`: the same boxes at every time that is known."""

    boxes: Boxes
    known: Callable[[int], bool] = lambda time_us: True
    classes: tuple[str, ...] = result().classes

    def at(self, time_us: int, global_T_reference: Any) -> Boxes | None:
        return self.counted(self.boxes) if self.known(time_us) else None

    def counted(self, some: Boxes) -> Boxes:
        return some[GRID.flat_index(some.center_m[:, :2]) < GRID.num_cells]


def recorded(name: str, *results: TickResult, truth: Known | None = None, window_s: float = 2.0) -> ReplaySeries:
    score = None if truth is None else TruthScore(truth)  # type: ignore[arg-type]
    recorder = SeriesRecorder(name, score, window_s=window_s)
    for one in results:
        recorder.write(one)
    recorder.close()
    return recorder.series()


def two_replays() -> list[ReplaySeries]:
    """Three seconds; in the second replay all sensors are gone from 1 s to 2 s."""
    clean = [result(k) for k in range(6)]
    lost = [result(k, perceived=k not in (2, 3)) for k in range(6)]
    return [
        recorded("no fault", *clean, truth=Known(TRUTH), window_s=1.0),
        recorded("all: drop 1s..2s", *lost, truth=Known(TRUTH), window_s=1.0),
    ]


def test_found_and_there_are_counted_in_the_grid() -> None:
    clean, lost = two_replays()
    assert clean.there.tolist() == [2] * 6
    assert clean.found.tolist() == [2] * 6
    assert lost.found.tolist() == [2, 2, 0, 0, 2, 2]
    assert lost.recall.tolist() == [1, 1, 0, 0, 1, 1]
    assert np.isnan(lost.precision[2:4]).all()  # nothing was found, so nothing was found wrongly
    assert lost.perceived.tolist() == [True, True, False, False, True, True]
    assert lost.given_share("LIDAR_TOP") == pytest.approx(4 / 6)
    assert lost.given_share("CAM_BACK") == 0


def test_map_over_time_falls_where_the_sensors_are_gone() -> None:
    clean, lost = two_replays()
    assert clean.mean_ap == pytest.approx(1.0)
    assert clean.window_map.tolist() == pytest.approx([1, 1, 1])
    assert lost.window_map.tolist() == pytest.approx([1, 0, 1])
    assert lost.window_s.tolist() == [0, 1, 2, 3]
    assert 0.5 < lost.mean_ap < 0.7  # two thirds of the recall at full precision, the first tenth not counted


def test_scores_below_the_least_count_in_map_alone() -> None:
    faint = result(found=boxes((10.0, 3.0, 0.5, 0, 0.1)))
    one = recorded("faint", faint, truth=Known(TRUTH[:1]))
    assert one.found.tolist() == [0]
    assert one.recall.tolist() == [0]
    assert one.mean_ap == pytest.approx(1.0)


def test_without_truth_nothing_is_claimed() -> None:
    one = recorded("unknown", result(0), result(1))
    assert one.found.tolist() == [2, 2]
    assert np.isnan(one.recall).all()
    assert math.isnan(one.mean_ap)
    assert np.isnan(one.window_map).all()
    assert "| – | – | – |" in replay_table([one]).markdown()


def test_truth_may_be_known_at_some_ticks_only() -> None:
    one = recorded(
        "keyframes", *(result(k) for k in range(4)), truth=Known(TRUTH, lambda t: (t - START_US) % 1_000_000 == 0)
    )
    assert np.isnan(one.there).tolist() == [False, True, False, True]
    row = replay_table([one]).markdown().splitlines()[2]
    assert "| 1.000 | 1.000 | 1.000 |" in row  # what was found at the other ticks is not held against it


def test_a_clock_that_jumps_back_is_still_drawn(tmp_path: Path) -> None:
    one = recorded("jump", result(0), result(1), result(2, time_us=START_US - 5_000_000), result(3), truth=Known(TRUTH))
    assert one.time_s.tolist() == [0, 0.5, -5, 1.5]
    assert len(one.window_map) == len(one.window_s) - 1
    for path in write_comparison(tmp_path, [one]):
        assert path.is_file()


def test_the_csv_has_a_line_a_tick_and_replay() -> None:
    rows = list(csv.DictReader(io.StringIO(tick_table(two_replays()).csv())))
    assert len(rows) == 12
    first, third = rows[0], rows[8]
    assert (third["replay"], third["tick"], third["time_s"]) == ("all: drop 1s..2s", "2", "1.000000")
    assert (third["perceived"], third["found"], third["there"], third["recall"]) == ("0", "0", "2", "0")
    assert third["precision"] == ""
    assert third["window_map"] == "0"
    assert third["state_LIDAR_TOP"] == str(SensorState.STALE)
    assert float(first["share_radar"]) == pytest.approx(result().trust["radar"])
    assert float(third["share_lidar"]) == 0  # nobody sees: what its null got is not its own


def test_the_table_sums_each_replay_up() -> None:
    lines = replay_table(two_replays()).markdown().splitlines()
    assert lines[0].startswith("| replay | ticks | no perception | found a tick | recall | precision | mAP |")
    assert lines[2].startswith("| no fault | 6 | 0 | 2.0 | 1.000 | 1.000 | 1.000 |")
    assert lines[3].startswith("| all: drop 1s..2s | 6 | 2 | 1.3 | 0.667 | 1.000 |")
    assert lines[3].endswith("| CAM_BACK, 100% of the ticks |")


def test_the_picture_shows_all_replays(tmp_path: Path) -> None:
    sizes = []
    for count in (1, 2):
        paths = write_comparison(tmp_path / str(count), two_replays()[:count], title="a drive")
        assert [path.name for path in paths] == ["replays.png", "replays.csv", "replays.md"]
        picture = cv2.imread(str(paths[0]))
        assert picture is not None
        assert np.asarray(picture).std() > 8
        sizes.append(picture.shape[0])
        assert len(list((tmp_path / str(count)).iterdir())) == 3
    assert sizes[1] > sizes[0]


def test_equal_replays_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (write_comparison(tmp_path / name, two_replays()) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_replays_that_cannot_be_compared_are_refused() -> None:
    clean, _ = two_replays()
    with pytest.raises(ValueError, match="at least one replay"):
        tick_table([])
    with pytest.raises(ValueError, match="'no fault' twice"):
        tick_table([clean, clean])
    other = recorded("other", result(modalities=("camera", "lidar", "sonar")))
    with pytest.raises(ValueError, match="same modalities"):
        tick_table([clean, other])
    with pytest.raises(ValueError, match="at least one tick"):
        SeriesRecorder("empty").series()
    with pytest.raises(ValueError, match="window_s"):
        SeriesRecorder("x", window_s=0)


def test_what_is_recorded_does_not_change_the_results() -> None:
    recorder = SeriesRecorder("x", TruthScore(Known(TRUTH)))  # type: ignore[arg-type]
    score = TWO.score.clone()
    recorder.write(result())
    assert torch.equal(TWO.score, score)
