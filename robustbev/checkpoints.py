"""Which checkpoint a path means, for programs and commands alike."""

from __future__ import annotations

from pathlib import Path

STEP_PREFIX, BEST_PREFIX = "step-", "best-"
_LONGEST_NAME = 100  # of a checkpoint's folder


class CheckpointError(ValueError):
    """There is no checkpoint, or it is damaged, or of another architecture or run."""


def find_checkpoint(path: Path) -> Path:
    """The checkpoint meant by a path: a checkpoint (or its weights' file), a folder of checkpoints, or a run (their newest).

    Raises:
        CheckpointError: there is none.
    """
    if (path / "model.safetensors").is_file() or path.is_file():
        return path
    checkpoint = latest_checkpoint(path) or latest_checkpoint(path / "checkpoints")
    if checkpoint is None:
        what = "no checkpoint in it" if path.is_dir() else "not found"
        raise CheckpointError(
            f"{path}: {what}; expected a directory with model.safetensors and config.json, or the folder of a run that has "
            "one: `robustbev train` writes them to runs/<name>/checkpoints/"
        )
    return checkpoint


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint among the folders of `directory`."""
    pointer = directory / "latest"
    if pointer.is_file():
        name = pointer.read_bytes()[:_LONGEST_NAME].decode("ascii", "replace").strip()
        step = name.removeprefix(STEP_PREFIX)
        if name.startswith(STEP_PREFIX) and step.isalnum() and _is_complete(directory / name):
            return directory / name
    complete = complete_checkpoints(directory)
    return complete[-1] if complete else None


def complete_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints among the folders of `directory`, the newest last."""
    return sorted(path for path in directory.glob(f"{STEP_PREFIX}*") if _is_complete(path))


def step_of(checkpoint: Path) -> int | None:
    """The optimiser steps done when a checkpoint was written; None where its folder does not say.

    A run's `best` is a link to `best-00000330`.
    """
    kind, _, number = checkpoint.resolve().name.rpartition("-")
    return int(number) if f"{kind}-" in (STEP_PREFIX, BEST_PREFIX) and number.isdecimal() else None


def _is_complete(folder: Path) -> bool:
    """Folders of checkpoints get their names when all is in them."""
    return (folder / "model.safetensors").is_file()
