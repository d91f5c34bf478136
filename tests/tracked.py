"""A run that is tracked by an MLflow which nobody has to start: what it would get lies in the run's outbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from training.runs.files import RunFiles
from training.tracking.outbox import Outbox

AWAY = "http://127.0.0.1:9"  # nobody listens there


@contextmanager
def tracked(files: RunFiles) -> Iterator[Outbox]:
    """For a while a run is one that MLflow knows, though it is away now; -> the outbox."""
    files.mlflow.write_text(json.dumps({"uri": AWAY, "run_id": "0" * 32}))
    try:
        yield Outbox(files.outbox)
    finally:
        files.mlflow.unlink()
        files.outbox.unlink(missing_ok=True)


def figures(outbox: Outbox) -> dict[str, float]:
    """Name -> the value that was recorded last."""
    return {name: value for _, row in outbox.rows() for name, value in row.get("metrics", {}).items()}


def steps(outbox: Outbox) -> set[int]:
    return {row["step"] for _, row in outbox.rows() if "metrics" in row}


def kept(outbox: Outbox) -> dict[str, list[str]]:
    """Folder -> the names of the files that are there."""
    found: dict[str, list[str]] = {}
    for _, row in outbox.rows():
        if "file" in row and (outbox.path.parent / row["file"]).is_file():
            found.setdefault(row["folder"], []).append(row["file"].rpartition("/")[2])
    return found
