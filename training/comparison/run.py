"""`robustbev compare`: configurations times seeds, trained and measured alike, in one table.

Everything lies in one folder: a run a job, and the tables, which are written anew after every job.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sensors.nuscenes.index import build_index
from sensors.text import tell
from training.comparison.jobs import finished, run_job
from training.comparison.pictures import comparison_dots
from training.comparison.plan import (
    Entry,
    Job,
    JobResult,
    budget_notes,
    check_name,
    check_runs,
    columns_of,
    default_name,
    plan_jobs,
    settings_that_differ,
)
from training.comparison.pool import Work, run_here, run_on_ray
from training.comparison.report import (
    Comparison,
    Row,
    comparison_table,
    job_line,
    metrics,
    write_tables,
)
from training.console.interrupt import StopOnSignal
from training.evaluation.subsets import possible_subsets
from training.files.table import print_tables
from training.robustness.cases import parse_case
from training.tracking.outbox import Status
from training.tracking.run import MLflowRun
from training.tracking.sending import send_now


@dataclass(frozen=True)
class Request:
    """What to compare, and who does it."""

    entries: tuple[Entry, ...]
    seeds: tuple[int, ...] = (0,)
    cases: tuple[str, ...] = ()  # beyond the sensor subsets, as "fog-3"
    name: str | None = None  # None: from the folder of the configuration files
    out: Path | None = None  # of the tables; None: beside the runs
    jobs: int | None = None  # at a time; 0: in this process, None: one a GPU or CPU core
    address: str | None = None  # of a Ray cluster
    fresh: bool = False  # remove what the runs wrote before


@dataclass(frozen=True)
class Ended:
    """How it ended."""

    comparison: Comparison
    out: Path
    interrupted: bool

    @property
    def failed(self) -> bool:
        return any(result.status == "failed" for row in self.comparison.rows for result in row.results)


def compare(request: Request, work: Work = run_job) -> Ended:
    """Train and measure every configuration with every seed, or go on with it, and write tables and chart.

    Args:
        request: see `Request`.
        work: does a job.

    Raises:
        ValueError: with what to do: an unknown case, a run of another configuration in the way, a store that cannot be reached;
            see also `run_on_ray`. What goes wrong in a job does not raise: it is in the result.
    """
    cases = dict.fromkeys(parse_case(case).name for case in request.cases)
    for case in map(parse_case, cases):
        if not any(case.possible(entry.config.model.modalities) for entry in request.entries):
            names = sorted({name for entry in request.entries for name in entry.config.model.modalities})
            raise ValueError(f"--case {case.name}: no configuration has these modalities, only {', '.join(names)}")
    name = check_name(request.name or default_name(request.entries))
    configs = [entry.config for entry in request.entries]
    subsets = {subset for config in configs for subset in possible_subsets(config.model, config.evaluation.subsets)}
    jobs = plan_jobs(request.entries, request.seeds, name, [case for case in cases if case not in subsets])
    _prepare(jobs, fresh=request.fresh)
    out = request.out or request.entries[0].config.runs_dir / name
    parent = _start_tracking(request.entries, request.seeds, name, out)
    table = _Table(request, name, out, jobs, parent)
    if parent is not None:
        jobs = [_below(job, parent) for job in jobs]
    interrupted = True
    try:
        interrupted = _run(request, jobs, work, table)
    finally:
        _finish(table, parent, "KILLED" if interrupted else "FAILED" if table.failed else "FINISHED")
    return Ended(table.comparison(), out, interrupted)


def print_comparison(ended: Ended) -> None:
    """The table on the terminal, and where everything lies."""
    if ended.failed or any(row.done for row in ended.comparison.rows):
        print_tables(comparison_table(ended.comparison))
    tell(f"tables and chart: {ended.out}/comparison.{{md,csv,json,png}}")
    if ended.comparison.mlflow is not None:
        uri, run_id = ended.comparison.mlflow["uri"], ended.comparison.mlflow["run_id"]
        tell(f"MLflow: run {run_id}; mlflow ui --backend-store-uri {uri}")


class _Table:
    """Collects results and keeps the tables up to date."""

    def __init__(self, request: Request, name: str, out: Path, jobs: Sequence[Job], parent: MLflowRun | None) -> None:
        self._request, self._name, self._jobs, self._parent = request, name, jobs, parent
        self._results: dict[tuple[str, int], JobResult] = {}
        self._notes = tuple(budget_notes(request.entries))
        self._settings = settings_that_differ(request.entries)
        self.out = out

    @property
    def failed(self) -> bool:
        return any(result.status == "failed" for result in self._results.values())

    def add(self, result: JobResult) -> None:
        self._results[result.entry, result.seed] = result
        comparison = self.comparison()
        tell(job_line(result, comparison.columns))
        write_tables(self.out, comparison)

    def comparison(self) -> Comparison:
        """As things stand; jobs that did not end count as stopped."""
        results = {(job.entry, job.seed): self._result(job) for job in self._jobs}
        seeds = self._request.seeds
        rows = tuple(
            Row(entry.name, entry.file, tuple(results[entry.name, seed] for seed in seeds), self._settings[entry.name])
            for entry in self._request.entries
        )
        mlflow = None if self._parent is None else {"uri": self._parent.uri, "run_id": self._parent.run_id}
        return Comparison(self._name, seeds, columns_of(self._jobs), rows, self._notes, mlflow)

    def _result(self, job: Job) -> JobResult:
        result = self._results.get((job.entry, job.seed))
        return JobResult(job.entry, job.seed, job.files.root, "stopped") if result is None else result


def _prepare(jobs: Sequence[Job], *, fresh: bool) -> None:
    """Everything that can be wrong with data and folders is found here, before the first job."""
    build_index(jobs[0].config.data.nuscenes)  # all jobs have the same; once, before they would all do it
    if not fresh:
        check_runs(jobs)
        return
    for job in jobs:
        with job.files.locked():
            job.files.clear()


def _run(request: Request, jobs: Sequence[Job], work: Work, table: _Table) -> bool:
    """-> whether it was asked to stop before all was done."""
    ended: list[JobResult] = []

    def done(result: JobResult) -> None:
        ended.append(result)
        table.add(result)

    left = []
    for job in jobs:
        result = finished(job)
        if result is None:
            left.append(job)
        else:
            done(result)
    if not left:
        return False
    with StopOnSignal() as stop:
        if request.jobs == 0:
            run_here(work, left, lambda: stop() or any(r.status == "stopped" for r in ended), done)
        else:
            stop_file = (table.out / "stop-requested").absolute()
            stop_file.parent.mkdir(parents=True, exist_ok=True)
            run_on_ray(work, left, stop, done, at_a_time=request.jobs, address=request.address, stop_file=stop_file)
    return len(ended) < len(jobs) or any(result.status == "stopped" for result in ended)


def _below(job: Job, parent: MLflowRun) -> Job:
    return Job(job.entry, job.seed, job.config, job.cases, parent.run_id)


def _start_tracking(entries: Sequence[Entry], seeds: Sequence[int], name: str, out: Path) -> MLflowRun | None:
    """The comparison's own MLflow run, the same one whenever it goes on. Makes the database before jobs would race to."""
    first = entries[0].config
    if not first.tracking.enabled:
        return None
    parent = MLflowRun.start(
        out / "mlflow_run.json",
        uri=first.tracker,
        experiment=first.tracking.experiment,
        name=name,
        artifacts=first.runs_dir / "mlartifacts",
        parameters={},  # MLflow's parameters cannot change, but a comparison may grow by seeds and rows
        tags={"run_dir": str(out.resolve()), "kind": "comparison"},
    )
    parent.outbox.tag("configs", json.dumps([str(entry.file) for entry in entries]))
    parent.outbox.tag("seeds", json.dumps(list(seeds)))
    send_now(parent)  # the jobs' runs name it, so it has to be there
    return parent


def _finish(table: _Table, parent: MLflowRun | None, status: Status) -> None:
    """Tables, chart, and a copy of both for MLflow; a store that fails now costs its copy and nothing else."""
    comparison = table.comparison()
    paths = [*write_tables(table.out, comparison), comparison_dots(table.out / "comparison.png", comparison)]
    if parent is None:
        return
    parent.outbox.metrics(metrics(comparison), step=0, renew=True)
    parent.outbox.files(paths, "comparison")
    parent.outbox.files([row.file for row in comparison.rows], "configs")
    parent.outbox.status(status)
    send_now(parent)
