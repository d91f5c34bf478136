"""The one place that talks to MLflow. It is imported when it is first used, because that takes seconds.

Everything goes through a client and a run id; there is no global active run.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from sensors.extras import require
from training.tracking.outbox import Outbox, Row

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DATA_NAME_LENGTH, _DIGEST_LENGTH = 500, 8  # as long as MLflow makes them, so that its page has room for both
_NAME_LENGTH, _VALUE_LENGTH, _PARAMETERS_A_CALL = 250, 500, 100  # what MLflow takes


@dataclass(frozen=True)
class DataUsed:
    """A part of a data set, as MLflow lists it with the runs that used it."""

    name: str
    digest: str  # another one: other data
    place: str
    samples: int
    use: Literal["training", "validation"]


class TrackingWarning(UserWarning):
    """MLflow is away, or does not have something any more."""


class TrackingError(ValueError):
    """The tracking store cannot be used as configured, or does not have what was begun there."""


def load_mlflow() -> None:
    """Import MLflow; MissingExtraError where it is not installed."""
    require("tracking in MLflow (tracking.enabled=true)", "train", "mlflow")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # who asks decides when to ask again
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    import mlflow  # noqa: F401

    for name in ("mlflow", "alembic"):  # both announce every table that they make; importing sets their levels
        logging.getLogger(name).setLevel(logging.WARNING)


def open_store(uri: str) -> MlflowClient:
    """A client; makes the SQLite database where there is none."""
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        return MlflowClient(tracking_uri=uri)
    except ImportError as error:  # of the database's driver
        raise OSError(str(error)) from error


def begin_run(
    client: MlflowClient,
    experiment: str,
    name: str,
    *,
    artifacts: str | None,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    data: Sequence[DataUsed],
) -> str:
    """Make a run, and the experiment where there is none; -> its id.

    Args:
        artifacts: the folder of artifacts with a SQLite store; a server decides for itself.
        parameters: flat.

    Raises:
        TrackingError: the experiment was deleted in MLflow.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    run = client.create_run(_experiment(client, experiment, artifacts), run_name=name, tags=dict(tags))
    logged = [Param(key, str(value)[:_VALUE_LENGTH]) for key, value in parameters.items()]
    for i in range(0, len(logged), _PARAMETERS_A_CALL):
        client.log_batch(run.info.run_id, params=logged[i : i + _PARAMETERS_A_CALL])
    inputs = []
    for one in data:
        profile, source = json.dumps({"num_rows": one.samples}), json.dumps({"uri": one.place})
        dataset = Dataset(one.name[:_DATA_NAME_LENGTH], one.digest[:_DIGEST_LENGTH], "local", source, profile=profile)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", one.use)]))
    if inputs:
        client.log_inputs(run.info.run_id, inputs)
    return str(run.info.run_id)


def is_gone(client: MlflowClient, run_id: str) -> bool:
    """Whether the store does not have a run, or has it among the deleted ones."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.lifecycle_stage) == "deleted"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return True
        raise


def send_rows(client: MlflowClient, run_id: str, rows: Sequence[Row], outbox: Outbox) -> None:
    """Hand rows of an outbox to a run. Handing the same over again changes nothing."""
    from mlflow.entities import Metric

    metrics = [
        Metric(re.sub(r"[^\w./ :-]", "-", name)[:_NAME_LENGTH], value, row["time_ms"], row["step"])
        for row in rows
        for name, value in row.get("metrics", {}).items()
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)
    for row in rows:
        if "tag" in row:
            client.set_tag(run_id, row["tag"], row["value"])
        elif "file" in row:
            _send_file(client, run_id, outbox, row)
        elif row.get("status") == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        elif "status" in row:
            client.set_terminated(run_id, status=row["status"], end_time=row["time_ms"])


def _send_file(client: MlflowClient, run_id: str, outbox: Outbox, row: Row) -> None:
    """What stands in the way of a file alone (it is gone, or its store wants a library or credentials) is a warning."""
    path = outbox.path.parent / row["file"]
    if not path.is_file():
        fault = "it is not there any more"
    elif not outbox.vouches_for(path):
        fault = "it lies outside the run's folder, and was not recorded just now"
    elif not _stays_beside(client, run_id, outbox.path):
        fault = "the database beside the run would have it kept elsewhere than in the database's folder"
    else:
        try:
            client.log_artifact(run_id, str(path), row["folder"])
            return
        except store_errors():
            raise
        except Exception as error:  # of boto3 and its like, which speak to an artifact store of its own
            fault = f"{type(error).__name__}: {' '.join(str(error).split())}"
    warnings.warn(f"MLflow does not get {path}: {fault}", TrackingWarning, stacklevel=2)


def _stays_beside(client: MlflowClient, run_id: str, file: Path) -> bool:
    """Whether files go where they may: a database in a folder that the run lies in, which may have come with it, has no say."""
    database = database_of(client.tracking_uri)
    if database is None or database.parent not in file.resolve().parents:
        return True
    place = urlsplit(str(client.get_run(run_id).info.artifact_uri))
    return place.scheme in ("", "file") and Path(unquote(place.path)).resolve().is_relative_to(database.parent)


def database_of(uri: str) -> Path | None:
    """The file of a SQLite store, None for any other."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def is_refused(error: Exception) -> bool:
    """Whether a store that works has understood a request and does not take it: the same would come again."""
    too_large = getattr(getattr(error, "response", None), "status_code", None) == 413  # what a proxy says of a file
    known = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")
    return too_large or getattr(error, "error_code", None) in known


def store_errors() -> tuple[type[Exception], ...]:
    """What a store may raise; a database's own errors pass through MLflow as they are."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # another process made it meanwhile, or it cannot be made
            known = client.get_experiment_by_name(name)
            if known is None:
                raise
    if known.lifecycle_stage == "deleted":
        raise TrackingError(
            f"tracking.experiment: {name} was deleted in MLflow; restore it there (mlflow experiments restore), or name another"
        )
    return str(known.experiment_id)
