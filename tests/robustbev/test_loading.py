"""`robustbev.load` promises: any path that a command takes, on a device that is there, or one error that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import robustbev
from robustbev.checkpoints import find_checkpoint, latest_checkpoint
from robustbev.precision import usable_device
from tests.tiny_model import tiny_model

NO_CUDA = not torch.cuda.is_available()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints, told apart by their width, the last not yet whole."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    for step, channels in ((8, 8), (12, 16)):
        model = tiny_model(channels=channels, lidar=None, camera=None)
        robustbev.save(model, folder / "checkpoints" / f"step-{step:08d}")
    (folder / "checkpoints" / "step-00000020").mkdir()
    return folder


def test_a_run_means_its_newest_whole_checkpoint(run: Path) -> None:
    for path in (run, run / "checkpoints", run / "checkpoints" / "step-00000012", str(run)):
        assert robustbev.load(path).config.channels == 16
    assert robustbev.load(run / "checkpoints" / "step-00000008").config.channels == 8
    assert robustbev.load(run / "checkpoints" / "step-00000008" / "model.safetensors").config.channels == 8


@pytest.mark.parametrize(
    ("pointer", "newest"),
    [("step-00000008", 8), ("step-00000020", 12), ("step-00000099", 12), ("step-../../elsewhere", 12), ("", 12)],
)
def test_the_pointer_counts_where_it_leads_to_a_whole_checkpoint(run: Path, pointer: str, newest: int) -> None:
    file = run / "checkpoints" / "latest"
    file.write_text(pointer)
    try:
        assert latest_checkpoint(run / "checkpoints") == run / "checkpoints" / f"step-{newest:08d}"
    finally:
        file.unlink()


@pytest.mark.parametrize(("folder", "reason"), [("nowhere", "not found"), (".", "no checkpoint in it")])
def test_a_path_without_a_checkpoint_says_what_is_expected(tmp_path: Path, folder: str, reason: str) -> None:
    (tmp_path / "config.yaml").write_text("name: begun\n")
    (tmp_path / "checkpoints").mkdir()
    for find in (robustbev.load, find_checkpoint):
        with pytest.raises(robustbev.CheckpointError, match=rf"{reason}; expected .*robustbev train") as raised:
            find(tmp_path / folder)
        assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    "device",
    ["gpu", "cuda:99", "cpu:x", "", pytest.param("cuda", marks=pytest.mark.skipif(not NO_CUDA, reason="CUDA"))],
)
def test_a_device_that_is_not_there_is_one_line(run: Path, device: str) -> None:
    with pytest.raises(robustbev.DeviceError, match=r"^device: expected one that torch can use here \(cpu") as raised:
        robustbev.load(run, device)
    assert repr(device) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_device_that_is_there_is_taken_by_name_and_as_it_is(run: Path) -> None:
    assert usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")
    assert next(robustbev.load(run, torch.device("cpu")).parameters()).device.type == "cpu"
