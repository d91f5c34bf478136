"""The precision of a run: told, kept, allowed to change; float16 trains with a scaler whose state is the run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import training.runs.precision
from robustbev import Precision, PrecisionWarning
from robustbev.checkpoints import CheckpointError
from tests.small_nuscenes import SmallNuScenes
from tests.training.loop.toy import Recorder, ToyBatches, ToyStep, toy_plan, toy_state, toy_store
from tests.training.runs.test_run import KilledError, KillingBars, config
from training.console.progress import Bars
from training.loop.callbacks import Callback, StepRecord
from training.loop.checkpoint import Place
from training.loop.history import read_history
from training.loop.peers import Alone
from training.loop.train import NonFiniteLossError, train
from training.runs.files import RunFiles
from training.runs.precision import agreed_precision
from training.runs.run import run_training

CPU = torch.device("cpu")
OVERFLOWS = 2.0**126  # times a loss of some units, float32 overflows too


def scaled(directory: Path | None, *listeners: Callback, scale: float, batches: ToyBatches | None = None) -> Recorder:
    """Three epochs of the toy with a scaler that begins at `scale` and grows every fifth step."""
    plan = toy_plan(every_steps=4)
    state, recorder = toy_state(plan), Recorder()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=5)
    step = ToyStep(state.model)
    train(
        state, step, step.draw, batches or ToyBatches(), plan, device=CPU,
        store=None if directory is None else toy_store(directory), callbacks=[recorder, *listeners],
    )  # fmt: skip
    return recorder


class KillAt(Callback):
    def on_step(self, record: StepRecord) -> None:
        if record.step == 10:
            raise KilledError


def test_a_scaler_leaves_out_what_overflows_and_else_changes_nothing() -> None:
    plain, one, high = scaled(None, scale=1.0), scaled(None, scale=2.0**10), scaled(None, scale=OVERFLOWS)
    assert one.losses == pytest.approx(plain.losses, rel=1e-5)  # a power of two costs no bit of a float32
    left_out = [record.step for record in high.steps if record.grad_norm is None]
    assert left_out
    assert len(left_out) < 9
    assert high.losses[-1] < high.losses[0]


def test_a_run_with_a_scaler_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = scaled(tmp_path / "whole", scale=OVERFLOWS)
    with pytest.raises(KilledError):
        scaled(tmp_path / "killed", KillAt(), scale=OVERFLOWS)
    resumed = scaled(tmp_path / "killed", scale=OVERFLOWS)
    count = len(resumed.steps)
    assert resumed.losses == whole.losses[-count:]
    assert [r.grad_norm for r in resumed.steps] == [r.grad_norm for r in whole.steps[-count:]]


def test_a_gradient_that_is_not_finite_without_scaling_is_a_fault() -> None:
    with pytest.raises(NonFiniteLossError, match="token-7"):
        scaled(None, scale=2.0**10, batches=ToyBatches(poison=7))


def test_a_checkpoint_with_a_scale_that_is_none_is_refused(tmp_path: Path) -> None:
    plan = toy_plan()
    state = toy_state(plan)
    state.scaler = torch.amp.GradScaler("cpu")
    scaled(tmp_path, scale=1.0)
    latest = toy_store(tmp_path).latest()
    assert latest is not None
    file = latest / "training_state.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"scaler": document["scaler"] | {"scale": -1.0}}))
    with pytest.raises(CheckpointError, match="scaler's finite factors"):
        toy_store(tmp_path).restore(latest, state, Place(6, 1))


class Others(Alone):
    """`Peers` of which one has an older GPU."""

    def gather(self, value: Any) -> list[Any]:
        return [value, "float16"]


def test_workers_that_would_choose_otherwise_agree_on_float32() -> None:
    alone = agreed_precision("auto", CPU, Alone())
    assert alone.name in {"float32", "bfloat16"}
    together = agreed_precision("auto", CPU, Others())
    assert together.name == "float32"
    assert f"{alone.name} or float16" in together.reason


def test_a_run_that_goes_on_elsewhere_may_compute_otherwise_and_says_so(
    small_nuscenes: SmallNuScenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def device_has(name: Any, reason: str, warning: str | None = None) -> None:
        monkeypatch.setattr(
            training.runs.precision, "choose_precision", lambda *_, **__: Precision(name, reason, warning)
        )

    run = config(small_nuscenes, tmp_path, "moved", epochs=1)
    files = RunFiles(run.run_dir)
    device_has("float16", "an older GPU")
    with pytest.raises(KilledError):
        run_training(run, KillingBars(3))
    assert "computing in float16: an older GPU\n" in capsys.readouterr().out
    assert json.loads(files.precision.read_text())["name"] == "float16"
    device_has("float32", "this CPU is old", "the warning")
    with pytest.warns(PrecisionWarning, match=r"step\.precision: the warning"):
        run_training(run, Bars())
    assert "computing in float32: this CPU is old; until now it was float16\n" in capsys.readouterr().out
    assert files.is_complete(run)
    assert [row["step"] for row in read_history(files.history)] == list(range(1, len(read_history(files.history)) + 1))
    assert "precision: auto" in files.config.read_text()
    # Asking for one is no other run: what it learns is the same but for rounding.
    assert files.is_complete(config(small_nuscenes, tmp_path, "moved", epochs=1, step={"precision": "float32"}))
