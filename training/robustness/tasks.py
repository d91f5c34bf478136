"""The measurements of a robustness run as tasks: what each one is, where its figures are kept, and who runs it.

A task is one model under one condition ("fog-3", or "clean" with every subset). Its figures go into a file named by a fingerprint
of all that decides them, so that a run which was stopped goes on, and what a comparison measured serves here.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import robustbev
from robustbev import PerceptionModel
from robustbev.precision import PrecisionSetting
from sensors.documents import parse_json
from sensors.extras import require
from sensors.health.monitor import HealthMode
from sensors.processes import use_one_thread
from sensors.tensor_files import read_header
from training.files.atomic import read_note, write_json
from training.files.code_digest import code_digest
from training.loop.memory import keep_freed_memory
from training.robustness.cases import Case, evaluate_cases, parse_case
from training.robustness.config import RobustnessConfig
from training.runs.cluster import pool as ray_pool
from training.runs.cluster.pool import RayTask, share_out
from training.runs.cluster.session import ray_session
from training.runs.config import RunConfig
from training.tasks.detection.result import SubsetResult
from training.tasks.predictions import Progress

_NOT_IN_FIGURES = {"root", "index_dir", "train_split"}  # of the data's configuration


class RobustnessError(ValueError):
    """A measurement cannot be made, or did not come back."""


@dataclass(frozen=True)
class Task:
    """Cases of one condition, all that another process needs to measure them."""

    checkpoint: Path  # absolute
    config: str  # RunConfig as JSON, with absolute paths
    cases: tuple[str, ...]
    seed: int
    health: HealthMode
    monitor: Path | None = None  # absolute; of health "act"
    cuda: bool = False

    @property
    def condition(self) -> str:
        return parse_case(self.cases[0]).condition


def measure(task: Task, progress: Progress | None = None) -> dict[str, Any]:
    """Case name -> figures as `SubsetResult.to_json` gives them. Model and tables stay loaded for this process's next task."""
    config = RunConfig.model_validate_json(task.config)
    model = _model(task.checkpoint, "cuda" if task.cuda else "cpu", config.evaluation.precision)
    cases = [parse_case(name) for name in task.cases]
    with tempfile.TemporaryDirectory(prefix="robustbev-") as scratch:  # submissions are large; figures are what counts
        results = evaluate_cases(
            model,
            config,
            cases,
            Path(scratch),
            seed=task.seed,
            health=task.health,
            monitor=task.monitor,
            progress=progress,
        )
    return {case.name: result.to_json() for case, result in results.items()}


@lru_cache(maxsize=2)
def _model(checkpoint: Path, device: str, precision: PrecisionSetting) -> PerceptionModel:
    return robustbev.load(checkpoint, device, precision=precision)


def fingerprint(
    checkpoint: Path, config: RunConfig, data_id: str, *, seed: int, precision: str, monitor: Path | None = None
) -> str:
    """Of all that decides the figures: weights, data, evaluation, seed, precision, and our code from data to figures.

    `monitor` is the file of the sensor health monitor that acts on what the model sees, None where none does.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    weights = folder / "model.safetensors" if checkpoint.is_dir() else checkpoint
    evaluation = config.evaluation.model_dump(include={"limit", "score_threshold", "max_boxes_per_sample"})
    content = {
        "weights": _weights_digest(weights),
        "model": _digest(folder / "config.json"),
        "data": data_id,
        "nuscenes": config.data.nuscenes.model_dump(mode="json", exclude=_NOT_IN_FIGURES),
        "points": [config.data.lidar_min_range_m, config.data.keep_outside],
        "evaluation": evaluation,
        "seed": seed,
        "monitor": None if monitor is None else _digest(monitor),
        "precision": precision,
        "code": code_digest(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights_digest(path: Path) -> str:
    """Of names, shapes and values. Not of the whole file: safetensors writes its metadata in an order that varies."""
    stored = read_header(path)
    header = parse_json(stored)
    header.pop("__metadata__", None)
    with path.open("rb") as file:
        file.seek(8 + len(stored))
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


class Store:
    """Figures by fingerprint and condition: `<folder>/<fingerprint>/<condition>.json`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, key: str, cases: Sequence[Case]) -> dict[Case, SubsetResult] | None:
        """The figures of cases of one condition, None where one of them is not there."""
        content = self._content(key, cases[0].condition)
        if not all(case.name in content for case in cases):
            return None
        return {case: SubsetResult.from_json(case.subset, content[case.name]) for case in cases}

    def write(self, key: str, condition: str, figures: Mapping[str, Any]) -> None:
        """Keep figures, beside those of other subsets under the same condition."""
        write_json(self._path(key, condition), self._content(key, condition) | dict(figures))

    def _content(self, key: str, condition: str) -> dict[str, Any]:
        path = self._path(key, condition)
        return read_note(path) if path.is_file() else {}

    def _path(self, key: str, condition: str) -> Path:
        return self._folder / key[:16] / f"{condition}.json"


Measure = Callable[[Task, Progress | None], dict[str, Any]]  # of a module: Ray's workers import it by name
Done = Callable[[str, dict[str, Any]], None]  # the key of a task, and its figures


def run_tasks(
    tasks: Mapping[str, Task],
    config: RobustnessConfig,
    done: Done,
    *,
    progress: Progress | None = None,
    work: Measure = measure,
) -> None:
    """Run every task and hand over its figures as soon as they are there, each task's once.

    With `config.jobs` 0, or where Ray is not installed and nothing asks for it, one after the other in this process; otherwise as
    Ray tasks. A task whose process or machine died is run again, `config.max_retries` times.

    Raises:
        RobustnessError: a task died too often, or found something wrong with data or configuration: that is not tried again.
        RunError: the cluster is not there (any more) or has no GPU, or Ray cannot begin here.
        ValueError: what a task in this process found wrong.
    """
    if not tasks:
        return
    if config.jobs == 0 or (config.jobs is None and config.address is None and find_spec("ray") is None):
        for key, task in tasks.items():
            done(key, work(task, progress))
        return
    require("robustness with jobs", "train", "ray")
    with ray_session(config.address, "address"):
        share = share_out(config.jobs, cuda=config.use_cuda, setting="device", tasks_per_gpu=config.tasks_per_gpu)
        calls = {
            key: RayTask((work, on_cpus(task, share.threads)), share, config.max_retries) for key, task in tasks.items()
        }
        for key, figures in ray_pool.run_tasks(_alone, calls):
            if isinstance(figures, ValueError):
                raise RobustnessError(f"{key}: {figures}") from figures
            if isinstance(figures, BaseException):
                raise figures
            done(key, figures)


def _alone(work: Measure, task: Task) -> dict[str, Any]:
    """`work` in a process of its own: no threads, because its CPUs are its loader's workers'."""
    keep_freed_memory()
    use_one_thread()
    return work(task, None)


def on_cpus(task: Task, cpus: int) -> Task:
    """The task with no more of its run's loader workers and scoring processes than so many CPUs can serve; one is its own."""
    config = RunConfig.model_validate_json(task.config)
    data = config.data.model_copy(update={"workers": min(config.data.workers, cpus - 1)})
    evaluation = config.evaluation.model_copy(update={"processes": min(config.evaluation.processes, cpus)})
    return replace(task, config=config.model_copy(update={"data": data, "evaluation": evaluation}).model_dump_json())
