"""The best checkpoint of a run: a model that stays when training goes on and worse ones come.

`checkpoints/best` is a link to `best-00000330`, a folder as `robustbev.save` writes it with `best.json` in it, which says what
was measured. Training goes on from the newest checkpoint, not from this one, so that it holds no optimiser state.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from robustbev.checkpoints import BEST_PREFIX
from training.files.atomic import read_note, write_json
from training.loop.checkpoint import sync_folder

_LINK, _NOTE = BEST_PREFIX.rstrip("-"), "best.json"
_MODEL = ("model.safetensors", "config.json")


@dataclass(frozen=True)
class Measured:
    """By what a checkpoint is the best one. Values compare where all but step and value are the same."""

    step: int
    value: float  # mean over the subsets
    figure: str  # mAP or NDS
    subsets: tuple[str, ...]
    split: str
    samples: int
    score_threshold: float
    max_boxes_per_sample: int

    def compares_with(self, other: Measured) -> bool:
        """Whether both were measured in the same way."""
        return self == replace(other, step=self.step, value=self.value)

    def __str__(self) -> str:
        return f"{self.figure} {self.value:.3f} at step {self.step}"


def best_of(checkpoints: Path) -> tuple[Path, Measured] | None:
    """The best checkpoint among a run's, None where none was kept."""
    link = checkpoints / _LINK
    try:
        content = read_note(link / _NOTE)
        return link, Measured(**{**content, "subsets": tuple(content["subsets"])})
    except (OSError, ValueError, TypeError, LookupError):
        return None


def keep_best(checkpoint: Path, measured: Measured, finish: Callable[[Path], object]) -> Path:
    """Keep a copy of the model of `checkpoint` as the best one beside it, in place of the one before; -> the link.

    At any moment there is the one before or the new one, whole.

    Args:
        checkpoint: a checkpoint of the run, among its others.
        measured: goes into `best.json`.
        finish: is given the copy before it counts, to write its model card.

    Raises:
        OSError: the disk is full or does not let us write; the best one is the one before.
    """
    checkpoints = checkpoint.parent
    link, final = checkpoints / _LINK, checkpoints / f"{BEST_PREFIX}{measured.step:08d}"
    if link.resolve() == final.resolve():  # the same weights, measured in another way
        finish(final)
        write_json(final / _NOTE, asdict(measured))
        return link
    partial = checkpoints / f".partial-{final.name}"
    pointer = checkpoints / f".partial-{_LINK}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name in _MODEL:
            shutil.copyfile(checkpoint / name, partial / name)
        finish(partial)
        write_json(partial / _NOTE, asdict(measured))
        sync_folder(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        pointer.unlink(missing_ok=True)
        pointer.symlink_to(final.name, target_is_directory=True)
        pointer.replace(link)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        pointer.unlink(missing_ok=True)
        raise
    for old in checkpoints.glob(f"{BEST_PREFIX}*"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    return link
