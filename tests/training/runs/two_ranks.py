"""The real model in two processes, of which each lacks other sensors. Beside the tests, because processes import it by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.tiny_model import random_training_batch, tiny_model
from training.data.batch import TrainingBatch
from training.loop.callbacks import Callback, StepRecord
from training.loop.checkpoint import TrainingState
from training.loop.optim import OptimConfig, build_optimizer
from training.loop.step import StepConfig, TrainingStep
from training.loop.train import Plan, train
from training.runs.cluster.runner import DistributedPeers

SEED = 3


class Unlike:
    """Two batches a rank: rank 0 has neither radar nor two of its cameras, rank 1 no LiDAR."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __len__(self) -> int:
        return 2

    def epoch(self, epoch: int, start: int) -> Iterator[TrainingBatch]:
        for i in range(start, len(self)):
            batch = random_training_batch(seed=10 * self.rank + i)
            assert batch.sensors.part("camera") is not None
            if self.rank == 0:
                batch.sensors.part("camera").present[:, 3:5] = False
                yield replace(batch, sensors=batch.sensors.only(("camera", "lidar")))
            else:
                yield replace(batch, sensors=batch.sensors.only(("camera", "radar")))


class Gradients(Callback):
    """Those of the first step: the loop leaves them there until it takes the next one."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.first: dict[str, torch.Tensor] = {}

    def on_step(self, record: StepRecord) -> None:
        self.first = self.first or gradients(self.model)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def real_step() -> TrainingStep:
    dropout = {"schedule": "structured", "whole_view": True, "single_camera": 0.2}
    return TrainingStep(tiny_model().train(), StepConfig.model_validate({"precision": "float32", "dropout": dropout}))


def train_rank(folder: Path, rank: int) -> None:
    """What one of two processes does: two optimiser steps over gloo."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    step, peers, cpu = real_step(), DistributedPeers(torch.device("cpu")), torch.device("cpu")
    optim = OptimConfig(lr=1e-3, clip_norm=None, ema_decay=None)
    state = TrainingState(step.model, build_optimizer(step.model, optim), None)
    listener = Gradients(step.model)
    train(
        state, peers.wrap(step), step.draw, Unlike(rank), Plan(1, optim, seed=SEED), device=cpu, callbacks=[listener], peers=peers
    )  # fmt: skip
    weights = dict(step.model.named_parameters())
    torch.save({"gradients": listener.first, "weights": weights}, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()
