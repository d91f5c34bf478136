"""Work in processes side by side: results, and what becomes of the processes when something goes wrong."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sensors.processes import ProcessesError, run_each, stop_signals_blocked, use_one_thread


def work(folder: Path, what: str) -> str:
    """Writes a file beside which `what` happens."""
    half = folder / f"{os.getpid()}.half"
    half.touch()
    try:
        match what:
            case "fail":
                raise KeyError("a fault")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(600)
    finally:
        half.unlink()
    return what.upper()


def threads_of_an_inverse(limited: bool) -> int:
    if limited:
        use_one_thread()
    np.linalg.inv(np.eye(3))
    return sum(1 for _ in Path("/proc/self/task").iterdir())


ONE_THREAD = """
from sensors.processes import run_each
from tests.sensors.test_processes import threads_of_an_inverse
free, limited = (next(run_each(threads_of_an_inverse, [(how,)], 1, "fork"))[1] for how in (False, True))
print(free - limited)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_a_process_beside_others_has_one_thread_for_arithmetic() -> None:
    variables = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "4")
    command = [sys.executable, "-c", ONE_THREAD]
    done = subprocess.run(command, env=variables, timeout=120, capture_output=True, text=True, check=True)
    assert int(done.stdout) in (0, 3)  # 0: numpy's BLAS is one that starts no threads for this


@pytest.mark.parametrize("processes", [1, 3])
def test_results_know_their_jobs(tmp_path: Path, processes: int) -> None:
    before = set(multiprocessing.active_children())  # of tests that ran here earlier
    jobs = [(tmp_path, name) for name in "abcde"]
    assert dict(run_each(work, jobs, processes, "fork")) == dict(enumerate("ABCDE"))
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("fail", KeyError, "a fault"),
        ("die", ProcessesError, "was killed"),
        ("hang", ProcessesError, "none of 2 processes"),
    ],
)
def test_what_goes_wrong_ends_the_others_too(tmp_path: Path, what: str, error: type[Exception], said: str) -> None:
    before = set(multiprocessing.active_children())  # of tests that ran here earlier
    with pytest.raises(error, match=said):
        for _ in run_each(work, [(tmp_path, what), (tmp_path, "hang")], 2, "fork", longest_job_seconds=0.5):
            pass
    assert set(multiprocessing.active_children()) <= before
    if what != "die":  # by SIGKILL, to which nobody can answer
        assert list(tmp_path.iterdir()) == []


def test_an_interrupted_caller_leaves_no_process_and_nothing_half_written(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())  # of tests that ran here earlier
    results = run_each(work, [(tmp_path, "quick"), (tmp_path, "hang"), (tmp_path, "hang")], 2, "fork")
    assert next(results) == (0, "QUICK")
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert set(multiprocessing.active_children()) <= before
    assert list(tmp_path.iterdir()) == []


def test_children_of_blocked_signals_get_none_that_the_whole_group_gets() -> None:
    with stop_signals_blocked():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
    assert child.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child.pid, number)
    child.join(0.2)
    assert child.is_alive()
    child.kill()
    child.join(10)
    assert child.exitcode == -signal.SIGKILL
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
