"""Sends a run's outbox to MLflow: beside the work, in order, each row once, and later where MLflow was away.

How far it was sent is noted after every call. Rows of a call that was not noted before a crash are sent again, which changes
nothing: MLflow holds a figure of the same name, step, time and value once.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from robustbev.checkpoints import step_of
from sensors.errors import MissingExtraError
from training.tracking import mlflow_store as store
from training.tracking.outbox import Outbox, Row
from training.tracking.run import MLflowRun, short

if TYPE_CHECKING:
    from mlflow import MlflowClient

Allow = Callable[[float], None]
_METRICS_A_CALL = 1000  # what MLflow takes
_OPENING_SECONDS = 60.0  # to open a database, or to make one
_BYTES_PER_SECOND = 2**20  # the slowest upload that is waited for
_LONGEST_PAUSE_SECONDS = 30.0


class Sending:
    """While this context is open, a thread sends what the outbox gets; at its end the rest, as far as MLflow takes it.

    Args:
        run: whose outbox.
        patience_s: how long the end waits for an MLflow that does not answer.
        poll_s: how often to look for new rows.
    """

    def __init__(self, run: MLflowRun, *, patience_s: float = 10.0, poll_s: float = 1.0) -> None:
        self._run, self._patience_s, self._poll_s = run, patience_s, poll_s
        self._ending = threading.Event()
        self._waited_until = 0.0
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._send, name="mlflow-sender", daemon=True)

    def __enter__(self) -> Sending:
        # Not in the thread: a process that is forked while another thread imports may wait for that module for ever.
        store.load_mlflow()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._waited_until = max(self._waited_until, time.monotonic() + self._patience_s)
        self._ending.set()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            return  # somebody insists; the rows are kept
        while self._thread.is_alive() and time.monotonic() < self._waited_until:
            self._thread.join(0.05)
        _warn_of_left(self._run, "it does not answer" if self._error is None else short(self._error))

    def _send(self) -> None:
        pause_s = self._poll_s
        while True:
            last = self._ending.wait(pause_s)
            try:
                done = deliver(self._run, self._allow)
            except Exception as error:  # of any kind: what a store does must not end the sending, nor go untold
                self._fails(error)
                if last:
                    return
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_SECONDS)
            else:
                self._error, pause_s = None, self._poll_s
                if last and done:
                    return
                if last:  # another process is sending
                    time.sleep(self._poll_s)

    def _fails(self, error: Exception) -> None:
        if self._error is None and not self._ending.is_set():
            warnings.warn(
                f"MLflow ({self._run.uri}) takes nothing at the moment ({short(error)}); the work goes on, its figures are kept "
                f"in {self._run.outbox.path} and sent later",
                store.TrackingWarning,
                stacklevel=2,
            )
        self._error = error

    def _allow(self, seconds: float) -> None:
        """Something has come further; the next call may take so long beyond the usual."""
        self._waited_until = time.monotonic() + self._patience_s + seconds


def send_now(run: MLflowRun, patience_s: float = 10.0) -> None:
    """Send what a run's outbox holds; a warning says what MLflow has not taken within the time."""
    if not run.left():
        return
    try:
        with Sending(run, patience_s=patience_s):
            pass
    except MissingExtraError as error:
        _warn_of_left(run, str(error))


def send_rest(run_file: Path, uri: str) -> None:
    """Send what the MLflow at `uri` has not taken of a run that `MLflowRun.start` noted, if it noted one."""
    run = MLflowRun.open(run_file, uri)
    if run is not None:
        send_now(run)


def log_report(
    run_file: Path,
    uri: str,
    checkpoint: Path,
    figures: Mapping[str, float],
    files: Mapping[str, Iterable[Path]],
    tags: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Hand figures about a checkpoint, and copies of files by folder, to the run's MLflow, if it has one.

    Args:
        run_file: what `MLflowRun.start` left.
        uri: of the user's MLflow.
        checkpoint: the figures are logged at its step.
        figures: by metric name; all finite.
        files: artifact folder -> files.
        tags: of the run.
    """
    run = MLflowRun.open(run_file, uri)
    if run is None:
        return
    step = step_of(checkpoint if checkpoint.is_dir() else checkpoint.parent)
    run.outbox.metrics(figures, step=step or 0, renew=True)
    for name, value in tags.items():
        run.outbox.tag(name, value)
    for folder, paths in files.items():
        run.outbox.files(paths, folder)
    send_now(run)


def _warn_of_left(run: MLflowRun, why: str) -> None:
    left = len(run.left())
    if left:
        warnings.warn(
            f"MLflow ({run.uri}) has not taken {left} rows of figures and files yet: {why}. They are kept in "
            f"{run.outbox.path}, and the next command on this run (train, evaluate, show) sends them",
            store.TrackingWarning,
            stacklevel=3,
        )


def deliver(run: MLflowRun, allow: Allow = lambda seconds: None) -> bool:
    """Send all that is left; -> whether that is done, False where another process is at it.

    Raises:
        mlflow_store.store_errors(): the store cannot be reached.
        TrackingError: the run was deleted there, or is one of another store.
    """
    if not run.left():
        return True
    run.check_store()
    with run.sends_alone() as alone:
        if not alone:
            return False
        allow(_OPENING_SECONDS if run.uri.startswith("sqlite:") else 0.0)
        client, run_id, outbox = store.open_store(run.uri), run.run_id, run.outbox
        for end, rows in batches(run.left()):
            allow(sum(_size(row, outbox.path.parent) for row in rows) / _BYTES_PER_SECOND)
            try:
                store.send_rows(client, run_id, rows, outbox)
            except store.store_errors() as error:
                if not store.is_refused(error):
                    raise
                if store.is_gone(client, run_id):
                    raise store.TrackingError(
                        f"the run {run_id} was deleted in MLflow: restore it there (mlflow runs restore), or remove {run.file}, "
                        "so that training goes on with a new one, which gets everything"
                    ) from error
                _send_each(client, run_id, rows, outbox)
            run.note_sent(run_id, end)
        allow(0.0)
    return True


def _send_each(client: MlflowClient, run_id: str, rows: Sequence[Row], outbox: Outbox) -> None:
    """Send rows of which the store refused some; those are left out, so that the others are not held up by them."""
    for row in rows:
        try:
            store.send_rows(client, run_id, [row], outbox)
        except store.store_errors() as error:
            if not store.is_refused(error):
                raise
            message = f"MLflow refuses a row, which is left out: {short(error)}; the row is {row}"
            warnings.warn(message, store.TrackingWarning, stacklevel=2)


def batches(pending: Sequence[tuple[int, Row]]) -> Iterator[tuple[int, list[Row]]]:
    """Rows that go in one call, each with the byte where the last of them ends: figures together, all others alone."""
    gathered: list[Row] = []
    end = count = 0
    for row_end, row in pending:
        size = len(row.get("metrics", ()))
        if gathered and (not size or count + size > _METRICS_A_CALL):
            yield end, gathered
            gathered, count = [], 0
        if size:
            gathered.append(row)
            count += size
        else:
            yield row_end, [row]
        end = row_end
    if gathered:
        yield end, gathered


def _size(row: Row, folder: Path) -> int:
    path = folder / row["file"] if "file" in row else None
    return path.stat().st_size if path is not None and path.is_file() else 0
