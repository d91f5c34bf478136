"""Tasks on Ray: so many at a time, begun again where their worker is lost, each result handed over as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.runs.files import RunError

_LOOK_SECONDS = 1.0
_QUIET_SECONDS = 30.0  # without a task done, after which the cluster is looked at


@dataclass(frozen=True)
class Share:
    """What one task gets."""

    tasks: int  # at a time
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class RayTask:
    """One call of the pool's function."""

    arguments: tuple[Any, ...]
    share: Share
    retries: int  # where its worker is lost; -1: always


def share_out(tasks: int | None, *, cuda: bool, setting: str, tasks_per_gpu: int = 1) -> Share:
    """Share out Ray's machines among so many tasks at a time; None: one a CPU core, or `tasks_per_gpu` a GPU.

    Single-threaded work side by side gets more out of CPU cores than one task on all of them. `setting` is what asks for CUDA.

    Raises:
        RunError: a GPU is wanted, and there is none.
    """
    import ray

    there = ray.cluster_resources()
    cpus, largest = there.get("CPU", 1.0), max(n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"])
    if cuda:
        check_gpu(there, setting)
        places = int(there["GPU"] * tasks_per_gpu)
        count = min(places, tasks or places)
    else:
        count = tasks or max(1, int(cpus))
    each = min(cpus / count, largest)
    return Share(count, int(each * 1000) / 1000, 1 / tasks_per_gpu if cuda else 0)  # Ray counts in ten-thousandths


def check_gpu(there: Mapping[str, float], setting: str) -> None:
    """RunError where Ray would wait for a GPU for ever."""
    if there.get("GPU", 0.0) < 1:
        raise RunError(f"{setting}: cuda, but Ray found no GPU; expected one, or {setting}=cpu")


def run_tasks(
    function: Callable[..., Any],
    tasks: Mapping[str, RayTask],
    *,
    stop: Callable[[], bool] = lambda: False,
    look: Callable[[Sequence[str]], None] = lambda running: None,
) -> Iterator[tuple[str, Any]]:
    """-> (name of a task, what it returned or the exception that ended it), as they come to their end.

    Args:
        function: of a module, because Ray's workers import it by name.
        tasks: in the order in which to begin them.
        stop: once it says so no more are begun; those that run are waited for.
        look: is told every second which ones run.

    Raises:
        RunError: the cluster has lost what a task takes, and Ray would wait for it for ever.
    """
    import ray

    remote = ray.remote(function)
    limit = max((task.share.tasks for task in tasks.values()), default=0)
    waiting, running, heard = list(tasks), dict[Any, str](), time.monotonic()
    while running or (waiting and not stop()):
        while waiting and len(running) < limit and not stop():
            name = waiting.pop(0)
            share, retries = tasks[name].share, tasks[name].retries
            options = remote.options(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=retries, name=name)
            running[options.remote(*tasks[name].arguments)] = name
        ready, _ = ray.wait(list(running), timeout=_LOOK_SECONDS)
        for reference in ready:
            name, heard = running.pop(reference), time.monotonic()
            yield name, _outcome(reference, tasks[name].retries + 1)
        if time.monotonic() - heard > _QUIET_SECONDS:
            heard = time.monotonic()
            _check_room(tasks[name].share for name in running.values())
        look(list(running.values()))


def _outcome(reference: Any, tries: int) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        error.cause.__cause__ = error  # which has the worker's traceback
        return error.cause
    except ray.exceptions.RayError as error:
        return RunError(
            f"its worker died {tries} times ({type(error).__name__}); what is done is kept, the same command goes on. If memory "
            "ran out, let fewer run at a time"
        )


def _check_room(shares: Iterator[Share]) -> None:
    import ray

    there = ray.cluster_resources()
    for share in shares:
        if there.get("CPU", 0.0) < share.cpus or there.get("GPU", 0.0) < share.gpus:
            raise RunError(
                f"the Ray cluster has {there.get('CPU', 0.0):g} CPUs and {there.get('GPU', 0.0):g} GPUs left, and a task takes "
                f"{share.cpus:g} and {share.gpus:g}; what is done is kept, the same command goes on once its machines are back"
            )
