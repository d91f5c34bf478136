"""A trained model as a folder to hand on: weights, configuration, model card."""

from __future__ import annotations

from pathlib import Path

import robustbev
from robustbev.checkpoints import find_checkpoint
from sensors.files import no_links
from training.files.atomic import replacing
from training.runs.files import run_of


def release(checkpoint: Path, out: Path) -> Path:
    """Copy what `robustbev.load` needs of a checkpoint, and its model card, into the folder `out`; -> `out`.

    Args:
        checkpoint: a checkpoint, or a run's folder (its newest one).
        out: a folder that does not hold a checkpoint of a run.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
        OSError: a file of it is a symbolic link, which may be to anything.
        ValueError: `out` is a checkpoint of a run.
    """
    path = find_checkpoint(checkpoint)
    folder = path if path.is_dir() else path.parent
    if run_of(out) is not None:
        raise ValueError(
            f"{out}: is a checkpoint of a run, which its run needs as it is: name another folder with --out"
        )
    robustbev.load(path)  # what cannot be read is not handed on
    for name in ("model.safetensors", "config.json", "README.md"):
        with replacing(out / name) as copy, open(folder / name, "rb", opener=no_links) as file:
            copy.write_bytes(file.read())
    return out
