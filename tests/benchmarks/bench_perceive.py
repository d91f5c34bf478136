"""How long `model.perceive` takes, and how much faster an absent sensor makes it: `python -m tests.benchmarks.bench_perceive`.

With `--subsets` it prints the table of docs/deployment.md: p50 and p99 of every subset of the sensors, on one and on two threads.

The model is configs/tiny.yaml's with fresh weights, on one thread. Frames are those of the simulated drives in data/sim, or with
`--noise` (and where there are none) noise of nuScenes' sizes: 6 pictures of 900 x 1600 px, 35,000 points, 5 radars. Files are
read and pictures decoded beforehand. What a sensor costs is measured apart from `perceive`: preparing and collating its own
data, and its encoder. All ways take their turn in every round, and differences are taken within a round.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import robustbev
from robustbev import PerceptionModel, preparation
from robustbev.checks import check_batch
from robustbev.inference import subsets_of
from sensors.batch import SensorBatch
from sensors.checks.frame import check_frame
from sensors.frames import KINDS, CameraImage, LidarSweep, RadarSweep, SensorFrame
from sensors.modality import Preparation
from sensors.motion.poses import pose
from sensors.nuscenes.reader import NuScenesReader
from sensors.prepare import collate, prepare
from sensors.simulation.sensing.rig import SENSORS
from tests.benchmarks.conftest import Compare
from tests.robustbev.test_bad_input import BATCH, FRAME, MODEL
from training.data.dataset import rig_of
from training.runs.config import RunConfig, load_run_config

CONFIG = Path("configs/tiny.yaml")
IMAGE_PX, LIDAR_POINTS, RADAR_POINTS = (900, 1600), 35_000, 125  # a radar sweep of nuScenes holds at most 125
_MOVES = itertools.count(1)
_FIELD = {"camera": "cameras", "lidar": "lidar", "radar": "radar"}


def tiny_model() -> tuple[PerceptionModel, RunConfig]:
    """Of the config, with fresh weights, which take as long as trained ones."""
    config = load_run_config(CONFIG)
    torch.manual_seed(0)
    rig = rig_of(config.data, config.model)
    return robustbev.build(config.model.model_copy(update={"rig": rig})).eval(), config


def drive_frames(config: RunConfig, count: int) -> list[SensorFrame]:
    """Frames of the validation drives, evenly spread; none where there is no such data."""
    if not config.data.nuscenes.root.is_dir():
        return []
    reader = NuScenesReader(config.data.nuscenes, config.data.nuscenes.val_split)
    return [reader.frame(i) for i in np.linspace(0, len(reader) - 1, count).astype(int)]


def noise_frame(config: RunConfig) -> SensorFrame:
    """Every sensor of the config's rig, at nuScenes' sizes."""
    random, data = np.random.default_rng(0), config.data.nuscenes
    mounted = {mount.channel: pose(mount.translation_m, wxyz=mount.rotation_wxyz) for mount in SENSORS}
    focal_px = 1266.0
    intrinsics = np.array([[focal_px, 0, IMAGE_PX[1] / 2], [0, focal_px, IMAGE_PX[0] / 2], [0, 0, 1.0]])
    cameras = tuple(
        CameraImage(
            channel, random.integers(0, 256, (*IMAGE_PX, 3), dtype=np.uint8), intrinsics,
            mounted[channel], 0,
        )
        for channel in data.camera_channels
    )  # fmt: skip
    xyz_m, intensity = random.normal((0, 0, 0.5), (20, 20, 1), (LIDAR_POINTS, 3)), np.full((LIDAR_POINTS, 2), 30.0)
    cloud = np.hstack([xyz_m, intensity]).astype(np.float32)
    radars = tuple(
        RadarSweep(
            channel,
            random.uniform((1, -30, 0, -5, -9, -9), (60, 30, 1, 30, 9, 9), (RADAR_POINTS, 6)).astype(np.float32),
            mounted[channel],
            -age * 77_000,
        )
        for channel in data.radar_channels
        for age in range(data.radar_sweeps)
    )
    return SensorFrame(
        "noise", 0, cameras, (LidarSweep("LIDAR_TOP", cloud, mounted["LIDAR_TOP"], 0),), radars, np.eye(4)
    )


@dataclass(frozen=True)
class Ways:
    """What is timed for one frame."""

    model: PerceptionModel
    frame: SensorFrame
    wanted: Preparation

    def without(self, *modalities: str) -> SensorFrame:
        return replace(self.frame, **dict.fromkeys((_FIELD[name] for name in modalities), None))  # type: ignore[arg-type]

    def only(self, *modalities: str) -> SensorFrame:
        return self.without(*(name for name in KINDS if name not in modalities))

    def batch(self, frame: SensorFrame) -> SensorBatch:
        return collate([prepare(frame, self.wanted)], self.wanted)

    def another_calibration(self) -> None:
        """As from a vehicle that moves between its cameras' time and the frame's: no table that is kept fits."""
        change = np.eye(4)
        change[0, 3] = 1e-6 * next(_MOVES)
        cameras = (
            None if c is None else replace(c, reference_T_camera=change @ c.reference_T_camera)
            for c in self.frame.cameras or ()
        )
        self.model.perceive(replace(self.frame, cameras=tuple(cameras)))

    def timed(self) -> dict[str, Callable[[], object]]:
        ways: dict[str, Callable[[], object]] = {"perceive all": partial(self.model.perceive, self.frame)}
        for name in KINDS:
            alone = self.only(name)
            ways[f"perceive without {name}"] = partial(self.model.perceive, self.without(name))
            ways[f"prepare {name}"] = partial(self.batch, alone)
            ways[f"perceive {name} alone"] = partial(self.model.perceive, alone)
            ways[f"encode {name}"] = partial(self.model.encoder(name), self.batch(alone).part(name))
        ways["perceive all, new table"] = self.another_calibration
        nothing = self.only()
        ways["perceive nothing"] = partial(self.model.perceive, nothing)
        ways["prepare nothing"] = partial(self.batch, nothing)
        return ways


@torch.inference_mode()
def measure(model: PerceptionModel, frames: Sequence[SensorFrame], rounds: int) -> dict[str, list[float]]:
    """Wall-clock milliseconds of each way, one a round."""
    model.warm_up()
    return wall_clock_ms([Ways(model, frame, preparation(model.config)).timed() for frame in frames], rounds)


def wall_clock_ms(ways: Sequence[dict[str, Callable[[], object]]], rounds: int) -> dict[str, list[float]]:
    """Of the ways of one frame after the other, one time each a round."""
    times: dict[str, list[float]] = {name: [] for name in ways[0]}
    for i in range(-2, rounds):  # two rounds to warm up
        for name, work in ways[i % len(ways)].items():
            began = time.perf_counter()
            work()
            if i >= 0:
                times[name].append(1e3 * (time.perf_counter() - began))
    return times


def saved_and_cost_ms(times: dict[str, list[float]], name: str) -> tuple[float, float, float]:
    """What the absence of a sensor saves, and what preparing and encoding its data cost: medians of the rounds."""

    def difference(more: str, less: str) -> float:
        return float(np.median(np.subtract(times[more], times[less])))

    saved = difference("perceive all", f"perceive without {name}")
    return saved, difference(f"prepare {name}", "prepare nothing"), float(np.median(times[f"encode {name}"]))


def table(times: dict[str, list[float]]) -> list[str]:
    """p50 and p99 of `perceive` at batch 1 by subset; beside what each absence saves, what its sensor costs by itself."""
    lines = [
        f"{'ms':<24}{'p50':>8}{'p99':>8}{'saved':>9}{'own cost':>10}   of which preparing, encoding",
        _row("perceive all", times),
    ]
    for name in KINDS:
        saved, prepared, encoded = saved_and_cost_ms(times, name)
        own = f"{prepared + encoded:>10.1f}   {prepared:.1f}, {encoded:.1f}"
        lines.append(f"{_row(f'perceive without {name}', times)}{saved:>9.1f}{own}")
    more = ["perceive all, new table", *(f"perceive {name} alone" for name in KINDS), "perceive nothing"]
    kept = np.median(np.divide(times["perceive all, new table"], times["perceive all"]))
    return [*lines, *(_row(name, times) for name in more), f"with the table kept {kept:.2f}x as fast as with a new one"]


@torch.inference_mode()
def subsets_table(model: PerceptionModel, frames: Sequence[SensorFrame], rounds: int) -> list[str]:
    """In Markdown: p50 and p99 of `perceive` at batch 1 with each subset, after `warm_up`, on one thread and on two."""
    of_threads = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model.warm_up()
        ways: list[dict[str, Callable[[], object]]] = []
        for frame in frames:
            of = Ways(model, frame, preparation(model.config))
            subsets = {" + ".join(names): partial(model.perceive, of.only(*names)) for names in subsets_of(KINDS)}
            ways.append(subsets | {"all, cameras moved since": of.another_calibration})
        of_threads.append(wall_clock_ms(ways, rounds))
    lines = ["| sensors | 1 thread: p50 | p99 | 2 threads: p50 | p99 |", "|---|---:|---:|---:|---:|"]
    for name in of_threads[0]:
        figures = [f"{p:.1f} ms" for times in of_threads for p in np.percentile(times[name], [50, 99])]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return lines


def _row(name: str, times: dict[str, list[float]]) -> str:
    p50, p99 = np.percentile(times[name], [50, 99])
    return f"{name:<24}{p50:>8.1f}{p99:>8.1f}"


@torch.inference_mode()
def bench_perceive(compare: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    """An absent sensor makes `perceive` faster, by what it costs itself: within a third and 5 ms."""
    model, config = tiny_model()
    frame = noise_frame(config)
    ways = Ways(model, frame, preparation(model.config)).timed()
    contenders = {
        name.replace(" ", "_").replace(",", ""): work for name, work in ways.items() if name.startswith("perceive")
    }
    result = compare("perceive, 6 x 900 x 1600 px", 15, **contenders)
    times = measure(model, [frame], 15)
    with capsys.disabled():
        print("", *table(times), sep="\n")
    for name in KINDS:
        assert result.ratio(f"perceive without {name}") < 1, name
        saved, prepared, encoded = saved_and_cost_ms(times, name)
        assert saved == pytest.approx(prepared + encoded, rel=1 / 3, abs=5), name


@torch.inference_mode()
def bench_checks(compare: Compare) -> None:
    """Checking a frame and a batch costs next to nothing, even beside a toy; models of use take a hundred times as long."""

    def checks() -> None:
        check_batch(BATCH, MODEL.config, torch.device("cpu"))
        check_frame(FRAME)

    result = compare("checks before perceiving", 20, checks=checks, toy=partial(MODEL, BATCH))
    assert result.ratio("toy") > 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", action="store_true", help="noise of nuScenes' sizes, not the simulated drives")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--subsets", action="store_true", help="p50 and p99 of each subset, on one and two threads, in Markdown"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, config = tiny_model()
    frames = [] if arguments.noise else drive_frames(config, 8)
    kind = f"{len(frames)} frames of {config.data.nuscenes.root}" if frames else "noise of nuScenes' sizes"
    frames = frames or [noise_frame(config)]
    threads = "1 and 2 threads" if arguments.subsets else f"{arguments.threads} thread(s)"
    print(f"{CONFIG}, {kind}, {arguments.rounds} rounds, {threads}; torch {torch.__version__}\n")
    lines = (
        subsets_table(model, frames, arguments.rounds)
        if arguments.subsets
        else table(measure(model, frames, arguments.rounds))
    )
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
