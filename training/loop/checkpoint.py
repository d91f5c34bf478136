"""Checkpoints: all that a run needs to go on as if it had never stopped, written whole or not at all.

A checkpoint is a folder `step-00001200` with
    model.safetensors, config.json   the model to use (averaged weights where the run keeps an average), for `robustbev.load`
    README.md                        its model card
    training_state.safetensors       the weights in training, their average, the optimiser's moments, random states
    training_state.json              the step, the sampler's place, and which tensor is what
There is no pickle in it. `latest` beside the folders names the newest one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from robustbev.checkpoints import STEP_PREFIX, CheckpointError, complete_checkpoints, latest_checkpoint
from robustbev.weights import load_weights
from sensors.documents import read_json
from sensors.tensor_files import read_tensors
from training.files.atomic import write_text
from training.loop.optim import AveragedWeights, named_parameters
from training.loop.random_state import restore_random_state

FORMAT = 1
_DISK_FULL = (
    "os error 28",
    "os error 122",
    "Errno 28",
    "Errno 122",
)  # ENOSPC and EDQUOT, as Rust and Python print them


class CheckpointWriteError(ValueError):
    """A checkpoint could not be written; the ones before it are as they were."""


@dataclass
class TrainingState:
    """What training changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer  # made by `optim.build_optimizer`
    average: AveragedWeights | None
    step: int = 0  # optimiser steps done
    scaler: torch.amp.GradScaler = field(default_factory=partial(torch.amp.GradScaler, "cpu", enabled=False))
    """Of the loss; enabled in float16 alone."""

    @property
    def model_to_use(self) -> nn.Module:
        """The averaged model where there is one."""
        return self.model if self.average is None else self.average.model


@dataclass(frozen=True)
class Place:
    """Where in the data a run stands; with `step` it says which batch comes next."""

    steps_per_epoch: int
    world_size: int


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        directory: holds the checkpoints' folders.
        save_model: writes the model and its configuration into a folder; `robustbev.save`.
        keep: how many to keep, the newest; None keeps all.
    """

    def __init__(self, directory: Path, save_model: Callable[[Any, Path], object], keep: int | None = None) -> None:
        self.directory = directory
        self.keep = keep
        self._save_model = save_model

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        return latest_checkpoint(self.directory)

    def save(self, state: TrainingState, place: Place, random_states: Sequence[Mapping[str, Tensor]]) -> Path:
        """Write a checkpoint and drop the oldest beyond `keep`.

        Args:
            random_states: `random_state()` of every rank, in order.

        Raises:
            CheckpointWriteError: the disk is full or does not let us write. No partial checkpoint stays behind.
        """
        final = self.directory / f"{STEP_PREFIX}{state.step:08d}"
        if not final.is_dir():  # otherwise it is the same step of the same run: nothing has changed since
            partial = self.directory / f".partial-{final.name}"
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                self._write(partial, state, place, random_states)
                sync_folder(partial)
                partial.rename(final)
                _sync_directory(self.directory)
            except (OSError, SafetensorError) as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise CheckpointWriteError(self._what_to_do(error, state.step)) from error
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        try:
            write_text(self.directory / "latest", final.name + "\n")
        except OSError as error:
            raise CheckpointWriteError(self._what_to_do(error, state.step)) from error
        self.prune()
        return final

    def prune(self) -> None:
        """Remove what an interrupted writer left, and the oldest checkpoints beyond `keep`."""
        for rest in self.directory.glob(".partial-*"):
            shutil.rmtree(rest, ignore_errors=True)
        if self.keep is not None:
            for old in complete_checkpoints(self.directory)[: -self.keep]:
                # Renamed first: a folder that is half removed must not look like a checkpoint.
                doomed = old.with_name(f".partial-{old.name}")
                old.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def restore(self, path: Path, state: TrainingState, place: Place, rank: int = 0) -> None:
        """Bring `state` and this process's random states to where `path` was written.

        Raises:
            CheckpointError: it is of another architecture, data set or number of workers, or it is damaged.
        """
        try:
            document = read_json(path / "training_state.json")
            tensors = read_tensors(path / "training_state.safetensors")
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: no complete checkpoint ({error}); remove this folder to go on from the one before it"
            ) from error
        try:
            self._put_back(path, document, tensors, state, place, rank)
        except CheckpointError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: no sound checkpoint ({type(error).__name__}: {error}); remove this folder to go on from the one "
                "before it"
            ) from error

    def _put_back(
        self,
        path: Path,
        document: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        state: TrainingState,
        place: Place,
        rank: int,
    ) -> None:
        """Any of a dozen errors where the document is not as `_write` wrote it."""
        _check_run(path, document, place)
        step = int(document["step"])
        if step < 0:
            raise ValueError(f"expected a step of 0 or more, got {step}")
        load_weights(state.model, _under("model.", tensors), source=str(path))
        if state.average is not None:
            averaged = _under("average.", tensors)  # a run may begin to keep an average later
            state.average.model.load_state_dict(averaged or _under("model.", tensors))
        _restore_optimizer(path, state.optimizer, tensors, document["optimizer"])
        _restore_scaler(state.scaler, document.get("scaler") or {})
        restore_random_state(_under(f"random.{rank}.", tensors))
        state.step = step

    def _write(
        self, folder: Path, state: TrainingState, place: Place, random_states: Sequence[Mapping[str, Tensor]]
    ) -> None:
        self._save_model(state.model_to_use, folder)
        tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
        if state.average is not None:
            tensors |= {f"average.{name}": value for name, value in state.average.model.state_dict().items()}
        moments, groups = _optimizer_content(state.optimizer)
        tensors |= moments
        for rank, random_state in enumerate(random_states):
            tensors |= {f"random.{rank}.{name}": value for name, value in random_state.items()}
        save_file({name: _packed(value) for name, value in tensors.items()}, folder / _TENSORS)
        document = {
            "format": FORMAT,
            "step": state.step,
            "epoch": state.step // place.steps_per_epoch,
            "steps_per_epoch": place.steps_per_epoch,
            "world_size": place.world_size,
            "optimizer": groups,
            "scaler": state.scaler.state_dict(),
        }
        (folder / "training_state.json").write_text(json.dumps(document), encoding="utf-8")

    def _what_to_do(self, error: Exception, step: int) -> str:
        last = self.latest()
        kept = f"{last} is intact" if last else "there is no earlier one"
        if not any(sign in str(error) for sign in _DISK_FULL):
            return f"{self.directory}: the checkpoint of step {step} could not be written ({error}); {kept}"
        free_mib = shutil.disk_usage(self.directory if self.directory.is_dir() else ".").free / 2**20
        return (
            f"{self.directory}: the disk is full ({free_mib:.0f} MiB free), so the checkpoint of step {step} was not written; "
            f"{kept}. Free some space and run the same command again: it goes on from there"
        )


_TENSORS = "training_state.safetensors"


def _check_run(path: Path, document: Mapping[str, Any], place: Place) -> None:
    if document.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected checkpoint format {FORMAT}, got {document.get('format')}")
    if document["world_size"] != place.world_size:
        raise CheckpointError(
            f"{path}: written by {document['world_size']} workers, but this run has {place.world_size}; go on with "
            f"runner.workers={document['world_size']}, or start another run with name=..."
        )
    if document["steps_per_epoch"] != place.steps_per_epoch:
        raise CheckpointError(
            f"{path}: an epoch had {document['steps_per_epoch']} steps and now has {place.steps_per_epoch}: the data set or the "
            "batch size has changed. Restore them, or start another run with name=..."
        )


def _optimizer_content(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in named_parameters(optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}:{key}"] = torch.as_tensor(value)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, groups


def _restore_optimizer(
    path: Path, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: Sequence[Mapping[str, Any]]
) -> None:
    if _by_lr(groups) != _by_lr(optimizer.param_groups):
        raise CheckpointError(f"{path}: the optimiser's parameter groups differ; is optim.lr_scale another one?")
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in _under("optimizer.", tensors).items():
        name, _, moment = key.rpartition(":")
        moments.setdefault(name, {})[moment] = value
    for name, parameter in named_parameters(optimizer):
        if name in moments:
            for key, value in moments[name].items():
                if value.shape not in (parameter.shape, ()):
                    expected = f"expected {list(parameter.shape)}, got {list(value.shape)}"
                    raise CheckpointError(f"{path}: the optimiser's {key} of {name}: {expected}")
            optimizer.state[parameter] = {key: _placed(value, parameter) for key, value in moments[name].items()}


def _restore_scaler(scaler: torch.amp.GradScaler, saved: Mapping[str, Any]) -> None:
    """A run that computed in another precision until now has saved nothing; its scaler begins anew."""
    if scaler.is_enabled() and saved:
        if not all(
            math.isfinite(saved[key]) and saved[key] > 0 for key in ("scale", "growth_factor", "backoff_factor")
        ):
            raise ValueError(f"expected a scaler's finite factors above 0, got {dict(saved)}")
        scaler.load_state_dict(dict(saved))


def _by_lr(groups: Sequence[Mapping[str, Any]]) -> set[frozenset[str]]:
    """Which parameters share a learning rate; what decays may change from version to version."""
    names_of: dict[float, set[str]] = {}
    for group in groups:
        names_of.setdefault(group["base_lr"], set()).update(group["names"])
    return {frozenset(names) for names in names_of.values()}


def _packed(value: Tensor) -> Tensor:
    """A copy on the CPU in plain order: safetensors refuses tensors that share memory or are laid out otherwise."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    """A moment laid out like its parameter: the fused optimiser walks both in memory order, whatever their strides."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)  # the count of steps
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def sync_folder(folder: Path) -> None:
    """Return when the files of a folder are on the disk."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    _sync_directory(folder)


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
