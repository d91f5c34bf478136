"""Who listens to a run, and what they hear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StepRecord:
    """What one optimiser step did, averaged over its batches."""

    step: int  # from 1
    epoch: int  # from 0
    loss: float  # mean of all ranks
    parts: Mapping[str, float]  # of this rank, each a mean over the batches that had it
    lr: float
    grad_norm: float | None  # before clipping; None where it overflowed in float16 and the step was left out
    samples: int  # of all ranks
    seconds: float  # wall time of this rank, with the wait for data
    data_wait_seconds: float
    memory_bytes: int  # resident, of this process
    cuda_memory_bytes: int  # the peak, 0 without CUDA


class Callback:
    """Listens to a run. Override what is of interest; every rank calls its own callbacks."""

    def on_start(self, step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Training begins, or goes on, with `step` optimiser steps done."""

    def on_step(self, record: StepRecord) -> None:
        """One optimiser step is done."""

    def on_checkpoint(self, path: Path, step: int) -> None:
        """A checkpoint is complete."""

    def on_epoch(self, epoch: int, step: int) -> None:
        """An epoch (from 0) is done, and its checkpoint written where one was due."""

    def on_end(self, step: int, complete: bool) -> None:
        """The loop ends after `step` steps; complete: nothing of the run is left to do."""
