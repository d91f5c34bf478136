"""Ctrl-C that loses nothing: the first asks to stop, the second insists."""

from __future__ import annotations

import os
import signal
import sys
import threading
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
        self._process = os.getpid()

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
        if os.getpid() != self._process:
            # A forked loader worker: Ctrl-C reaches it too, but its batches are wanted until the step is done.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        print(
            "\nstopping: this step is finished and a checkpoint saved; Ctrl-C again to quit at once without it",
            file=sys.stderr,
            flush=True,
        )
