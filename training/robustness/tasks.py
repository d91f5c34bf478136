"""The measurements of a robustness run as tasks: what each one is, where its figures are kept, and who runs it.

A task is one model under one condition ("fog-3", or "clean" with every subset). Its figures go into a file named by a fingerprint
of all that decides them, so that a run which was stopped goes on, and what was measured for one comparison serves the next.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import robustbev
from robustbev import PerceptionModel
from robustbev.precision import PrecisionSetting
from sensors.extras import require
from sensors.health.monitor import HealthMode
from sensors.processes import use_one_thread
from training.files.atomic import write_json
from training.files.code_digest import code_digest
from training.loop.memory import keep_freed_memory
from training.robustness.cases import Case, evaluate_cases, parse_case
from training.robustness.config import RobustnessConfig
from training.runs.config import RunConfig
from training.runs.ray_session import ray_session
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


class Measure(Protocol):
    """What a task runs: a function of a module, because Ray's workers import it by name."""

    def __call__(self, task: Task, progress: Progress | None = None) -> dict[str, Any]: ...


def measure(task: Task, progress: Progress | None = None) -> dict[str, Any]:
    """Case name -> figures as `SubsetResult.to_json` gives them. Model and tables stay loaded for this process's next task."""
    config = RunConfig.model_validate_json(task.config)
    model = _model(task.checkpoint, "cuda" if task.cuda else "cpu", config.evaluation.precision)
    cases = [parse_case(name) for name in task.cases]
    with tempfile.TemporaryDirectory(
        prefix="robustbev-"
    ) as scratch:  # submissions are large, and figures are what counts
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


def measure_alone(task: Task) -> dict[str, Any]:
    """`measure` in a process of its own: no threads, because its CPUs are its loader's workers'."""
    keep_freed_memory()
    use_one_thread()
    return measure(task)


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
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


class Store:
    """Figures by fingerprint and condition: `<folder>/<fingerprint>/<condition>.json`.

    `others` are stores of earlier runs, which are read and never written.
    """

    def __init__(self, folder: Path, others: Sequence[Path] = ()) -> None:
        self._folder, self._others = folder, tuple(others)

    def read(self, print_: str, cases: Sequence[Case]) -> dict[Case, SubsetResult] | None:
        """The figures of cases of one condition, None where one of them is not there."""
        for folder in (self._folder, *self._others):
            content = self._content(folder, print_, cases[0].condition)
            if all(case.name in content for case in cases):
                return {case: SubsetResult.from_json(case.subset, content[case.name]) for case in cases}
        return None

    def write(self, print_: str, condition: str, figures: Mapping[str, Any]) -> None:
        """Keep figures, beside those of other subsets under the same condition."""
        known = self._content(self._folder, print_, condition)
        write_json(self._path(self._folder, print_, condition), known | dict(figures))

    def _content(self, folder: Path, print_: str, condition: str) -> dict[str, Any]:
        path = self._path(folder, print_, condition)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @staticmethod
    def _path(folder: Path, print_: str, condition: str) -> Path:
        return folder / print_[:16] / f"{condition}.json"


_LOOK_SECONDS = 30.0  # without a task done, after which the cluster is looked at
Done = Callable[[str, dict[str, Any]], None]  # the key of a task, and its figures


def run_tasks(
    tasks: Mapping[str, Task],
    config: RobustnessConfig,
    done: Done,
    *,
    progress: Progress | None = None,
    work: Measure = measure,
    work_alone: Callable[[Task], dict[str, Any]] = measure_alone,
) -> None:
    """Run every task and hand over its figures as soon as they are there, each task's once.

    With `config.jobs` 0, or where Ray is not installed and nothing asks for it, one after the other in this process; otherwise as
    Ray tasks, of `cpus_of_a_task` each. A task whose process or machine died is run again, `config.max_retries` times.

    Raises:
        RobustnessError: a task died too often.
        RunError: the cluster is not there, or Ray cannot begin here.
        ValueError: what a task found wrong with data or configuration; such a task is not tried again.
    """
    if not tasks:
        return
    if config.jobs == 0 or (config.jobs is None and config.address is None and not _has_ray()):
        for key, task in tasks.items():
            done(key, work(task, progress))
        return
    require("robustness with jobs", "train", "ray")
    with ray_session(config.address, "address", num_cpus=None if config.use_cuda else config.jobs):
        _run_on_ray(tasks, config, done, work_alone)


def _has_ray() -> bool:
    from importlib.util import find_spec

    return find_spec("ray") is not None


def _check_room(config: RobustnessConfig, cpus: int) -> None:
    """RobustnessError where the cluster has lost what a task takes: Ray would wait for it for ever."""
    import ray

    there = ray.cluster_resources()
    wanted = {"CPU": cpus, "GPU": 1 if config.use_cuda else 0}
    if any(there.get(name, 0) < count for name, count in wanted.items()):
        left = ", ".join(f"{there.get(name, 0):g} {name}s" for name in wanted)
        raise RobustnessError(
            f"address: the cluster has {left} left, and a task takes {cpus} CPUs{' and a GPU' if config.use_cuda else ''}; what "
            "is measured is kept, the same command goes on once its machines are back"
        )


def _run_on_ray(
    tasks: Mapping[str, Task], config: RobustnessConfig, done: Done, work: Callable[[Task], dict[str, Any]]
) -> None:
    import ray
    from ray.exceptions import RayError, RayTaskError

    if config.use_cuda and ray.cluster_resources().get("GPU", 0) < 1:  # it would wait for one for ever
        raise RobustnessError("device: cuda, but Ray found no GPU; expected one, or device=cpu")
    cpus = cpus_of_a_task(config)
    remote = ray.remote(
        num_cpus=cpus, num_gpus=1 / config.tasks_per_gpu if config.use_cuda else 0, max_retries=config.max_retries
    )(work)
    pending = {remote.remote(on_cpus(task, cpus)): key for key, task in tasks.items()}
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=_LOOK_SECONDS)
        if not ready:
            _check_room(config, cpus)
            continue
        key = pending.pop(ready[0])
        try:
            figures = ray.get(ready[0])
        except RayTaskError as error:
            if isinstance(error.cause, ValueError):
                raise RobustnessError(f"{key}: {error.cause}") from error
            raise
        except RayError as error:
            raise RobustnessError(
                f"{key}: its process died {config.max_retries + 1} times ({type(error).__name__}); what is measured is kept, the "
                "same command goes on. If memory ran out, take fewer jobs or a smaller evaluation.batch_size"
            ) from error
        done(key, figures)


def cpus_of_a_task(config: RobustnessConfig) -> int:
    """One on a CPU. A GPU waits for its data: there the CPUs are shared out among the tasks that run at a time."""
    import ray

    if not config.use_cuda:
        return 1
    there = ray.cluster_resources()
    at_a_time = max(1, int(there.get("GPU", 0) * config.tasks_per_gpu))
    at_a_time = min(at_a_time, config.jobs or at_a_time)
    largest = max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
    return max(1, int(min(there.get("CPU", 1) / at_a_time, largest)))


def on_cpus(task: Task, cpus: int) -> Task:
    """The task with no more of its run's loader workers and scoring processes than so many CPUs can serve; one is its own."""
    config = RunConfig.model_validate_json(task.config)
    data = config.data.model_copy(update={"workers": min(config.data.workers, cpus - 1)})
    evaluation = config.evaluation.model_copy(update={"processes": min(config.evaluation.processes, cpus)})
    return replace(task, config=config.model_copy(update={"data": data, "evaluation": evaluation}).model_dump_json())
