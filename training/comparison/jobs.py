"""One job of a comparison: train, or go on, then measure; what is done and unchanged is not done again."""

from __future__ import annotations

import json
import math
import statistics
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import robustbev
from robustbev.checkpoints import find_checkpoint
from sensors.nuscenes.index import open_index
from training.comparison.plan import Job, JobResult, Stop
from training.console.errors import exit_code
from training.console.progress import Bars
from training.files.atomic import write_json, write_text
from training.files.code_digest import code_digest
from training.loop.history import read_history
from training.robustness.cases import Case, evaluate_cases, parse_case
from training.runs.evaluate import evaluate_checkpoint, load_model
from training.runs.files import RunBusyError
from training.runs.run import run_training
from training.tasks.detection.result import SubsetResult
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
        known = _known(job, find_checkpoint(job.files.root))
    except robustbev.CheckpointError:
        return None
    if "parameters" not in known or _missing(job, known):
        return None
    _adopt(job)
    return _result(job, known)


def _train_and_measure(job: Job, bars: Bars, stop: Stop) -> JobResult:
    _adopt(job)
    if not job.files.is_complete(job.config):
        _train(job, bars, stop)
    return _result(job, _measure(job, find_checkpoint(job.files.root), bars, stop))


def _result(job: Job, measured: Mapping[str, Any]) -> JobResult:
    files = job.files
    history = [float(row["seconds"]) for row in read_history(files.history)]
    known = json.loads(files.mlflow.read_text(encoding="utf-8")) if files.mlflow.is_file() else {}
    return JobResult(
        job.entry,
        job.seed,
        files.root,
        "done",
        figures={name: SubsetResult.from_json(name, content) for name, content in measured["figures"].items()},
        parameters=measured["parameters"],
        step_ms=1000 * statistics.median(history) if history else math.nan,
        train_seconds=math.fsum(history) if history else math.nan,
        step=int(files.progress()["step"]),
        mlflow_run_id=known.get("run_id"),
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


def _measure(job: Job, checkpoint: Path, bars: Bars, stop: Stop) -> dict[str, Any]:
    """What is known of a checkpoint: parameters, and figures of every subset and case that the model has the sensors for."""
    config, file, known = job.config, _record(job), _known(job, checkpoint)

    def progress(what: str, done: int, total: int | None) -> None:
        if stop():
            raise _Stopped
        bars(what, done, total)

    if "parameters" not in known:
        results = evaluate_checkpoint(checkpoint, config, progress=progress)
        model = robustbev.load(checkpoint)
        known["figures"] = {subset: result.to_json() for subset, result in results.items()}
        known["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        write_json(file, known)
    missing = _missing(job, known)
    if missing:
        model = load_model(checkpoint, config)
        case_results = evaluate_cases(model, config, missing, job.files.evaluation / "cases", progress=progress)
        known["figures"] |= {case.name: result.to_json() for case, result in case_results.items()}
        write_json(file, known)
        if config.tracking.enabled:
            figures = {f"val/{case.name}/mAP": result.mean_ap for case, result in case_results.items()}
            figures |= {f"val/{case.name}/NDS": result.nds for case, result in case_results.items()}
            log_report(job.files.mlflow, checkpoint, figures, {})
    return known


def _record(job: Job) -> Path:
    return job.files.evaluation / "comparison.json"


def _known(job: Job, checkpoint: Path) -> dict[str, Any]:
    """What an earlier evaluation of this very checkpoint left; without figures where there was none."""
    file, key = _record(job), _key(job, checkpoint)
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return known if known.get("key") == key else {"key": key, "figures": {}}


def _missing(job: Job, known: Mapping[str, Any]) -> list[Case]:
    """The cases still to be measured; those with sensors that the model has no encoder for are none."""
    cases = [parse_case(case) for case in job.cases]
    missing = (case for case in cases if case.name not in known["figures"])
    return [case for case in missing if case.possible(job.config.model.modalities)]


def _key(job: Job, checkpoint: Path) -> dict[str, Any]:
    """What the figures depend on, beside the run's configuration: while it stays the same they are not computed again."""
    settings = job.config.evaluation.model_dump(mode="json", exclude={"processes", "batch_size"})
    device = "cuda" if job.config.runner.use_cuda else "cpu"
    # Who shares jobs out to a cluster may have no GPU: what its workers take is not known there, and they look again.
    known = device == "cpu" or torch.cuda.is_available()
    return {
        "checkpoint": checkpoint.name,
        "written": (checkpoint / "model.safetensors").stat().st_mtime_ns,
        "data_id": open_index(job.config.data.nuscenes).meta.data_id,
        "evaluation": settings,
        "code": code_digest(),
        "precision": robustbev.choose_precision(settings["precision"], device).name if known else None,
    }


def _adopt(job: Job) -> None:
    """Put a run that was there before below this comparison's MLflow run."""
    if job.parent is None or not job.config.tracking.enabled:
        return
    run = MLflowRun.open(job.files.mlflow)
    if run is not None:
        run.outbox.tag(PARENT_TAG, job.parent)
        send_now(run)
