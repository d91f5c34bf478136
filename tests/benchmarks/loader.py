"""What a sample costs the data loader, by part: `python -m tests.benchmarks.loader data.nuscenes.root=...`.

Every sample of the training split is read, prepared, collated and handed over in this process, on one thread: as for a GPU,
where the model makes the lift table, or with `--device cpu`, where the loader does. `--memory 10000` tells instead what memory
a worker holds while it loads so many samples.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pickle
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import cv2
import torch

import tests.benchmarks.loader
from sensors.nuscenes.index import build_index
from training.data.handover import Parcel
from training.data.loader import SampleLoader, build_loader
from training.loop.memory import keep_freed_memory
from training.runs.config import RunConfig, load_run_config

PARTS = {
    "JPEG files to pixels": ("sensors.nuscenes.reader.read_picture",),
    "cut, resize, mirror, colour": ("sensors.camera.prepare.fit_image",),
    "LiDAR files": ("sensors.nuscenes.reader.read_lidar_file",),
    "LiDAR points": ("sensors.modality.lidar_clouds", "sensors.lidar.prepare.Lidar.prepare"),
    "radar files": ("sensors.nuscenes.reader.read_radar_file",),
    "radar points": ("sensors.radar.prepare.Radar.prepare",),
    "depth targets": ("sensors.camera.prepare.Camera._depth",),
    "batch of tensors": ("training.data.loader.collate_samples",),
    "lift table": ("sensors.camera.prepare.build_lift_table",),
    "handed over": ("tests.benchmarks.loader.hand_over",),
}
OTHERS = "all others"


class Clock:
    """Processor seconds by part; those of a part within another count for itself alone."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._within: list[float] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._within.append(0.0)
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.process_time() - started
                self.seconds[part] += taken - self._within.pop()
                if self._within:
                    self._within[-1] += taken

        return run

    @contextmanager
    def running(self) -> Iterator[None]:
        """All parts are timed."""
        with ExitStack() as stack:
            for part, names in PARTS.items():
                for name in names:
                    stack.enter_context(patch(name, self.timed(part, resolve_name(name))))
            yield


def hand_over(batch: object) -> object:
    """Both ends: what a worker writes, and what the trainer opens."""
    return pickle.loads(pickle.dumps(Parcel(batch)))


def loader_of(config: RunConfig, workers: int, device: str) -> SampleLoader:
    data = config.data.model_copy(update={"workers": workers})
    build_index(data.nuscenes)
    return build_loader(
        data, config.model, data.nuscenes.train_split, batch_size=config.batch_size, train=True, seed=config.seed,
        device=device,
    )  # fmt: skip


def parts(loader: SampleLoader, rounds: int) -> list[dict[str, float]]:
    """Milliseconds a sample by part, of every pass over the split but the first."""
    passes = []
    for epoch in range(rounds):
        clock, samples, started = Clock(), 0, time.process_time()
        with clock.running():
            for batch in loader.epoch(epoch):
                tests.benchmarks.loader.hand_over(batch)
                samples += batch.sensors.batch_size
        clock.seconds[OTHERS] = time.process_time() - started - sum(clock.seconds.values())
        passes.append({part: seconds / samples * 1e3 for part, seconds in clock.seconds.items()})
    return passes[1:]


def memory(loader: SampleLoader, samples: int) -> Iterator[tuple[int, float]]:
    """(samples so far, MiB of the worker) twenty times."""
    done, told = 0, 0
    for epoch in count():
        for batch in loader.epoch(epoch):
            done += batch.sensors.batch_size
            if done >= (told + 1) * samples / 20:
                told += 1
                (worker,) = multiprocessing.active_children()
                pages = int(Path(f"/proc/{worker.pid}/statm").read_text("ascii").split()[1])
                yield done, pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            if done >= samples:
                return


def main() -> None:
    """Print processor milliseconds a sample, or a worker's memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/nuscenes.yaml"))
    parser.add_argument("--rounds", type=int, default=5, help="passes over the split; the first warms up")
    parser.add_argument("--device", default="cuda", help="where the batches would go; none is needed here")
    parser.add_argument("--memory", type=int, metavar="SAMPLES", help="a worker's memory over so many samples")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_freed_memory()  # as the trainer does before it starts its workers
    config = load_run_config(arguments.config, arguments.settings)
    if arguments.memory:
        with loader_of(config, 1, arguments.device) as loader:
            for done, mebibytes in memory(loader, arguments.memory):
                print(f"{done:>8} samples {mebibytes:>8.0f} MiB", flush=True)
        return
    with loader_of(config, 0, arguments.device) as loader:
        passes = parts(loader, arguments.rounds)
    for part in (*PARTS, OTHERS):
        if any(part in found for found in passes):
            print(f"{part:<30} {statistics.median(found[part] for found in passes):>6.1f} ms")
    totals = [sum(found.values()) for found in passes]
    print(
        f"{arguments.config}, for {arguments.device}: {statistics.median(totals):.0f} ms a sample "
        f"({min(totals):.0f} to {max(totals):.0f} in {len(totals)} rounds), "
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    )


if __name__ == "__main__":
    main()
