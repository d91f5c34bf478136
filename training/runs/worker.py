"""What one worker of a run does: build model, data and optimiser from the configuration, and train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import robustbev
from robustbev.checkpoints import find_checkpoint
from robustbev.weights import read_state
from sensors.camera.vit_weights import load_vit_weights
from sensors.text import tell
from training.console.progress import Bars
from training.data.dataset import with_rig
from training.data.loader import build_loader
from training.loop.callbacks import Callback
from training.loop.checkpoint import CheckpointStore, TrainingState
from training.loop.history import History
from training.loop.memory import keep_freed_memory
from training.loop.optim import AveragedWeights, build_optimizer
from training.loop.peers import Peers
from training.loop.random_state import seed_everything
from training.loop.step import TrainingStep
from training.loop.train import Forward, Outcome, Plan, train
from training.runs.config import RunConfig
from training.runs.files import RunFiles, Status
from training.runs.model_card import card_of
from training.runs.precision import agreed_precision, gradient_scaler, record_precision
from training.runs.validation import Validation
from training.tracking.outbox import Outbox
from training.tracking.run import TrackSteps


@dataclass(frozen=True)
class Post:
    """Where a worker stands."""

    peers: Peers
    device: torch.device
    stop: Callable[[], bool]
    wrap: Callable[[nn.Module], Forward] = lambda module: module  # for data-parallel training
    callbacks: Sequence[Callback] = ()
    keep: int | None = None  # checkpoints to keep; None: somebody else removes them
    progress: Bars | None = None  # for what is no training step


def work(config: RunConfig, post: Post) -> Outcome:
    """Train from the run's newest checkpoint, or from the start, to the end; for errors see `training.loop.train.train`."""
    files = RunFiles(config.run_dir)
    keep_freed_memory()
    seed_everything(config.seed, rank=0)  # every rank begins with the same weights
    # The rig travels with the weights, so that the model knows whose data it was given.
    model = robustbev.build(with_rig(config.model, config.data))
    store = CheckpointStore(files.checkpoints, partial(robustbev.save, card=card_of(config)), post.keep)
    if store.latest() is None:
        _load_initial_weights(model, config, say=post.peers.rank == 0)
    model.freeze(config.freeze)
    model.to(post.device)
    seed_everything(config.seed, post.peers.rank)
    average = None if config.optim.ema_decay is None else AveragedWeights(model, config.optim.ema_decay)
    loader = build_loader(
        config.data,
        config.model,
        config.data.nuscenes.train_split,
        batch_size=config.batch_size,
        train=True,
        rank=post.peers.rank,
        world_size=post.peers.world_size,
        seed=config.seed,
        device=post.device,
    )
    step = TrainingStep(model, config.step, agreed_precision(config.step.precision, post.device, post.peers))
    if post.peers.rank == 0:
        record_precision(files.precision, step.precision, goes_on=store.latest() is not None)
    scaler = gradient_scaler(step.precision, post.device)
    validation = _validation(config, files, post)
    with loader:
        return train(
            TrainingState(model, build_optimizer(model, config.optim), average, scaler=scaler),
            post.wrap(step),
            step.draw,
            loader,
            plan(config),
            device=post.device,
            store=store,
            validate=validation,
            callbacks=[
                *([] if validation is None else [validation]),
                *standard_callbacks(config, files, post.peers.rank),
                *post.callbacks,
            ],
            peers=post.peers,
            stop=post.stop,
        )


def plan(config: RunConfig) -> Plan:
    """The loop's part of the configuration."""
    checkpoint = config.runner.checkpoint
    return Plan(
        config.epochs,
        config.optim,
        config.seed,
        checkpoint.every_epochs,
        checkpoint.every_steps,
        config.evaluation.every_epochs,
    )


def _validation(config: RunConfig, files: RunFiles, post: Post) -> Validation | None:
    if config.evaluation.every_epochs is None:
        return None
    return Validation(
        config,
        files,
        post.peers,
        post.device,
        stop=lambda: post.stop() or files.stop_request.exists(),  # every rank stops its own share
        log=Outbox(files.outbox).metrics if config.tracking.enabled else None,
        progress=post.progress,
    )


def standard_callbacks(config: RunConfig, files: RunFiles, rank: int) -> list[Callback]:
    """Who always listens: the run's files, on rank 0 alone. What is for MLflow is sent by the process that began the run."""
    if rank != 0:
        return []
    steps = TrackSteps(Outbox(files.outbox), config.tracking.every_steps, files.history)
    return [History(files.history), Status(files.status), *([steps] if config.tracking.enabled else [])]


def _load_initial_weights(model: robustbev.PerceptionModel, config: RunConfig, *, say: bool) -> None:
    if config.camera_weights is not None:
        for name in model.config.of_kind(robustbev.CameraConfig):
            report = load_vit_weights(model.encoder(name).vit, config.camera_weights)
            if say:
                tell(report)
    if config.init_from is not None:
        checkpoint = find_checkpoint(config.init_from)
        weights = checkpoint / "model.safetensors" if checkpoint.is_dir() else checkpoint
        robustbev.load_weights(model, _initial_state(model, weights), source=str(weights), may_lack=config.init_fresh)


def _initial_state(model: robustbev.PerceptionModel, weights: Path) -> dict[str, Tensor]:
    """The weights in a file under the names of `model`: a gated model keeps the fuser that it adds to as `fuser.base`."""
    state = read_state(weights)
    gated = model.config.fuser.kind == "gated" and not any(name.startswith("fuser.base.") for name in state)
    return robustbev.gated_state(state) if gated else state
