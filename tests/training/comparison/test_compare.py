"""A comparison from configuration files to tables: what fails, what goes on, what is not done twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("mlflow")
pytest.importorskip("typer")

from typer.testing import CliRunner

import robustbev
import training.comparison.jobs
import training.comparison.run
from sensors.frames import KINDS
from tests.small_nuscenes import SmallNuScenes
from training.commands.app import app
from training.comparison.jobs import run_job
from training.comparison.plan import Job, JobResult, plan_jobs, read_entries
from training.comparison.run import Request, compare
from training.console.progress import Bars
from training.evaluation.config import every_subset
from training.files.config_file import ConfigError
from training.loop.history import read_history
from training.loop.train import Outcome
from training.runs.cluster.session import ray_session
from training.runs.files import RunBusyError, RunFiles
from training.tasks.detection.result import SubsetResult
from training.tracking.run import PARENT_TAG

SUBSETS = every_subset(KINDS)

MODEL: dict[str, Any] = {
    "channels": 16,
    "grid": {"cell_m": 1.6},
    "modalities": {
        "camera": {"image_height_px": 32, "image_width_px": 64, "dim": 32, "depth": 1, "feature_channels": 16},
        "lidar": {"pillar_channels": 8},
        "radar": {"width": 8},
    },
    "backbone": {"widths": [16, 16]},
    "tasks": {"detection": {"max_boxes": 20}},
}
ROOT = Path(__file__).resolve().parents[3]


def write(folder: Path, data: SmallNuScenes, name: str, **content: Any) -> Path:
    whole: dict[str, Any] = {
        "runs_dir": str(folder / "runs"), "epochs": 1, "batch_size": 1, "model": MODEL, "tracking": {"enabled": False},
        "data": {"nuscenes": data.config.model_dump(mode="json"), "workers": 0}, "runner": {"device": "cpu"},
        "evaluation": {"score_threshold": 0.0, "processes": 1},
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(whole | content))
    return path


@pytest.fixture
def files(tmp_path: Path, small_nuscenes: SmallNuScenes) -> list[Path]:
    zeros = MODEL | {"fuser": {"absent": "zeros"}}
    return [write(tmp_path, small_nuscenes, "null"), write(tmp_path, small_nuscenes, "zeros", model=zeros)]


def request(files: list[Path], **changes: Any) -> Request:
    values: dict[str, Any] = {"seeds": (0, 1), "name": "c", "jobs": 0}
    return Request(tuple(read_entries(files)), **(values | changes))


def found(job: Job) -> JobResult:
    mean_ap = 0.5 + 0.125 * job.seed + (0.25 if job.entry == "zeros" else 0.0)
    figures = {name: SubsetResult(name, mean_ap, mean_ap, {}, {}, "all", 3) for name in (*SUBSETS, *job.cases)}
    return JobResult(
        job.entry, job.seed, job.files.root, "done", figures=figures, parameters=5, step_ms=1, train_seconds=2
    )


def work(job: Job, bars: Bars, stop: Callable[[], bool]) -> JobResult:
    """Does a job at once; the comparison's name says what happens to some of them."""
    place = job.config.runs_dir
    if place.name == "one-fails" and job.name == "null-seed1":
        return JobResult(job.entry, job.seed, job.files.root, "failed", "step 3: the loss is not finite")
    if place.name == "dies" and job.name == "null-seed0":
        place.mkdir(parents=True, exist_ok=True)
        tries = place / "tries"
        tries.write_text((tries.read_text() if tries.exists() else "") + "x")
        if len(tries.read_text()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    if place.name == "waits":
        place.mkdir(parents=True, exist_ok=True)
        (place / "begun").touch()
        while not stop():
            time.sleep(0.05)
        return JobResult(job.entry, job.seed, job.files.root, "stopped")
    return found(job)


def test_a_job_that_fails_is_reported_while_the_others_go_on(
    files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ended = compare(request(files, name="one-fails"), work)
    assert (ended.failed, ended.interrupted) == (True, False)
    null, zeros = ended.comparison.rows
    assert null.spread("radar").values == (0.5,)
    assert zeros.spread("radar").values == (0.75, 0.875)
    assert "null-seed1: failed: step 3: the loss is not finite" in capsys.readouterr().out
    assert "failed: null-seed1: step 3" in (ended.out / "comparison.md").read_text()


def test_the_command_prints_the_table_and_its_exit_code_tells_of_failures(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.comparison.run, "compare", lambda asked: compare(asked, work))
    command = ["compare", *map(str, files), "--seeds", "2", "--jobs", "0", "--name"]
    good = CliRunner().invoke(app, [*command, "good", "batch_size=2"])
    assert good.exit_code == 0, good.output
    assert "0.562" in good.stdout
    assert "± 0.088" in good.stdout
    assert CliRunner().invoke(app, [*command, "one-fails"]).exit_code == 1
    unknown = CliRunner().invoke(app, [*command, "x", "--case", "frog-3"])
    assert unknown.exit_code == 2
    assert "fog" in unknown.stderr
    faulty = CliRunner().invoke(app, [*command, "x", "epochs=0"])
    assert faulty.exit_code == 2
    assert [
        line.startswith(f"error: {file}: epochs") for line, file in zip(faulty.stderr.splitlines(), files, strict=True)
    ]


def press_ctrl_c(begun: Path) -> None:
    """As soon as a job has begun."""

    def press() -> None:
        while not begun.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()


def test_ctrl_c_stops_and_tells_that_the_same_command_goes_on(files: list[Path]) -> None:
    press_ctrl_c(Path(read_entries(files)[0].config.runs_dir) / "waits" / "begun")
    ended = compare(request(files, name="waits"), work)
    assert ended.interrupted
    assert "not complete: 4 of 4 jobs" in (ended.out / "comparison.md").read_text()


def test_what_a_job_finds_wrong_is_its_result_not_an_error(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (job, *_) = plan_jobs(read_entries(files, ["batch_size=50"]), (0,), "c")
    result = run_job(job, Bars(), lambda: False)
    assert result.status == "failed"
    assert result.message.startswith("batch_size: one batch of 50 on each of 1 workers needs 50 samples")

    def defect(*_: Any, **__: Any) -> None:
        raise TypeError("not ours to tell")

    monkeypatch.setattr(training.comparison.jobs, "run_training", defect)
    result = run_job(job, Bars(), lambda: False)
    assert result.message.startswith("TypeError: not ours to tell (see ")
    assert "in defect" in (job.files.root / "traceback.txt").read_text()


def test_a_job_waits_for_what_a_dead_one_left_running(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (job, *_) = plan_jobs(read_entries(files), (0,), "c")
    tries: list[int] = []

    def busy_at_first(*_: Any, **__: Any) -> Outcome:
        tries.append(1)
        if len(tries) == 1:
            raise RunBusyError("another process works on this run")
        return Outcome(1, 2, True, None)

    monkeypatch.setattr(training.comparison.jobs, "run_training", busy_at_first)
    assert run_job(job, Bars(), lambda: False).status == "stopped"
    assert len(tries) == 2
    monkeypatch.setattr(training.comparison.jobs, "_BUSY_SECONDS", -1.0)
    tries.clear()
    assert "another process works" in run_job(job, Bars(), lambda: False).message


def test_who_shares_out_jobs_for_gpus_needs_none(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job, *_) = plan_jobs(read_entries(files, ["runner.device=cuda"]), (0,), "c")
    robustbev.save(robustbev.build(job.config.model), tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    figures = training.comparison.jobs._Figures(job, tmp_path)
    assert figures.cases
    assert figures.missing(figures.cases) == figures.cases


def test_a_faulty_data_set_is_told_before_any_job(files: list[Path], tmp_path: Path) -> None:
    entries = tuple(read_entries(files, [f"data.nuscenes.root={tmp_path / 'none'}"]))
    with pytest.raises(ValueError, match=r"nuscenes\.org"):
        compare(Request(entries, name="c", jobs=0), work)
    with pytest.raises(ConfigError, match="figures on different data"):
        read_entries([files[0], write(tmp_path, SmallNuScenes(tmp_path, *[None] * 2), "other")])  # type: ignore[arg-type]


@pytest.fixture
def ray_here() -> Iterator[None]:
    with ray_session(None, "address", num_cpus=2, object_store_memory=100 * 2**20):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_on_ray_a_job_that_dies_is_run_again_and_counted_once_and_ctrl_c_stops_all(files: list[Path]) -> None:
    ended = compare(request(files, name="dies", jobs=2), work)
    assert (ended.failed, ended.interrupted) == (False, False)
    assert (ended.out / "tries").read_text() == "xx"
    assert [row.spread("radar").values for row in ended.comparison.rows] == [(0.5, 0.625), (0.75, 0.875)]
    assert not (ended.out / "stop-requested").exists()

    press_ctrl_c(Path(read_entries(files)[0].config.runs_dir) / "waits" / "begun")
    stopped = compare(request(files, name="waits", jobs=2), work)
    assert stopped.interrupted
    assert not (stopped.out / "stop-requested").exists()


def parents(runs: Path) -> dict[str, str | None]:
    """Name of every MLflow run -> its parent's id."""
    with sqlite3.connect(runs / "mlflow.db") as database:
        rows = database.execute("select run_uuid, name from runs").fetchall()
        tags = dict(database.execute("select run_uuid, value from tags where key = ?", (PARENT_TAG,)).fetchall())
    return {name: tags.get(run_id) for run_id, name in rows}


@pytest.mark.slow
def test_two_configurations_with_two_seeds_are_trained_measured_and_not_again(
    files: list[Path], mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = files[0].parent
    (folder / "runs").mkdir(exist_ok=True)
    shutil.copy(mlflow_database, folder / "runs" / "mlflow.db")
    for file in files:
        content = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump(content | {"tracking": {"enabled": True}}))
    ended = compare(request(files, seeds=(0,)))
    assert (ended.failed, ended.interrupted) == (False, False)
    first = ended.comparison.rows[0].results[0]

    ended = compare(request(files))  # one seed more
    content = json.loads((ended.out / "comparison.json").read_text())
    for row in ended.comparison.rows:
        assert [result.status for result in row.results] == ["done", "done"]
        assert all(len(row.spread(subset).values) == 2 for subset in SUBSETS)
        assert row.parameters is not None
        assert row.parameters > 1000
        assert row.step_ms.mean > 0
    assert content["configs"]["null"]["settings"] == {"model.fuser.absent": "null"}
    losses = [[row["loss"] for row in read_history(RunFiles(ended.out / f"null-seed{k}").history)] for k in (0, 1)]
    assert losses[0] != losses[1]
    parent = content["mlflow"]["run_id"]
    assert parents(folder / "runs") == {"c": None} | {
        f"{name}-seed{k}": parent for name in ("null", "zeros") for k in (0, 1)
    }

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("is there already")

    def cases(model: Any, config: Any, asked: list[Any], *_: Any, **__: Any) -> dict[Any, SubsetResult]:
        return {case: SubsetResult(case.subset, 0.25, 0.25, {}, {}, "all", 3) for case in asked}

    monkeypatch.setattr(training.comparison.jobs, "run_training", never)
    monkeypatch.setattr(training.comparison.jobs, "evaluate_checkpoint", never)
    monkeypatch.setattr(training.comparison.jobs, "evaluate_cases", cases)
    again = compare(request(files, cases=("lidar_sectors-3",)))
    assert not again.failed
    assert again.comparison.rows[0].spread("lidar_sectors-3").values == (0.25, 0.25)
    assert again.comparison.rows[0].results[0].figures["radar"] == first.figures["radar"]
    complete = compare(request(files, cases=("lidar_sectors-3",), jobs=2), never)  # no job, and so no Ray
    assert complete.comparison.rows == again.comparison.rows


@pytest.mark.slow
def test_two_processes_log_into_one_database_at_once(mlflow_database: Path, tmp_path: Path) -> None:
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    code = (
        "import sys; from pathlib import Path; from training.tracking.run import MLflowRun, default_uri\n"
        "from training.tracking.sending import send_now\n"
        "folder, name = Path(sys.argv[1]), sys.argv[2]\n"
        "run = MLflowRun.start(folder / name / 'mlflow_run.json', uri=default_uri(folder), experiment='e', name=name,\n"
        "                      artifacts=folder / 'artifacts', parameters={str(i): i for i in range(250)}, tags={})\n"
        "for step in range(int(sys.argv[3])): run.outbox.metrics({f'm{i}': step for i in range(30)}, step)\n"
        "send_now(run)\n"
    )

    def start(name: str, steps: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", code, str(tmp_path), name, str(steps)]
        return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def end(process: subprocess.Popen[str]) -> None:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said

    for process in [start("a", 40), start("b", 40)]:
        end(process)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        counts = database.execute("select count(*) from metrics group by run_uuid order by 1").fetchall()
    assert counts == [(1200,), (1200,)]
