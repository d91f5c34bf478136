"""MLflow gets figures, settings and files; a run that goes on stays one run."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from sensors.errors import MissingExtraError
from sensors.extras import require
from training.loop.callbacks import StepRecord
from training.tracking.mlflow_store import DataUsed, TrackingError, TrackingWarning
from training.tracking.run import MLflowRun, TrackSteps, absolute_uri, default_uri, git_commit
from training.tracking.sending import send_now

pytest.importorskip("mlflow")


def record(step: int, loss: float) -> StepRecord:
    return StepRecord(
        step=step, epoch=0, loss=loss, parts={"fit": loss / 2}, lr=0.1, grad_norm=1.0, samples=8, seconds=0.5,
        data_wait_seconds=0.1, memory_bytes=2**30, cuda_memory_bytes=0,
    )  # fmt: skip


def start(folder: Path) -> MLflowRun:
    return MLflowRun.start(
        folder / "a" / "mlflow_run.json", uri=default_uri(folder), experiment="tests", name="a",
        artifacts=folder / "mlartifacts", parameters={"optim": {"lr": 0.1}, "seed": 3}, tags={"data.id": "d1"},
        data=[DataUsed("sim sim_train", "d1" * 32, "/data/sim", 880, "training")],
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    shutil.copy(mlflow_database, folder / "mlflow.db")
    return folder


def rows(store: Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(store / "mlflow.db") as database:
        return database.execute(query).fetchall()


def test_a_run_is_begun_fed_and_continued(store: Path, tmp_path: Path) -> None:
    run = start(store)
    listener = TrackSteps(run.outbox, every=2, history=tmp_path / "history.jsonl")
    listener.on_start(0, 3, 3)
    for step, loss in ((1, 4.0), (2, 2.0), (3, 1.0)):
        listener.on_step(record(step, loss))
    (tmp_path / "table.md").write_text("| a |")
    run.outbox.files([tmp_path / "table.md"], "evaluation")
    run.outbox.metrics({"evaluation/camera+lidar/mAP": 0.5}, 3)
    run.outbox.status("KILLED")
    send_now(run)
    assert run.left() == []

    again = start(store)
    assert again.run_id == run.run_id
    reopened = MLflowRun.open(store / "a" / "mlflow_run.json", default_uri(store))
    assert reopened is not None
    assert reopened.run_id == run.run_id
    again.outbox.status("FINISHED")
    send_now(again)

    losses = rows(store, "select step, value from metrics where key = 'train/loss' order by step")
    assert losses == [(2, 3.0), (3, 1.0)]  # means over the steps since the last row
    figures = {str(key): value for key, value in rows(store, "select key, value from metrics where step = 2")}
    assert figures["train/samples_per_s"] == pytest.approx(16)
    assert figures["train/data_wait_share"] == pytest.approx(0.2)
    assert figures["train/loss/fit"] == pytest.approx(1.5)
    assert figures["memory/resident_mib"] == 1024
    assert ("evaluation/camera-lidar/mAP", 0.5) in rows(store, "select key, value from metrics")
    assert sorted(rows(store, "select key, value from params")) == [("optim.lr", "0.1"), ("seed", "3")]
    assert ("data.id", "d1") in rows(store, "select key, value from tags")
    assert rows(store, "select status from runs") == [("FINISHED",)]
    data = "select d.name, digest, dataset_source, dataset_profile, t.value from datasets d"
    joined = f"{data} join inputs i on i.source_id = d.dataset_uuid join input_tags t on t.input_uuid = i.input_uuid"
    assert rows(store, joined) == [("sim sim_train", "d1" * 4, '{"uri": "/data/sim"}', '{"num_rows": 880}', "training")]
    assert (store / "mlartifacts" / run.run_id / "artifacts" / "evaluation" / "table.md").is_file()


def test_a_run_that_the_store_has_lost_keeps_its_figures_and_may_begin_anew(store: Path) -> None:
    run = start(store)
    lost = run.run_id
    run.outbox.metrics({"a": 1.0}, 1)
    send_now(run)
    with sqlite3.connect(store / "mlflow.db") as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"delete from {table} where run_uuid = ?", (run.run_id,))
    run.outbox.metrics({"a": 2.0}, 2)
    with pytest.warns(TrackingWarning, match=rf"the run {lost} was deleted in MLflow.* or remove {run.file}"):
        send_now(start(store))
    run.file.unlink()
    again = start(store)
    send_now(again)
    query = f"select step, value from metrics where run_uuid = '{again.run_id}' and key = 'a'"
    assert rows(store, query) == [(1, 1.0), (2, 2.0)]


def test_uris_are_absolute_and_plain_paths_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///x/y.db") == f"sqlite:///{tmp_path}/x/y.db"
    assert absolute_uri("sqlite:////x/y.db") == "sqlite:////x/y.db"
    assert absolute_uri("http://server:5000") == "http://server:5000"
    assert default_uri(Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    with pytest.raises(TrackingError, match=r"tracking\.uri: expected sqlite:///PATH"):
        absolute_uri("runs/mlruns")


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database")
    with pytest.raises(TrackingError, match=r"tracking\.uri: sqlite:.*mlflow\.db cannot be used"):
        start(tmp_path)


def test_a_missing_library_says_what_to_install() -> None:
    with pytest.raises(
        MissingExtraError, match=r'x needs no_such_library, which is not installed: pip install "robustbev\[train\]"'
    ):
        require("x", "train", "no_such_library", "json")


def test_no_commit_outside_a_repository(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
