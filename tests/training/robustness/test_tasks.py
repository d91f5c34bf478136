"""Tasks: figures are kept by what decides them, and a task whose process dies is run again and counted once."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import robustbev
import training.robustness.tasks
from tests.tiny_model import tiny_model
from training.robustness.cases import Case
from training.robustness.config import RobustnessConfig
from training.robustness.tasks import (
    RobustnessError,
    Store,
    Task,
    fingerprint,
    on_cpus,
    run_tasks,
)
from training.runs.cluster.session import ray_session
from training.runs.config import RunConfig
from training.tasks.detection.result import SubsetResult
from training.tasks.predictions import Progress

RESULT = SubsetResult("camera+lidar+radar", 0.5, 0.4, {}, {}, "ranges: official", 3)


def task(folder: Path, case: str = "fog-3") -> Task:
    return Task(folder, RunConfig().model_dump_json(), (case,), seed=0, health="off")


def figures(case: str) -> dict[str, Any]:
    return {case: RESULT.to_json()}


def test_figures_are_found_again_by_fingerprint_and_condition(tmp_path: Path) -> None:
    case, lidar = Case(corruption="fog", severity=3), Case("lidar", "fog", 3)
    store = Store(tmp_path)
    assert store.read("abc", [case]) is None
    Store(tmp_path).write("abc", "fog-3", figures("fog-3"))
    found = store.read("abc", [case])
    assert found is not None
    assert found[case].nds == 0.4
    assert store.read("abd", [case]) is None
    assert store.read("abc", [case, lidar]) is None  # not all of the group
    store.write("abc", "fog-3", figures("fog-3") | figures("lidar.fog-3"))
    assert store.read("abc", [case, lidar]) is not None


def test_the_fingerprint_is_of_what_decides_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = robustbev.save(tiny_model(0), tmp_path / "first")
    copied = robustbev.save(tiny_model(0), tmp_path / "copied")
    other = robustbev.save(tiny_model(1), tmp_path / "other")
    config = RunConfig()
    moved = config.model_copy(update={"name": "moved", "runs_dir": tmp_path, "batch_size": 3})
    short = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"limit": 2})})

    monitor = tmp_path / "health.json"
    monitor.write_text("{}")

    def of(
        checkpoint: Path = first,
        config: RunConfig = config,
        data: str = "x",
        seed: int = 0,
        monitor: Path | None = None,
        precision: str = "float32",
    ) -> str:
        return fingerprint(checkpoint, config, data, seed=seed, precision=precision, monitor=monitor)

    assert of() == of(copied) == of(config=moved) == of(first / "model.safetensors")
    differing = [
        of(),
        of(other),
        of(data="y"),
        of(seed=1),
        of(config=short),
        of(precision="bfloat16"),
        of(monitor=monitor),
    ]
    monkeypatch.setattr(training.robustness.tasks, "code_digest", lambda: "of other code")
    assert len({*differing, of()}) == 8


def test_in_this_process_one_after_the_other(tmp_path: Path) -> None:
    seen: list[str] = []
    tasks = {name: task(tmp_path, name) for name in ("fog-3", "snow-1")}
    config = RobustnessConfig(jobs=0)
    run_tasks(tasks, config, lambda key, _: seen.append(key), work=lambda task, _: figures(task.cases[0]))
    assert seen == ["fog-3", "snow-1"]


def work(task: Task, progress: Progress | None) -> dict[str, Any]:
    """By the condition's name: fog kills its process the first time, snow always, dark is faulty."""
    tries = task.checkpoint / f"{task.condition}-{os.getpid()}"
    tries.touch()
    earlier = len(list(task.checkpoint.glob(f"{task.condition}-*")))
    if task.condition.startswith("snow") or (task.condition.startswith("fog") and earlier == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if task.condition.startswith("dark"):
        raise ValueError("the data is not what it should be")
    return figures(task.cases[0])


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests of this file."""
    pytest.importorskip("ray")
    with ray_session(None, "address", num_cpus=2, object_store_memory=100 * 2**20):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_task_whose_process_dies_is_run_again_and_counted_once(tmp_path: Path) -> None:
    seen: list[str] = []
    tasks = {name: task(tmp_path, name) for name in ("fog-3", "bright-1", "fog-5")}
    run_tasks(tasks, RobustnessConfig(jobs=2), lambda key, _: seen.append(key), work=work)
    assert sorted(seen) == ["bright-1", "fog-3", "fog-5"]
    assert len(list(tmp_path.glob("fog-3-*"))) == 2  # two processes tried

    with pytest.raises(RobustnessError, match=r"snow-1: its worker died 2 times.*the same command goes on"):
        run_tasks({"snow-1": task(tmp_path, "snow-1")}, RobustnessConfig(max_retries=1), print, work=work)
    with pytest.raises(RobustnessError, match="dark-1: the data is not what it should be"):
        run_tasks({"dark-1": task(tmp_path, "dark-1")}, RobustnessConfig(), print, work=work)
    assert len(list(tmp_path.glob("dark-1-*"))) == 1  # a fault would come again: it is not tried again


def test_a_task_on_a_gpu_has_the_workers_of_its_run_as_far_as_the_cpus_go(tmp_path: Path) -> None:
    run = RunConfig.model_validate({"data": {"workers": 3}, "evaluation": {"processes": 2}})
    given = Task(tmp_path, run.model_dump_json(), ("fog-3",), seed=0, health="off", cuda=True)
    for cpus, workers, processes in ((1, 0, 1), (2, 1, 2), (4, 3, 2), (16, 3, 2)):
        config = RunConfig.model_validate_json(on_cpus(given, cpus).config)
        assert (config.data.workers, config.evaluation.processes) == (workers, processes)
        assert replace(on_cpus(given, cpus), config=given.config) == given
