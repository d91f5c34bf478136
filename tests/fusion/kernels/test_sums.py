"""Sums of tokens by weight: the CPU's one pass against plain torch, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusion.kernels.sums import weighted_sum, weighted_sum_reference


def with_gradients(function: object, tokens: Tensor, weight: Tensor) -> list[Tensor]:
    """The sum, and the gradients of tokens and weight of a loss that tells its values apart."""
    tokens, weight = tokens.clone().requires_grad_(), weight.clone().requires_grad_()
    summed = function(tokens, weight)  # type: ignore[operator]
    (summed.double() * torch.linspace(-1, 1, summed.numel()).view(summed.shape)).sum().backward()
    assert tokens.grad is not None
    assert weight.grad is not None
    return [summed.detach(), tokens.grad, weight.grad]


@settings(deadline=None)
@given(
    st.integers(1, 4), st.integers(0, 2), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99)
)
def test_it_is_the_plain_sum_and_so_are_its_gradients(m: int, b: int, x: int, y: int, c: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(m, b, x, y, c, generator=generator, dtype=torch.float64)
    weight = torch.rand(m, b, x, y, generator=generator, dtype=torch.float64)
    for ours, plain in zip(
        with_gradients(weighted_sum, tokens, weight),
        with_gradients(weighted_sum_reference, tokens, weight),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_tokens_keep_their_dtype_and_weights_theirs(dtype: torch.dtype) -> None:
    tokens = torch.randn(3, 1, 8, 8, 16).to(dtype)
    weight = torch.rand(3, 1, 8, 8)
    ours = with_gradients(weighted_sum, tokens, weight)
    assert [t.dtype for t in ours] == [dtype, dtype, torch.float32]
    for narrow, wide in zip(ours, with_gradients(weighted_sum, tokens.float(), weight), strict=True):
        torch.testing.assert_close(narrow.float(), wide, atol=0.05, rtol=0.02)


def test_only_what_is_asked_for_has_a_gradient() -> None:
    tokens = torch.randn(2, 1, 3, 3, 4, requires_grad=True)
    weighted_sum(tokens, torch.ones(2, 1, 3, 3)).sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, torch.ones_like(tokens))
