"""The training loop, which knows neither Ray nor MLflow: it is handed what steps, what feeds, and who listens.

An optimiser step is the unit of everything: the schedule, the checkpoints and the data's order are functions of how many were
taken, so a run that goes on from a checkpoint takes the same steps as one that never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from training.loop.callbacks import Callback, StepRecord
from training.loop.checkpoint import CheckpointStore, Place, TrainingState
from training.loop.memory import cuda_memory_bytes, resident_memory_bytes
from training.loop.optim import OptimConfig, clip_gradients, lr_factor, set_lr
from training.loop.peers import Alone, Peers
from training.loop.random_state import random_state, step_generator


class NonFiniteLossError(ValueError):
    """The loss or its gradient is NaN or infinite."""


class Batch(Protocol):
    """What the loop needs to know of a batch; `training.data.batch.TrainingBatch` is one."""

    @property
    def tokens(self) -> tuple[str, ...]: ...

    def to(self, device: torch.device, *, non_blocking: bool) -> Batch: ...


class StepResult(Protocol):
    """Result of one forward pass; `training.loop.step.StepOutput` is one."""

    @property
    def loss(self) -> Tensor: ...  # [] with gradient

    @property
    def parts(self) -> Mapping[str, Tensor]: ...  # [] each, detached


Forward = Callable[[Any], StepResult]
Draw = Callable[[Any, torch.Generator], Batch]
Validate = Callable[[Path, int], bool]  # a checkpoint and its step -> False where it was stopped before it was done


class Batches(Protocol):
    """Every epoch's batches of this rank, in an order that seed and epoch decide."""

    def __len__(self) -> int: ...  # batches an epoch

    def epoch(self, epoch: int, start: int) -> Iterable[Batch]: ...  # from the batch numbered `start` on


@dataclass(frozen=True)
class Plan:
    """How long to train, and when to write checkpoints (one at the very end always) and to measure them."""

    epochs: int
    optim: OptimConfig
    seed: int = 0
    checkpoint_every_epochs: int | None = 1
    checkpoint_every_steps: int | None = None
    validate_every_epochs: int | None = None  # and at the very end


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    total_steps: int
    interrupted: bool
    checkpoint: Path | None


def train(
    state: TrainingState,
    forward: Forward,
    draw: Draw,
    batches: Batches,
    plan: Plan,
    *,
    device: torch.device,
    store: CheckpointStore | None = None,
    validate: Validate | None = None,
    callbacks: Sequence[Callback] = (),
    peers: Peers | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train from `state.step` to the end of the last epoch, or until `stop()` is true on some rank.

    Args:
        forward: model and losses in one call, on a batch on `device`; wrapped for data-parallel training where there is any.
        draw: what is random in a step, put into its batch while that is on the CPU; a function of batch and generator alone.
        store: where checkpoints go; its newest one is restored first. None writes none.
        validate: is given checkpoints when the plan says so, on every rank. Stopped half-way, it is given the same one when the
            run goes on.

    Raises:
        NonFiniteLossError: naming step, parts of the loss and tokens. The last checkpoint is from before it.
        ValueError: an epoch has fewer batches than one optimiser step accumulates.
        CheckpointError, CheckpointWriteError: see `CheckpointStore`.
    """
    run = _Run(state, forward, draw, batches, plan, device, store, validate, callbacks, peers or Alone(), stop)
    return run.train()


@dataclass
class _Run:
    state: TrainingState
    forward: Forward
    draw: Draw
    batches: Batches
    plan: Plan
    device: torch.device
    store: CheckpointStore | None
    validate: Validate | None
    callbacks: Sequence[Callback]
    peers: Peers
    stop: Callable[[], bool]
    checkpoint: Path | None = None
    stopping: bool = False
    validated: int = 0  # the last step whose checkpoint was

    @property
    def steps_per_epoch(self) -> int:
        # What does not fill an optimiser step is left out; the next epoch's order is another one.
        return len(self.batches) // self.plan.optim.accumulation

    @property
    def total_steps(self) -> int:
        return self.plan.epochs * self.steps_per_epoch

    def train(self) -> Outcome:
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"an epoch has {len(self.batches)} batches a worker, which is less than one optimiser step "
                f"(optim.accumulation={self.plan.optim.accumulation}); use a smaller batch_size or more data"
            )
        self._restore()
        for callback in self.callbacks:
            callback.on_start(self.state.step, self.total_steps, self.steps_per_epoch)
        self._validate()
        self.state.model.train()
        while self.state.step < self.total_steps and not self.stopping:
            self._epoch(*divmod(self.state.step, self.steps_per_epoch))
        if self.store is not None and self.checkpoint is None:  # complete from the start
            self.checkpoint = self.store.latest()
        complete = self.state.step == self.total_steps and not self._validation_due()
        for callback in self.callbacks:
            callback.on_end(self.state.step, complete)
        return Outcome(self.state.step, self.total_steps, not complete, self.checkpoint)

    def _epoch(self, epoch: int, done: int) -> None:
        """The rest of an epoch of which `done` optimiser steps are taken."""
        feed = _Feed(
            self.batches.epoch(epoch, done * self.plan.optim.accumulation),
            # Of several workers one must not leave alone; there Ctrl-C does not reach the loaders.
            self.stop if self.peers.world_size == 1 else lambda: False,
        )
        for _ in range(done, self.steps_per_epoch):
            try:
                record = self._step(epoch, feed)
            except _Interrupted:
                self.stopping = True
                self._save()
                return
            for callback in self.callbacks:
                callback.on_step(record)
            if self.stopping or self._checkpoint_due():
                self._save()
            if not self.stopping:
                self._validate()
            if self.stopping:
                return
        for callback in self.callbacks:
            callback.on_epoch(epoch, self.state.step)

    def _step(self, epoch: int, feed: _Feed) -> StepRecord:
        """One optimiser step: forward and backward of every batch it accumulates, clipping, update, average."""
        started, waited = time.perf_counter(), feed.waited_seconds
        count, optimizer, scaler = self.plan.optim.accumulation, self.state.optimizer, self.state.scaler
        lr = set_lr(optimizer, lr_factor(self.state.step, self.total_steps, self.plan.optim))
        optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        parts: dict[str, list[Tensor]] = {}
        tokens: list[str] = []
        for part in range(count):
            generator = step_generator(self.plan.seed, self.state.step, part, self.peers.rank)
            batch = self.draw(next(feed), generator)
            with nullcontext() if part == count - 1 else self.peers.no_sync():
                output = self.forward(batch.to(self.device, non_blocking=True))
                scaler.scale(output.loss / count).backward()
            losses.append(output.loss.detach())
            for name, value in output.parts.items():
                parts.setdefault(name, []).append(value)
            tokens.extend(batch.tokens)
        scaler.unscale_(optimizer)
        norm = clip_gradients(self.state.model, self.plan.optim.clip_norm)
        means = [torch.stack(values).mean() for values in (losses, *parts.values())]
        own_loss, *own_parts, own_norm = torch.stack([*means, norm]).double().tolist()  # the one wait for the device
        named = dict(zip(parts, own_parts, strict=True))
        overflowed = self._overflowed(own_norm)
        loss = self._agree(own_loss, 0.0 if overflowed else own_norm, named, tokens)
        scaler.step(optimizer)  # leaves out a step whose gradient has overflowed
        scaler.update()
        self.state.step += 1
        if self.state.average is not None:
            self.state.average.update(self.state.model, self.state.step)
        return StepRecord(
            step=self.state.step,
            epoch=epoch,
            loss=loss,
            parts=named,
            lr=lr,
            grad_norm=None if overflowed else own_norm,
            samples=len(tokens) * self.peers.world_size,
            seconds=time.perf_counter() - started,
            data_wait_seconds=feed.waited_seconds - waited,
            memory_bytes=resident_memory_bytes(),
            cuda_memory_bytes=cuda_memory_bytes(self.device),
        )

    def _overflowed(self, norm: float) -> bool:
        """Whether a gradient is not finite because it was scaled up for float16; unscaled, it is no overflow but a fault."""
        return not math.isfinite(norm) and self.state.scaler.is_enabled() and self.state.scaler.get_scale() > 1

    def _agree(self, loss: float, norm: float, parts: Mapping[str, float], tokens: Sequence[str]) -> float:
        """The mean loss of all ranks; settles in the same exchange whether any of them wants to stop.

        Every rank learns of every rank's NaN, so all raise together and none waits for one that has gone.
        """
        mean, wishes = self.peers.mean(torch.tensor([loss + 0.0 * norm, self.stop()], dtype=torch.float64)).tolist()
        self.stopping = wishes > 0
        if math.isfinite(mean):
            return mean
        if not math.isfinite(loss):
            what = ", ".join(f"{name} {value:.4g}" for name, value in {"total": loss, **parts}.items())
        else:
            what = f"the norm of the gradient is {norm}" if not math.isfinite(norm) else "on another worker"
        raise NonFiniteLossError(
            f"step {self.state.step + 1}: the loss is not finite: {what}; the samples are {', '.join(tokens)}. "
            "Look at their data, or use a smaller optim.lr or optim.clip_norm; the last checkpoint is from before this"
        )

    def _checkpoint_due(self) -> bool:
        step, every = self.state.step, self.plan.checkpoint_every_steps
        if step == self.total_steps or (every is not None and step % every == 0):
            return True
        return self._epochs_done(self.plan.checkpoint_every_epochs) or self._validation_due()

    def _epochs_done(self, every: int | None) -> bool:
        """Whether an epoch has just ended whose number is a multiple of `every`."""
        return every is not None and self.state.step % (every * self.steps_per_epoch) == 0

    def _validation_due(self) -> bool:
        """Whether the checkpoint of this step is to be measured, and is not yet."""
        step, every = self.state.step, self.plan.validate_every_epochs
        if self.validate is None or every is None or step in (0, self.validated):
            return False
        return step == self.total_steps or self._epochs_done(every)

    def _validate(self) -> None:
        if self._validation_due():
            assert self.validate is not None
            assert self.checkpoint is not None
            if self.validate(self.checkpoint, self.state.step):
                self.validated = self.state.step
            else:
                self.stopping = True

    def _place(self) -> Place:
        return Place(self.steps_per_epoch, self.peers.world_size)

    def _save(self) -> None:
        if self.store is None:
            return
        states = self.peers.gather(random_state())
        if self.peers.rank == 0:
            self.checkpoint = self.store.save(self.state, self._place(), states)
        self.peers.barrier()
        self.checkpoint = self.checkpoint if self.peers.rank == 0 else self.store.latest()
        if self.checkpoint is not None:
            for callback in self.callbacks:
                callback.on_checkpoint(self.checkpoint, self.state.step)

    def _restore(self) -> None:
        latest = None if self.store is None else self.store.latest()
        if self.store is not None and latest is not None:
            self.store.restore(latest, self.state, self._place(), self.peers.rank)
            self.checkpoint = latest


class _Interrupted(Exception):  # noqa: N818 - no error: the step that was begun is dropped, and taken again later
    pass


class _Feed:
    """An iterator over batches that measures how long each was waited for."""

    def __init__(self, batches: Iterable[Batch], stop: Callable[[], bool]) -> None:
        self._batches: Iterator[Batch] = iter(batches)
        self._stop = stop
        self.waited_seconds = 0.0

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            return next(self._batches)
        except StopIteration:
            raise ValueError("the loader had fewer batches than it announced") from None
        except RuntimeError as error:
            # Ctrl-C reaches the loader's workers too, and the loader then complains that they are gone.
            if self._stop():
                raise _Interrupted from error
            raise
        finally:
            self.waited_seconds += time.perf_counter() - started
