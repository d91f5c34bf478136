"""A run from outside: begin it or go on with it, here or on Ray's workers, and hand its results to MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel

import robustbev
from robustbev.precision import usable_device
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import build_index
from sensors.nuscenes.summary import check_truth, describe
from sensors.text import tell
from training.console.interrupt import StopOnSignal
from training.console.progress import Bars, TrainingProgress
from training.data.dataset import open_reader
from training.loop.checkpoint import CheckpointStore
from training.loop.peers import Alone
from training.loop.train import Outcome
from training.runs.cluster.runner import fit
from training.runs.config import RunConfig
from training.runs.files import RunFiles
from training.runs.precision import report_precision
from training.runs.worker import Post, work
from training.tracking.mlflow_store import DataUsed
from training.tracking.run import MLflowRun, git_commit
from training.tracking.sending import Sending

Config = TypeVar("Config", bound=BaseModel)


def run_training(
    config: RunConfig,
    bars: Bars,
    *,
    fresh: bool = False,
    stop: Callable[[], bool] = lambda: False,
    tags: Mapping[str, str] | None = None,
) -> Outcome:
    """Train, or go on with, the run that `config` describes; -> how it ended.

    Args:
        config: of the run.
        bars: shows the progress.
        fresh: remove what this run wrote before and start over.
        stop: asks a run without Ray's workers to save a checkpoint and end, as Ctrl-C does.
        tags: of the MLflow run, beyond those that every run has.

    Raises:
        ValueError: with what to do; see `RunFiles.begin`, `training.loop.train.train`, `sensors.nuscenes.index.build_index`.
        MissingExtraError: Ray or MLflow is asked for and not installed.
    """
    files = RunFiles(config.run_dir)
    if config.runner.use_cuda and config.runner.address is None:
        usable_device("cuda")
    with files.locked():
        if fresh:
            files.clear()
        build_index(config.data.nuscenes)  # once, before workers would all do it
        reader = open_reader(config.data, config.model, config.data.nuscenes.train_split)
        check_truth(reader, config.data.min_points, config.model.grid.bev())
        for line in (*reader.index.meta.notes, *reader.left_out_sweeps()):
            tell(line)
        files.begin(config)
        store = CheckpointStore(files.checkpoints, robustbev.save, config.runner.checkpoint.keep)
        store.prune()
        tracker = _start_tracking(config, files, tags or {}) if config.tracking.enabled else None
        if tracker is None:
            outcome = _train(config, files, bars, stop, tracker)
        else:
            with Sending(tracker):
                try:
                    outcome = _train(config, files, bars, stop, tracker)
                except BaseException:
                    with suppress(OSError):  # a full disk has been told by what it ended
                        _hand_over(tracker, files, None)
                    raise
                _hand_over(tracker, files, outcome)
        store.prune()
        return outcome


def absolute_paths(config: Config) -> Config:
    """The same configuration with every path absolute, for a process with another working directory."""
    changed: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Path):
            changed[name] = value.expanduser().absolute()
        elif isinstance(value, BaseModel):
            changed[name] = absolute_paths(value)
    return config.model_copy(update=changed)


def _train(
    config: RunConfig, files: RunFiles, bars: Bars, stop: Callable[[], bool], tracker: MLflowRun | None
) -> Outcome:
    progress = TrainingProgress(bars, config.epochs, partial(_began, files, tracker))
    if config.runner.workers > 0:
        return fit(work, absolute_paths(config), RunFiles(files.root.absolute()), progress)
    device = torch.device("cuda" if config.runner.use_cuda else "cpu")
    keep = config.runner.checkpoint.keep
    with StopOnSignal() as asked:
        post = Post(Alone(), device, lambda: asked() or stop(), callbacks=[progress], keep=keep, progress=bars)
        return work(config, post)


def _start_tracking(config: RunConfig, files: RunFiles, more: Mapping[str, str]) -> MLflowRun:
    data = describe(config.data.nuscenes)
    tags = {"data.id": str(data["data_id"]), "data.version": str(data["version"]), "run_dir": str(files.root.resolve())}
    tags |= {"mlflow.source.name": "robustbev train", "mlflow.source.type": "LOCAL"} | dict(more)
    commit = git_commit(Path(robustbev.__file__).parent)
    if commit is not None:
        tags["mlflow.source.git.commit"] = commit
    tracker = MLflowRun.start(
        files.mlflow,
        uri=config.tracker,
        experiment=config.tracking.experiment,
        name=config.name,
        artifacts=config.runs_dir / "mlartifacts",
        parameters=config.model_dump(mode="json"),
        tags=tags,
        data=_data_used(config.data.nuscenes, data),
    )
    tracker.outbox.files([files.config])
    return tracker


def _data_used(config: NuScenesConfig, data: Mapping[str, Any]) -> list[DataUsed]:
    """Of a split that is for both, training alone: MLflow takes a part of a data set once a run."""
    place, samples = str(config.root.resolve()), data["samples_per_split"]
    uses: dict[str, Literal["training", "validation"]] = {
        config.val_split: "validation",
        config.train_split: "training",
    }
    return [
        DataUsed(f"{config.root.name} {split}", str(data["data_id"]), place, samples.get(split, 0), use)
        for split, use in uses.items()
    ]


def _began(files: RunFiles, tracker: MLflowRun | None) -> None:
    """Say what the workers, which train by now, compute in."""
    precision = report_precision(files.precision)
    if tracker is not None:
        tracker.outbox.tag("precision", precision)


def _hand_over(tracker: MLflowRun, files: RunFiles, outcome: Outcome | None) -> None:
    """Give MLflow the model and the history, and say how the run ended (None: by an error)."""
    tracker.outbox.files([files.history] if files.history.is_file() else [])
    if outcome is not None and outcome.checkpoint is not None:
        names = ("model.safetensors", "config.json", "README.md")
        tracker.outbox.files([outcome.checkpoint / name for name in names], "model")
    tracker.outbox.status("FAILED" if outcome is None else "KILLED" if outcome.interrupted else "FINISHED")
