"""The run's own record: one JSON line a step in `history.jsonl`, which needs no service and survives any crash."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.atomic import write_text
from training.callbacks import Callback, StepRecord


class History(Callback):
    """Writes every step to a file. A run that goes on first drops the steps that it takes again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_start(self, step: int, total_steps: int, steps_per_epoch: int) -> None:
        kept = [line for line in read_history(self._path) if line["step"] <= step]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_step(self, record: StepRecord) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")


def read_history(path: Path) -> list[dict[str, Any]]:
    """The steps of a history, oldest first; a last line that a crash cut off is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
