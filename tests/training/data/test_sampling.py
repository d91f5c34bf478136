"""Which samples make which batch: all of them, fairly shared, and the same again after a restart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.sampling import BatchPlan, SampleKey, repeat_factors, sample_random


def plan(samples: int = 23, **changes: object) -> BatchPlan:
    arguments: dict[str, object] = {"batch_size": 2, "train": True, "seed": 7, "rank": 0, "world_size": 1}
    return BatchPlan(np.ones(samples), **(arguments | changes))  # type: ignore[arg-type]


def batches(of: BatchPlan, epoch: int = 0, start: int = 0) -> list[list[SampleKey]]:
    of.place(epoch, start)
    return list(of)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4))
def test_evaluation_sees_every_sample_once_over_all_ranks(samples: int, batch_size: int, world_size: int) -> None:
    ranks = [
        plan(samples, train=False, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    seen = [key.index for rank in ranks for batch in batches(rank) for key in batch]
    assert sorted(seen) == list(range(samples))
    assert all(len(batches(rank)) == len(rank) for rank in ranks)


@settings(max_examples=50, deadline=None)
@given(st.integers(8, 60), st.integers(1, 2), st.integers(1, 4))
def test_training_ranks_get_equally_many_whole_batches_of_different_samples(
    samples: int, batch_size: int, world_size: int
) -> None:
    ranks = [plan(samples, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    of_ranks = [batches(rank) for rank in ranks]
    assert len({len(of_rank) for of_rank in of_ranks}) == 1
    assert all(len(batch) == batch_size for of_rank in of_ranks for batch in of_rank)
    seen = [key.index for of_rank in of_ranks for batch in of_rank for key in batch]
    assert len(seen) == len(set(seen))


def test_a_run_that_stopped_goes_on_where_it_was() -> None:
    assert batches(plan(), epoch=3, start=4) == batches(plan(), epoch=3)[4:]


def test_epochs_differ_and_seeds_differ() -> None:
    orders = {
        tuple(key.index for batch in batches(plan(seed=seed), epoch=epoch) for key in batch)
        for seed in (1, 2)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_a_batch_that_cannot_be_filled_is_said() -> None:
    with pytest.raises(ValueError, match=r"batch_size: .*needs 32 samples.*has 23"):
        plan(batch_size=16, world_size=2)


COUNTS = np.array([[5, 0]] * 90 + [[1, 2]] * 10)  # the second class is in a tenth of the samples


def test_cbgs_gives_every_class_an_equal_share_of_visits() -> None:
    factors = repeat_factors(COUNTS, "cbgs")
    visits = ((COUNTS > 0) * factors[:, None]).sum(axis=0)
    assert factors.sum() == pytest.approx(110)  # as many as (class, sample) pairs
    # Samples of the rare class hold the common one too, so that exactly equal shares cannot be; CBGS draws them as such.
    np.testing.assert_allclose(factors[90:], 55 / 100 + 55 / 10)
    assert visits[1] > 5 * 10


def test_no_balance_visits_each_sample_once() -> None:
    np.testing.assert_array_equal(repeat_factors(COUNTS, "none"), np.ones(100))


def test_balanced_epochs_have_one_length_and_visit_by_the_factors() -> None:
    factors = np.array([1.0, 2.5, 1.0, 1.5, 3.0])
    of = BatchPlan(factors, batch_size=1, train=True, seed=0, rank=0, world_size=1)
    visits = np.zeros(5)
    for epoch in range(200):
        keys = [key for batch in batches(of, epoch) for key in batch]
        assert len(keys) == 9
        assert len(set(keys)) == 9  # a second visit is another key, and so another augmentation
        counts = np.bincount([key.index for key in keys], minlength=5)
        assert (counts >= np.floor(factors)).all()
        assert (counts <= np.ceil(factors)).all()
        visits += counts
    np.testing.assert_allclose(visits / 200, factors, atol=0.1)


def test_randomness_follows_from_the_key_alone() -> None:
    draws = {
        sample_random(seed, SampleKey(epoch, index, visit)).random()
        for seed in (0, 1) for epoch in (0, 1) for index in (0, 1) for visit in (0, 1)
    }  # fmt: skip
    assert len(draws) == 16
    assert sample_random(1, SampleKey(2, 3, 0)).random() == sample_random(1, SampleKey(2, 3, 0)).random()
