"""A run in MLflow: where it is, and what it gets of figures, files and tags.

All of that goes through the run's outbox, a file; `training.tracking.sending` hands it on. Only to begin a run is MLflow
waited for.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from training.files.atomic import held, read_note, write_json
from training.files.settings import flat
from training.loop.callbacks import Callback, StepRecord
from training.loop.history import read_history
from training.tracking import mlflow_store as store
from training.tracking.mlflow_store import DataUsed, TrackingError
from training.tracking.outbox import Outbox, Row

Result = TypeVar("Result")
PARENT_TAG = "mlflow.parentRunId"  # MLflow shows a run with this tag below the run that it names
DESCRIPTION_TAG = "mlflow.note.content"  # Markdown, shown above a run's figures
_BEGIN_SECONDS = 9.0  # for a store to answer when a run begins
_DATABASE_SECONDS = 180.0  # to make a SQLite database, on a slow disk or a busy machine


def default_uri(runs_dir: Path) -> str:
    """SQLite beside the runs; absolute, because MLflow takes a relative one for the working directory's."""
    return f"sqlite:///{(runs_dir / 'mlflow.db').resolve()}"


def own_uri(run_dir: Path, named: str | None) -> str:
    """The tracker of a run of which nobody but the run itself says which it is: it may be somebody else's run.

    What it names counts where the user's MLFLOW_TRACKING_URI says the same, or where it is a database that is there, in a folder
    that the run lies in. Otherwise it is the database beside the run.
    """
    if named is not None and (named == os.environ.get("MLFLOW_TRACKING_URI") or _is_above(run_dir, named)):
        return named
    return default_uri(run_dir.resolve().parent)


def _is_above(run_dir: Path, uri: str) -> bool:
    database = store.database_of(uri)
    return database is not None and database.is_file() and database.parent in run_dir.resolve().parents


def absolute_uri(uri: str) -> str:
    """`uri` with a relative SQLite path made absolute.

    Raises:
        TrackingError: it is a plain path: MLflow 3 keeps no files of its own any more.
    """
    if "://" not in uri and uri != "databricks":
        raise TrackingError(
            f"tracking.uri: expected sqlite:///PATH, a database URI or the http(s) address of an MLflow server, got {uri!r}"
        )
    match = re.fullmatch(r"sqlite:///([^/].*)", uri)
    return f"sqlite:///{Path(match[1]).resolve()}" if match else uri


def git_commit(folder: Path) -> str | None:
    """The commit that `folder` is at, with "-dirty" where files differ; None outside a repository or without git."""
    try:
        head = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() or None


class MLflowRun:
    """One run in an MLflow store: `start` makes or continues it, `open` finds it again from the file that `start` left.

    Beside that file lie the run's outbox and the note of how much of it was sent. Where the store is says the user, never the
    file: a run may be of somebody else.

    Args:
        file: what `start` left.
        uri: of the store, as the user's configuration has it.
    """

    def __init__(self, file: Path, uri: str) -> None:
        self.file, self.uri = file, uri
        self._sent = sent_of(file)
        self.outbox = Outbox(outbox_of(file))

    @staticmethod
    def start(
        file: Path,
        *,
        uri: str,
        experiment: str,
        name: str,
        artifacts: Path,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        data: Sequence[DataUsed] = (),
        patience_s: float = _BEGIN_SECONDS,
    ) -> MLflowRun:
        """Continue the run named in `file`, or begin one and write it there. Makes the database where there is none.

        A run that goes on does not wait for the store: whether it is still there turns out when the outbox is sent.

        Args:
            file: JSON with "uri" and "run_id".
            artifacts: where artifacts go with a SQLite store; a server decides for itself.
            parameters: the resolved configuration; nested mappings become dotted names.
            data: what the run is trained and measured on.
            patience_s: how long a store may take to answer.

        Raises:
            MissingExtraError: MLflow is not installed.
            TrackingError: the store of a new run cannot be reached, or its experiment was deleted there.
        """
        run = MLflowRun(file, uri)
        store.load_mlflow()
        if not file.is_file() or run._known["uri"] != uri:
            location = artifacts.resolve().as_uri() if uri.startswith("sqlite:") else None
            about: Mapping[str, Any] = {
                "artifacts": location,
                "parameters": flat(parameters),
                "tags": tags,
                "data": data,
            }
            try:
                opening_s = _DATABASE_SECONDS if uri.startswith("sqlite:") else patience_s
                client = _within(opening_s, lambda: store.open_store(uri))
                run_id = _within(patience_s, lambda: store.begin_run(client, experiment, name, **about))
            except store.store_errors() as error:
                raise TrackingError(
                    f"tracking.uri: {uri} cannot be used: {short(error)}. Look whether the address is right and the server "
                    "runs, or train with tracking.enabled=false"
                ) from error
            write_json(file, {"uri": uri, "run_id": run_id})
        run.outbox.status("RUNNING")
        return run

    @staticmethod
    def open(file: Path, uri: str) -> MLflowRun | None:
        """The run named in `file`, None where there is no such file."""
        return MLflowRun(file, uri) if file.is_file() else None

    @property
    def run_id(self) -> str:
        return self._known["run_id"]

    def check_store(self) -> None:
        """TrackingError where the run was begun in another store than the user's configuration names."""
        begun = self._known["uri"]
        if begun != self.uri:
            raise TrackingError(
                f"{self.file} names a run in the MLflow at {begun}, which is not yours: if you know it, say so with "
                f"tracking.uri={begun} or MLFLOW_TRACKING_URI"
            )

    def left(self) -> list[tuple[int, Row]]:
        """The rows of the outbox that the run in MLflow does not have yet, each with the byte at which it ends."""
        sent = read_note(self._sent, {"run_id": str, "bytes": int}) if self._sent.is_file() else {}
        return list(self.outbox.rows(max(0, sent["bytes"]) if sent.get("run_id") == self.run_id else 0))

    def note_sent(self, run_id: str, end: int) -> None:
        """Note that a run in MLflow has the outbox up to a byte."""
        write_json(self._sent, {"run_id": run_id, "bytes": end})

    def sends_alone(self) -> AbstractContextManager[bool]:
        """Whether this process is the one that may send now; False where another is at it."""
        return held(self.file.with_name(".mlflow.lock"))

    @property
    def _known(self) -> dict[str, Any]:
        return read_note(self.file, {"uri": str, "run_id": str})


def outbox_of(run_file: Path) -> Path:
    """Where the outbox of the run lies that `MLflowRun.start` notes in a file."""
    return run_file.with_name("mlflow_outbox.jsonl")


def sent_of(run_file: Path) -> Path:
    """Where it is noted how much of that outbox was sent."""
    return run_file.with_name("mlflow_sent.json")


class TrackSteps(Callback):
    """Puts means over every `every` steps, and over what is left of an epoch, into an outbox.

    Which steps a row is of depends on its own step alone, so a run that was interrupted gives the same rows.

    Args:
        outbox: where the rows go.
        every: steps a row.
        history: the steps before this process began.
    """

    def __init__(self, outbox: Outbox, every: int, history: Path) -> None:
        self._outbox, self._every, self._history = outbox, every, history
        self._steps_per_epoch = 1
        self._window: list[StepRecord] = []

    def on_start(self, step: int, total_steps: int, steps_per_epoch: int) -> None:
        self._steps_per_epoch = steps_per_epoch
        begun = step - min(step % self._every, step % steps_per_epoch)
        rows = read_history(self._history) if begun < step else []
        self._window = [StepRecord(**row) for row in rows if begun < row["step"] <= step]

    def on_step(self, record: StepRecord) -> None:
        self._window.append(record)
        if record.step % self._every == 0 or record.step % self._steps_per_epoch == 0:
            self._outbox.metrics(summary(self._window), record.step)
            self._window.clear()


def summary(window: list[StepRecord]) -> dict[str, float]:
    """The figures of several steps as one row."""
    last, seconds = window[-1], sum(record.seconds for record in window)
    row = {
        "train/loss": sum(record.loss for record in window) / len(window),
        "train/lr": last.lr,
        "train/samples_per_s": sum(record.samples for record in window) / seconds,
        "train/data_wait_share": sum(record.data_wait_seconds for record in window) / seconds,
        "train/epoch": last.epoch,
        "memory/resident_mib": last.memory_bytes / 2**20,
    }
    norms = [record.grad_norm for record in window if record.grad_norm is not None]
    if norms:
        row["train/grad_norm"] = sum(norms) / len(norms)
    if last.cuda_memory_bytes:
        row["memory/cuda_mib"] = last.cuda_memory_bytes / 2**20
    for name in dict.fromkeys(name for record in window for name in record.parts):
        values = [record.parts[name] for record in window if name in record.parts]
        row[f"train/loss/{name}"] = sum(values) / len(values)
    return row


def short(error: BaseException) -> str:
    """The message of an error on one line, from its cause on where it names one."""
    message = " ".join(str(error).split())
    _, caused, cause = message.rpartition("(Caused by ")
    if caused:
        message = cause.rpartition("): ")[2].rstrip("\"')")  # without which connection of which pool it was
    return message[:300] or type(error).__name__


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """The result of a call that may hang; TimeoutError where it takes longer, and it is left to itself then."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="mlflow-begin", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
