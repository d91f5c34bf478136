"""`BlockAttention` promises the numbers and gradients of the plain way, in whatever blocks it takes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion import CrossAttentionFusion
from fusion.kernels import blocks
from fusion.kernels.cells import cell_attention
from fusion.kernels.neighbours import neighbour_attention, neighbour_attention_reference
from tests.fusion.grids import CHANNELS, SHAPE, random_features


def results(block: int, side: int, seen: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    monkeypatch.setattr(blocks, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, *SHAPE, 2, 4, generator=generator).requires_grad_()
    key, value = (torch.randn(3, 2, *SHAPE, 2, 4, generator=generator).requires_grad_() for _ in range(2))
    attended, share = neighbour_attention(query, key, value, seen, side)
    loss = (attended * torch.linspace(-1, 1, attended.numel()).view_as(attended)).sum() + share.square().sum()
    return [attended.detach(), share.detach(), *torch.autograd.grad(loss, (query, key, value))]


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_of_any_size_give_the_same(side: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time, two rows with a shorter last block, all rows."""
    seen = torch.rand(3, 2, *SHAPE, generator=torch.Generator().manual_seed(1)) < 0.4 if masked else None
    whole = results(10_000, side, seen, monkeypatch)
    for block in (1, 2 * SHAPE[1]):
        for got, expected in zip(results(block, side, seen, monkeypatch), whole, strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("side", [1, 3])
def test_the_gradient_is_that_of_finite_differences(side: int) -> None:
    """Along a random direction; float32 leaves a step of 0.01 three digits."""
    torch.manual_seed(0)
    query = torch.randn(1, 2, 3, 1, 2)
    key, value = torch.randn(2, 1, 2, 3, 1, 2), torch.randn(2, 1, 2, 3, 1, 2)
    inputs, weight = (query, key, value), torch.randn(query.shape)
    direction = [torch.randn_like(t) for t in inputs]
    for t in inputs:
        t.requires_grad_()
    loss = (neighbour_attention(query, key, value, None, side)[0] * weight).sum()
    gradients = torch.autograd.grad(loss, inputs)
    slope = torch.stack([(g * d).sum() for g, d in zip(gradients, direction, strict=True)]).sum()

    def at(step: float) -> Tensor:
        q, k, v = (t.detach() + step * d for t, d in zip(inputs, direction, strict=True))
        return (neighbour_attention_reference(q, k, v, None, side)[0] * weight).sum()

    torch.testing.assert_close(slope, (at(0.01) - at(-0.01)) / 0.02, rtol=1e-2, atol=1e-3)


def test_an_output_that_nothing_hangs_on_needs_no_gradient() -> None:
    torch.manual_seed(0)
    query = torch.randn(1, *SHAPE, 2, 4, requires_grad=True)
    key = torch.randn(2, 1, *SHAPE, 2, 4, requires_grad=True)
    for output in (0, 1):
        result = neighbour_attention(query, key, key, None, 3)[output]
        result.square().sum().backward()
        assert query.grad is not None
        assert query.grad.isfinite().all()


def test_a_fuser_that_trains_in_bfloat16_forms_keys_and_stays_at_the_same_function() -> None:
    """Keys and values in bfloat16 on a CPU, against the way without them in float32: within bfloat16's rounding."""
    torch.manual_seed(0)
    fuser = CrossAttentionFusion(CHANNELS, 8, heads=2)
    features = random_features()

    def outcome(bfloat16: bool) -> list[Tensor]:
        fuser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            fused = fuser(features)
        fused.features.float().square().mean().backward()
        gradients = [p.grad for p in fuser.parameters() if p.grad is not None]
        return [fused.features.detach().float(), fused.attention.detach(), *gradients]

    for got, expected in zip(outcome(True), outcome(False), strict=True):
        torch.testing.assert_close(got, expected, rtol=0.1, atol=0.02 * float(expected.abs().max()) + 1e-3)


def test_both_ways_of_one_cell_agree() -> None:
    torch.manual_seed(0)
    fuser = CrossAttentionFusion(CHANNELS, 8, heads=2)
    tokens, coverage = fuser.tokens(random_features())
    query = torch.randn(2, *SHAPE, 2, 4)
    key, value = fuser._keys_and_values(tokens)
    normed = fuser.token_norm(tokens) + fuser.modality.stacked()[:, None, None, None]
    for seen in (None, coverage > 0):
        for got, expected in zip(
            neighbour_attention(query, key, value, seen, 1),
            cell_attention(query, normed, seen, fuser.key_value),
            strict=True,
        ):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
