"""Cross-attention promises: the mathematics of attention at every cell, and shares that tell whom it trusted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fusion import BEVFeatures, CrossAttentionFusion
from fusion.attention import neighbour_attention, neighbour_attention_reference, position_embedding
from tests.fusion.grids import CHANNELS, SHAPE, random_features

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


@pytest.mark.parametrize("neighbourhood", [1, 3])
@pytest.mark.parametrize("mask", ["no mask", "some", "none", "all"])
def test_it_agrees_with_its_reference_and_so_do_the_gradients(neighbourhood: int, mask: str) -> None:
    seen = seen_masks()[mask]
    outputs, gradients = [], []
    for attention in (neighbour_attention, neighbour_attention_reference):
        query, key, value = inputs = [tensor.requires_grad_() for tensor in random_tokens()]
        attended, share = attention(query, key, value, seen, neighbourhood)
        weight = torch.linspace(-1, 1, attended.numel()).view_as(attended)
        loss = (attended * weight).sum() + (share * torch.linspace(-1, 1, share.numel()).view_as(share)).sum()
        if loss.requires_grad:
            loss.backward()
        outputs.append((attended.detach(), share.detach()))
        gradients.append([torch.zeros_like(t) if t.grad is None else t.grad for t in inputs])
    for ours, plain in (*zip(*outputs, strict=True), *zip(*gradients, strict=True)):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_a_cell_with_nothing_to_attend_to_gives_zero_and_finite_gradients(neighbourhood: int) -> None:
    seen = seen_masks()["some"]
    assert seen is not None
    query, key, value = inputs = [tensor.requires_grad_() for tensor in random_tokens()]
    attended, share = neighbour_attention(query, key, value, seen, neighbourhood)
    blind = slice(0, 4) if neighbourhood == 1 else slice(0, 3)
    assert not attended[0, blind, blind].any()
    assert not share[0, :, blind, blind].any()
    assert attended[1].any()
    (attended.square().sum() + share.square().sum()).backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in inputs)


@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_shares_sum_to_one_where_anything_is_seen(neighbourhood: int) -> None:
    for seen in seen_masks().values():
        _, share = neighbour_attention(*random_tokens(), seen, neighbourhood)
        anything = torch.ones(B, *SHAPE)
        if seen is not None:
            reach = neighbourhood // 2
            anything = nn.functional.max_pool2d(seen.any(0).float(), neighbourhood, 1, reach)
        torch.testing.assert_close(share.sum(1), anything)
        assert (share >= 0).all()


def test_what_may_not_be_attended_to_has_no_influence() -> None:
    query, key, value = random_tokens()
    seen = seen_masks()["some"]
    assert seen is not None
    expected = neighbour_attention(query, key, value, seen, 3)
    hidden = ~seen[..., None, None]
    got = neighbour_attention(query, key.masked_fill(hidden, 1e4), value.masked_fill(hidden, 1e4), seen, 3)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_large_logits_do_not_overflow() -> None:
    query, key, value = random_tokens()
    attended, share = neighbour_attention(query * 1e4, key * 1e4, value, None, 3)
    assert attended.isfinite().all()
    torch.testing.assert_close(share.sum(1), torch.ones(B, *SHAPE))


def test_it_accumulates_in_float32_whatever_comes_in() -> None:
    query, key, value = random_tokens(dtype=torch.bfloat16)
    attended, share = neighbour_attention(query, key, value, None, 3)
    assert attended.dtype == share.dtype == torch.float32
    plain, _ = neighbour_attention(query.float(), key.float(), value.float(), None, 3)
    torch.testing.assert_close(attended, plain, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("mask", ["no mask", "all"])
def test_one_cell_is_torchs_multihead_attention(mask: str) -> None:
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
    attended, share = neighbour_attention(q, k, v, seen_masks()[mask], 1)
    ours = peer.out_proj(attended.flatten(-2))
    cells = tokens.permute(1, 2, 3, 0, 4).flatten(0, 2)
    theirs, their_share = peer(query.flatten(0, 2)[:, None], cells, cells)
    torch.testing.assert_close(ours.flatten(0, 2), theirs[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(share.permute(0, 2, 3, 1).flatten(0, 2), their_share[:, 0])


def test_the_neighbourhood_is_three_cells_wide_and_no_more() -> None:
    query, key, value = random_tokens()
    plain, _ = neighbour_attention(query, key, value, None, 3)
    value = value.clone()
    value[0, 0, 2, 3] += 1
    changed, _ = neighbour_attention(query, key, value, None, 3)
    moved = (changed != plain).flatten(3).any(-1)
    expected = torch.zeros(B, *SHAPE, dtype=torch.bool)
    expected[0, 1:4, 2:5] = True
    assert torch.equal(moved, expected)


def test_position_embeddings_tell_cells_apart() -> None:
    embedding = position_embedding((24, 16), 32)
    assert embedding.shape == (24, 16, 32)
    distance = torch.cdist(embedding.flatten(0, 1), embedding.flatten(0, 1))
    assert (distance + torch.eye(24 * 16) > 1e-2).all()
    with pytest.raises(ValueError, match="multiple of 4, got 30"):
        position_embedding((2, 2), 30)


@pytest.mark.parametrize("neighbourhood", [1, 3])
@pytest.mark.parametrize("absent", ["null", "zeros", "mask"])
def test_attention_of_the_fuser_sums_to_one_over_modalities(neighbourhood: int, absent: str) -> None:
    torch.manual_seed(0)
    fuser = CrossAttentionFusion(CHANNELS, 8, heads=2, neighbourhood=neighbourhood, absent=absent)  # type: ignore[arg-type]
    features = random_features()
    lidar = features["lidar"]
    assert lidar is not None
    fused = fuser(features)
    torch.testing.assert_close(fused.attention.sum(1), torch.ones(2, *SHAPE))
    assert fused.attention.shape == (2, 3, *SHAPE)
    # Nobody anywhere: with a mask there is nothing to trust.
    nobody = {"lidar": BEVFeatures(lidar.features, torch.zeros(2, *SHAPE))}
    total = fuser(nobody).attention.sum(1)
    torch.testing.assert_close(total, torch.zeros(2, *SHAPE) if absent == "mask" else torch.ones(2, *SHAPE))


def test_a_masked_modality_is_given_no_attention() -> None:
    torch.manual_seed(0)
    fused = CrossAttentionFusion(CHANNELS, 8, heads=2, absent="mask")(random_features() | {"camera": None})
    assert not fused.attention[:, 0].any()
    covered = random_features()["radar"]
    assert covered is not None
    assert not fused.attention[:, 2][covered.coverage == 0].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_channels": 10, "heads": 2}, "multiple of heads"),
        ({"out_channels": 8, "heads": 3}, "multiple of heads"),
        ({"out_channels": 8, "heads": 2, "neighbourhood": 2}, "expected 1 or 3, got 2"),
        ({"out_channels": 8, "heads": 2, "absent": "nothing"}, "expected null, null_cell, zeros, mask, got 'nothing'"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossAttentionFusion(CHANNELS, **arguments)  # type: ignore[arg-type]


def test_a_fuser_needs_a_modality() -> None:
    with pytest.raises(ValueError, match="at least one modality"):
        CrossAttentionFusion({}, 8, heads=2)


def test_the_scale_is_that_of_the_head() -> None:
    """One head of width 4, two tokens: weights are the softmax of q . k / 2."""
    query = torch.tensor([1.0, 0, 0, 0]).view(1, 1, 1, 1, 4)
    key = torch.tensor([[2.0, 0, 0, 0], [0.0, 0, 0, 0]]).view(2, 1, 1, 1, 1, 4)
    value = torch.tensor([[1.0] * 4, [0.0] * 4]).view(2, 1, 1, 1, 1, 4)
    attended, _ = neighbour_attention(query, key, value, None, 1)
    torch.testing.assert_close(attended.flatten(), torch.full((4,), math.e / (math.e + 1)))
