"""The same loop on N workers of Ray Train, on this machine or on a cluster.

The run's folder is Ray's storage of the same name, and our checkpoints, which lie in it already, are reported to Ray where they
are. A worker group that was lost goes on from `checkpoints/latest`. On a cluster `runs_dir` and the data must be on a file
system that all nodes share, and RobustBEV must be installed on each.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robustbev.checkpoints import latest_checkpoint
from sensors.extras import require
from training.console.interrupt import StopOnSignal
from training.console.progress import TrainingProgress
from training.files.atomic import write_text
from training.loop.callbacks import Callback, StepRecord
from training.loop.history import read_history
from training.loop.train import Forward, Outcome
from training.runs.cluster.pool import check_gpu
from training.runs.cluster.session import ray_session
from training.runs.config import RunConfig
from training.runs.files import RunError, RunFiles
from training.runs.worker import Post

_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray's list of checkpoints


class Work(Protocol):
    """What every worker does; a function of a module, because Ray's workers import it by name."""

    def __call__(self, config: RunConfig, post: Post) -> Outcome: ...


def fit(work: Work, config: RunConfig, files: RunFiles, progress: TrainingProgress) -> Outcome:
    """Run `work` on `config.runner.workers` Ray Train workers until it is done or Ctrl-C asks it to stop.

    Args:
        work: see `Work`.
        config: with absolute paths, because workers have a working directory of their own.
        files: of the run, with absolute paths.
        progress: is told of every step.

    Raises:
        RunError: the workers failed; the message is theirs.
        MissingExtraError: Ray is not installed.
    """
    require("runner.workers >= 1", "train", "ray")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if config.runner.address is None:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
    with ray_session(config.runner.address, "runner.address"):
        _fit_until_stopped(work, config, files, progress)
    done = files.progress()
    return Outcome(done["step"], done["total_steps"], not done["complete"], latest_checkpoint(files.checkpoints))


class DistributedPeers:
    """`Peers` over torch.distributed."""

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._device = device
        self._replica: DistributedDataParallel | None = None

    def wrap(self, module: nn.Module) -> Forward:
        """Average gradients over all ranks. Dropped modalities leave parameters unused, other ones on every rank."""
        ids = [self._device] if self._device.type == "cuda" else None
        self._replica = DistributedDataParallel(module, device_ids=ids, find_unused_parameters=True)
        return self._replica

    def mean(self, values: Tensor) -> Tensor:
        moved = values.to(self._device)
        dist.all_reduce(moved)
        return (moved / self.world_size).to(values.device)

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        dist.barrier()

    def no_sync(self) -> AbstractContextManager[object]:
        return nullcontext() if self._replica is None else self._replica.no_sync()


class ReportToRay(Callback):
    """Tells Ray of every checkpoint, which is a barrier over all ranks."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._loss = float("nan")

    def on_step(self, record: StepRecord) -> None:
        self._loss = record.loss

    def on_checkpoint(self, path: Path, step: int) -> None:
        from ray import train

        train.report(
            {"step": step, "loss": self._loss},
            checkpoint=train.Checkpoint.from_directory(str(path)) if self._rank == 0 else None,
            checkpoint_upload_mode=train.CheckpointUploadMode.NO_UPLOAD,
        )


def _fit_until_stopped(work: Work, config: RunConfig, files: RunFiles, progress: TrainingProgress) -> None:
    trainer = _trainer(work, config, files)
    errors: list[BaseException] = []

    def fit_trainer() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            errors.append(error)

    # Not in the main thread, where Ray would take Ctrl-C for "abort" and no checkpoint would be saved.
    thread = threading.Thread(target=fit_trainer, name="ray-train", daemon=True)
    follower = _Follower(files, progress)
    with StopOnSignal() as stop:
        thread.start()
        while thread.is_alive():
            thread.join(0.5)
            follower.look()
            if stop() and not files.stop_request.exists():
                files.stop_request.touch()
    files.stop_request.unlink(missing_ok=True)
    if errors:
        if files.failure.is_file():
            raise RunError(files.failure.read_text(encoding="utf-8").strip()) from errors[0]
        raise RunError(f"the Ray workers failed: {_short(errors[0])}") from errors[0]


def _trainer(work: Work, config: RunConfig, files: RunFiles) -> Any:
    import ray
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    # Ray's list names checkpoints that have been pruned since, and it then refuses to begin. `latest` is what counts.
    (files.root / _SNAPSHOT).unlink(missing_ok=True)
    runner, cuda = config.runner, config.runner.use_cuda
    there = ray.cluster_resources()
    cpus = runner.cpus_per_worker or there.get("CPU", 1.0) / runner.workers
    _check_room(config, cpus, there)
    settings = {"config": config.model_dump_json(), "threads": max(1, int(cpus)), "cuda": cuda, "work": work}
    return TorchTrainer(
        work_on_ray,
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=runner.workers, use_gpu=cuda, resources_per_worker={"CPU": cpus, **({"GPU": 1} if cuda else {})}
        ),
        run_config=train.RunConfig(
            name=config.name,
            storage_path=str(config.runs_dir),
            failure_config=train.FailureConfig(max_failures=runner.max_failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=runner.checkpoint.keep),
        ),
    )


def _check_room(config: RunConfig, cpus: float, there: Mapping[str, float]) -> None:
    """RunError where Ray would wait for ever for what this machine does not have; a cluster may grow."""
    runner = config.runner
    if runner.use_cuda:
        check_gpu(there, "runner.device")
    requested = {"CPU": cpus * runner.workers, "GPU": float(runner.workers if runner.use_cuda else 0)}
    for what, count in requested.items():
        if runner.address is None and count > there.get(what, 0.0) + 1e-6:
            raise RunError(
                f"runner.workers={runner.workers}: together they want {count:g} {what}s, and this machine has "
                f"{there.get(what, 0.0):g}; use fewer, or a smaller runner.cpus_per_worker"
            )


def work_on_ray(settings: Mapping[str, Any]) -> None:
    """What Ray runs in each worker.

    Raises:
        RunError: the run's folder is not here, or an earlier try has failed on data or configuration.
    """
    config = RunConfig.model_validate_json(settings["config"])
    files = RunFiles(config.run_dir)
    if not files.config.is_file():
        raise RunError(
            f"{files.root} is not here: runs_dir must be on a file system that all nodes of the cluster share"
        )
    if files.failure.is_file():
        raise RunError("not tried again: what failed is wrong with the data or the configuration")
    torch.set_num_threads(settings["threads"])
    device = _gpu() if settings["cuda"] else torch.device("cpu")
    peers = DistributedPeers(device)
    stop = files.stop_request.exists if peers.rank == 0 else lambda: False
    post = Post(peers, device, stop, wrap=peers.wrap, callbacks=[ReportToRay(peers.rank)])
    try:
        settings["work"](config, post)
    except ValueError as error:  # ours: it would come again
        write_text(files.failure, f"{error}\n")
        raise


def _gpu() -> torch.device:
    """The GPU that Ray gave this worker."""
    from ray.train.torch import get_device

    return get_device()


class _Follower:
    """Reads the history that rank 0 writes, and shows it."""

    def __init__(self, files: RunFiles, progress: TrainingProgress) -> None:
        self._files, self._progress = files, progress
        files.status.unlink(missing_ok=True)
        self._step: int | None = None

    def look(self) -> None:
        done = self._files.progress()
        if not done:
            return
        if self._step is None:
            self._step = int(done["step"])
            self._progress.on_start(self._step, int(done["total_steps"]), int(done["steps_per_epoch"]))
        for row in read_history(self._files.history):
            if row["step"] > self._step:
                self._step = int(row["step"])
                self._progress.on_step(StepRecord(**row))


def _short(error: BaseException) -> str:
    """The last line that says something: Ray's messages are whole tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
