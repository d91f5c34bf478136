"""Figures while a run trains: its checkpoints measured on the validation split as they come, and the best one kept.

Measured is what lies on the disk, read anew: the model that whoever loads the checkpoint has, averaged weights included.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import torch

import robustbev
from sensors.extras import require
from sensors.processes import ProcessesError
from training.console.progress import Bars
from training.data.dataset import open_reader, with_rig
from training.data.loader import SampleLoader, build_loader
from training.evaluation.subsets import possible_subsets, predict_subsets, score_subsets
from training.evaluation.tables import Results, write_report
from training.loop.best import Measured, best_of, keep_best
from training.loop.callbacks import Callback
from training.loop.checkpoint import CheckpointWriteError
from training.loop.history import append, drop_after, read_history
from training.loop.peers import Peers
from training.loop.random_state import random_state_kept
from training.runs.config import RunConfig
from training.runs.evaluate import figures_of
from training.runs.files import RunFiles
from training.runs.model_card import card_of
from training.tasks.detection.result import SubsetResult, main_figures
from training.tasks.predictions import Predictions

Log = Callable[[Mapping[str, float], int], object]  # figures at a step
Result = TypeVar("Result")


class _Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    pass


@dataclass
class Validation(Callback):
    """Measures checkpoints: every rank perceives its share of the samples, rank 0 scores what all of them found.

    The run's random state stays as it was: a run has the same losses whether it is measured or not.

    Raises:
        ValueError: the validation split cannot be read, or the model has the sensors of no subset in `evaluation.watch`.
        MissingExtraError: the devkit is not installed.
    """

    config: RunConfig
    files: RunFiles
    peers: Peers
    device: torch.device
    stop: Callable[[], bool]
    log: Log | None = None
    progress: Bars | None = None

    def __post_init__(self) -> None:
        # What is wrong with any of these must not turn out after an epoch.
        require("evaluation.every_epochs", "data", "nuscenes")
        model, watch = self.config.model, self.config.evaluation.watch
        self._subsets = possible_subsets(model, watch or ("+".join(model.modalities),))
        self._split = self.config.data.nuscenes.val_split
        open_reader(self.config.data, model, self._split)

    def on_start(self, step: int, total_steps: int, steps_per_epoch: int) -> None:
        if self.peers.rank == 0 and self.files.validation.is_file():
            drop_after(self.files.validation, step)

    def __call__(self, checkpoint: Path, step: int) -> bool:
        """Measure a checkpoint, unless that is done; -> False where `stop` ended it, and nothing of it is kept.

        Raises:
            CheckpointWriteError: the best model could not be kept; the one before it is as it was.
            SensorDataError: a file of the validation split is broken.
        """
        known = any(row["step"] == step for row in read_history(self.files.validation))
        if self.peers.gather(known)[0]:
            return True
        with random_state_kept():
            parts = self.peers.gather(self._unless_stopped(lambda: self._predict(checkpoint)))
            done = None not in parts
            if done and self.peers.rank == 0:
                results = self._unless_stopped(lambda: self._score(parts))
                done = results is not None
                if results is not None:
                    self._settle(checkpoint, step, results)
        return bool(self.peers.gather(done)[0])

    def _unless_stopped(self, work: Callable[[], Result]) -> Result | None:
        """None where somebody asks to stop: signals reach scoring processes, whose loss is no error then."""
        try:
            return work()
        except _Stopped:
            return None
        except ProcessesError:
            if self.stop():
                return None
            raise

    def _predict(self, checkpoint: Path) -> dict[str, Predictions]:
        """What this rank's share of the samples shows."""
        evaluation = self.config.evaluation
        model = robustbev.load(checkpoint, self.device, precision=evaluation.precision)
        with build_loader(
            self.config.data,
            model.config,
            self._split,
            batch_size=evaluation.batch_size,
            train=False,
            rank=self.peers.rank,
            world_size=self.peers.world_size,
            device=self.device,
        ) as loader:
            return self._predict_batches(model, loader)

    def _predict_batches(self, model: robustbev.PerceptionModel, loader: SampleLoader) -> dict[str, Predictions]:
        tokens = loader.reader.tokens[: self.config.evaluation.limit]
        count = len(range(self.peers.rank, len(tokens), self.peers.world_size))
        return predict_subsets(model, loader.epoch(0), self._subsets, limit=count, progress=self._show, total=count)

    def _score(self, parts: Sequence[dict[str, Predictions]]) -> dict[str, SubsetResult]:
        merged = {subset: Predictions() for subset in self._subsets}
        for part in parts:
            for subset, found in part.items():
                merged[subset].update(found)
        reader = open_reader(self.config.data, self.config.model, self._split)
        folder, evaluation = self.files.validation_files, self.config.evaluation
        return score_subsets(merged, self.config.model, reader, folder, evaluation, self._show)

    def _settle(self, checkpoint: Path, step: int, results: Results) -> None:
        """Keep the figures, and the model if it is the best one. The row that marks the step as measured comes last."""
        figures = main_figures(results.values())
        means = {name: fmean(getattr(r, field) for r in results.values()) for name, field in figures.items()}
        best = self._keep_best(checkpoint, step, results, means)
        write_report(self.files.validation_files, results)
        if self.log is not None:
            self.log({f"val/{name}/watched": value for name, value in means.items()} | figures_of(results), step)
        rows = {subset: result.to_json() for subset, result in results.items()}
        append(self.files.validation, {"step": step, **means, "best": best, "subsets": rows})
        if self.progress is not None:
            samples, figure = next(iter(results.values())).samples, self.config.evaluation.best
            note = f"{figure} {means[figure]:.3f}" + (", the best so far" if best else "")
            self.progress("validate", samples, samples, note)

    def _keep_best(self, checkpoint: Path, step: int, results: Results, means: Mapping[str, float]) -> bool:
        """-> Whether this step's model is the best one."""
        evaluation, samples = self.config.evaluation, next(iter(results.values())).samples
        measured = Measured(
            step,
            means[evaluation.best],
            evaluation.best,
            tuple(results),
            self._split,
            samples,
            evaluation.score_threshold,
            evaluation.max_boxes_per_sample,
        )
        known = best_of(self.files.checkpoints)
        if known is not None:
            link, before = known
            if not measured.compares_with(before):
                warnings.warn(
                    f"{link} ({before}) was measured in another way: {measured} takes its place", stacklevel=2
                )
            elif measured.value <= before.value:
                return before.step == step
        config = with_rig(self.config.model, self.config.data)
        card = card_of(self.config, results, step)
        try:
            keep_best(checkpoint, measured, lambda folder: robustbev.write_card(folder, config, card))
        except OSError as error:
            raise CheckpointWriteError(
                f"{self.files.checkpoints}: the best model, {measured}, could not be kept ({error}); {checkpoint} is intact. "
                "Make room on the disk and run the same command again: it goes on from there"
            ) from error
        return True

    def _show(self, what: str, done: int, total: int | None) -> None:
        if self.stop():
            raise _Stopped
        if self.progress is not None and what == "perceive" and total is not None:
            self.progress("validate", min(done, total - 1), total)  # the last one is done when all are scored
