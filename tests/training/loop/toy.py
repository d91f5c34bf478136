"""A toy task for the loop: what it needs of model, step and data, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from training.loop.callbacks import Callback, StepRecord
from training.loop.checkpoint import CheckpointStore, TrainingState
from training.loop.optim import AveragedWeights, OptimConfig, build_optimizer
from training.loop.train import Plan

SAMPLES, BATCH = 24, 4


class ToyModel(nn.Module):
    """Has what makes resuming hard: running statistics, dropout from the global generator, a free parameter."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 1)
        )
        self.null = nn.Parameter(torch.zeros(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.null)


@dataclass(frozen=True)
class ToyBatch:
    x: Tensor
    tokens: tuple[str, ...]
    keep: Tensor | None = None  # what `ToyStep.draw` drew

    def to(self, device: torch.device, *, non_blocking: bool) -> ToyBatch:
        return self


@dataclass(frozen=True)
class ToyOutput:
    loss: Tensor
    parts: Mapping[str, Tensor]


class ToyStep(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def draw(self, batch: ToyBatch, generator: torch.Generator) -> ToyBatch:
        return replace(batch, keep=torch.rand(len(batch.x), 1, generator=generator) > 0.3)

    def forward(self, batch: ToyBatch) -> ToyOutput:
        assert batch.keep is not None
        fit = (batch.keep * (self.model(batch.x) - batch.x.sum(1, keepdim=True)).square()).mean()
        size = 0.01 * self.model(batch.x).square().mean()
        return ToyOutput(fit + size, {"fit": fit.detach(), "size": size.detach()})


class ToyBatches:
    """Shuffled by epoch, the share of one rank."""

    def __init__(self, rank: int = 0, world_size: int = 1, poison: int | None = None) -> None:
        self.rank, self.world_size, self.poison = rank, world_size, poison

    def __len__(self) -> int:
        return SAMPLES // BATCH // self.world_size

    def epoch(self, epoch: int, start: int) -> Iterator[ToyBatch]:
        data = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(5))
        if self.poison is not None:
            data[self.poison] = torch.nan
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))[self.rank :: self.world_size]
        for i in range(start, len(self)):
            chosen = order[i * BATCH : (i + 1) * BATCH]
            yield ToyBatch(data[chosen], tuple(f"token-{j}" for j in chosen.tolist()))


class Recorder(Callback):
    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.epochs: list[int] = []
        self.checkpoints: list[Path] = []

    @property
    def losses(self) -> list[float]:
        return [record.loss for record in self.steps]

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def on_epoch(self, epoch: int, step: int) -> None:
        self.epochs.append(epoch)

    def on_checkpoint(self, path: Path, step: int) -> None:
        self.checkpoints.append(path)


def save_toy(model: nn.Module, directory: Path) -> None:
    save_file({name: value.clone() for name, value in model.state_dict().items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"width": len(model.state_dict()["net.0.weight"])}))


def toy_store(directory: Path, keep: int | None = None) -> CheckpointStore:
    return CheckpointStore(directory, save_toy, keep)


def toy_plan(epochs: int = 3, accumulation: int = 1, every_steps: int | None = None) -> Plan:
    return Plan(epochs, OptimConfig(lr=0.01, accumulation=accumulation), checkpoint_every_steps=every_steps)


def toy_state(plan: Plan, seed: int = 0, width: int = 8) -> TrainingState:
    torch.manual_seed(seed)
    model = ToyModel(width)
    average = None if plan.optim.ema_decay is None else AveragedWeights(model, plan.optim.ema_decay)
    return TrainingState(model, build_optimizer(model, plan.optim), average)
