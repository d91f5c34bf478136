"""The demo does each thing once, and again only what no longer holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")

import training.runs.demo
from sensors.simulation import SimulationConfig
from sensors.simulation.generate import MARKER
from training.evaluation.tables import write_subsets
from training.loop.train import Outcome
from training.runs.config import RunConfig
from training.runs.demo import DemoResults, run_demo, write_drives
from training.runs.files import RunFiles, Status
from training.tasks.detection.result import SubsetResult


class Recorded:
    """Stands in for the four steps, and leaves the files that they leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.interrupt = False
        for name in ("simulate", "run_training", "evaluate_checkpoint", "show_run"):
            monkeypatch.setattr(training.runs.demo, name, getattr(self, name))

    def simulate(self, config: SimulationConfig, out: Path, *, workers: int, progress: Any) -> None:
        if (out / MARKER).is_file():
            if (out / MARKER).read_text() != config.digest():
                raise FileExistsError("another config")
            return
        self.calls.append("simulate")
        out.mkdir(parents=True)
        (out / MARKER).write_text(config.digest())
        progress(1, 1)

    def run_training(self, config: RunConfig, bars: Any, *, fresh: bool) -> Outcome:
        self.calls.append("train fresh" if fresh else "train")
        files = RunFiles(config.run_dir)
        if fresh:
            files.clear()
        files.begin(config)
        status = Status(files.status)
        status.on_start(0, 4, 2)
        status.on_end(2 if self.interrupt else 4, complete=not self.interrupt)
        return Outcome(2 if self.interrupt else 4, 4, self.interrupt, files.checkpoints)

    def evaluate_checkpoint(self, run_dir: Path, config: RunConfig, *, progress: Any) -> None:
        self.calls.append("evaluate")
        write_subsets(RunFiles(run_dir).subsets, {"camera": SubsetResult("camera", 0.5, 0.4, {}, {}, "official", 3)})

    def show_run(self, run_dir: Path, config: RunConfig) -> None:
        self.calls.append("show")
        RunFiles(run_dir).pictures.mkdir(parents=True)
        (RunFiles(run_dir).pictures / "a.png").write_bytes(b"")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


def run(
    folder: Path, scenes: Mapping[str, int] = {"scenes_train": 2}, fresh: bool = False, **changes: Any
) -> DemoResults | None:
    content: dict[str, Any] = {
        "name": "demo", "runs_dir": folder / "runs",
        "data": {"nuscenes": {"root": folder / "data", "version": "v1.0-sim", "train_split": "a", "val_split": "b"}},
    }  # fmt: skip
    return run_demo(RunConfig.model_validate(content | changes), scenes, fresh=fresh)


def test_twice_in_a_row_does_everything_once(
    tmp_path: Path, steps: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path)
    assert steps.calls == ["simulate", "train fresh", "evaluate", "show"]
    capsys.readouterr()
    steps.calls.clear()
    second = run(tmp_path)
    assert steps.calls == []
    assert capsys.readouterr().out.count("complete already") == 4
    assert first is not None
    assert second is not None
    assert second.subsets["camera"].mean_ap == 0.5
    assert any(str(tmp_path / "runs" / "demo" / "subsets.json") in line for line in second.places)


def test_only_what_no_longer_holds_is_done_again(tmp_path: Path, steps: Recorded) -> None:
    run(tmp_path)
    for changes, expected in (
        ({"evaluation": {"limit": 3}}, ["evaluate", "show"]),
        ({"epochs": 5}, ["train fresh", "evaluate", "show"]),
        ({"epochs": 5, "fresh": True}, ["train fresh", "evaluate", "show"]),
        ({"epochs": 5, "scenes": {"scenes_train": 3}}, ["simulate", "train fresh", "evaluate", "show"]),
    ):
        steps.calls.clear()
        for picture in (tmp_path / "runs" / "demo" / "pictures").glob("*"):
            picture.unlink()
        (tmp_path / "runs" / "demo" / "pictures").rmdir()
        run(tmp_path, **changes)
        assert steps.calls == expected, changes


def test_an_interrupted_training_goes_on(tmp_path: Path, steps: Recorded) -> None:
    steps.interrupt = True
    assert run(tmp_path) is None
    steps.interrupt = False
    steps.calls.clear()
    assert run(tmp_path) is not None
    assert steps.calls == ["train", "evaluate", "show"]


def test_a_folder_with_something_else_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        write_drives(SimulationConfig(scenes_train=1, scenes_val=1), tmp_path, 1, replace=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
