"""What the loop promises: a run that was stopped and goes on is the run that never stopped; what goes wrong is named."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.loop.toy import Recorder, ToyBatch, ToyBatches, ToyOutput, ToyStep, toy_plan, toy_state, toy_store
from training.console.interrupt import StopOnSignal
from training.loop.callbacks import Callback, StepRecord
from training.loop.checkpoint import TrainingState
from training.loop.history import History, read_history
from training.loop.optim import AveragedWeights, OptimConfig, lr_factor
from training.loop.peers import Alone
from training.loop.train import Batches, NonFiniteLossError, Outcome, Plan, train

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
    assert first.grad_norm is not None
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
    assert (recorder.steps[-1].grad_norm or 0) > 1e-2


class Plain(torch.nn.Module):
    """A step whose gradient is known: the loss is w times the batch's mean, so dloss/dw is that mean."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch: ToyBatch) -> ToyOutput:
        return ToyOutput(self.w * batch.x.mean(), {})


class Trace(Callback):
    """Learning rate, weight and its average after each step."""

    def __init__(self, state: TrainingState) -> None:
        self.state = state
        self.rows: list[tuple[float, float, float]] = []

    def on_step(self, record: StepRecord) -> None:
        assert self.state.average is not None
        both = self.state.model, self.state.average.model
        w, average = (float(next(model.parameters()).detach()) for model in both)
        self.rows.append((record.lr, w, average))


def descend(values: Sequence[float], **optim: Any) -> list[tuple[float, float, float]]:
    """One epoch of plain gradient descent over batches of these means; -> (lr, w, average of w) after each step."""

    class Values(ToyBatches):
        def __len__(self) -> int:
            return len(values)

        def epoch(self, epoch: int, start: int) -> Iterator[ToyBatch]:
            return (ToyBatch(torch.tensor([value]), (f"token-{i}",)) for i, value in enumerate(values))

    config = OptimConfig(lr=0.1, clip_norm=None, **optim)
    model = Plain()
    group = {"params": [model.w], "names": ["w"], "base_lr": config.lr}
    state = TrainingState(model, torch.optim.SGD([group], lr=config.lr), AveragedWeights(model, 0.5))
    trace = Trace(state)
    train(state, model, lambda batch, _: batch, Values(), Plan(1, config), device=CPU, callbacks=[trace])
    return trace.rows


def test_accumulated_batches_count_as_one_mean() -> None:
    values = [1.0, 3.0, 2.0, 6.0, -5.0, 1.0]
    whole = descend([2.0, 4.0, -2.0])
    assert descend(values, accumulation=2) == whole
    assert [w for _, w, _ in whole] != [1.0] * 3


def test_every_step_takes_its_own_learning_rate_and_the_average_follows_it() -> None:
    optim = {"warmup_fraction": 0.3, "final_lr_fraction": 0.1}
    rows = descend([1.0] * 10, **optim)
    w = average = 1.0
    for step, row in enumerate(rows):
        lr = 0.1 * lr_factor(step, 10, OptimConfig(**optim))
        w -= lr
        decay = min(0.5, (2 + step) / (11 + step))
        average = decay * average + (1 - decay) * w
        assert row == pytest.approx((lr, w, average), rel=1e-6), f"step {step + 1}"
    assert len({lr for lr, _, _ in rows}) == 10  # so that a rate of a neighbouring step would show


class Rank(Alone):
    world_size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def test_no_two_ranks_steps_or_accumulated_batches_draw_alike() -> None:
    """One seed for all ranks would hide the same sensors from all samples of a step."""

    def drawn(rank: int) -> list[int]:
        seeds = []

        def draw(batch: ToyBatch, generator: torch.Generator) -> ToyBatch:
            seeds.append(generator.initial_seed())
            return step.draw(batch, generator)

        plan = toy_plan(epochs=2, accumulation=3)
        state = toy_state(plan)
        step = ToyStep(state.model)
        train(state, step, draw, ToyBatches(), plan, device=CPU, peers=Rank(rank))
        return seeds

    seeds = [*drawn(0), *drawn(1)]
    assert len(set(seeds)) == len(seeds) == 2 * 2 * 2 * 3  # ranks, epochs, steps of an epoch, batches of a step
    assert drawn(1) == seeds[12:]


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
