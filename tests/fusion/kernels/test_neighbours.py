"""Each way to attend to neighbours promises the mathematics of attention at every cell, and its gradient.

Letters: B samples, H heads, M modalities, X and Y cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fusion.kernels.blocks import BlockAttention
from fusion.kernels.neighbours import neighbour_attention, neighbour_attention_reference, shifted_attention
from tests.fusion.grids import SHAPE

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor]]
WAYS: dict[str, Attend] = {"shifted": shifted_attention, "blocks": BlockAttention.apply, "chosen": neighbour_attention}

B, M, H, WIDTH = 2, 3, 2, 4


def random_tokens(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(B, *SHAPE, H, WIDTH, generator=generator)
    key, value = torch.randn(2, M, B, *SHAPE, H, WIDTH, generator=generator)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def seen_masks() -> dict[str, Tensor | None]:
    """With cells, and whole neighbourhoods, of which nothing may be attended to."""
    some = torch.rand(M, B, *SHAPE, generator=torch.Generator().manual_seed(9)) < 0.4
    some[:, 0, :4, :4] = False
    return {"no mask": None, "some": some, "none": torch.zeros_like(some), "all": torch.ones_like(some)}


@pytest.fixture(params=list(WAYS))
def attend(request: pytest.FixtureRequest) -> Attend:
    return WAYS[request.param]


@pytest.mark.parametrize("neighbourhood", [1, 3])
@pytest.mark.parametrize("mask", ["no mask", "some", "none", "all"])
def test_it_agrees_with_its_reference_and_so_do_the_gradients(attend: Attend, neighbourhood: int, mask: str) -> None:
    seen = seen_masks()[mask]
    outputs, gradients = [], []
    for way in (attend, neighbour_attention_reference):
        query, key, value = inputs = [tensor.requires_grad_() for tensor in random_tokens()]
        attended, share = way(query, key, value, seen, neighbourhood)
        weight = torch.linspace(-1, 1, attended.numel()).view_as(attended)
        loss = (attended * weight).sum() + (share * torch.linspace(-1, 1, share.numel()).view_as(share)).sum()
        if loss.requires_grad:
            loss.backward()
        outputs.append((attended.detach(), share.detach()))
        gradients.append([torch.zeros_like(t) if t.grad is None else t.grad for t in inputs])
    for ours, plain in (*zip(*outputs, strict=True), *zip(*gradients, strict=True)):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_a_cell_with_nothing_to_attend_to_gives_zero_and_finite_gradients(attend: Attend, neighbourhood: int) -> None:
    seen = seen_masks()["some"]
    assert seen is not None
    query, key, value = inputs = [tensor.requires_grad_() for tensor in random_tokens()]
    attended, share = attend(query, key, value, seen, neighbourhood)
    blind = slice(0, 4) if neighbourhood == 1 else slice(0, 3)
    assert not attended[0, blind, blind].any()
    assert not share[0, :, blind, blind].any()
    assert attended[1].any()
    (attended.square().sum() + share.square().sum()).backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in inputs)


@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_shares_sum_to_one_where_anything_is_seen(attend: Attend, neighbourhood: int) -> None:
    for seen in seen_masks().values():
        _, share = attend(*random_tokens(), seen, neighbourhood)
        anything = torch.ones(B, *SHAPE)
        if seen is not None:
            reach = neighbourhood // 2
            anything = nn.functional.max_pool2d(seen.any(0).float(), neighbourhood, 1, reach)
        torch.testing.assert_close(share.sum(1), anything)
        assert (share >= 0).all()


def test_what_may_not_be_attended_to_has_no_influence(attend: Attend) -> None:
    query, key, value = random_tokens()
    seen = seen_masks()["some"]
    assert seen is not None
    expected = attend(query, key, value, seen, 3)
    hidden = ~seen[..., None, None]
    got = attend(query, key.masked_fill(hidden, 1e4), value.masked_fill(hidden, 1e4), seen, 3)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_large_logits_do_not_overflow(attend: Attend) -> None:
    query, key, value = random_tokens()
    attended, share = attend(query * 1e4, key * 1e4, value, None, 3)
    assert attended.isfinite().all()
    torch.testing.assert_close(share.sum(1), torch.ones(B, *SHAPE))


def test_it_accumulates_in_float32_whatever_comes_in(attend: Attend) -> None:
    query, key, value = random_tokens(dtype=torch.bfloat16)
    attended, share = attend(query, key, value, None, 3)
    assert attended.dtype == share.dtype == torch.float32
    plain, _ = attend(query.float(), key.float(), value.float(), None, 3)
    torch.testing.assert_close(attended, plain, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("mask", ["no mask", "all"])
def test_one_cell_is_torchs_multihead_attention(attend: Attend, mask: str) -> None:
    """`nn.MultiheadAttention` with a batch of cells is the slow way to the same numbers."""
    channels = H * WIDTH
    torch.manual_seed(0)
    peer = nn.MultiheadAttention(channels, H, batch_first=True)
    nn.init.normal_(peer.in_proj_bias)
    query, tokens = torch.randn(B, *SHAPE, channels), torch.randn(M, B, *SHAPE, channels)
    weights, biases = peer.in_proj_weight.chunk(3), peer.in_proj_bias.chunk(3)
    q, k, v = (
        nn.functional.linear(x, w, b).unflatten(-1, (H, WIDTH))
        for x, w, b in zip((query, tokens, tokens), weights, biases, strict=True)
    )
    attended, share = attend(q, k, v, seen_masks()[mask], 1)
    ours = peer.out_proj(attended.flatten(-2))
    cells = tokens.permute(1, 2, 3, 0, 4).flatten(0, 2)
    theirs, their_share = peer(query.flatten(0, 2)[:, None], cells, cells)
    torch.testing.assert_close(ours.flatten(0, 2), theirs[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(share.permute(0, 2, 3, 1).flatten(0, 2), their_share[:, 0])


def test_the_neighbourhood_is_three_cells_wide_and_no_more(attend: Attend) -> None:
    query, key, value = random_tokens()
    plain, _ = attend(query, key, value, None, 3)
    value = value.clone()
    value[0, 0, 2, 3] += 1
    changed, _ = attend(query, key, value, None, 3)
    moved = (changed != plain).flatten(3).any(-1)
    expected = torch.zeros(B, *SHAPE, dtype=torch.bool)
    expected[0, 1:4, 2:5] = True
    assert torch.equal(moved, expected)


def test_the_scale_is_that_of_the_head(attend: Attend) -> None:
    """One head of width 4, two tokens: weights are the softmax of q . k / 2."""
    query = torch.tensor([1.0, 0, 0, 0]).view(1, 1, 1, 1, 4)
    key = torch.tensor([[2.0, 0, 0, 0], [0.0, 0, 0, 0]]).view(2, 1, 1, 1, 1, 4)
    value = torch.tensor([[1.0] * 4, [0.0] * 4]).view(2, 1, 1, 1, 1, 4)
    attended, _ = attend(query, key, value, None, 1)
    torch.testing.assert_close(attended.flatten(), torch.full((4,), math.e / (math.e + 1)))


@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_double_precision_is_kept(neighbourhood: int) -> None:
    """Which finite differences can then be compared with."""
    torch.manual_seed(0)
    query, value = torch.randn(1, 2, 3, 1, 2).double(), torch.randn(2, 1, 2, 3, 1, 2).double()
    key = torch.randn(2, 1, 2, 3, 1, 2).double()
    seen = torch.rand(2, 1, 2, 3) < 0.7
    inputs = [t.requires_grad_() for t in (query, key, value)]
    assert torch.autograd.gradcheck(lambda q, k, v: neighbour_attention(q, k, v, seen, neighbourhood), inputs)
