"""A long drive through the replay: `python -m tests.benchmarks.replay [--minutes 60] [--checkpoint DIR]`.

A simulated drive of 50 s is written again and again into one MCAP file, with times that go on, and replayed. Told are ticks a
second, where the time goes, and the process's memory along the way. Without a checkpoint the model is configs/tiny.yaml's with
fresh weights, which takes as long as a trained one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import robustbev
from robustbev.checkpoints import find_checkpoint
from robustbev.results.result import TickResult
from sensors.logs.log import Damage, TopicInfo
from sensors.logs.messages import FrameTransforms, LogMessage, Malformed, Other, Payload
from sensors.logs.nuscenes.log import NuScenesLog, mapping_of_nuscenes
from sensors.logs.open import open_log
from sensors.logs.write import write_log
from sensors.nuscenes.config import NuScenesConfig
from sensors.replay.channels import Channels
from sensors.replay.config import ReplayConfig
from sensors.replay.ticks import ticks
from sensors.simulation import SimulationConfig, simulate
from training.data.dataset import preparation
from training.loop.memory import resident_memory_bytes
from training.replay.play import Latencies, Perceiver, drain, replay
from training.runs.config import load_run_config

DRIVE_NS = 50_000_000_000
KEYFRAMES = 100  # of the simulated drive: 50 s
_MIB = 2**20


@dataclass(frozen=True)
class AgainAndAgain:
    """A log whose messages come `times` times, each time later."""

    log: NuScenesLog
    times: int

    @property
    def path(self) -> Path:
        return self.log.path

    @property
    def damage(self) -> Damage:
        return self.log.damage

    def topics(self) -> tuple[TopicInfo, ...]:
        return tuple(replace(topic, count=self.times * topic.count) for topic in self.log.topics())

    def span_ns(self) -> tuple[int, int] | None:
        span = self.log.span_ns()
        return None if span is None else (span[0], span[1] + (self.times - 1) * DRIVE_NS)

    def messages(
        self,
        *,
        topics: Collection[str] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
    ) -> Iterator[LogMessage]:
        for n in range(self.times):
            for message in self.log.messages(topics=topics):
                yield later(message, n * DRIVE_NS)


def later(message: LogMessage, by_ns: int) -> LogMessage:
    """The message as if sent and measured so much later."""
    payload: Payload = message.payload
    if isinstance(payload, FrameTransforms):
        moved = tuple(replace(one, stamp_ns=one.stamp_ns + by_ns) for one in payload.transforms)
        payload = replace(payload, transforms=moved)
    elif not isinstance(payload, Other | Malformed):
        payload = replace(payload, stamp_ns=payload.stamp_ns + by_ns)
    return LogMessage(message.topic, message.log_time_ns + by_ns, message.publish_time_ns + by_ns, payload)


@dataclass
class MemoryWatch:
    """A `ResultWriter` that looks at the process's memory now and then."""

    every: int
    mib: list[float] = field(default_factory=list)
    ticks: int = 0

    def write(self, result: TickResult) -> None:
        self.ticks += 1
        if self.ticks % self.every == 0:
            self.mib.append(resident_memory_bytes() / _MIB)
            print(f"tick {self.ticks}: {self.mib[-1]:.0f} MiB", flush=True)

    def close(self) -> None:
        """Nothing to close."""

    def abort(self) -> None:
        """Nothing to take back."""


def write_drive(folder: Path, minutes: float) -> Path:
    """An MCAP file for Foxglove of so many minutes."""
    data = folder / "drive"
    config = SimulationConfig(scenes_train=0, scenes_val=1, keyframes_per_scene=KEYFRAMES)
    simulate(config, data)
    log = NuScenesLog(NuScenesConfig(root=data, version=config.version), "sim-0000")
    path = folder / "drive.mcap"
    write_log(AgainAndAgain(log, max(1, round(minutes * 60e9 / DRIVE_NS))), path, "foxglove")
    return path


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    run = load_run_config(Path("configs/tiny.yaml"))
    torch.manual_seed(0)
    model = (
        robustbev.build(run.model) if given.checkpoint is None else robustbev.load(find_checkpoint(given.checkpoint))
    )
    nuscenes = run.data.nuscenes
    config = ReplayConfig(tick_hz=2.0, lidar_sweeps=nuscenes.lidar_sweeps, radar_sweeps=nuscenes.radar_sweeps)
    latencies = Latencies()
    with tempfile.TemporaryDirectory() as folder:
        path = write_drive(Path(folder), given.minutes)
        print(f"{path.stat().st_size / _MIB:.0f} MiB of MCAP, {given.minutes:g} minutes")
        watch = MemoryWatch(every=max(1, round(given.minutes * 60 * 2 / 20)))
        begun = time.perf_counter()
        results = replay(
            ticks(
                open_log(path),
                mapping_of_nuscenes(nuscenes),
                Channels(nuscenes.camera_channels, nuscenes.lidar_channels, nuscenes.radar_channels),
                config,
                decode=robustbev.decode_size(model.config),
            ),
            Perceiver(model.eval(), replace(preparation(run.data, model.config), depth_targets=False)),
            latencies=latencies,
        )
        count = drain(results, [watch], latencies)
        seconds = time.perf_counter() - begun
    print(f"{count} ticks, {count / seconds:.1f} ticks/s")
    spent = {stage: sum(row) for stage, row in latencies.seconds.items() if row}
    for stage, row in latencies.percentiles_ms().items():
        share = f", {100 * spent[stage] / seconds:.1f}% of the time" if stage in spent else ""
        print(f"{stage:>6}: p50 {row[0]:.1f} ms, p95 {row[1]:.1f}, p99 {row[2]:.1f}{share}")
    if len(watch.mib) > 2:
        settled = watch.mib[1:]  # allocators fill up during the first twentieth
        print(f"memory: {min(settled):.0f} to {max(settled):.0f} MiB, {100 * (max(settled) / min(settled) - 1):.1f}%")


if __name__ == "__main__":
    main()
