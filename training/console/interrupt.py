"""Ctrl-C and SIGTERM that lose nothing: the first asks to stop, a second Ctrl-C insists."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class StopOnSignal:
    """While this context is open, SIGINT and SIGTERM set a flag instead of ending the process.

    Called, it says whether one came: `with StopOnSignal() as stop: ... if stop(): ...`. A second SIGINT raises
    KeyboardInterrupt as usual. Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        return self._asked

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        print(
            "\nstopping: this step is finished and a checkpoint saved; Ctrl-C again to quit at once without it",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """While this is open, SIGTERM raises KeyboardInterrupt, so that what was begun is left as Ctrl-C leaves it.

    Outside the main thread, and where whoever started us had SIGTERM ignored, it does nothing.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
