"""The loader's processes: they keep nobody waiting for ever, and none of them stays."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.utils.data._utils.worker as torch_worker

import training.data.loader
from sensors.frames import History, SensorFrame
from tests.small_nuscenes import SmallNuScenes
from training.data.dataset import DataConfig
from training.data.loader import LoaderError, SampleLoader, build_loader
from training.runs.config import RunConfig

MODEL = RunConfig.model_validate(
    {
        "model": {
            "grid": {"cell_m": 1.6},
            "modalities": {"camera": {"image_height_px": 32, "image_width_px": 64}, "lidar": {}},
        }
    }
).model


class Hang:
    def __call__(self, frame: SensorFrame, history: History) -> SensorFrame:
        time.sleep(600)
        return frame


def loader(data: SmallNuScenes, alter: Callable[..., SensorFrame] | None = None, **settings: object) -> SampleLoader:
    config = DataConfig.model_validate({"nuscenes": data.config, "workers": 2, "prefetch": 1} | settings)
    return build_loader(config, MODEL, "small_train", batch_size=1, train=False, alter=alter)


def test_a_loader_that_hangs_is_an_error_and_leaves_no_process(small_nuscenes: SmallNuScenes) -> None:
    before = set(multiprocessing.active_children())
    with (
        pytest.raises(
            LoaderError, match=r"data\.timeout_s: no batch came from 2 loader processes in 0\.5 s.*workers=0"
        ),
        loader(small_nuscenes, Hang(), timeout_s=0.5) as hanging,
    ):
        next(hanging.epoch(0))
    assert set(multiprocessing.active_children()) <= before


def test_a_loader_process_that_was_killed_is_an_error_wherever_the_training_is(small_nuscenes: SmallNuScenes) -> None:
    before = set(multiprocessing.active_children())

    def train() -> None:
        with loader(small_nuscenes) as one:
            next(one.epoch(0))
            os.kill(next(iter(one._processes)).pid or 0, signal.SIGKILL)
            time.sleep(30)  # the training step

    with pytest.raises(LoaderError, match=r"data\.workers=2: .*killed.*fewer data\.workers"):
        train()
    assert set(multiprocessing.active_children()) <= before


def test_without_shared_memory_it_is_refused_before_a_process_begins(
    small_nuscenes: SmallNuScenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.data.loader, "shared_memory_bytes", lambda: 4096)
    with (
        pytest.raises(LoaderError, match=r"data\.workers=2: /dev/shm has 0\.0 MiB free"),
        loader(small_nuscenes) as one,
    ):
        next(one.epoch(0))
    with loader(small_nuscenes, workers=0) as one:
        assert len(next(one.epoch(0)).tokens) == 1


def test_its_processes_end_with_a_trainer_that_is_killed(
    small_nuscenes: SmallNuScenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_worker, "MP_STATUS_CHECK_INTERVAL", 0.2)  # how often they look; 5 s otherwise
    trainer = os.fork()
    if not trainer:
        try:
            begun = loader(small_nuscenes, timeout_s=30)
            next(begun.epoch(0))
            (tmp_path / "pids").write_text(" ".join(str(process.pid) for process in begun._processes))
        finally:  # whatever happens, this copy of the test's process must not go on
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(trainer, 0)
    workers = [Path(f"/proc/{pid}") for pid in (tmp_path / "pids").read_text().split()]
    assert len(workers) == 2
    until = time.monotonic() + 30
    while not all(map(_ended, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert all(map(_ended, workers))


def _ended(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
