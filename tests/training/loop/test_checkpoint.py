"""A checkpoint is whole or not there, belongs to its run, and holds no pickle."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import training.loop.checkpoint
from robustbev.checkpoints import CheckpointError, find_checkpoint
from tests.training.loop.toy import ToyBatches, ToyStep, toy_plan, toy_state, toy_store
from training.loop.checkpoint import CheckpointStore, CheckpointWriteError, Place
from training.loop.random_state import random_state, restore_random_state, seed_everything, step_generator
from training.loop.train import train

PLACE = Place(steps_per_epoch=6, world_size=1)


def save(store: CheckpointStore, step: int) -> Path:
    state = toy_state(toy_plan())
    state.step = step
    return store.save(state, PLACE, [random_state()])


def test_only_the_newest_are_kept_and_the_pointer_follows(tmp_path: Path) -> None:
    store = toy_store(tmp_path, keep=2)
    (tmp_path / ".partial-step-00000001").mkdir()  # a writer was killed
    for step in (3, 6, 9):
        save(store, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000006", "step-00000009"]
    assert store.latest() == tmp_path / "step-00000009"
    (tmp_path / "latest").unlink()
    assert store.latest() == tmp_path / "step-00000009"


def test_files_are_safetensors_and_json_alone(tmp_path: Path) -> None:
    path = save(toy_store(tmp_path), 6)
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}
    assert json.loads((path / "training_state.json").read_text())["epoch"] == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        # As safetensors 0.8 words it; observed on a full tmpfs.
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = toy_store(tmp_path, keep=1)
    before = save(store, 6)

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(training.loop.checkpoint, "save_file", full)
    with pytest.raises(
        CheckpointWriteError, match=r"disk is full \(\d+ MiB free\).*step-00000006 is intact. Free some space"
    ):
        save(store, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000006"]
    store.restore(before, toy_state(toy_plan()), PLACE)


def test_ctrl_c_while_saving_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.loop.checkpoint, "save_file", pressed)
    with pytest.raises(KeyboardInterrupt):
        save(toy_store(tmp_path), 6)
    assert list(tmp_path.iterdir()) == []


def test_another_architecture_is_named_tensor_by_tensor(tmp_path: Path) -> None:
    store = toy_store(tmp_path)
    path = save(store, 6)
    with pytest.raises(CheckpointError, match=r"another architecture: net\.0\.weight: expected"):
        store.restore(path, toy_state(toy_plan(), width=5), PLACE)
    other = toy_state(toy_plan())
    other.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"missing extra\.weight \[2, 2\]; missing extra\.bias"):
        store.restore(path, other, PLACE)


def test_another_number_of_workers_or_data_set_is_refused(tmp_path: Path) -> None:
    store = toy_store(tmp_path)
    path = save(store, 6)
    with pytest.raises(CheckpointError, match=r"written by 1 workers.*runner\.workers=1"):
        store.restore(path, toy_state(toy_plan()), Place(6, 2))
    with pytest.raises(CheckpointError, match="an epoch had 6 steps and now has 5"):
        store.restore(path, toy_state(toy_plan()), Place(5, 1))


def test_a_damaged_checkpoint_says_how_to_go_on(tmp_path: Path) -> None:
    store = toy_store(tmp_path)
    path = save(store, 6)
    (path / "training_state.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="remove this folder to go on from the one before"):
        store.restore(path, toy_state(toy_plan()), PLACE)


def test_a_path_may_be_a_checkpoint_a_folder_of_them_or_a_run(tmp_path: Path) -> None:
    path = save(toy_store(tmp_path / "run" / "checkpoints"), 6)
    assert find_checkpoint(path) == find_checkpoint(path.parent) == find_checkpoint(tmp_path / "run") == path
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        find_checkpoint(tmp_path)


def test_the_model_to_use_is_the_average(tmp_path: Path) -> None:
    plan = toy_plan(epochs=1)
    state = toy_state(plan)
    step = ToyStep(state.model)
    outcome = train(state, step, step.draw, ToyBatches(), plan, device=torch.device("cpu"), store=toy_store(tmp_path))
    assert outcome.checkpoint is not None
    assert state.average is not None
    saved = load_file(outcome.checkpoint / "model.safetensors")
    assert torch.equal(saved["net.0.weight"], state.average.model.state_dict()["net.0.weight"])
    assert not torch.equal(saved["net.0.weight"], state.model.state_dict()["net.0.weight"])


def test_random_states_come_back() -> None:
    seed_everything(3, rank=1)
    state = random_state()
    first = torch.rand(3)
    restore_random_state(state)
    assert torch.equal(torch.rand(3), first)


def test_a_steps_generator_depends_on_seed_step_part_and_rank_alone() -> None:
    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    draws = [torch.rand(4, generator=step_generator(*place)).tolist() for place in places]
    assert len({tuple(draw) for draw in draws}) == len(places)
    assert torch.rand(4, generator=step_generator(0, 1, 0, 0)).tolist() == draws[2]
