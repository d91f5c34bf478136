"""Cross-attention of each cell to its modality tokens against `nn.MultiheadAttention` with cells as its batch, at nuScenes size.

Both sides do the same work with the same weights: project query, keys and values, attend, project out, and give the share of
each modality. The last contender gives no shares, which lets torch take its fastest way.

Letters: C channels, M modalities, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fusion import CrossAttentionFusion
from fusion.attention import cell_attention
from tests.benchmarks.conftest import Compare

CELLS, CHANNELS, HEADS, MODALITIES = (180, 180), 128, 4, ("camera", "lidar", "radar")
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


def contenders() -> tuple[dict[str, Attend], Tensor, Tensor]:
    """The ways to attend, checked to agree, with a query and tokens."""
    torch.manual_seed(0)
    fuser = CrossAttentionFusion(dict.fromkeys(MODALITIES, CHANNELS), CHANNELS, heads=HEADS)
    attention = nn.MultiheadAttention(CHANNELS, HEADS)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([fuser.query.weight, fuser.key_value.weight]))
        attention.in_proj_bias.copy_(torch.cat([fuser.query.bias, fuser.key_value.bias]))
    attention.out_proj.load_state_dict(fuser.out.state_dict())
    query = torch.randn(1, *CELLS, CHANNELS, requires_grad=True)
    tokens = torch.randn(len(MODALITIES), 1, *CELLS, CHANNELS, requires_grad=True)
    ways: dict[str, Attend] = {
        "ours": lambda q, t: per_cell(fuser, q, t),
        "nn.MultiheadAttention": lambda q, t: over_cells(attention, q, t, shares=True),
        "nn.MultiheadAttention,_no_shares": lambda q, t: over_cells(attention, q, t, shares=False),
    }
    with torch.no_grad():
        expected, expected_share = ways["nn.MultiheadAttention"](query, tokens)
        for name, way in ways.items():
            attended, share = way(query, tokens)
            torch.testing.assert_close(attended, expected, rtol=1e-4, atol=1e-5, msg=name)
            if share is not None:
                torch.testing.assert_close(share, expected_share, rtol=1e-4, atol=1e-5, msg=name)
    return ways, query, tokens


@pytest.mark.parametrize("direction", ["fwd", "fwd+bwd"])
def bench_attention(direction: str, compare: Compare) -> None:
    ways, query, tokens = contenders()

    def timed(way: Attend) -> Callable[[], object]:
        def forward() -> None:
            with torch.no_grad():
                way(query, tokens)

        def forward_backward() -> None:
            query.grad = tokens.grad = None
            way(query, tokens)[0].sum().backward()

        return forward if direction == "fwd" else forward_backward

    result = compare(f"attention {direction}, 180 x 180, 128 ch", 7, **{name: timed(way) for name, way in ways.items()})
    assert result.ratio("nn.MultiheadAttention") >= 2
