"""MLflow: the run's configuration, figures, tables, pictures and model, written by rank 0 alone.

Everything goes through a client and a run id; there is no global active run. MLflow is imported when it is first used,
because that takes a second.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training.atomic import write_json
from training.callbacks import Callback, StepRecord
from training.extras import MissingExtraError, require
from training.settings import flat

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]
PARENT_TAG = "mlflow.parentRunId"  # MLflow shows a run with this tag below the run that it names


class TrackingError(ValueError):
    """The tracking store cannot be used as configured."""


def default_uri(runs_dir: Path) -> str:
    """SQLite beside the runs; absolute, because MLflow takes a relative one for the working directory's."""
    return f"sqlite:///{(runs_dir / 'mlflow.db').resolve()}"


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
    """One run in an MLflow store. `start` makes or continues it, `open` finds it again from the file that `start` left."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self._client = _client(uri)

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
    ) -> MLflowRun:
        """Continue the run named in `file`, or begin one and write it there. Makes the database where there is none.

        Args:
            file: JSON with "uri" and "run_id".
            artifacts: where artifacts go with a SQLite store; a server decides for itself.
            parameters: the resolved configuration; nested mappings become dotted names.

        Raises:
            MissingExtraError: MLflow is not installed.
            TrackingError: the store cannot be reached.
        """
        require("tracking.enabled=true", "train", "mlflow")
        try:
            client = _client(uri)
            known = _read(file)
            if known is not None and known["uri"] == uri and _continued(client, known["run_id"]):
                return MLflowRun(uri, known["run_id"])
            found = client.get_experiment_by_name(experiment)
            location = artifacts.resolve().as_uri() if uri.startswith("sqlite:") else None
            experiment_id = (
                found.experiment_id if found else client.create_experiment(experiment, artifact_location=location)
            )
            run_id = client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id
            run = MLflowRun(uri, run_id)
            run._log_parameters(parameters)
        except store_errors() as error:
            raise TrackingError(f"tracking.uri: {uri} cannot be used: {' '.join(str(error).split())[:300]}") from error
        write_json(file, {"uri": uri, "run_id": run_id})
        return run

    @staticmethod
    def open(file: Path) -> MLflowRun | None:
        """The run named in `file`, None where there is no such file."""
        known = _read(file)
        return None if known is None else MLflowRun(known["uri"], known["run_id"])

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log figures at one step. Characters that MLflow does not allow in a name become "-"."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(
            self.run_id,
            metrics=[Metric(re.sub(r"[^\w./ :-]", "-", name), float(v), now, step) for name, v in values.items()],
        )

    def tag(self, name: str, value: str) -> None:
        """Set a tag, or change it."""
        self._client.set_tag(self.run_id, name, value)

    def file(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def files(self, paths: Iterable[Path], folder: str) -> None:
        """Keep copies of files in one folder."""
        for path in paths:
            self.file(path, folder)

    def finish(self, status: Status) -> None:
        self._client.set_terminated(self.run_id, status=status)

    def _log_parameters(self, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        rows = [Param(name, str(value)[:500]) for name, value in flat(parameters).items()]
        for i in range(0, len(rows), 100):  # the most that one call may hold
            self._client.log_batch(self.run_id, params=rows[i : i + 100])


def log_report(
    run_file: Path, checkpoint: Path, figures: Mapping[str, float], files: Mapping[str, Iterable[Path]], lies_in: Path
) -> None:
    """Hand figures about a checkpoint, and copies of files by folder, to the run's MLflow, if it has one.

    The files on disk are complete by now; a store that cannot be reached is worth a warning, not an error.

    Args:
        run_file: what `MLflowRun.start` left.
        checkpoint: the figures are logged at its step.
        figures: by metric name; all finite.
        files: artifact folder -> files.
        lies_in: for the warning: where all this is anyway.
    """
    try:
        run = MLflowRun.open(run_file)
        if run is None:
            return
        _, _, number = (checkpoint if checkpoint.is_dir() else checkpoint.parent).name.partition("step-")
        run.metrics(figures, step=int(number) if number.isdigit() else 0)
        for folder, paths in files.items():
            run.files(paths, folder)
    except MissingExtraError as error:
        warnings.warn(f"MLflow does not get this evaluation, which lies in {lies_in}: {error}", stacklevel=2)
    except Exception as error:
        # MLflow's own exceptions cannot be named without importing it; anything else must not be hidden.
        if type(error).__module__.partition(".")[0] != "mlflow":
            raise
        warnings.warn(f"MLflow does not get this evaluation, which lies in {lies_in}: {error}", stacklevel=2)


class TrackSteps(Callback):
    """Logs means over every `every` steps. A store that fails is warned of once; the history file has every step anyway."""

    def __init__(self, run: MLflowRun, every: int) -> None:
        self._run, self._every = run, every
        self._window: list[StepRecord] = []
        self._warned = False

    def on_step(self, record: StepRecord) -> None:
        self._window.append(record)
        if record.step % self._every == 0:
            self._flush()

    def on_epoch(self, epoch: int, step: int) -> None:
        self._flush()

    def on_checkpoint(self, path: Path, step: int) -> None:
        self._flush()

    def _flush(self) -> None:
        if not self._window:
            return
        try:
            self._run.metrics(summary(self._window), self._window[-1].step)
        except store_errors() as error:
            if not self._warned:
                warnings.warn(f"MLflow does not take figures at the moment ({error}); training goes on", stacklevel=2)
            self._warned = True
        self._window.clear()


def summary(window: list[StepRecord]) -> dict[str, float]:
    """The figures of several steps as one row."""
    last, seconds = window[-1], sum(record.seconds for record in window)
    row = {
        "train/loss": sum(record.loss for record in window) / len(window),
        "train/lr": last.lr,
        "train/grad_norm": sum(record.grad_norm for record in window) / len(window),
        "train/samples_per_s": sum(record.samples for record in window) / seconds,
        "train/data_wait_share": sum(record.data_wait_seconds for record in window) / seconds,
        "train/epoch": last.epoch,
        "memory/resident_mib": last.memory_bytes / 2**20,
    }
    if last.cuda_memory_bytes:
        row["memory/cuda_mib"] = last.cuda_memory_bytes / 2**20
    for name in dict.fromkeys(name for record in window for name in record.parts):
        values = [record.parts[name] for record in window if name in record.parts]
        row[f"train/loss/{name}"] = sum(values) / len(values)
    return row


def _client(uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # both announce every table that they make; importing sets their levels
        logging.getLogger(name).setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri)


def _continued(client: MlflowClient, run_id: str) -> bool:
    """Set a run going again; False where the store does not have it (any more)."""
    from mlflow.exceptions import MlflowException

    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def store_errors() -> tuple[type[Exception], ...]:
    """What a store may raise; a database's own errors pass through MLflow as they are."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def _read(file: Path) -> dict[str, str] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
