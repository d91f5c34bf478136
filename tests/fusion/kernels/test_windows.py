"""`window_attention` promises what the attention that learns gives, on any grid and for any number of modalities."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fusion import CrossAttentionFusion
from fusion.fusers import cross_attention as attention
from fusion.kernels import windows
from fusion.kernels.neighbours import neighbour_attention_reference
from tests.fusion.grids import CHANNELS, SHAPE, random_features

HEADS, WIDTH = 2, 4
C = HEADS * WIDTH


def parts(seed: int = 0) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """Query, keys and values, out."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(C, C), nn.Linear(C, 2 * C), nn.Linear(C, C)


def plain(asking: Tensor, tokens: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same with keys and values, one cell at a time."""
    query, key_value, out = parts()
    key, value = key_value(tokens).unflatten(-1, (2 * HEADS, WIDTH)).chunk(2, dim=-2)
    attended, share = neighbour_attention_reference(query(asking).unflatten(-1, (HEADS, WIDTH)), key, value, seen, 3)
    return out(attended.flatten(-2)), share


@given(
    modalities=st.integers(1, 7),
    samples=st.integers(1, 2),
    cells=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seen=st.sampled_from([None, 0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_it_agrees_with_the_plain_way(
    modalities: int, samples: int, cells: tuple[int, int], seen: float | None, seed: int
) -> None:
    """Grids of one cell, one row, one column; cells and whole neighbourhoods of which nothing is seen."""
    generator = torch.Generator().manual_seed(seed)
    asking = torch.randn(samples, *cells, C, generator=generator)
    tokens = torch.randn(modalities, samples, *cells, C, generator=generator)
    mask = None if seen is None else torch.rand(modalities, samples, *cells, generator=generator) < seen
    with torch.no_grad():
        got = windows.window_attention(asking, tokens, mask, HEADS, *parts())
        for ours, expected in zip(got, plain(asking, tokens, mask), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [1, 2 * SHAPE[1], 10_000])
def test_blocks_of_any_size_give_the_same(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_BLOCK", block)
    generator = torch.Generator().manual_seed(3)
    asking = torch.randn(2, *SHAPE, C, generator=generator)
    tokens = torch.randn(3, 2, *SHAPE, C, generator=generator)
    with torch.no_grad():
        got = windows.window_attention(asking, tokens, None, HEADS, *parts())
        for ours, expected in zip(got, plain(asking, tokens, None), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_what_may_not_be_attended_to_has_no_influence() -> None:
    generator = torch.Generator().manual_seed(4)
    asking = torch.randn(2, *SHAPE, C, generator=generator)
    tokens = torch.randn(3, 2, *SHAPE, C, generator=generator)
    seen = torch.rand(3, 2, *SHAPE, generator=generator) < 0.4
    hidden = tokens.masked_fill(~seen[..., None], 1e4)
    for got, expected in zip(
        windows.window_attention(asking, hidden, seen, HEADS, *parts()),
        windows.window_attention(asking, tokens, seen, HEADS, *parts()),
        strict=True,
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("absent", ["null", "zeros", "mask"])
def test_a_fuser_gives_in_inference_what_it_gives_in_training(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    fuser = CrossAttentionFusion(CHANNELS, 8, heads=2, neighbourhood=3, absent=absent)  # type: ignore[arg-type]
    features = random_features() | {"camera": None}
    learning = fuser(features)
    used = Mock(wraps=windows.window_attention)
    monkeypatch.setattr(attention, "window_attention", used)
    with torch.inference_mode():
        inferring = fuser(features)
    used.assert_called_once()
    torch.testing.assert_close(inferring.features, learning.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inferring.attention, learning.attention, rtol=1e-4, atol=1e-5)


def test_bfloat16_takes_the_other_way_to_the_same_function() -> None:
    torch.manual_seed(0)
    fuser = CrossAttentionFusion(CHANNELS, 8, heads=2, neighbourhood=3)
    with torch.no_grad():
        expected = fuser(random_features()).features
        with torch.autocast("cpu", torch.bfloat16):
            got = fuser(random_features()).features
    torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1)
