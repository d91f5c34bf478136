"""`cell_attention` promises what `neighbour_attention` of one cell gives, with one projection a cell and not one a modality."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fusion.kernels import cells
from fusion.kernels.cells import cell_attention
from fusion.kernels.neighbours import neighbour_attention

KINDS, SAMPLES, CELLS, HEADS, WIDTH = 3, 2, (7, 9), 4, 4
Attend = Callable[[Tensor, Tensor, Tensor | None, nn.Linear], tuple[Tensor, Tensor]]


def by_keys_and_values(
    query: Tensor, tokens: Tensor, seen: Tensor | None, key_value: nn.Linear
) -> tuple[Tensor, Tensor]:
    key, value = key_value(tokens).unflatten(-1, (2 * HEADS, WIDTH)).chunk(2, dim=-2)
    return neighbour_attention(query, key, value, seen, 1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("piece", [10, 1024])
def test_agrees_in_output_share_and_gradient(masked: bool, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "_PIECE", piece)
    torch.manual_seed(0)
    key_value = nn.Linear(HEADS * WIDTH, 2 * HEADS * WIDTH)
    seen = torch.rand(KINDS, SAMPLES, *CELLS) < 0.4 if masked else None  # some cells see nothing at all
    query = torch.randn(SAMPLES, *CELLS, HEADS, WIDTH)
    tokens = torch.randn(KINDS, SAMPLES, *CELLS, HEADS * WIDTH)

    def run(attend: Attend) -> list[Tensor]:
        leaves = query.clone().requires_grad_(), tokens.clone().requires_grad_()
        attended, share = attend(*leaves, seen, key_value)
        loss = (attended * torch.linspace(-1, 1, attended.numel()).view_as(attended)).sum() + share.square().sum()
        return [attended.detach(), share.detach(), *torch.autograd.grad(loss, [*leaves, key_value.weight])]

    for got, expected in zip(run(cell_attention), run(by_keys_and_values), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
