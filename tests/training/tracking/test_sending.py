"""MLflow hangs, refuses, is killed, or has lost the run: the work goes on, and in the end it has every figure once."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow")

import requests
from mlflow import MlflowClient

from training.loop.callbacks import StepRecord
from training.loop.history import History
from training.tracking import mlflow_store
from training.tracking.mlflow_store import TrackingError, TrackingWarning
from training.tracking.outbox import Outbox
from training.tracking.run import MLflowRun, TrackSteps
from training.tracking.sending import Sending, deliver, send_now


def start(folder: Path, uri: str, **changes: Any) -> MLflowRun:
    given: dict[str, Any] = {"experiment": "tests", "parameters": {"seed": 3}, "tags": {"data.id": "d1"}}
    return MLflowRun.start(
        folder / "mlflow_run.json",
        uri=uri,
        name=folder.name,
        artifacts=folder.parent / "artifacts",
        **(given | changes),
    )


# --- a server that does not do what it should -------------------------------------------------------------------------


class Server:
    """Answers as an MLflow server would as far as a run needs it; or hangs, or fails."""

    def __init__(self) -> None:
        self.mode, self.asked = "answer", 0
        self.go_on = threading.Event()
        self.metrics: Counter[tuple[str, int, float, int]] = Counter()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.answer(self)

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked += 1
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if self.mode == "hang":
            self.go_on.wait(20)
        answer = b"{}"
        if self.mode == "drop":  # as one that is killed
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if self.mode == "fail":
            handler.send_response(500)
        else:
            handler.send_response(200)
            for m in json.loads(body or b"{}").get("metrics", []):
                # MLflow's store has one row of the same name, step, value and time.
                self.metrics[m["key"], int(m["step"]), m["value"], int(m["timestamp"])] = 1
        handler.send_header("Content-Length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer)

    def steps(self) -> list[int]:
        return sorted(step for _, step, _, _ in self.metrics)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.go_on.set()
    server.http.shutdown()
    server.http.server_close()


def known_run(folder: Path, uri: str) -> MLflowRun:
    """A run that began while its store still answered."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mlflow_run.json").write_text(json.dumps({"uri": uri, "run_id": "1" * 32}))
    return start(folder, uri)


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 10 s")


def test_a_server_that_hangs_holds_nothing_up_and_gets_everything_when_it_goes_on(
    tmp_path: Path, server: Server
) -> None:
    run = known_run(tmp_path / "run", server.uri)
    with Sending(run, poll_s=0.01):
        run.outbox.metrics({"loss": 1.0}, 1)
        wait_for(lambda: server.steps() == [1])
        server.mode = "hang"
        for step in range(2, 6):  # goes through although nobody answers
            run.outbox.metrics({"loss": 1.0}, step)
            time.sleep(0.02)
        assert server.steps() == [1]
        server.mode = "answer"
        server.go_on.set()
    assert server.steps() == [1, 2, 3, 4, 5]
    assert run.left() == []


def work_while_it_mends(server: Server, run: MLflowRun) -> None:
    with Sending(run, poll_s=0.01):
        for step in range(1, 5):
            run.outbox.metrics({"loss": 1.0}, step)
        wait_for(lambda: server.asked > 2)
        server.mode = "answer"


@pytest.mark.parametrize("mode", ["fail", "drop"])
def test_a_server_that_fails_is_said_once_and_asked_again(tmp_path: Path, server: Server, mode: str) -> None:
    run = known_run(tmp_path / "run", server.uri)
    server.mode = mode
    with pytest.warns(
        TrackingWarning, match=r"takes nothing at the moment .* kept in .*outbox\.jsonl and sent later"
    ) as warned:
        work_while_it_mends(server, run)
    assert len(warned) == 1
    assert server.steps() == [1, 2, 3, 4]


def test_an_error_of_no_known_kind_is_said_and_ends_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, failures = known_run(tmp_path / "run", server.uri), iter([KeyError("a plug-in's")])

    def deliver_in_the_end(*arguments: Any) -> bool:
        for failure in failures:
            raise failure
        return deliver(*arguments)

    monkeypatch.setattr("training.tracking.sending.deliver", deliver_in_the_end)
    run.outbox.metrics({"loss": 1.0}, 1)
    with pytest.warns(TrackingWarning, match=r"takes nothing at the moment .*a plug-in's"), Sending(run, poll_s=0.01):
        wait_for(lambda: server.steps() == [1])
    assert run.left() == []


def test_the_end_waits_for_a_hanging_server_no_longer_than_said_and_the_next_command_sends_the_rest(
    tmp_path: Path, server: Server
) -> None:
    run = known_run(tmp_path / "run", server.uri)
    server.mode = "hang"
    run.outbox.metrics({"loss": 1.0}, 1)
    with pytest.warns(
        TrackingWarning, match=r"has not taken \d rows .* it does not answer.* the next command on this run"
    ):
        send_now(run, patience_s=0.2)
    server.mode = "answer"
    server.go_on.set()
    again = known_run(tmp_path / "run", server.uri)
    again.outbox.metrics({"loss": 1.0}, 1)
    send_now(again)
    assert list(server.metrics.values()) == [1]
    assert again.left() == []


def test_a_run_that_cannot_begin_says_so_within_the_time(tmp_path: Path, server: Server) -> None:
    for mode, why in (("fail", "500"), ("hang", r"no answer within 0\.2 s")):
        server.mode = mode
        with pytest.raises(
            TrackingError, match=rf"tracking\.uri: {server.uri} cannot be used: .*{why}.*tracking\.enabled"
        ):
            start(tmp_path / mode, server.uri, patience_s=0.2)
        assert not (tmp_path / mode / "mlflow_run.json").exists()
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:9 cannot be used: .*refused"):
        start(tmp_path / "refused", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"tracking\.uri: nowhere://a cannot be used"):
        start(tmp_path / "nowhere", "nowhere://a")


def test_a_database_whose_driver_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks_driver(tracking_uri: str) -> None:
        raise ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")

    monkeypatch.setattr("mlflow.MlflowClient", lacks_driver)
    with pytest.raises(
        TrackingError, match=r"tracking\.uri: postgresql://a/b cannot be used: No module named 'psycopg2'"
    ):
        start(tmp_path / "driver", "postgresql://a/b")


# --- a real store -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database of this file's own."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(mlflow_database, folder / "mlflow.db")
    return folder


def rows(store: Path, query: str, *values: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(store / "mlflow.db") as database:
        return database.execute(query, values).fetchall()


def uri(store: Path) -> str:
    return f"sqlite:///{store}/mlflow.db"


def test_a_locked_database_holds_nothing_up(store: Path) -> None:
    run = start(store / "locked", uri(store))
    send_now(run)
    with sqlite3.connect(store / "mlflow.db") as database:
        database.execute("begin exclusive")
        run.outbox.metrics({"loss": 1.0}, 1)
        with pytest.warns(TrackingWarning, match="has not taken 1 rows"):
            send_now(run, patience_s=0.2)
    send_now(run)
    assert run.left() == []
    assert rows(store, "select count(*) from metrics where run_uuid = ?", run.run_id) == [(1,)]


def test_a_run_that_is_deleted_while_it_trains_goes_on_once_it_is_restored(store: Path) -> None:
    run = start(store / "deleted", uri(store), experiment="deleted")
    run.outbox.metrics({"loss": 2.0}, 1)
    deliver(run)
    client = mlflow_store.open_store(run.uri)
    client.delete_run(run.run_id)
    run.outbox.metrics({"loss": 1.0}, 2)
    with pytest.warns(TrackingWarning, match=f"the run {run.run_id} was deleted in MLflow: restore it there"):
        send_now(run)
    client.restore_run(run.run_id)
    send_now(run)
    assert rows(store, "select step, value from metrics where run_uuid = ?", run.run_id) == [(1, 2.0), (2, 1.0)]


def test_an_experiment_that_was_deleted_is_named(store: Path) -> None:
    client = mlflow_store.open_store(uri(store))
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(TrackingError, match=r"tracking\.experiment: gone was deleted in MLflow; restore it there"):
        start(store / "one", uri(store), experiment="gone")


def test_an_experiment_that_another_process_makes_meanwhile_is_taken(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow_store.open_store(uri(store))
    made = client.create_experiment("meanwhile")
    seen: list[str] = []
    look = MlflowClient.get_experiment_by_name

    def late(self: MlflowClient, name: str) -> Any:
        seen.append(name)
        return None if len(seen) == 1 else look(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    assert mlflow_store._experiment(client, "meanwhile", "file:///nowhere") == made
    assert len(seen) == 2


def test_what_mlflow_refuses_is_named_and_holds_up_nothing_behind_it(store: Path) -> None:
    run = start(store / "refused", uri(store))
    run.outbox.metrics({"before": 1.0}, 1)
    run.outbox.metrics({"../outside": 1.0}, 1)
    run.outbox.metrics({"after": 1.0, "class" * 100: 2.0}, 1)
    run.outbox.files([store / "refused" / "no such file"], "tables")
    with pytest.warns(TrackingWarning, match="MLflow") as warned:
        send_now(run)
    said = [str(warning.message) for warning in warned]
    assert len(said) == 2
    assert "MLflow refuses a row" in said[0]
    assert "../outside" in said[0]
    assert "no such file: it is not there any more" in said[1]
    names = [name for (name,) in rows(store, "select key from metrics where run_uuid = ? order by key", run.run_id)]
    assert names == ["after", "before", ("class" * 100)[:250]]


def test_an_artifact_store_that_cannot_be_used_here_holds_up_no_figure(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)  # as where it is not installed
    mlflow_store.open_store(uri(store)).create_experiment("s3", artifact_location="s3://bucket/folder")
    run = start(tmp_path / "s3", uri(store), experiment="s3")  # beside its database nothing may lie elsewhere
    run.outbox.files([run.outbox.path])
    run.outbox.metrics({"loss": 1.0}, 1)
    with pytest.warns(UserWarning, match=r"MLflow does not get .*mlflow_outbox\.jsonl: ModuleNotFoundError: .*boto3"):
        send_now(run)
    assert run.left() == []
    assert rows(store, "select count(*) from metrics where run_uuid = ?", run.run_id) == [(1,)]


def test_a_file_that_is_too_large_for_a_proxy_holds_up_no_figure(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    response = requests.Response()
    response.status_code = 413

    def too_large(*_: object) -> None:
        raise requests.HTTPError("413 Client Error: Request Entity Too Large", response=response)

    monkeypatch.setattr(MlflowClient, "log_artifact", too_large)
    run = start(store / "large", uri(store))
    run.outbox.files([run.outbox.path])
    run.outbox.metrics({"loss": 1.0}, 1)
    with pytest.warns(UserWarning, match="MLflow refuses a row, which is left out: 413"):
        send_now(run)
    assert run.left() == []
    assert rows(store, "select count(*) from metrics where run_uuid = ?", run.run_id) == [(1,)]


# --- kill -9 ----------------------------------------------------------------------------------------------------------


class KilledError(BaseException):
    pass


class Killer:
    """Ends the process, as far as the code can tell, before the so-manieth time that something touches disk or store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        for where, name in (
            (mlflow_store, "send_rows"), (mlflow_store, "_experiment"), (MlflowClient, "create_run"), (MlflowClient, "log_batch"),
            (MlflowClient, "set_terminated"), (MLflowRun, "note_sent"), (Outbox, "_append"),
            (History, "on_step"), (History, "on_start"),
        ):  # fmt: skip
            monkeypatch.setattr(where, name, self._watched(getattr(where, name)))

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._tick()
            result = function(*args, **kwargs)
            self._tick()
            return result

        return watched

    def _tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KilledError


def train(folder: Path, uri: str, life: int) -> None:
    """Ten steps in two epochs, a checkpoint every four, sent now and then; goes on from the checkpoint."""
    run = start(folder, uri)
    checkpoint = folder / "checkpoint"
    done = int(checkpoint.read_text()) if checkpoint.is_file() else 0
    callbacks = [History(folder / "history.jsonl"), TrackSteps(run.outbox, 3, folder / "history.jsonl")]
    for callback in callbacks:
        callback.on_start(done, 10, 5)
    for step in range(done + 1, 11):
        record = StepRecord(
            step=step, epoch=(step - 1) // 5, loss=float(step), parts={"fit": step / 2}, lr=0.1, grad_norm=1.0, samples=8,
            seconds=1.0 + life, data_wait_seconds=0.1, memory_bytes=life * 2**20, cuda_memory_bytes=0,
        )  # fmt: skip
        for callback in callbacks:
            callback.on_step(record)
        if step % 4 == 0:
            checkpoint.write_text(str(step))
        if step % 5 == 0:
            deliver(run)
    run.outbox.status("FINISHED")
    deliver(run)


def test_each_figure_is_there_once_whatever_was_killed_when(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A life is killed at every operation in turn; every further one gets one operation further, until one ends."""
    folder, killer = store / "killed", Killer(monkeypatch)
    for life in range(1, 200):
        killer.left = life
        try:
            train(folder, uri(store), life)
        except KilledError:
            continue
        break
    assert 20 < life < 200
    run = (MLflowRun(folder / "mlflow_run.json", uri(store)).run_id,)
    found = rows(store, "select key, step, value from metrics where run_uuid = ? order by step", *run)
    assert set(Counter((key, step) for key, step, _ in found).values()) == {1}
    losses = [(step, value) for key, step, value in found if key == "train/loss"]
    assert losses == [(3, 2.0), (5, 4.5), (6, 6.0), (9, 8.0), (10, 10.0)]  # as in a run that nobody disturbed
    assert {key for key, _, _ in found} >= {"train/loss/fit", "train/samples_per_s", "memory/resident_mib"}
