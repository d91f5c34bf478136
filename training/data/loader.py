"""Batches of a split, made by worker processes that never keep anybody waiting for ever."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from robustbev import ModelConfig
from sensors.errors import SensorDataError
from sensors.nuscenes.reader import NuScenesReader
from sensors.processes import stop_signals_blocked, use_one_thread
from training.data.batch import TrainingBatch
from training.data.dataset import Alter, DataConfig, NuScenesDataset, TrainingSample, collate_samples
from training.data.handover import Parcel, memory_files_work, shared_memory_bytes, shared_memory_fault
from training.data.sampling import Balance, BatchPlan, SampleKey, repeat_factors

_TIMED_OUT = "timed out"  # in what torch says
_END_SECONDS = 5.0


class LoaderError(ValueError):
    """The processes that load have not begun, have died, or do not deliver."""


_begun: set[BaseProcess] = set()  # workers of loaders that nobody has closed


def _kill(processes: set[BaseProcess]) -> None:
    """They only read: nothing is lost with them. torch complains of each."""
    for process in processes:
        with suppress(RuntimeError):
            process.kill()
            process.join(_END_SECONDS)


# Python ends its children by SIGTERM, which these block, and would wait for them. What is registered later comes earlier.
atexit.register(_kill, _begun)


class _Collate:
    """Picklable, for workers that are spawned. A fault travels as a value: raised in a worker it would lose its wording."""

    def __init__(self, dataset: NuScenesDataset) -> None:
        self._preparation = dataset.preparation

    def __call__(self, samples: list[TrainingSample | SensorDataError]) -> TrainingBatch | SensorDataError | Parcel:
        good = []
        for sample in samples:
            if isinstance(sample, SensorDataError):
                return sample
            good.append(sample)
        batch = collate_samples(good, self._preparation)
        return Parcel(batch) if get_worker_info() is not None and memory_files_work() else batch


class _Faults(Dataset[TrainingSample | SensorDataError]):
    """A data set that returns the faults in its data instead of raising them."""

    def __init__(self, dataset: NuScenesDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, key: SampleKey) -> TrainingSample | SensorDataError:
        try:
            return self._dataset[key]
        except SensorDataError as fault:
            return fault


class SampleLoader:
    """The batches of one rank. `epoch(e, start=n)` yields what is left of epoch e after n batches, always the same.

    As a context it ends its workers, whatever they are at, and says in one `LoaderError` what was the matter with them.
    """

    def __init__(self, dataset: NuScenesDataset, plan: BatchPlan, config: DataConfig) -> None:
        self.dataset, self.plan, self._config = dataset, plan, config
        pin = torch.cuda.is_available() if config.pin_memory is None else config.pin_memory
        workers: dict[str, Any] = {}
        if config.workers:
            workers = {
                "multiprocessing_context": config.start_method,
                "persistent_workers": True,
                "prefetch_factor": config.prefetch,
                "worker_init_fn": _begin_worker,
                "timeout": config.timeout_s,
            }
        self._loader: DataLoader[Any] | None = DataLoader(
            _Faults(dataset),
            batch_sampler=plan,
            collate_fn=_Collate(dataset),
            num_workers=config.workers,
            pin_memory=pin,
            generator=torch.Generator(),  # its own: a loader must not disturb the random numbers of the run
            **workers,
        )
        self._batches: Iterator[Any] = iter(())
        self._processes: set[BaseProcess] = set()

    def __enter__(self) -> SampleLoader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Of a worker that was killed torch tells wherever the training is just then.
        by_torch = isinstance(error, RuntimeError) and str(error).startswith("DataLoader ")
        if by_torch and _TIMED_OUT in str(error):
            _kill(self._processes)
        # Workers end when torch's last reference to them goes; those that hang do not, and none heeds SIGTERM.
        self._loader, self._batches = None, iter(())
        _kill(self._processes)
        _begun.difference_update(self._processes)
        if by_torch:
            raise LoaderError(self._what_to_do(str(error))) from error

    @property
    def reader(self) -> NuScenesReader:
        return self.dataset.reader

    def __len__(self) -> int:
        """Batches an epoch on this rank."""
        return len(self.plan)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Batches `start`, `start + 1`, ... of an epoch; SensorDataError where a file is broken."""
        self.plan.place(epoch, start)
        self._begin()
        for batch in self._batches:
            if isinstance(batch, SensorDataError):
                raise batch
            yield batch

    def _begin(self) -> None:
        if self._loader is None:
            raise ValueError("the loader is closed")
        if not self._config.workers:
            self._batches = iter(self._loader)
            return
        fault = shared_memory_fault(shared_memory_bytes())
        if fault is not None:
            raise LoaderError(f"data.workers={self._config.workers}: {fault}")
        others = set(multiprocessing.active_children()) - self._processes
        try:
            with stop_signals_blocked():
                self._batches = iter(self._loader)
        except OSError as error:  # no semaphore, no memory for another process
            raise LoaderError(
                f"data.workers={self._config.workers}: the loader's processes cannot begin: {error}; data.workers=0 does without"
            ) from error
        self._processes = set(multiprocessing.active_children()) - others
        _begun.update(self._processes)

    def _what_to_do(self, error: str) -> str:
        config = self._config
        if _TIMED_OUT in error:
            return (
                f"data.timeout_s: no batch came from {config.workers} loader processes in {config.timeout_s:g} s. With "
                f"data.workers=0 the error or the file that they hang at in {config.nuscenes.root} shows; give slow storage a "
                "larger data.timeout_s"
            )
        return (
            f"data.workers={config.workers}: {' '.join(error.split())} Where it was killed for memory, use fewer "
            "data.workers or a smaller data.prefetch"
        )


def build_loader(
    config: DataConfig,
    model: ModelConfig,
    split: str,
    *,
    batch_size: int,
    train: bool,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    alter: Alter | None = None,
    device: torch.device | str = "cpu",
) -> SampleLoader:
    """Batches of a split. Call `sensors.nuscenes.index.build_index` once before several ranks do this.

    Args:
        config: the data.
        model: decides image size, grid, classes and which sensors are read.
        split: a split's name, such as `config.nuscenes.train_split`.
        batch_size: samples a batch, on this rank.
        train: shuffle, balance, augment, filter truth, drop the rest that fills no batch. False: in order, every sample once
            over all ranks, truth as annotated.
        rank: of this process, 0..world_size - 1.
        world_size: processes that share the split.
        seed: of order and augmentation.
        alter: applied to every frame before it is prepared.
        device: where the batches will go. For the CPU the loader's workers make the lift tables, else the model does, there.
    """
    dataset = NuScenesDataset(config, model, split, train=train, seed=seed, alter=alter, device=device)
    balance: Balance = config.balance if train else "none"
    repeats = repeat_factors(dataset.reader.class_counts(config.min_points), balance)
    plan = BatchPlan(repeats, batch_size=batch_size, train=train, seed=seed, rank=rank, world_size=world_size)
    return SampleLoader(dataset, plan, config)


def _begin_worker(worker: int) -> None:
    use_one_thread()
