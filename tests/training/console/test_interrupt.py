"""A run that its scheduler ends: SIGTERM to every process of the group, in a container with little shared memory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from robustbev.checkpoints import find_checkpoint, step_of
from tests.small_nuscenes import SmallNuScenes
from training.files.config_file import to_yaml
from training.loop.history import read_history
from training.runs.config import RunConfig
from training.runs.files import RunFiles

ROOT = Path(__file__).resolve().parents[3]
SHARED_MEMORY_KB = 1100  # less than one batch of this model
MOUNTED = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={SHARED_MEMORY_KB}k tmpfs /dev/shm && exec "$@"', "sh"]


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*MOUNTED, "true"], capture_output=True, timeout=30, check=False).returncode == 0


@dataclass(frozen=True)
class Stopped:
    """How a run ended that was sent SIGTERM while it trained."""

    code: int
    errors: str
    files: RunFiles
    left: bool  # whether a process of its group was still there
    shared_memory: bool  # whether it had little of it


@pytest.fixture(scope="module")
def stopped(small_nuscenes: SmallNuScenes, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """`robustbev train` with two loader processes; the signal goes to all of them."""
    folder = tmp_path_factory.mktemp("runs")
    config = RunConfig.model_validate(
        {
            "name": "stopped", "runs_dir": folder, "epochs": 100_000, "batch_size": 3, "tracking": {"enabled": False},
            "data": {"nuscenes": small_nuscenes.config, "workers": 2}, "runner": {"device": "cpu"},
            "model": {
                "channels": 8, "grid": {"cell_m": 3.2},
                "modalities": {
                    "camera": {"image_height_px": 256, "image_width_px": 512, "dim": 32, "depth": 1, "feature_channels": 8},
                    "lidar": {"pillar_channels": 8}, "radar": {"width": 8},
                },
                "backbone": {"widths": [8, 8]},
            },
        }
    )  # fmt: skip
    (folder / "config.yaml").write_text(to_yaml(config))
    mounted, files = may_mount(), RunFiles(config.run_dir)
    words = [sys.executable, "-m", "training.cli", "train", "--config", str(folder / "config.yaml")]
    process = subprocess.Popen(
        [*(MOUNTED if mounted else []), *words], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while len(read_history(files.history)) < 2 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
        try:
            os.killpg(process.pid, 0)
            left = True
        except ProcessLookupError:
            left = False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=10)
    return Stopped(process.returncode, errors, files, left, mounted)


def test_sigterm_to_the_group_finishes_the_step_and_saves_it(stopped: Stopped) -> None:
    assert "Traceback" not in stopped.errors
    assert "stopped at step" in stopped.errors
    assert stopped.code == 130  # as Ctrl-C
    steps = [row["step"] for row in read_history(stopped.files.history)]
    assert step_of(find_checkpoint(stopped.files.root)) == steps[-1] >= 2
    assert not stopped.left


def test_training_needs_no_shared_memory_for_its_batches(stopped: Stopped) -> None:
    if not stopped.shared_memory:
        pytest.skip("mounting a small /dev/shm needs root and unshare")
    assert len(read_history(stopped.files.history)) >= 2
