"""Progress on the terminal: bars where there is one, a line now and then where there is none (a log file, a Ray worker)."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from sensors.text import plain
from training.loop.callbacks import Callback, StepRecord

_LINE_SECONDS = 10.0  # at most one plain line in so long


class Bars:
    """Progress bars of one command, one for each thing it does, made when it is first heard of.

    Called with what is done, how many so far and of how many (None: unknown). Use as a context.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as TimeRemaining

        self._console = Console(stderr=True)
        self._bars: Any = None
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:<12}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemaining(),
                console=self._console,
            )
        self._tasks: dict[str, Any] = {}
        self._spoken: dict[str, float] = {}
        self._begun: dict[str, float] = {}

    def __enter__(self) -> Bars:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int | None, note: str = "") -> None:
        what, note = plain(what), plain(note)
        if self._bars is None:
            self._line(what, done, total, note)
            return
        if what not in self._tasks:
            # The time left is reckoned from here, so that a run that goes on does not count what was done before.
            self._tasks[what] = self._bars.add_task(what, total=total, completed=done, note=note)
        self._bars.update(self._tasks[what], completed=done, total=total, note=note)

    def _line(self, what: str, done: int, total: int | None, note: str) -> None:
        now = time.monotonic()
        self._begun.setdefault(what, now)
        finished = done == total
        if not finished and now - self._spoken.get(what, -_LINE_SECONDS) < _LINE_SECONDS:
            return
        self._spoken[what] = now
        of = "" if total is None else f"/{total}"
        print(f"{what} {done}{of}  {note}  {now - self._begun[what]:.0f} s".replace("    ", "  "), flush=True)
        if finished:
            del self._begun[what]  # what is done again takes its own time


class TrainingProgress(Callback):
    """Shows a run: epoch, step, loss, samples a second, time left. `begun`: called once it trains."""

    def __init__(self, bars: Bars, epochs: int, begun: Callable[[], None] = lambda: None) -> None:
        self._bars = bars
        self._epochs = epochs
        self._begun = begun
        self._total = 0
        self._loss = self._rate = 0.0
        self._seen = 0

    def on_start(self, step: int, total_steps: int, steps_per_epoch: int) -> None:
        self._total = total_steps
        self._begun()
        self._bars("train", step, total_steps)

    def on_step(self, record: StepRecord) -> None:
        self._seen += 1
        keep = min(0.95, 1 - 1 / self._seen)  # a running mean at first, then about the last 20 steps
        self._loss = keep * self._loss + (1 - keep) * record.loss
        self._rate = keep * self._rate + (1 - keep) * record.samples / record.seconds
        note = f"epoch {record.epoch + 1}/{self._epochs}  loss {self._loss:.3f}  {self._rate:.1f} samples/s"
        self._bars("train", record.step, self._total, note)
