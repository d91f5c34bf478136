"""Random numbers of a run: torch's state, and one generator a step that needs none."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int, rank: int) -> None:
    """Seed Python, numpy and torch (every device) of this process."""
    mixed = _mixed(seed, rank)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)  # noqa: NPY002 - libraries that draw from numpy's global state are meant
    torch.manual_seed(mixed)


def step_generator(seed: int, step: int, part: int, rank: int) -> torch.Generator:
    """A CPU generator for batch `part` of an optimiser step: the same after a restart, without any state kept."""
    return torch.Generator().manual_seed(_mixed(seed, step, part, rank))


def random_state() -> dict[str, Tensor]:
    """What torch draws from in this process. Nothing of a training step draws from Python's or numpy's global source."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Undo what was drawn since `random_state`."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def random_state_kept() -> Iterator[None]:
    """What torch draws in this context was never drawn, as far as the run can tell."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


def _mixed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, far apart for neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
