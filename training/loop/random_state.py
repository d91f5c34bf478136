"""Random numbers of a run: every source's state, and one generator a step that needs none."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_WORDS = 624  # of a Mersenne twister


def seed_everything(seed: int, rank: int) -> None:
    """Seed Python, numpy and torch (every device) of this process."""
    mixed = _mixed(seed, rank)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)  # noqa: NPY002 - libraries that draw from numpy's global state are meant
    torch.manual_seed(mixed)


def step_generator(seed: int, step: int, part: int, rank: int) -> torch.Generator:
    """A CPU generator for batch `part` of an optimiser step: the same after a restart, without any state kept."""
    return torch.Generator().manual_seed(_mixed(seed, step, part, rank))


def random_state() -> dict[str, Any]:
    """The states of all global sources of this process: tensors, and the rest fit for JSON."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Undo what was drawn since `random_state`, given its two halves."""
    version, words, gauss = document["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = document["numpy"]
    if not 0 <= position <= _WORDS or len(keys) != _WORDS or not all(0 <= key < 2**32 for key in keys):
        # numpy takes any position, and would read whatever lies there in memory.
        raise ValueError(
            f"expected numpy's state of {_WORDS} words with a place among them, got {len(keys)} and {position}"
        )
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


@contextmanager
def random_state_kept() -> Iterator[None]:
    """What is drawn from the global sources in this context was never drawn, as far as the run can tell."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state, state)


def _mixed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, far apart for neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
