"""One job of a comparison: train, or go on, then measure; what is done and unchanged is not done again."""

from __future__ import annotations

import math
import statistics
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import robustbev
from robustbev import ModelConfig
from robustbev.checkpoints import find_checkpoint
from sensors.nuscenes.index import open_index
from training.comparison.plan import Job, JobResult, Stop
from training.console.errors import exit_code
from training.console.progress import Bars
from training.evaluation.subsets import possible_subsets
from training.files.atomic import write_text
from training.loop.history import read_history
from training.robustness.cases import Case, evaluate_cases, parse_case
from training.robustness.tasks import Store, fingerprint
from training.runs.evaluate import evaluate_checkpoint, load_model
from training.runs.files import RunBusyError
from training.runs.run import run_training
from training.tasks.detection.result import SubsetResult, main_figures
from training.tracking.run import PARENT_TAG, MLflowRun
from training.tracking.sending import log_report, send_now

_BUSY_SECONDS = 60.0  # loader workers of a job that died hold its lock until they notice, which takes seconds


class _Stopped(Exception):  # noqa: N818 - no error: what was begun is done again later
    pass


def run_job(job: Job, bars: Bars, stop: Stop) -> JobResult:
    """Do what is left of a job. What goes wrong in it is its result: other jobs go on.

    Args:
        job: with the runner's device decided.
        bars: shows the progress.
        stop: asks to save a checkpoint and return.
    """
    try:
        return _train_and_measure(job, bars, stop)
    except _Stopped:
        return JobResult(job.entry, job.seed, job.files.root, "stopped")
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        if exit_code(error) is None:  # a defect of the program: whoever looks into it wants to see where
            file = job.files.root / "traceback.txt"
            write_text(file, traceback.format_exc())
            message = f"{type(error).__name__}: {message} (see {file})"
        return JobResult(job.entry, job.seed, job.files.root, "failed", message)


def finished(job: Job) -> JobResult | None:
    """The result of a job of which nothing is left to do; None for any other."""
    if not job.files.is_complete(job.config):
        return None
    try:
        measured = _Figures(job, find_checkpoint(job.files.root))
    except robustbev.CheckpointError:
        return None
    if measured.missing(measured.cases):
        return None
    _adopt(job)
    return _result(job, measured)


def _train_and_measure(job: Job, bars: Bars, stop: Stop) -> JobResult:
    _adopt(job)
    if not job.files.is_complete(job.config):
        _train(job, bars, stop)
    return _result(job, _measure(job, find_checkpoint(job.files.root), bars, stop))


def _result(job: Job, measured: _Figures) -> JobResult:
    files = job.files
    history = [float(row["seconds"]) for row in read_history(files.history)]
    tracked = MLflowRun.open(files.mlflow, job.config.tracker)
    return JobResult(
        job.entry,
        job.seed,
        files.root,
        "done",
        figures={case.name: measured.figures[case] for case in measured.cases},
        parameters=_parameters(job.config.model),
        step_ms=1000 * statistics.median(history) if history else math.nan,
        train_seconds=math.fsum(history) if history else math.nan,
        step=int(files.progress()["step"]),
        mlflow_run_id=None if tracked is None else tracked.run_id,
    )


def _train(job: Job, bars: Bars, stop: Stop) -> None:
    tags = {} if job.parent is None else {PARENT_TAG: job.parent}
    begun = time.monotonic()
    while not stop():
        try:
            outcome = run_training(job.config, bars, stop=stop, tags=tags)
        except RunBusyError:
            if time.monotonic() - begun > _BUSY_SECONDS:
                raise
            time.sleep(1.0)
        else:
            if not outcome.interrupted:
                return
            break
    raise _Stopped


def _measure(job: Job, checkpoint: Path, bars: Bars, stop: Stop) -> _Figures:
    """Figures of every subset and case that the model has the sensors for; what is known is not measured again."""
    config, measured = job.config, _Figures(job, checkpoint)

    def progress(what: str, done: int, total: int | None) -> None:
        if stop():
            raise _Stopped
        bars(what, done, total)

    if measured.missing(measured.subsets):
        results = evaluate_checkpoint(checkpoint, config, progress=progress)
        measured.add({Case(subset): result for subset, result in results.items()})
    if missing := measured.missing(measured.cases):
        model = load_model(checkpoint, config)
        results_by_case = evaluate_cases(model, config, missing, job.files.evaluation / "cases", progress=progress)
        measured.add(results_by_case)
        if config.tracking.enabled:
            figures = {
                f"val/{name}/{case.name}": getattr(result, key)
                for case, result in results_by_case.items()
                for name, key in main_figures([result]).items()
            }
            log_report(job.files.mlflow, config.tracker, checkpoint, figures, {})
    return measured


class _Figures:
    """What a job measures of a checkpoint: the subsets, then all cases; and what of it was measured before."""

    def __init__(self, job: Job, checkpoint: Path) -> None:
        config = job.config
        device = "cuda" if config.runner.use_cuda else "cpu"
        # Who shares jobs out to a cluster may have no GPU: what its workers take is not known there, and they look again.
        known = device == "cpu" or torch.cuda.is_available()
        precision = robustbev.choose_precision(config.evaluation.precision, device).name if known else "not known here"
        data_id = open_index(config.data.nuscenes).meta.data_id
        self._fingerprint = fingerprint(checkpoint, config, data_id, seed=0, precision=precision)
        self._store = Store(job.files.evaluation / "tasks")
        self.subsets = [Case(subset) for subset in possible_subsets(config.model, config.evaluation.subsets)]
        asked = (case for case in map(parse_case, job.cases) if case.possible(config.model.modalities))
        self.cases = list(dict.fromkeys([*self.subsets, *asked]))
        self.figures: dict[Case, SubsetResult] = {}
        self._read(self.cases)

    def missing(self, cases: Sequence[Case]) -> list[Case]:
        return [case for case in cases if case not in self.figures]

    def add(self, figures: Mapping[Case, SubsetResult]) -> None:
        for case, result in figures.items():
            self._store.write(self._fingerprint, case.condition, {case.name: result.to_json()})
        self._read(list(figures))

    def _read(self, cases: Sequence[Case]) -> None:
        for case in cases:
            self.figures |= self._store.read(self._fingerprint, [case]) or {}


def _parameters(model: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in robustbev.build(model).parameters())


def _adopt(job: Job) -> None:
    """Put a run that was there before below this comparison's MLflow run."""
    if job.parent is None or not job.config.tracking.enabled:
        return
    run = MLflowRun.open(job.files.mlflow, job.config.tracker)
    if run is not None:
        run.outbox.tag(PARENT_TAG, job.parent)
        send_now(run)
