"""A run of somebody else names a tracker, a database and files: the user's own tracker alone hears of the work."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

from tests.hostile.files import MAX_MIB, measured
from training.files.atomic import NoteError
from training.loop.history import read_history
from training.runs.config import RunConfig, load_config_of_run
from training.tracking.mlflow_store import TrackingWarning
from training.tracking.outbox import Outbox
from training.tracking.run import MLflowRun, default_uri
from training.tracking.sending import log_report, send_now


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """Somebody's server: its address, and the paths that it was asked for, with what came as credentials."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Authorization')}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def foreign_run(folder: Path, uri: str) -> Path:
    """A run whose notes and configuration name a tracker; -> the note of its MLflow run."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"tracking: {{uri: '{uri}'}}\n")
    file = folder / "mlflow_run.json"
    file.write_text(json.dumps({"uri": uri, "run_id": "1" * 32}))
    return file


def report(file: Path, config: RunConfig) -> None:
    log_report(file, config.tracker, file.parent / "checkpoints" / "step-00000001", {"val/mAP": 0.5}, {})


def test_a_foreign_runs_notes_do_not_decide_where_figures_and_tokens_go(
    tmp_path: Path, elsewhere: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, asked = elsewhere
    file = foreign_run(tmp_path / "runs" / "theirs", uri)
    for config in (load_config_of_run(file.with_name("config.yaml")), RunConfig(runs_dir=tmp_path / "runs")):
        assert config.tracker == default_uri(tmp_path / "runs")
        with pytest.warns(TrackingWarning, match=rf"which is not yours: .* say so with tracking\.uri={uri}"):
            report(file, config)
    assert asked == []
    assert not (tmp_path / "runs" / "mlflow.db").exists()

    words = load_config_of_run(file.with_name("config.yaml"), [f"tracking.uri={uri}"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for config in (words, load_config_of_run(file.with_name("config.yaml"))):  # the user says so, either way
        assert config.tracker == uri
    report(file, words)
    assert len(asked) == 1
    assert "Bearer secret" in asked[0]


def test_a_database_of_a_run_is_taken_where_the_run_lies_below_it(tmp_path: Path) -> None:
    file = foreign_run(tmp_path / "runs" / "all" / "one", default_uri(tmp_path / "runs")).with_name("config.yaml")
    assert load_config_of_run(file).tracker == default_uri(tmp_path / "runs" / "all")  # it is not there
    (tmp_path / "runs" / "mlflow.db").touch()
    assert load_config_of_run(file).tracker == default_uri(tmp_path / "runs")
    file = foreign_run(tmp_path / "other" / "one", default_uri(tmp_path / "runs")).with_name("config.yaml")
    assert load_config_of_run(file).tracker == default_uri(tmp_path / "other")


@pytest.mark.parametrize(
    "content", ["[]", "{}", "[" * 100_000, '{"uri": 5, "run_id": "1"}', '{"uri": "x", "run_id": {}}', "\0"]
)
def test_notes_that_are_none_are_one_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "mlflow_run.json"
    file.write_text(content)
    with pytest.raises(NoteError, match=r"mlflow_run\.json: expected .*; remove the file to have it made anew"):
        log_report(file, default_uri(tmp_path), tmp_path, {"a": 1.0}, {})


LINES = [
    "[]", "5", "{}", '{"metrics": 5, "step": 1, "time_ms": 1}', '{"metrics": {"a": "x"}, "step": 1, "time_ms": 1}',
    '{"metrics": {"a": 1.0}, "step": [], "time_ms": 1}', '{"tag": 5, "value": {}}', '{"file": 5, "folder": null}',
    '{"status": "RUNNING"}', '{"status": "gone", "time_ms": 1}', "[" * 100_000, "9" * 5000,
]  # fmt: skip


def test_rows_that_are_none_are_passed_over(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.jsonl")
    outbox.path.write_text("".join(f"{line}\n" for line in LINES))
    outbox.metrics({"loss": 1.0}, 1)
    assert [row["metrics"] for _, row in outbox.rows()] == [{"loss": 1.0}]


@pytest.mark.parametrize("line", ["[]", "5", "{}", '{"step": "1"}', "[" * 100_000, "9" * 5000])
def test_a_history_ends_where_a_line_is_none(line: str, tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    assert read_history(tmp_path / "history.jsonl") == [{"step": 1}]


def test_a_row_that_is_small_and_holds_much_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1, "time_ms": 1, "metrics": {}, "a": [' + b"[]," * (16 * 2**20) + b"[]]}\n")
    for read in (read_history, lambda path: list(Outbox(path).rows())):
        with measured() as cost:
            assert read(path) == []
        assert cost.mib < MAX_MIB


@pytest.fixture
def run(tmp_path: Path, mlflow_database: Path) -> MLflowRun:
    """A run in a database beside it, as a whole folder of somebody else's runs may have it."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    (tmp_path / "secret").write_text("mine")
    return MLflowRun.start(
        tmp_path / "runs" / "one" / "mlflow_run.json", uri=default_uri(tmp_path / "runs"), experiment="theirs", name="one",
        artifacts=tmp_path / "runs" / "mlartifacts", parameters={}, tags={},
    )  # fmt: skip


def test_an_outbox_that_names_files_elsewhere_does_not_get_them_sent(run: MLflowRun, tmp_path: Path) -> None:
    (run.file.parent / "link").symlink_to(tmp_path / "secret")
    with run.outbox.path.open("a") as file:
        for name in ("../../secret", str(tmp_path / "secret"), "link"):
            file.write(json.dumps({"file": name, "folder": None}) + "\n")
    run.outbox.files([run.outbox.path])
    with pytest.warns(TrackingWarning, match="it lies outside the run's folder") as warned:
        send_now(run)
    assert len(warned) == 3
    assert [path.name for path in (tmp_path / "runs" / "mlartifacts").rglob("*") if path.is_file()] == [
        "mlflow_outbox.jsonl"
    ]


def test_a_database_that_came_with_a_run_does_not_say_where_files_are_written(run: MLflowRun, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as database:
        database.execute("update runs set artifact_uri = ?", (f"file://{tmp_path}/escaped",))
    run.outbox.files([run.outbox.path])
    with pytest.warns(TrackingWarning, match="would have it kept elsewhere than in the database's folder"):
        send_now(run)
    assert not (tmp_path / "escaped").exists()
