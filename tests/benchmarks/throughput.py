"""Training throughput of a config on simulated drives: `python -m tests.benchmarks.throughput [--threads 2] [key=value ...]`.

The real loop takes real steps (forward, backward, clipping, optimiser, averaged weights) on batches that lie ready in
memory. Making the model, the first steps and loading the data are not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch

import robustbev
from robustbev import choose_precision
from sensors.nuscenes.index import build_index
from sensors.simulation import SimulationConfig, simulate
from training.data.batch import TrainingBatch
from training.data.loader import build_loader
from training.loop.callbacks import Callback, StepRecord
from training.loop.checkpoint import TrainingState
from training.loop.memory import keep_freed_memory
from training.loop.optim import AveragedWeights, build_optimizer
from training.loop.random_state import seed_everything
from training.loop.step import TrainingStep
from training.loop.train import Plan, train
from training.runs.config import RunConfig, load_run_config

SCENES = 6


@dataclass(frozen=True)
class InMemory:
    """`training.loop.train.Batches` that go round and round."""

    batches: list[TrainingBatch]
    steps: int

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int) -> Iterator[TrainingBatch]:
        return islice(cycle(self.batches), start, self.steps)


class Stopwatch(Callback):
    """Samples a second of every step after the warm-up, without the wait for data."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.samples_per_s: list[float] = []

    def on_step(self, record: StepRecord) -> None:
        if record.step > self.warmup:
            self.samples_per_s.append(record.samples / (record.seconds - record.data_wait_seconds))


def simulated_batches(config: RunConfig, root: Path) -> list[TrainingBatch]:
    """The training batches of a few drives, as the config wants them. Drives that lie in `root` already are those."""
    nuscenes = config.data.nuscenes.model_copy(update={"root": root})
    drives = SimulationConfig(
        version=nuscenes.version,
        split_train=nuscenes.train_split,
        split_val=nuscenes.val_split,
        scenes_train=SCENES,
        scenes_val=0,
    )
    if not (root / nuscenes.version).is_dir():
        simulate(drives, root, workers=1)
    build_index(nuscenes)
    data = config.data.model_copy(update={"nuscenes": nuscenes, "workers": 0})
    loader = build_loader(
        data, config.model, nuscenes.train_split, batch_size=config.batch_size, train=True, seed=config.seed
    )
    return list(loader.epoch(0))


def measure(config: RunConfig, batches: list[TrainingBatch], *, warmup: int, steps: int) -> list[float]:
    """Samples a second of `steps` training steps."""
    keep_freed_memory()
    seed_everything(config.seed, rank=0)
    model = robustbev.build(config.model)
    average = None if config.optim.ema_decay is None else AveragedWeights(model, config.optim.ema_decay)
    step, stopwatch = TrainingStep(model, config.step), Stopwatch(warmup)
    train(
        TrainingState(model, build_optimizer(model, config.optim), average),
        step,
        step.draw,
        InMemory(batches, (warmup + steps) * config.optim.accumulation),
        Plan(1, config.optim, config.seed, checkpoint_every_epochs=None),
        device=torch.device("cpu"),
        callbacks=[stopwatch],
    )
    return stopwatch.samples_per_s


def main() -> None:
    """Print samples a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/tiny.yaml"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--drives", type=Path, help="folder of the simulated drives; default: made anew and removed")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = load_run_config(arguments.config, arguments.settings)
    with tempfile.TemporaryDirectory() as folder:
        batches = simulated_batches(config, arguments.drives or Path(folder) / "drives")
        rates = measure(config, batches, warmup=arguments.warmup, steps=arguments.steps)
    low, middle, high = statistics.quantiles(rates, n=4)
    print(
        f"training {arguments.config}: {middle:.1f} samples/s (quartiles {low:.1f} and {high:.1f}, {len(rates)} steps of "
        f"{config.batch_size}), {arguments.threads} threads, {choose_precision(config.step.precision, 'cpu', training=True)}, "
        f"torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
