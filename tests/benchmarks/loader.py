"""What a sample costs the data loader: `python -m tests.benchmarks.loader --config configs/nuscenes.yaml data.nuscenes.root=...`.

Every sample of the training split is read, prepared and collated in this process, on one thread: as for a GPU, where the
model makes the lift table, and in turn as for the CPU, where the loader does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from sensors.nuscenes_index import build_index
from training.config import load_run_config
from training.loader import SampleLoader, build_loader


def main() -> None:
    """Print processor milliseconds a sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/nuscenes.yaml"))
    parser.add_argument("--rounds", type=int, default=5, help="passes over the split; the first warms up")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_run_config(arguments.config, arguments.settings)
    data = config.data.model_copy(update={"workers": 0})
    build_index(data.nuscenes)
    loaders: dict[str, SampleLoader] = {
        where: build_loader(
            data, config.model, data.nuscenes.train_split, batch_size=config.batch_size, train=True, seed=config.seed,
            device=device,
        )
        for where, device in (("table on the GPU", "cuda"), ("table on the CPU", "cpu"))
    }  # fmt: skip
    costs: dict[str, list[float]] = {where: [] for where in loaders}
    for number in range(arguments.rounds):
        for where, loader in loaders.items():
            started = time.process_time()
            samples = sum(batch.sensors.batch_size for batch in loader.epoch(number))
            if number > 0:
                costs[where].append((time.process_time() - started) / samples * 1e3)
    for where, milliseconds in costs.items():
        print(
            f"{arguments.config}, {where}: {statistics.median(milliseconds):.0f} ms a sample "
            f"({min(milliseconds):.0f} to {max(milliseconds):.0f} in {len(milliseconds)} rounds), "
            f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
        )


if __name__ == "__main__":
    main()
