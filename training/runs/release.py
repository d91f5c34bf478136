"""A trained model as a folder to hand on: weights, configuration, model card."""

from __future__ import annotations

from pathlib import Path

import robustbev
from robustbev import PerceptionModel
from robustbev.checkpoints import find_checkpoint, step_of
from training.data.dataset import with_rig
from training.files.atomic import write_text
from training.runs.config import RunConfig, load_run_config
from training.runs.files import run_of
from training.runs.model_card import card_of


def release(checkpoint: Path, out: Path) -> Path:
    """Write what `robustbev.load` needs of a checkpoint into the folder `out`; -> `out`.

    The model card is the checkpoint's own, with the figures that `robustbev evaluate` wrote into it. A checkpoint of before
    models knew their rig gets the rig of its run.

    Args:
        checkpoint: a checkpoint, or a run's folder (its newest one).
        out: a folder that does not hold a checkpoint of a run.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
        ValueError: `out` is a checkpoint of a run.
    """
    path = find_checkpoint(checkpoint)
    folder = path if path.is_dir() else path.parent
    if run_of(out) is not None:
        raise ValueError(
            f"{out}: is a checkpoint of a run, which its run needs as it is: name another folder with --out"
        )
    model, config = load_with_rig(path)
    robustbev.save(model, out, None if config is None else card_of(config, step=step_of(folder)))
    own = folder / "README.md"
    if own.is_file():
        write_text(out / "README.md", own.read_text(encoding="utf-8"))
    return out


def load_with_rig(checkpoint: Path) -> tuple[PerceptionModel, RunConfig | None]:
    """The model of a checkpoint and its run's configuration, if it lies in one, which also tells an older model its rig.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
    """
    path = find_checkpoint(checkpoint)
    model, files = robustbev.load(path), run_of(path)
    if files is None:
        return model, None
    config = load_run_config(files.config)
    model.config = with_rig(model.config, config.data)
    return model, config
