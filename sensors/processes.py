"""Processes beside this one: when this one is asked to end, it alone decides what becomes of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Literal, TypeVar

Result = TypeVar("Result")

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_END_SECONDS = 5.0  # for a process to remove what it has half written
_LONGEST_JOB_SECONDS = 3600.0


class ProcessesError(ValueError):
    """Processes that work for this one have died, or do not come to an end."""


def use_one_thread() -> None:
    """For a process beside others, one a core: torch, OpenCV and numpy's BLAS would each use all cores.

    BLAS would for an inverse of 3 x 3, and its threads keep their cores busy for a while after it.
    """
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with suppress(ImportError):  # comes with the devkit, through scikit-learn
        from threadpoolctl import threadpool_limits

        threadpool_limits(1, "blas")


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """SIGINT and SIGTERM wait while this is open; processes that are started in it never get them.

    Ctrl-C, Slurm and Kubernetes send them to every process at once, but what a loader reads is wanted until the step is done.
    The signals are blocked and not handled, because a new process inherits that from its first instant on. They do not go lost
    here: one that comes meanwhile is delivered when the context closes.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_each(
    function: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    processes: int,
    method: Literal["fork", "spawn"],
    *,
    longest_job_seconds: float = _LONGEST_JOB_SECONDS,
) -> Generator[tuple[int, Result]]:
    """Do `function(*job)` for every job in processes of their own; -> (position in `jobs`, result) as they come to be done.

    An error, Ctrl-C and SIGTERM end the processes before they leave here, and so does a caller who asks for no more.

    Args:
        function: importable where `method` is "spawn"; what it raises is raised here.
        jobs: the arguments of each.
        processes: how many work side by side.
        method: how they are started.
        longest_job_seconds: when for so long no job came to its end, something hangs.

    Raises:
        ProcessesError: a process has died, or something hangs.
    """
    pool = ProcessPoolExecutor(
        min(processes, len(jobs)), mp_context=multiprocessing.get_context(method), initializer=_listen
    )
    others = set(multiprocessing.active_children())
    children: set[BaseProcess] = set()
    try:
        with stop_signals_blocked():
            waiting: dict[Future[Result], int] = {pool.submit(_do, function, job): i for i, job in enumerate(jobs)}
            children = set(multiprocessing.active_children()) - others
        while waiting:
            done, _ = wait(waiting, longest_job_seconds, FIRST_COMPLETED)
            if not done:
                raise ProcessesError(f"none of {len(children)} processes has done a job in {longest_job_seconds:g} s")
            for future in done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        _end(children)
        raise ProcessesError(
            "a process that works for this one was killed; where memory ran out, let fewer work at a time"
        ) from error
    except BaseException:
        _end(children)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end(processes: Collection[BaseProcess], seconds: float = _END_SECONDS) -> None:
    """End processes: asked first, killed where they do not within `seconds`."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join(seconds)


class _Ended(BaseException):
    """Unwinds a job, so that it removes what it has half written."""


_working = False


def _listen() -> None:
    """In the process: Ctrl-C is for whoever started it, SIGTERM is from there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _asked_to_end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def _asked_to_end(number: int, frame: FrameType | None) -> None:
    if _working:
        raise _Ended
    os._exit(128 + number)


def _do(function: Callable[..., Result], job: tuple[Any, ...]) -> Result:
    global _working
    try:
        _working = True
        return function(*job)
    except _Ended:
        os._exit(128 + signal.SIGTERM)
    finally:
        _working = False
