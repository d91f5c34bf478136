"""Two workers train as one: same weights, one history, checkpoints; stopped and lost workers go on."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("ray")

from tests.training.loop.toy import ToyBatches, ToyStep, toy_plan, toy_state, toy_store
from tests.training.runs.two_ranks import SEED, Unlike, gradients, real_step, train_rank
from training.console.progress import Bars, TrainingProgress
from training.loop.callbacks import Callback, StepRecord
from training.loop.history import read_history
from training.loop.random_state import step_generator
from training.loop.train import NonFiniteLossError, Outcome, train
from training.runs.cluster.runner import _check_room, fit, work_on_ray
from training.runs.cluster.session import ray_session
from training.runs.config import RunConfig
from training.runs.files import RunError, RunFiles
from training.runs.worker import Post, standard_callbacks


class _FirstTry(Callback):
    """Rank 0 notes the losses of the first try; rank 1 kills its process once those of all nine steps are noted."""

    def __init__(self, file: Path, rank: int) -> None:
        self._file, self._rank, self._died = file, rank, file.with_name("died")

    def on_step(self, record: StepRecord) -> None:
        if self._died.exists():
            return
        if self._rank == 0:
            with self._file.open("a") as file:
                file.write(f"{record.loss!r}\n")
        elif record.step == 9:
            while len(noted(self._file)) < 9:
                time.sleep(0.05)
            self._died.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def noted(file: Path) -> list[float]:
    """Losses, of the lines that are whole."""
    text = file.read_text() if file.exists() else ""
    return [float(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class _Slow(Callback):
    def on_step(self, record: StepRecord) -> None:
        time.sleep(0.2)


def work(config: RunConfig, post: Post) -> Outcome:
    """A worker with the toy task; the run's name says what happens to it."""
    files = RunFiles(config.run_dir)
    plan = toy_plan(epochs=config.epochs, every_steps=7)  # in the middle of an epoch of three steps
    state = toy_state(plan)
    rank = post.peers.rank
    special: list[Callback] = []
    if config.name == "killed":
        special = [_FirstTry(files.root / "losses", rank)]
    if config.name == "stopped":
        special = [_Slow()]
    step = ToyStep(state.model)
    return train(
        state,
        post.wrap(step),
        step.draw,
        ToyBatches(rank, post.peers.world_size, poison=7 if config.name == "poisoned" else None),
        plan,
        device=post.device,
        store=toy_store(files.checkpoints, post.keep),
        callbacks=[*standard_callbacks(config, files, rank), *post.callbacks, *special],
        peers=post.peers,
        stop=post.stop,
    )


def run_config(folder: Path, name: str, epochs: int = 3) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": name, "runs_dir": folder, "epochs": epochs, "tracking": {"enabled": False},
            "runner": {"workers": 2, "device": "cpu", "cpus_per_worker": 0.5, "checkpoint": {"keep": 2}},
        }
    )  # fmt: skip


def run(folder: Path, name: str, epochs: int = 3) -> tuple[Outcome, RunFiles]:
    config = run_config(folder, name, epochs)
    files = RunFiles(config.run_dir)
    files.begin(config)
    with Bars() as bars:
        return fit(work, config, files, TrainingProgress(bars, epochs)), files


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests of this file."""
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    with ray_session(None, "address", num_cpus=2, object_store_memory=100 * 2**20):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_lost_worker_costs_nothing(tmp_path: Path) -> None:
    """Lost after the last step: the steps from the last checkpoint on, 8 and 9, are taken again and come out as before."""
    outcome, files = run(tmp_path, "killed")
    assert (files.root / "died").exists()
    assert (outcome.step, outcome.total_steps, outcome.interrupted) == (9, 9, False)
    losses = noted(files.root / "losses")
    assert len(losses) == 9
    assert [row["loss"] for row in read_history(files.history)] == losses


def descendants(process: int) -> list[int]:
    """Its children, their children, and so on."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [process]
    for parent in found:  # grows on the way
        found += [child for child, of in parents.items() if of == parent]
    return found[1:]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_sigterm_to_every_process_stops_all_workers_at_one_step(tmp_path: Path) -> None:
    """Slurm sends it so: to this process, to Ray's and to the workers'."""
    files = RunFiles(tmp_path / "stopped")

    def press() -> None:
        while len(read_history(files.history)) < 8:
            time.sleep(0.1)
        for process in [os.getpid(), *descendants(os.getpid())]:
            os.kill(process, signal.SIGTERM)

    threading.Thread(target=press, daemon=True).start()
    stopped, _ = run(tmp_path, "stopped", epochs=40)
    assert stopped.interrupted
    assert stopped.checkpoint is not None
    assert stopped.checkpoint.name == f"step-{stopped.step:08d}"
    assert len(list(files.checkpoints.glob("step-*"))) == 2, "`keep` of the run"
    assert not files.stop_request.exists()


def test_ranks_that_lack_other_sensors_take_the_same_steps(tmp_path: Path) -> None:
    """As one process that accumulates both ranks' batches, though each rank leaves other parameters unused."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=train_rank, args=(tmp_path, rank), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    together = real_step()
    for rank in range(2):
        batch = next(iter(Unlike(rank).epoch(0, 0)))
        (together(together.draw(batch, step_generator(SEED, 0, 0, rank))).loss / 2).backward()
    for process in processes:
        process.join(90)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    for name, value in gradients(together.model).items():
        assert torch.equal(first["gradients"][name], second["gradients"][name]), name
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        # The sums over ranks and over batches are rounded in other orders.
        torch.testing.assert_close(first["gradients"][name], value, rtol=1e-4, atol=1e-6)
    for encoder in ("lidar.", "radar."):
        learned = [value.any() for name, value in first["gradients"].items() if name.startswith(encoder)]
        assert all(learned), f"{encoder} is on one rank alone"


@pytest.mark.parametrize(
    ("workers", "cpus", "device", "there", "said"),
    [
        (2, 0.5, "cpu", {"CPU": 1.0}, None),
        (7, 2 / 7, "cpu", {"CPU": 2.0}, None),
        (2, 2.0, "cpu", {"CPU": 2.0}, "runner.workers=2: together they want 4 CPUs, and this machine has 2"),
        (2, 0.5, "cuda", {"CPU": 2.0}, "runner.device: cuda, but Ray found no GPU"),
        (
            3,
            0.5,
            "cuda",
            {"CPU": 2.0, "GPU": 2.0},
            "runner.workers=3: together they want 3 GPUs, and this machine has 2",
        ),
    ],
)
def test_workers_that_this_machine_cannot_hold_are_refused(
    tmp_path: Path, workers: int, cpus: float, device: str, there: dict[str, float], said: str | None
) -> None:
    config = run_config(tmp_path, "large")
    config = config.model_copy(
        update={"runner": config.runner.model_copy(update={"workers": workers, "device": device})}
    )
    with nullcontext() if said is None else pytest.raises(RunError, match=said):
        _check_room(config, cpus, there)


def test_what_a_worker_finds_wrong_is_handed_on_and_not_tried_again(tmp_path: Path) -> None:
    config = run_config(tmp_path, "poisoned")
    files = RunFiles(config.run_dir)
    settings = {"config": config.model_dump_json(), "threads": torch.get_num_threads(), "cuda": False, "work": work}
    with pytest.raises(RunError, match="runs_dir must be on a file system that all nodes"):
        work_on_ray(settings)
    files.begin(config)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with pytest.raises(NonFiniteLossError):
            work_on_ray(settings)
    finally:
        dist.destroy_process_group()
    assert files.failure.read_text().startswith("step 2: the loss is not finite")
    with pytest.raises(RunError, match="not tried again"):
        work_on_ray(settings)
