"""What the loop promises: a run that was stopped and goes on is the run that never stopped; what goes wrong is named."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.training.toy import Recorder, ToyBatch, ToyBatches, ToyStep, toy_plan, toy_state, toy_store
from training.callbacks import Callback, StepRecord
from training.history import History, read_history
from training.interrupt import StopOnSignal
from training.loop import Batches, NonFiniteLossError, Outcome, Plan, train
from training.optim import OptimConfig

CPU = torch.device("cpu")


class KilledError(Exception):
    pass


class KillAt(Callback):
    """Ends the process, as far as the loop can tell, right after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, record: StepRecord) -> None:
        if record.step == self.step:
            raise KilledError


def run(
    directory: Path | None,
    plan: Plan,
    *listeners: Callback,
    seed: int = 0,
    batches: Batches | None = None,
    stop_at: int = -1,
) -> tuple[Recorder, Outcome, dict[str, torch.Tensor]]:
    state, recorder = toy_state(plan, seed), Recorder()
    step = ToyStep(state.model)
    outcome = train(
        state,
        step,
        step.draw,
        batches or ToyBatches(),
        plan,
        device=CPU,
        store=None if directory is None else toy_store(directory),
        callbacks=[recorder, *listeners],
        stop=lambda: state.step + 1 == stop_at,
    )
    weights = {**state.model.state_dict(), **{f"average.{k}": v for k, v in state.model_to_use.state_dict().items()}}
    return recorder, outcome, {name: value.clone() for name, value in weights.items()}


def assert_same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_training_lowers_the_loss_and_reports_every_step() -> None:
    recorder, outcome, _ = run(None, toy_plan(epochs=20))
    assert outcome == Outcome(step=120, total_steps=120, interrupted=False, checkpoint=None)
    assert [record.step for record in recorder.steps] == list(range(1, 121))
    assert recorder.epochs == list(range(20))
    assert sum(recorder.losses[-30:]) < 0.8 * sum(recorder.losses[:30])
    first = recorder.steps[0]
    assert first.loss == pytest.approx(first.parts["fit"] + first.parts["size"])
    assert first.samples == 4
    assert first.grad_norm > 0
    assert 0 <= first.data_wait_seconds <= first.seconds
    assert first.memory_bytes > 10 * 2**20


@pytest.mark.parametrize("killed_at", [5, 6, 8])  # between checkpoints, right after one at an epoch's end, mid-epoch
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, killed_at: int, accumulation: int) -> None:
    plan = toy_plan(epochs=4 * accumulation, accumulation=accumulation, every_steps=4)
    whole, _, weights = run(tmp_path / "whole", plan)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", plan, KillAt(killed_at))
    torch.manual_seed(12345)  # nothing of the process that was killed is left
    resumed, outcome, resumed_weights = run(tmp_path / "killed", plan, seed=77)
    assert resumed.steps[0].step <= killed_at + 1
    assert resumed.losses == whole.losses[-len(resumed.losses) :]
    assert [r.grad_norm for r in resumed.steps] == [r.grad_norm for r in whole.steps[-len(resumed.steps) :]]
    assert outcome.step == outcome.total_steps == len(whole.steps)
    assert_same_weights(weights, resumed_weights)


def test_stopping_saves_at_once_and_the_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    plan = toy_plan(epochs=2)
    whole, _, weights = run(tmp_path / "whole", plan)
    first, outcome, _ = run(tmp_path / "stopped", plan, stop_at=4)
    assert outcome.interrupted
    assert outcome.step == 4
    assert outcome.checkpoint == tmp_path / "stopped" / "step-00000004"
    second, outcome, resumed_weights = run(tmp_path / "stopped", plan, seed=3)
    assert not outcome.interrupted
    assert first.losses + second.losses == whole.losses
    assert_same_weights(weights, resumed_weights)


def test_a_complete_run_takes_no_more_steps(tmp_path: Path) -> None:
    plan = toy_plan(epochs=1)
    run(tmp_path, plan)
    again, outcome, _ = run(tmp_path, plan, seed=9)
    assert again.steps == []
    assert outcome.checkpoint == tmp_path / "step-00000006"


def test_signals_ask_the_loop_to_stop_and_a_second_ctrl_c_insists(capsys: pytest.CaptureFixture[str]) -> None:
    plan = toy_plan(epochs=2)

    class PressAt(Callback):
        def on_step(self, record: StepRecord) -> None:
            if record.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    state = toy_state(plan)
    step = ToyStep(state.model)
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # what a shell starts in the background ignores it
    try:
        with StopOnSignal() as stop:
            outcome = train(state, step, step.draw, ToyBatches(), plan, device=CPU, callbacks=[PressAt()], stop=stop)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.interrupted
    assert outcome.step == 3  # the step in which the wish was heard is finished
    assert "Ctrl-C again" in capsys.readouterr().err


def test_ctrl_c_that_kills_the_loaders_workers_too_loses_nothing(tmp_path: Path) -> None:
    class Broken(ToyBatches):
        def epoch(self, epoch: int, start: int) -> Iterator[ToyBatch]:
            for i, batch in enumerate(super().epoch(epoch, start)):
                if i == 3:
                    raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly")
                yield batch

    plan = toy_plan(epochs=1)
    state = toy_state(plan)
    step = ToyStep(state.model)
    outcome = train(
        state, step, step.draw, Broken(), plan, device=CPU, store=toy_store(tmp_path), stop=lambda: state.step == 3
    )
    assert outcome.interrupted
    assert outcome.step == 3
    assert outcome.checkpoint == tmp_path / "step-00000003"
    with pytest.raises(RuntimeError, match="exited unexpectedly"):  # without a wish to stop, it is an error
        run(tmp_path / "other", plan, batches=Broken())


def test_a_loss_that_is_not_finite_names_step_parts_and_samples() -> None:
    with pytest.raises(NonFiniteLossError, match=r"step \d: .* total nan, fit nan, size nan; .*token-7.*optim\.lr"):
        run(None, toy_plan(epochs=1), batches=ToyBatches(poison=7))


def test_gradients_are_clipped_and_the_norm_before_it_reported() -> None:
    plan = Plan(1, OptimConfig(lr=1e-4, clip_norm=1e-3))
    state, recorder = toy_state(plan), Recorder()
    step = ToyStep(state.model)
    train(state, step, step.draw, ToyBatches(), plan, device=CPU, callbacks=[recorder])
    norm = torch.nn.utils.get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None])
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    assert recorder.steps[-1].grad_norm > 1e-2


def test_an_epoch_shorter_than_one_step_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"6 batches .*accumulation=7"):
        run(None, toy_plan(accumulation=7))


def test_history_drops_the_steps_that_are_taken_again(tmp_path: Path) -> None:
    plan = toy_plan(epochs=2, every_steps=4)
    whole, _, _ = run(None, plan)
    history = tmp_path / "history.jsonl"
    with pytest.raises(KilledError):
        run(tmp_path / "checkpoints", plan, History(history), KillAt(5))
    with history.open("a") as file:
        file.write('{"step": 6, "lo')  # the crash cut a line off
    run(tmp_path / "checkpoints", plan, History(history))
    assert [line["loss"] for line in read_history(history)] == whole.losses
