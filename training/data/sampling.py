"""Which samples make up which batch of which epoch, on which rank.

Everything follows from (seed, epoch): a run that stops and goes on sees what it would have seen, whatever the number of loader
workers. Letters: S samples, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Balance = Literal["none", "cbgs"]


@dataclass(frozen=True)
class SampleKey:
    """One visit to one sample; with the seed it decides the augmentation."""

    epoch: int
    index: int
    visit: int  # balanced sampling visits some samples more than once an epoch


def repeat_factors(class_counts: NDArray[np.int64], balance: Balance) -> NDArray[np.float64]:
    """[S] how often to visit each sample an epoch, on average; `class_counts` [S, K] boxes.

    "cbgs" (Zhu et al. 2019): every class gets an equal share of the visits; a sample without any box gets none.
    """
    samples = len(class_counts)
    if balance == "none" or samples == 0:
        return np.ones(samples)
    has = class_counts > 0
    samples_with = has.sum(axis=0)
    with np.errstate(divide="ignore"):
        visits = samples_with.sum() / max(1, (samples_with > 0).sum())
        weights: NDArray[np.float64] = np.where(has, visits / samples_with, 0.0).sum(axis=1)
    return weights


class BatchPlan(Sampler[list[SampleKey]]):
    """Batches of one rank, resumable: `place(epoch, start)` says where the next iteration begins.

    In training every rank gets equally many whole batches, what is left over differs from epoch to epoch. Otherwise the
    samples come in order, each exactly once over all ranks, and the last batch may be smaller.
    """

    def __init__(
        self,
        repeats: NDArray[np.float64],
        *,
        batch_size: int,
        train: bool,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 <= rank < world_size, got rank {rank} of {world_size}")
        self._repeats, self._batch_size, self._train = repeats, batch_size, train
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._epoch, self._start = 0, 0
        self._visits = round(float(repeats.sum()))
        if train and len(self) == 0:
            raise ValueError(
                f"batch_size: one batch of {batch_size} on each of {world_size} workers needs {batch_size * world_size} samples, "
                f"the training split has {self._visits}. Lower batch_size"
            )

    def __len__(self) -> int:
        """Batches an epoch on this rank."""
        if self._train:
            return self._visits // (self._batch_size * self._world_size)
        return -(-len(range(self._rank, self._visits, self._world_size)) // self._batch_size)

    def place(self, epoch: int, start: int = 0) -> None:
        self._epoch, self._start = epoch, start

    def __iter__(self) -> Iterator[list[SampleKey]]:
        keys = self._keys()[self._rank :: self._world_size]
        for batch in range(self._start, len(self)):
            yield keys[batch * self._batch_size : (batch + 1) * self._batch_size]

    def _keys(self) -> list[SampleKey]:
        """Every visit of the epoch, over all ranks."""
        if not self._train:
            return [SampleKey(self._epoch, i, 0) for i in range(self._visits)]
        random = np.random.default_rng(np.random.SeedSequence((self._seed, self._epoch, 1)))
        # Evenly spaced marks on the line of summed factors: each sample is hit floor or ceil of its factor times, and an epoch
        # always has the same length.
        ends = np.cumsum(self._repeats)
        marks = (np.arange(self._visits) + random.random()) * (ends[-1] / self._visits)
        index = np.minimum(np.searchsorted(ends, marks, side="right"), len(ends) - 1)
        visit = np.arange(len(index)) - np.searchsorted(index, index)
        order = random.permutation(len(index))
        return [SampleKey(self._epoch, int(index[i]), int(visit[i])) for i in order]


def sample_random(seed: int, key: SampleKey) -> np.random.Generator:
    """The randomness of one visit, whichever worker makes it."""
    entropy: tuple[Any, ...] = (seed, key.epoch, key.index, key.visit)
    return np.random.default_rng(np.random.SeedSequence(entropy))
