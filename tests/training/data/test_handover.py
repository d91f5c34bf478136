"""Batches between processes: what comes out is what went in, whatever /dev/shm can hold."""

import os
import pickle
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.data import handover
from training.data.handover import (
    SHARED_MEMORY_NEEDED_BYTES,
    Parcel,
    memory_files_work,
    shared_memory_bytes,
    shared_memory_fault,
)

pytestmark = pytest.mark.skipif(not memory_files_work(), reason="this system has no memory files")

DTYPES = (
    torch.uint8,
    torch.bool,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    tensor = torch.randint(0, 2, shape).to(draw(st.sampled_from(DTYPES)))
    return tensor.transpose(0, -1) if draw(st.booleans()) and tensor.ndim else tensor


Content = st.recursive(
    st.one_of(tensors(), st.integers(), st.text(max_size=3), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@settings(max_examples=40)
@given(Content)
def test_a_parcel_is_unpickled_as_its_content(content: Any) -> None:
    assert same(pickle.loads(pickle.dumps(Parcel(content))), content)


def test_what_was_opened_is_let_go_and_the_content_stays() -> None:
    content = pickle.loads(pickle.dumps(Parcel([torch.arange(9)])))
    waiting = pickle.dumps(Parcel("nobody has opened this yet"))
    assert len(handover._held) == 1
    content[0] += 1  # it is the receiver's own
    assert content[0].tolist() == list(range(1, 10))
    assert pickle.loads(waiting) == "nobody has opened this yet"


Status = namedtuple("Status", ["f_bavail", "f_frsize"])


@given(st.integers(0, 1 << 20), st.sampled_from([512, 4096]))
def test_too_small_a_shared_memory_is_named_with_what_is_needed(blocks: int, size: int) -> None:
    free = shared_memory_bytes(lambda _: Status(blocks, size))  # type: ignore[arg-type,return-value]
    fault = shared_memory_fault(free)
    assert free == blocks * size
    assert (fault is None) == (free >= SHARED_MEMORY_NEEDED_BYTES)
    assert fault is None or (
        f"has {free / 2**20:.1f} MiB free, and 1 MiB are needed" in fault and "--shm-size" in fault
    )


def test_a_system_without_shared_memory_cannot_and_another_system_does_not_mind() -> None:
    def missing(path: Path) -> os.statvfs_result:
        raise FileNotFoundError(path)

    assert shared_memory_fault(shared_memory_bytes(missing)) is not None
    assert shared_memory_fault(None) is None
