"""The run's own record: one JSON line a step in `history.jsonl`, which needs no service and survives any crash.

What is measured while it trains is kept in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sensors.documents import check_memory
from sensors.files import no_links
from training.files.atomic import names_file, write_text
from training.loop.callbacks import Callback, StepRecord


class History(Callback):
    """Writes every step to a file. A run that goes on first drops the steps that it takes again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_start(self, step: int, total_steps: int, steps_per_epoch: int) -> None:
        drop_after(self._path, step)

    def on_step(self, record: StepRecord) -> None:
        append(self._path, asdict(record))


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row, which has a "step", to a history."""
    with names_file(path), open(path, "a", encoding="utf-8", opener=no_links) as file:
        file.write(json.dumps(row) + "\n")


def drop_after(path: Path, step: int) -> None:
    """Drop the rows of later steps from a history, and what a crash cut off."""
    kept = [row for row in read_history(path) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def read_history(path: Path) -> list[dict[str, Any]]:
    """The steps of a history, oldest first, up to a line that is none: a crash cut it off, or it is not of ours."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            check_memory(text)
            row = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        lines.append(row)
    return lines
