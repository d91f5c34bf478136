"""A connection to Ray, for all that works on it: one way to begin it, to protect it and to end it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sensors.processes import stop_signals_blocked
from training.runs.files import RunError

_OBJECT_STORE_BYTES = 256 * 2**20  # nothing large of ours is in it, and by default it takes a third of the memory


@contextmanager
def ray_session(address: str | None, setting: str, **limits: Any) -> Iterator[None]:
    """Connected to Ray while this is open; where this process is connected already, by that.

    Ray's processes on this machine do not hear SIGINT and SIGTERM, which reach every process of a job: this process decides when
    the work ends, and then ends them.

    Args:
        address: of a cluster, as `ray.init` takes it; None: Ray on this machine alone.
        setting: that names the address, for errors.
        limits: of Ray on this machine, as `ray.init` takes them.

    Raises:
        RunError: there is no such cluster, or Ray cannot begin here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = signal.getsignal(signal.SIGTERM)
    import ray

    owned = not ray.is_initialized()
    try:
        if owned and address is not None:
            _connect(address, setting)
        elif owned:
            _begin(limits)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own handler would end this process at once
        yield
    finally:
        if owned:
            _end()


def _connect(address: str, setting: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    except (ConnectionError, ValueError) as error:
        raise RunError(f"{setting}: no Ray cluster at {address!r} ({error})") from error


def _begin(limits: dict[str, Any]) -> None:
    import ray

    try:
        with stop_signals_blocked():
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level="WARNING",
                **{"object_store_memory": _OBJECT_STORE_BYTES, **limits},
            )
    except OSError as error:
        variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
        if "AF_UNIX" not in str(error):
            raise
        raise RunError(
            f"{variable}={os.environ.get(variable)}: Ray keeps its sockets there, and their paths become too long; set "
            "RAY_TMPDIR to a short folder, such as /tmp"
        ) from error


def _end() -> None:
    """End Ray with all its processes here: they block SIGTERM, and would cost Ray a second each before it kills them."""
    import psutil  # comes with Ray
    import ray

    # None: another process has begun the cluster, or nobody has.
    node = getattr(ray._private.worker, "_global_node", None)
    begun = [each.process for group in getattr(node, "all_processes", {}).values() for each in group]
    below = []
    for process in begun:
        process.terminate = process.kill
        with suppress(psutil.Error):
            below += psutil.Process(process.pid).children(recursive=True)
    ray.shutdown()
    for child in below:  # agents of Ray's that would look for it for a minute more
        with suppress(psutil.Error):
            child.kill()
