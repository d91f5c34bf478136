"""Who does the jobs of a comparison: this process, one after the other, or Ray tasks, several at a time.

On a cluster the working directory, `runs_dir` and the data must be on a file system that all nodes share, and RobustBEV must be
installed on each.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from sensors.extras import require
from training.comparison.jobs import use_threads
from training.comparison.plan import Job, JobResult, Stop
from training.console.progress import Bars
from training.runs.files import RunError
from training.runs.ray_session import ray_session

_LOOK_SECONDS = 0.5
_TAIL_BYTES = 4096
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
        print(f"[{number}/{len(jobs)}] {job.name}", flush=True)
        with Bars() as bars:
            result = work(job, bars, stop)
        done(result)


@dataclass(frozen=True)
class Share:
    """What one job gets."""

    jobs: int  # at a time
    cpus: float
    gpus: int

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))


def share_out(jobs: int | None, cpus: float, gpus: float, largest_node_cpus: float, cuda: bool) -> Share:
    """Share out machines: by default a job a GPU where the configuration uses them, otherwise a job a CPU core.

    Single-threaded trainings side by side get more out of CPU cores than one training on all of them.

    Args:
        jobs: how many at a time, None for the default.
        cpus: of all machines.
        gpus: of all machines.
        largest_node_cpus: no job can have more than this.
        cuda: whether the jobs use a GPU each.

    Raises:
        RunError: the configuration wants a GPU and there is none.
    """
    if cuda and gpus < 1:
        raise RunError("runner.device: cuda, but Ray found no GPU; expected one, or runner.device=cpu")
    count = jobs if jobs is not None else max(1, int(gpus if cuda else cpus))
    each = min(cpus / count, largest_node_cpus)
    return Share(count, int(each * 1000) / 1000, 1 if cuda else 0)  # rounded down: Ray counts in ten-thousandths


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
        RunError: there is no cluster at `address`, or no GPU where the configuration wants one.
        MissingExtraError: Ray is not installed.
    """
    require("robustbev compare --jobs N (without Ray: --jobs 0)", "train", "ray")
    with ray_session(address, "--address"):
        stop_file.unlink(missing_ok=True)
        try:
            _run_all(work, jobs, stop, done, at_a_time, stop_file)
        finally:
            stop_file.unlink(missing_ok=True)


def _run_all(work: Work, jobs: Sequence[Job], stop: Stop, done: Done, at_a_time: int | None, stop_file: Path) -> None:
    import ray

    resources, nodes = ray.cluster_resources(), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)
    largest = max((node.get("CPU", 0.0) for node in nodes), default=cpus)
    shares = {cuda: share_out(at_a_time, cpus, gpus, largest, cuda) for cuda in {_cuda(job, gpus) for job in jobs}}
    limit = max(share.jobs for share in shares.values())
    task = ray.remote(_task)
    waiting, running, ended = list(jobs), dict[Any, Job](), 0
    with Bars() as bars:
        bars("jobs", 0, len(jobs))
        told = time.monotonic()
        while running or (waiting and not stop()):
            while waiting and len(running) < limit and not stop():
                job = waiting.pop(0)
                cuda = _cuda(job, gpus)
                share = shares[cuda]
                placed = replace(job, config=_on_device(job, cuda, share.threads))
                options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "name": job.name}
                retries = job.config.runner.max_failures
                reference = task.options(**options, max_retries=retries).remote(
                    work, placed, share.threads, stop_file, Path.cwd()
                )
                running[reference] = job
            ready, _ = ray.wait(list(running), timeout=_LOOK_SECONDS)
            for reference in ready:
                result = _result(reference, running.pop(reference))
                ended += result.status != "stopped"
                done(result)
            if stop() and not stop_file.exists():
                stop_file.touch()
            if ready or time.monotonic() - told > 2:
                told = time.monotonic()
                bars("jobs", ended, len(jobs), _places(running.values()))


def _task(work: Work, job: Job, threads: int, stop_file: Path, folder: Path) -> JobResult:
    """What Ray runs."""
    os.chdir(folder)  # relative paths of the configuration mean the same as in the command
    use_threads(threads)
    return work(job, Bars(), stop_file.exists)


def _cuda(job: Job, gpus: float) -> bool:
    """Whether a job uses a GPU; "auto" means where the machines have one, which need not be this one."""
    device = job.config.runner.device
    return gpus >= 1 if device == "auto" else device == "cuda"


def _on_device(job: Job, cuda: bool, threads: int) -> Any:
    config = job.config
    evaluation = config.evaluation.model_copy(update={"processes": min(config.evaluation.processes, threads)})
    runner = config.runner.model_copy(update={"device": "cuda" if cuda else "cpu"})
    return config.model_copy(update={"runner": runner, "evaluation": evaluation})


def _result(reference: Any, job: Job) -> JobResult:
    import ray

    try:
        result: JobResult = ray.get(reference)
        return result
    except ray.exceptions.RayTaskError as error:
        message = f"{type(error.cause).__name__}: {error.cause}"
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        tries = job.config.runner.max_failures + 1
        message = f"its worker died {tries} times, which is all that runner.max_failures={tries - 1} allows"
        message += f": {lines[0]}" if lines else ""
    return JobResult(job.entry, job.seed, job.files.root, "failed", message)


def _places(running: Iterable[Job]) -> str:
    jobs = list(running)
    more = f"  and {len(jobs) - _SHOWN_JOBS} more" if len(jobs) > _SHOWN_JOBS else ""
    return "  ".join(_place(job) for job in jobs[:_SHOWN_JOBS]) + more


def _place(job: Job) -> str:
    """How far a running job is, from the files that it writes."""
    total = job.files.progress().get("total_steps")
    step = _last_step(job.files.history)
    if total is None or step is None:
        return f"{job.name} begins"
    return f"{job.name} {'evaluates' if step >= total else f'{step}/{total}'}"


def _last_step(history: Path) -> int | None:
    """The last step of a history that another process writes; its end alone is read."""
    try:
        with history.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="ignore").splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return None
