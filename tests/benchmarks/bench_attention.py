"""Cross-attention of each cell to its modality tokens against the ways that come to mind first, at nuScenes size.

For the cell alone the peer is `nn.MultiheadAttention` with cells as its batch; the last contender gives no shares, which lets
torch take its fastest way. For 3 x 3 cells the peers collect neighbours with `F.unfold`:

- `unfold, nn.MultiheadAttention`: the tokens, into a sequence of 9 M a cell, which the module projects and attends to;
- `unfold, softmax`: keys and values, into matrices of 9 M rows a cell and head, and plain attention;
- `unfold, in place`: the same without moving what `unfold` gives, the fastest that we found with it. Nobody writes it at first.

All do the same work with the same weights: project query, keys and values, attend, project out, and give the share of each
modality.

Letters: C channels, H heads, M modalities, X and Y cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion import CrossAttentionFusion
from fusion.kernels.cells import cell_attention
from fusion.kernels.neighbours import neighbour_attention
from tests.benchmarks.conftest import Compare

CELLS, CHANNELS, HEADS, KINDS = (180, 180), 128, 4, ("camera", "lidar", "radar")
Attend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


def per_cell(fuser: CrossAttentionFusion, query: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """[1, X, Y, C], [M, 1, X, Y, C] -> [X * Y, C], [X * Y, M]: the attention inside `CrossAttentionFusion.forward`."""
    asked = fuser.query(query).unflatten(-1, (fuser.heads, -1))
    attended, share = cell_attention(asked, tokens, None, fuser.key_value)
    return fuser.out(attended.flatten(-2)).flatten(0, 2), share[0].flatten(1).T


def over_cells(
    attention: nn.MultiheadAttention, query: Tensor, tokens: Tensor, shares: bool
) -> tuple[Tensor, Tensor | None]:
    """The same by `nn.MultiheadAttention`: a batch of X * Y sequences, one query and M keys each."""
    sequences = tokens.flatten(1, 3)  # [M, X * Y, C]
    attended, share = attention(query.flatten(0, 2)[None], sequences, sequences, need_weights=shares)
    return attended[0], None if share is None else share[:, 0]


def weights(neighbourhood: int) -> tuple[CrossAttentionFusion, nn.MultiheadAttention]:
    """The same in our layout and in torch's."""
    torch.manual_seed(0)
    channels = dict.fromkeys(KINDS, CHANNELS)
    fuser = CrossAttentionFusion(channels, CHANNELS, heads=HEADS, neighbourhood=neighbourhood)
    attention = nn.MultiheadAttention(CHANNELS, HEADS)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([fuser.query.weight, fuser.key_value.weight]))
        attention.in_proj_bias.copy_(torch.cat([fuser.query.bias, fuser.key_value.bias]))
    attention.out_proj.load_state_dict(fuser.out.state_dict())
    return fuser, attention


def check_that_they_agree(ways: dict[str, Attend], reference: str) -> tuple[Tensor, Tensor]:
    """A query and tokens, for which all ways gave the same."""
    query = torch.randn(1, *CELLS, CHANNELS, requires_grad=True)
    tokens = torch.randn(len(KINDS), 1, *CELLS, CHANNELS, requires_grad=True)
    with torch.no_grad():
        expected, expected_share = ways[reference](query, tokens)
        for name, way in ways.items():
            attended, share = way(query, tokens)
            torch.testing.assert_close(attended, expected, rtol=1e-4, atol=1e-5, msg=name)
            if share is not None:
                torch.testing.assert_close(share, expected_share, rtol=1e-4, atol=1e-5, msg=name)
    return query, tokens


def timed(way: Attend, query: Tensor, tokens: Tensor, direction: str) -> Callable[[], object]:
    def forward() -> None:
        with torch.no_grad():
            way(query, tokens)

    def forward_backward() -> None:
        query.grad = tokens.grad = None
        way(query, tokens)[0].sum().backward()

    return forward if direction == "fwd" else forward_backward


@pytest.mark.parametrize("direction", ["fwd", "fwd+bwd"])
def bench_attention(direction: str, compare: Compare) -> None:
    fuser, attention = weights(1)
    ways: dict[str, Attend] = {
        "ours": lambda q, t: per_cell(fuser, q, t),
        "nn.MultiheadAttention": lambda q, t: over_cells(attention, q, t, shares=True),
        "nn.MultiheadAttention,_no_shares": lambda q, t: over_cells(attention, q, t, shares=False),
    }
    query, tokens = check_that_they_agree(ways, "nn.MultiheadAttention")
    contenders = {name: timed(way, query, tokens, direction) for name, way in ways.items()}
    result = compare(f"attention {direction}, 180 x 180, 128 ch", 7, **contenders)
    assert result.ratio("nn.MultiheadAttention") >= 2


def of_neighbours(fuser: CrossAttentionFusion, query: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """`neighbour_attention`, as `CrossAttentionFusion.forward` takes it for 3 x 3 cells."""
    key, value = fuser.key_value(tokens).unflatten(-1, (2 * HEADS, -1)).chunk(2, dim=-2)
    attended, share = neighbour_attention(fuser.query(query).unflatten(-1, (HEADS, -1)), key, value, None, 3)
    return fuser.out(attended.flatten(-2)).flatten(0, 2), share[0].flatten(1).T


def unfold(maps: Tensor) -> Tensor:
    """[M, 1, X, Y, C] -> [M, C, 9, X * Y]."""
    return F.unfold(maps[:, 0].permute(0, 3, 1, 2), 3, padding=1).unflatten(1, (CHANNELS, 9))


def beyond_the_edge() -> Tensor:
    """[9, X * Y] bool: neighbours that are not in the grid."""
    return F.unfold(torch.ones(1, 1, *CELLS), 3, padding=1)[0] == 0


def unfold_multihead(attention: nn.MultiheadAttention, query: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    sequences = unfold(tokens).permute(2, 0, 3, 1).flatten(0, 1)  # [9 * M, X * Y, C]
    hidden = beyond_the_edge().repeat_interleave(len(KINDS), 0).T
    attended, share = attention(query.flatten(0, 2)[None], sequences, sequences, key_padding_mask=hidden)
    return attended[0], share[:, 0].unflatten(1, (9, -1)).sum(1)


def unfold_softmax(fuser: CrossAttentionFusion, query: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    asked = fuser.query(query).flatten(0, 2).unflatten(-1, (HEADS, 1, -1))  # [X * Y, H, 1, c]
    key, value = (
        unfold(part).unflatten(1, (HEADS, -1)).permute(4, 1, 3, 0, 2).flatten(2, 3)  # [X * Y, H, 9 * M, c]
        for part in fuser.key_value(tokens).chunk(2, -1)
    )
    logits = asked @ key.transpose(-1, -2) / math.sqrt(CHANNELS // HEADS)
    hidden = beyond_the_edge().repeat_interleave(len(KINDS), 0).T
    weight = logits.masked_fill(hidden[:, None, None], -math.inf).softmax(-1)
    return fuser.out((weight @ value).flatten(1)), weight.unflatten(-1, (9, -1)).sum((2, 3)).mean(1)


def unfold_in_place(fuser: CrossAttentionFusion, query: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    asked = fuser.query(query).flatten(0, 2).T.unflatten(0, (HEADS, -1)) / math.sqrt(CHANNELS // HEADS)  # [H, c, X * Y]
    key, value = (unfold(part).unflatten(1, (HEADS, -1)) for part in fuser.key_value(tokens).chunk(2, -1))
    logits = (key * asked[:, :, None]).sum(2).masked_fill(beyond_the_edge(), -math.inf)  # [M, H, 9, X * Y]
    weight = logits.transpose(0, 1).flatten(1, 2).softmax(1).unflatten(1, (-1, 9))  # [H, M, 9, X * Y]
    attended = (value * weight.transpose(0, 1)[:, :, None]).sum((0, 3))  # [H, c, X * Y]
    return fuser.out(attended.flatten(0, 1).T), weight.sum(2).mean(0).T


def bench_neighbours(compare: Compare) -> None:
    fuser, attention = weights(3)
    ways: dict[str, Attend] = {
        "ours": lambda q, t: of_neighbours(fuser, q, t),
        "unfold,_nn.MultiheadAttention": lambda q, t: unfold_multihead(attention, q, t),
        "unfold,_softmax": lambda q, t: unfold_softmax(fuser, q, t),
        "unfold,_in_place": lambda q, t: unfold_in_place(fuser, q, t),
    }
    query, tokens = check_that_they_agree(ways, "unfold,_nn.MultiheadAttention")
    contenders = {name: timed(way, query, tokens, "fwd") for name, way in ways.items()}
    result = compare("attention to 3 x 3 fwd, 180 x 180, 128 ch", 9, **contenders)
    assert result.ratio("unfold, softmax") >= 10
    assert result.ratio("unfold, nn.MultiheadAttention") >= 8
    assert result.ratio("unfold, in place") >= 6
