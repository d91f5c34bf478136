"""Who does the jobs of a comparison: this process, one after the other, or Ray tasks, several at a time.

On a cluster the working directory, `runs_dir` and the data must be on a file system that all nodes share, and RobustBEV must be
installed on each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from sensors.extras import require
from sensors.text import tell
from training.comparison.plan import Job, JobResult, Stop
from training.console.progress import Bars
from training.loop.history import read_history
from training.runs.cluster.pool import RayTask, run_tasks, share_out
from training.runs.cluster.session import ray_session

_SHOWN_JOBS = 3  # beside the bar


class Work(Protocol):
    """What does a job; a function of a module, because Ray's workers import it by name."""

    def __call__(self, job: Job, bars: Bars, stop: Stop) -> JobResult: ...


Done = Callable[[JobResult], None]


def run_here(work: Work, jobs: Sequence[Job], stop: Stop, done: Done) -> None:
    """Do the jobs in this process, one after the other, until `stop()`."""
    for number, job in enumerate(jobs, 1):
        if stop():
            return
        tell(f"[{number}/{len(jobs)}] {job.name}")
        with Bars() as bars:
            result = work(job, bars, stop)
        done(result)


def run_on_ray(
    work: Work,
    jobs: Sequence[Job],
    stop: Stop,
    done: Done,
    *,
    at_a_time: int | None,
    address: str | None,
    stop_file: Path,
) -> None:
    """Do the jobs as Ray tasks until all are done or `stop()`; then those that run save a checkpoint first.

    A job whose worker dies is started again, as often as `runner.max_failures` says, and goes on from its last checkpoint.

    Args:
        work: see `Work`.
        jobs: in the order in which to begin them.
        stop: asks to stop.
        done: is told of every job that ended.
        at_a_time: jobs side by side, None for a job a GPU or CPU core.
        address: of a Ray cluster; None: Ray on this machine alone.
        stop_file: absolute, where all nodes see it; its presence tells the jobs to stop.

    Raises:
        RunError: there is no cluster at `address`, no GPU where the configuration wants one, or no machine any more.
        MissingExtraError: Ray is not installed.
    """
    require("robustbev compare --jobs N (without Ray: --jobs 0)", "train", "ray")
    by_name, ended = {job.name: job for job in jobs}, 0

    def look(running: Sequence[str]) -> None:
        if stop():
            stop_file.touch()
        bars("jobs", ended, len(jobs), _places([by_name[name] for name in running]))

    with ray_session(address, "--address"), Bars() as bars:
        stop_file.unlink(missing_ok=True)
        try:
            tasks = {job.name: _task(work, job, at_a_time, stop_file) for job in jobs}
            for name, result in run_tasks(_work, tasks, stop=stop, look=look):
                if isinstance(result, BaseException):
                    job = by_name[name]
                    result = JobResult(job.entry, job.seed, job.files.root, "failed", str(result))
                ended += result.status != "stopped"
                done(result)
        finally:
            stop_file.unlink(missing_ok=True)


def _task(work: Work, job: Job, at_a_time: int | None, stop_file: Path) -> RayTask:
    """The job on what it gets; "auto" is CUDA where the machines have it, which this one need not."""
    import ray

    runner, evaluation = job.config.runner, job.config.evaluation
    cuda = ray.cluster_resources().get("GPU", 0) >= 1 if runner.device == "auto" else runner.device == "cuda"
    share = share_out(at_a_time, cuda=cuda, setting="runner.device")
    changes = {
        "runner": runner.model_copy(update={"device": "cuda" if cuda else "cpu"}),
        "evaluation": evaluation.model_copy(update={"processes": min(evaluation.processes, share.threads)}),
    }
    placed = replace(job, config=job.config.model_copy(update=changes))
    return RayTask((work, placed, share.threads, stop_file, Path.cwd()), share, runner.max_failures)


def _work(work: Work, job: Job, threads: int, stop_file: Path, folder: Path) -> JobResult:
    """What Ray runs."""
    os.chdir(folder)  # relative paths of the configuration mean the same as in the command
    torch.set_num_threads(threads)
    return work(job, Bars(), stop_file.exists)


def _places(jobs: Sequence[Job]) -> str:
    more = f"  and {len(jobs) - _SHOWN_JOBS} more" if len(jobs) > _SHOWN_JOBS else ""
    return "  ".join(_place(job) for job in jobs[:_SHOWN_JOBS]) + more


def _place(job: Job) -> str:
    """How far a running job is, from the files that it writes."""
    total, rows = job.files.progress().get("total_steps"), read_history(job.files.history)
    if total is None or not rows:
        return f"{job.name} begins"
    step = int(rows[-1]["step"])
    return f"{job.name} {'evaluates' if step >= total else f'{step}/{total}'}"
