"""What a run hands to its tracker: first written to a file of the run's folder, then sent by `training.tracking.sending`.

JSON lines that are only ever appended. Nobody waits for the tracker, and a row that is sent again (after a crash, to a new
run) is the same row, with the time at which it was recorded.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from sensors.documents import check_memory
from sensors.files import no_links
from training.files.atomic import names_file

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
Row = dict[str, Any]  # with one of the keys "metrics", "tag", "file", "status"


class Outbox:
    """The rows in one file. Several processes may append to it; making one touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = 0  # bytes
        self._metrics: dict[tuple[int, str], float] = {}
        self._tags: dict[str, str] = {}
        self._recorded: set[Path] = set()

    def metrics(self, values: Mapping[str, float], step: int, *, renew: bool = False) -> None:
        """Record figures at one step.

        A figure has one value a step: what is recorded already stays as it is, so that steps which are taken again after a
        crash are not there twice. With `renew` a value that differs is recorded beside the first, as a later measurement.
        """
        with self._locked() as file:
            new = {name: float(v) for name, v in values.items() if self._is_new(step, name, float(v), renew)}
            if new:
                self._append(file, {"metrics": new, "step": step, "time_ms": _now_ms()})

    def tag(self, name: str, value: str) -> None:
        """Set a tag, or change it."""
        with self._locked() as file:
            if self._tags.get(name) != value:
                self._append(file, {"tag": name, "value": value})

    def files(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Have copies of files kept, as they are when they are sent; None: beside the tracker's folders."""
        root = self.path.parent.absolute()
        with self._locked() as file:
            for path in map(Path.absolute, paths):
                self._recorded.add(path)
                place = path.relative_to(root) if path.is_relative_to(root) else path  # the run's folder may be moved
                self._append(file, {"file": str(place), "folder": folder})

    def vouches_for(self, path: Path) -> bool:
        """Whether a file may be sent: it lies in the run's folder, or this process recorded it."""
        return path.absolute() in self._recorded or path.resolve().is_relative_to(self.path.parent.resolve())

    def status(self, status: Status) -> None:
        """Say how the run stands."""
        with self._locked() as file:
            self._append(file, {"status": status, "time_ms": _now_ms()})

    def rows(self, start: int = 0) -> Iterator[tuple[int, Row]]:
        """Rows from a byte on, each with the byte at which it ends. What a crash cut off is left out."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                start += len(line)
                if not line.endswith(b"\n"):
                    return
                try:
                    check_memory(line)
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if _is_row(row):
                    yield start, row

    def _is_new(self, step: int, name: str, value: float, renew: bool) -> bool:
        known = self._metrics.get((step, name))
        same = known == value or (known is not None and math.isnan(known) and math.isnan(value))
        return known is None or (renew and not same)

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """Hold the file for a moment, its last line whole and all its rows known."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b", buffering=0, opener=no_links) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                end = file.seek(0, os.SEEK_END)
                if end and _last_byte(file, end) != b"\n":
                    file.write(b"\n")
                self._learn()
                yield file
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough where a forked process holds the file too

    def _append(self, file: BinaryIO, row: Row) -> None:
        line = json.dumps(row).encode() + b"\n"
        with names_file(self.path):
            if file.write(line) != len(line):
                raise OSError(f"{self.path}: the disk took only part of a line; make room on it")
        self._learn()

    def _learn(self) -> None:
        for end, row in self.rows(self._read_to):
            self._read_to = end
            for name, value in row.get("metrics", {}).items():
                self._metrics[row["step"], name] = value
            if "tag" in row:
                self._tags[row["tag"]] = row["value"]


def _is_row(row: object) -> bool:
    """Whether a line is one of ours; a run's folder, and this file in it, may come from anywhere."""
    match row:
        case {"metrics": dict(figures), "step": int(), "time_ms": int()}:
            return all(type(value) is float for value in figures.values())
        case {"tag": str(), "value": str()} | {"file": str(), "folder": str() | None}:
            return True
        case {"status": str(status), "time_ms": int()}:
            return status in get_args(Status)
    return False


def _last_byte(file: BinaryIO, end: int) -> bytes:
    file.seek(end - 1)
    return file.read(1)


def _now_ms() -> int:
    return int(time.time() * 1000)
