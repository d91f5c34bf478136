"""Tasks on Ray share out what machines there are, stop when asked, and are not waited for where the machines are lost."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("ray")

import ray

from training.runs.cluster import pool as ray_pool
from training.runs.cluster.pool import RayTask, run_tasks, share_out
from training.runs.cluster.session import ray_session
from training.runs.files import RunError


@pytest.mark.parametrize(
    ("tasks", "more", "there", "at_a_time", "cpus"),
    [
        (None, {}, {"CPU": 2.0}, 2, 1.0),
        (1, {}, {"CPU": 8.0}, 1, 8.0),
        (3, {}, {"CPU": 2.0}, 3, 0.666),  # rounded down
        (2, {}, {"CPU": 64.0}, 2, 16.0),  # no more than one machine has
        (None, {}, {"CPU": 16.0, "GPU": 1.0}, 16, 1.0),
        (None, {"cuda": True}, {"CPU": 16.0, "GPU": 4.0}, 4, 4.0),
        (None, {"cuda": True, "tasks_per_gpu": 4}, {"CPU": 16.0, "GPU": 1.0}, 4, 4.0),
        (2, {"cuda": True, "tasks_per_gpu": 4}, {"CPU": 16.0, "GPU": 1.0}, 2, 8.0),
        (9, {"cuda": True}, {"CPU": 8.0, "GPU": 2.0}, 2, 4.0),
    ],
)
def test_machines_are_shared_out(
    monkeypatch: pytest.MonkeyPatch,
    tasks: int | None,
    more: dict[str, Any],
    there: dict[str, float],
    at_a_time: int,
    cpus: float,
) -> None:
    machines(monkeypatch, there)
    share = share_out(tasks, **{"cuda": False, "setting": "device", **more})
    assert (share.tasks, share.cpus, share.threads) == (at_a_time, cpus, max(1, int(cpus)))
    assert share.gpus == (1 / more.get("tasks_per_gpu", 1) if "cuda" in more else 0)


def test_a_gpu_that_is_not_there_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machines(monkeypatch, {"CPU": 2.0})
    with pytest.raises(RunError, match="device: cuda, but Ray found no GPU; expected one, or device=cpu"):
        share_out(None, cuda=True, setting="device")


def machines(monkeypatch: pytest.MonkeyPatch, there: dict[str, float]) -> None:
    largest = {"Alive": True, "Resources": {"CPU": min(16.0, there["CPU"])}}
    dead = {"Alive": False, "Resources": {"CPU": 128.0}}
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(ray, "nodes", lambda: [largest, dead])


def work(seconds: float) -> None:
    time.sleep(seconds)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests of this file."""
    with ray_session(None, "address", num_cpus=2, object_store_memory=100 * 2**20):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_once_stopped_none_is_begun_and_those_that_run_are_waited_for() -> None:
    share = share_out(1, cuda=False, setting="device")
    seen: list[str] = []
    tasks = {name: RayTask((0.1,), share, 0) for name in "abc"}
    for name, result in run_tasks(work, tasks, stop=lambda: len(seen) == 2):
        assert result is None
        seen.append(name)
    assert seen == ["a", "b"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_cluster_that_has_lost_its_machines_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"slow": RayTask((3.0,), share_out(None, cuda=False, setting="device"), 0)}
    monkeypatch.setattr(ray_pool, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(ray_pool, "_QUIET_SECONDS", 0.2)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 0.0})
    with pytest.raises(RunError, match=r"has 0 CPUs and 0 GPUs left, and a task takes 1 and 0;.*is kept"):
        list(run_tasks(work, tasks))
