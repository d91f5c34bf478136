"""Tokens of grids and what stands for their absence: the CPU's one pass against plain torch, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusion.kernels.tokens import blended_on_cpu, blended_tokens

Maps = list[Tensor | None]


def with_gradients(blended: Callable[..., tuple[Tensor, Tensor]], grids: Maps, coverages: Maps, nulls: Tensor) -> Maps:
    """Tokens, coverage, and the gradients of grids, coverages and nulls of a loss that tells the tokens' values apart."""
    leaves = [None if t is None else t.clone().requires_grad_() for t in (*grids, *coverages, nulls)]
    maps, covered = leaves[: len(grids)], leaves[len(grids) : -1]
    if blended is blended_tokens:  # which also reads where nothing is covered
        maps = [
            None if m is None or c is None else torch.where(c[:, None] > 0, m, 0.0)
            for m, c in zip(maps, covered, strict=True)
        ]
    given = next(m for m in grids if m is not None)
    shape = (given.shape[0], *given.shape[2:])
    assert leaves[-1] is not None
    tokens, coverage = blended(maps, covered, list(leaves[-1]), shape, given.dtype)
    (tokens.double() * torch.linspace(-1, 1, tokens.numel()).view(tokens.shape)).sum().backward()
    return [tokens.detach(), coverage.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]


@settings(deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=4).filter(any),
    st.integers(0, 2),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_they_are_the_plain_ones_and_so_are_their_gradients(
    sees: list[bool], b: int, x: int, c: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # 0 and 1 among them
    coverages: Maps = [
        (1.5 * torch.rand(b, x, 3, generator=generator) - 0.25).clamp(0, 1) if there else None for there in sees
    ]
    grids: Maps = [
        # NaN of a sensor that is blind there
        None
        if covered is None
        else torch.randn(b, c, x, 3, generator=generator).masked_fill(covered[:, None] == 0, torch.nan)
        for covered in coverages
    ]
    nulls = torch.randn(len(sees), c, generator=generator)
    ours, plain = (with_gradients(way, grids, coverages, nulls) for way in (blended_on_cpu, blended_tokens))
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other)
    tokens, coverage = ours[:2]
    assert tokens is not None
    assert coverage is not None
    blind = (coverage == 0)[..., None]
    assert torch.equal(torch.where(blind, tokens, 0.0), torch.where(blind, nulls[:, None, None, None], 0.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_grids_make_narrow_tokens(dtype: torch.dtype) -> None:
    grid, coverage, nulls = torch.randn(1, 16, 8, 8).to(dtype), torch.rand(1, 8, 8), torch.randn(2, 16)
    ours = with_gradients(blended_on_cpu, [grid, None], [coverage, None], nulls)
    assert [None if t is None else t.dtype for t in ours] == [
        dtype,
        torch.float32,
        dtype,
        None,
        torch.float32,
        None,
        torch.float32,
    ]
    wide = with_gradients(blended_on_cpu, [grid.float(), None], [coverage, None], nulls)
    for narrow, exact in zip(ours, wide, strict=True):
        if narrow is not None:
            torch.testing.assert_close(narrow.float(), exact, atol=0.05, rtol=0.02)
