"""Figures while a run trains: the evaluation's own, without a trace in the training, each once; and the best model is kept."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("mlflow")

import robustbev
import training.runs.validation
from robustbev.checkpoints import find_checkpoint
from sensors.nuscenes.index import build_index
from sensors.processes import ProcessesError
from tests.small_nuscenes import SmallNuScenes
from training.console.progress import Bars
from training.loop.best import best_of
from training.loop.checkpoint import CheckpointWriteError
from training.loop.history import append, read_history
from training.loop.peers import Alone
from training.runs.config import RunConfig
from training.runs.evaluate import evaluate_checkpoint
from training.runs.files import RunFiles
from training.runs.run import run_training
from training.runs.validation import Validation
from training.tasks.detection.result import SubsetResult

ALL = "lidar+radar"
MODEL = {
    "channels": 8, "grid": {"cell_m": 3.2}, "modalities": {"lidar": {"pillar_channels": 8}, "radar": {"width": 8}},
    "fuser": {"heads": 2}, "backbone": {"widths": [8, 8]},
}  # fmt: skip


class KilledError(Exception):
    pass


def config(
    data: SmallNuScenes, runs_dir: Path, name: str, every: int | None = 1, epochs: int = 4, **evaluation: Any
) -> RunConfig:
    """Epochs of three steps."""
    settings = {"every_epochs": every, "score_threshold": 0.0, "processes": 1, "batch_size": 2}
    return RunConfig.model_validate(
        {
            "name": name, "runs_dir": runs_dir, "epochs": epochs, "batch_size": 1, "model": MODEL,
            "data": {"nuscenes": data.config, "workers": 0}, "tracking": {"enabled": False},
            "runner": {"device": "cpu", "checkpoint": {"every_steps": 5, "keep": 1}},
            "evaluation": settings | evaluation,
        }
    )  # fmt: skip


def rows(run: RunConfig) -> list[dict[str, Any]]:
    return read_history(RunFiles(run.run_dir).validation)


def losses(run: RunConfig) -> list[float]:
    return [row["loss"] for row in read_history(RunFiles(run.run_dir).history)]


@pytest.fixture(scope="module")
def unmeasured(small_nuscenes: SmallNuScenes, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    run = config(small_nuscenes, tmp_path_factory.mktemp("runs"), "unmeasured", every=None)
    run_training(run, Bars())
    assert not RunFiles(run.run_dir).validation.exists()
    assert len(losses(run)) == 12
    return run


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the next checkpoints reach, in place of the official evaluation."""
    values: list[float] = []

    def score(predictions: Any, *_: Any) -> dict[str, SubsetResult]:
        value = values.pop(0)
        return {subset: SubsetResult(subset, value, value / 2, {}, {}, "official", 3) for subset in predictions}

    monkeypatch.setattr(training.runs.validation, "score_subsets", score)
    return values


def test_a_run_is_measured_as_it_trains_and_trains_as_if_it_were_not(
    small_nuscenes: SmallNuScenes, tmp_path: Path, unmeasured: RunConfig
) -> None:
    run = config(small_nuscenes, tmp_path, "measured", every=2, watch=["radar", "radar+lidar"])
    run = run.model_copy(update={"tracking": run.tracking.model_copy(update={"enabled": True})})
    run_training(run, Bars())
    assert losses(run) == losses(unmeasured)
    mine, theirs = (find_checkpoint(r.run_dir) for r in (run, unmeasured))
    assert (mine / "training_state.json").read_text() == (theirs / "training_state.json").read_text()
    other = load_file(theirs / "training_state.safetensors")  # with random states
    for name, value in load_file(mine / "training_state.safetensors").items():
        assert torch.equal(value, other[name]), name
    assert [row["step"] for row in rows(run)] == [6, 12]
    last, files = rows(run)[-1], RunFiles(run.run_dir)
    official = evaluate_checkpoint(run.run_dir, run, out_dir=tmp_path / "official")
    assert set(last["subsets"]) == {"radar", ALL}
    for subset, figures in last["subsets"].items():
        assert figures == official[subset].to_json()
    assert last["NDS"] == pytest.approx(sum(official[name].nds or 0 for name in last["subsets"]) / 2)
    best = best_of(files.checkpoints)
    assert best is not None
    card = (best[0] / "README.md").read_text()
    assert f"{best[1].step} optimiser steps" in card
    assert "| lidar + radar |" in card
    assert robustbev.load(best[0]).config.rig is not None
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        logged = database.execute("select key, step from metrics where key like 'val/NDS/%' order by 1, 2").fetchall()
    watched = ("lidar-radar", "radar", "watched")
    assert [row for row in logged if row[0] != "val/NDS/lidar"] == [
        (f"val/NDS/{w}", step) for w in watched for step in (6, 12)
    ]
    assert logged[0] == ("val/NDS/lidar", 12)  # by `evaluate`, which measures every subset and says nothing twice


def test_the_best_model_stays_and_the_newest_is_gone_on_from(
    small_nuscenes: SmallNuScenes, tmp_path: Path, unmeasured: RunConfig, scores: list[float]
) -> None:
    run, files = config(small_nuscenes, tmp_path, "best"), RunFiles(tmp_path / "best")
    scores += [0.2, 0.5, 0.3]

    class Killing(Bars):
        def __call__(self, what: str, done: int, total: int | None, note: str = "") -> None:
            if (what, done) == ("train", 11):
                raise KilledError

    with pytest.raises(KilledError):
        run_training(run, Killing())
    kept = files.checkpoints / "best"
    assert (kept / "model.safetensors").is_file()
    assert [path.name for path in files.checkpoints.glob("step-*")] == ["step-00000010"]
    scores += [0.4]
    run_training(run, Bars())
    assert losses(run) == losses(unmeasured)
    assert [(row["step"], row["mAP"], row["best"]) for row in rows(run)] == [
        (3, 0.2, True), (6, 0.5, True), (9, 0.3, False), (12, 0.4, False),
    ]  # fmt: skip
    best = best_of(files.checkpoints)
    assert best is not None
    assert (best[0], best[1].step, best[1].value, best[1].subsets) == (kept, 6, 0.5, (ALL,))
    assert find_checkpoint(run.run_dir).name == "step-00000012"
    files.validation.write_text("")
    scores += [0.7]
    other = config(small_nuscenes, tmp_path, "best", best="NDS")
    with pytest.warns(
        UserWarning, match=r"best \(mAP 0.500 at step 6\) was measured in another way: NDS 0.350 at step 12"
    ):
        run_training(other, Bars())
    best = best_of(files.checkpoints)
    assert best is not None
    assert (best[1].step, best[1].figure, best[1].value) == (12, "NDS", 0.35)


@pytest.mark.parametrize("at", [6, 12])  # in the middle of the run, and at its very end
def test_what_is_stopped_half_way_is_measured_when_the_run_goes_on(
    small_nuscenes: SmallNuScenes, tmp_path: Path, unmeasured: RunConfig, scores: list[float], at: int
) -> None:
    run, files = config(small_nuscenes, tmp_path, "stopped"), RunFiles(tmp_path / "stopped")
    scores += [0.1, 0.2, 0.3, 0.4]
    asked = False

    class Pressing(Bars):
        def __call__(self, what: str, done: int, total: int | None, note: str = "") -> None:
            nonlocal asked
            asked = asked or (what == "validate" and len(losses(run)) == at)

    stopped = run_training(run, Pressing(), stop=lambda: asked)
    assert (stopped.interrupted, stopped.step) == (True, at)
    assert not files.is_complete(run)
    assert [row["step"] for row in rows(run)] == list(range(3, at, 3))
    asked = False
    append(files.validation, {"step": 99, "mAP": 0.9})  # of a later checkpoint, which somebody removed
    outcome = run_training(run, Bars())
    assert (outcome.interrupted, outcome.step) == (False, 12)
    assert files.is_complete(run)
    assert losses(run) == losses(unmeasured)
    assert [(row["step"], row["mAP"]) for row in rows(run)] == [(3, 0.1), (6, 0.2), (9, 0.3), (12, 0.4)]
    assert scores == []


def test_a_crash_before_the_figures_were_kept_measures_again_and_each_once(
    small_nuscenes: SmallNuScenes, tmp_path: Path, scores: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(small_nuscenes, tmp_path, "crashed", epochs=2)

    def crash(*_: Any) -> None:
        raise KilledError

    scores += [0.3, 0.3, 0.2]
    with monkeypatch.context() as patch:
        patch.setattr(training.runs.validation, "append", crash)
        with pytest.raises(KilledError):
            run_training(run, Bars())
    run_training(run, Bars())
    assert [(row["step"], row["best"]) for row in rows(run)] == [(3, True), (6, False)]


def test_a_full_disk_is_one_clear_error_and_the_best_one_before_it_stays(
    small_nuscenes: SmallNuScenes, tmp_path: Path, scores: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(small_nuscenes, tmp_path, "full", epochs=2)
    scores += [0.2, 0.3]

    def full(*_: Any) -> None:
        if scores == []:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(robustbev, "write_card", full)
    with pytest.raises(
        CheckpointWriteError, match=r"the best model, mAP 0.300 at step 6, could not be kept .*No space"
    ):
        run_training(run, Bars())
    best = best_of(RunFiles(run.run_dir).checkpoints)
    assert best is not None
    assert best[1].step == 3


def test_what_cannot_be_measured_is_refused_before_the_first_step(
    small_nuscenes: SmallNuScenes, tmp_path: Path
) -> None:
    run = config(small_nuscenes, tmp_path, "wrong", watch=["lidar"])
    only_radar = {"radar": run.model.modalities["radar"]}
    no_lidar = run.model_copy(update={"model": run.model.model_copy(update={"modalities": only_radar})})
    with pytest.raises(
        ValueError, match=r"evaluation: subsets: expected some of the model's modalities radar .*'lidar'"
    ):
        run_training(no_lidar, Bars())
    nuscenes = run.data.nuscenes.model_copy(update={"val_split": "nowhere"})
    no_split = run.model_copy(update={"name": "b", "data": run.data.model_copy(update={"nuscenes": nuscenes})})
    with pytest.raises(ValueError, match="nowhere"):
        run_training(no_split, Bars())
    assert losses(run) == []


# --- several ranks -------------------------------------------------------------------------------------------------------


class Threads(Alone):
    """Ranks in threads of one process."""

    world_size = 2

    def __init__(self, rank: int, barrier: threading.Barrier, values: list[Any]) -> None:
        self.rank, self._barrier, self._values = rank, barrier, values

    def gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait(60)
        gathered = list(self._values)
        self._barrier.wait(60)
        return gathered


@pytest.fixture
def checkpoint(small_nuscenes: SmallNuScenes, tmp_path: Path) -> tuple[RunConfig, Path]:
    run = config(small_nuscenes, tmp_path, "ranks", watch=[ALL, "lidar"])
    build_index(run.data.nuscenes)
    torch.manual_seed(0)
    return run, robustbev.save(robustbev.build(run.model), RunFiles(run.run_dir).checkpoints / "step-00000003")


def measure_with(run: RunConfig, path: Path, stops: Sequence[Callable[[], bool]]) -> list[bool]:
    """Whether each rank says that it is done."""
    barrier, values, done = threading.Barrier(len(stops)), [None] * len(stops), [False] * len(stops)
    ranks = [
        Validation(
            run,
            RunFiles(run.run_dir),
            Alone() if len(stops) == 1 else Threads(rank, barrier, values),
            torch.device("cpu"),
            stop,
        )
        for rank, stop in enumerate(stops)
    ]

    def work(rank: int) -> None:
        done[rank] = ranks[rank](path, 3)

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(len(stops))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return done


def never() -> bool:
    return False


def test_ranks_share_the_samples_and_give_the_figures_of_one(checkpoint: tuple[RunConfig, Path]) -> None:
    run, path = checkpoint
    assert measure_with(run, path, [never]) == [True]
    (alone,) = rows(run)
    assert alone["subsets"]["lidar"]["samples"] == 3
    RunFiles(run.run_dir).validation.unlink()
    assert measure_with(run, path, [never, never]) == [True, True]
    assert rows(run) == [alone]
    assert measure_with(run, path, [never, never]) == [True, True]  # done already
    assert rows(run) == [alone]


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_that_is_to_stop_stops_all(checkpoint: tuple[RunConfig, Path], rank: int) -> None:
    run, path = checkpoint
    assert measure_with(run, path, [lambda: rank == 0, lambda: rank == 1]) == [False, False]
    assert rows(run) == []
    assert best_of(RunFiles(run.run_dir).checkpoints) is None


def test_scoring_that_a_signal_ended_is_done_again_and_what_else_ends_it_is_an_error(
    checkpoint: tuple[RunConfig, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = checkpoint
    asked = False

    def score(*_: Any) -> None:
        nonlocal asked
        asked = True
        raise ProcessesError("a process was killed")

    monkeypatch.setattr(training.runs.validation, "score_subsets", score)
    assert measure_with(run, path, [lambda: asked, never]) == [False, False]
    assert rows(run) == []
    with pytest.raises(ProcessesError):
        Validation(run, RunFiles(run.run_dir), Alone(), torch.device("cpu"), never)(path, 3)
