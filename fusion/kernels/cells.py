"""Each cell's query attends to its own tokens.

Letters: B samples, C channels, H heads, c channels of a head, M modalities, X and Y cells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import devices

_PIECE = 4096  # cells; what one piece makes on the way stays in a core's cache


def cell_attention(query: Tensor, tokens: Tensor, seen: Tensor | None, key_value: nn.Linear) -> tuple[Tensor, Tensor]:
    """Each cell's query attends to its own M tokens, whose keys and values are never formed.

    Equals `neighbour_attention` with neighbourhood 1 of `key_value(tokens)`. A query's product with a key W t is that of
    W^T query with the token t itself, and a weighted sum of values is the value of the weighted sum of tokens: so each cell
    pays for one projection of each kind and not for M. The bias of the keys shifts all logits of a query alike and drops out.

    Args:
        query: [B, X, Y, H, c].
        tokens: [M, B, X, Y, C].
        seen: [M, B, X, Y] bool of tokens that may be attended to, or None for all.
        key_value: C to 2 * H * c, keys first.

    Returns:
        [B, X, Y, H, c] and the attention share of each modality [B, M, X, Y] float32; both 0 where nothing is seen.
    """
    heads, width = query.shape[-2:]
    key_weight, value_weight = key_value.weight.unflatten(0, (2, heads, width)).unbind(0)  # [H, c, C]
    key_weight = key_weight / math.sqrt(width)
    value_bias = key_value.bias.chunk(2)[1].view(heads, width)
    flat_query, flat_tokens = query.flatten(0, 2), tokens.flatten(1, 3)
    flat_seen = None if seen is None else seen.flatten(1)
    if devices.in_blocks(query.device):
        query_pieces, token_pieces = flat_query.split(_PIECE), flat_tokens.split(_PIECE, dim=1)
        seen_pieces = [None] * len(query_pieces) if flat_seen is None else flat_seen.split(_PIECE, dim=1)
        pieces = zip(query_pieces, token_pieces, seen_pieces, strict=True)
    else:
        pieces = zip([flat_query], [flat_tokens], [flat_seen], strict=True)
    results = [_attend_piece(q, t, s, key_weight, value_weight, value_bias) for q, t, s in pieces]
    attended = torch.cat([a for a, _ in results]).view(query.shape)
    share = torch.cat([s for _, s in results], dim=1).view(tokens.shape[:-1])
    return attended, share.transpose(0, 1)


def _attend_piece(
    query: Tensor, tokens: Tensor, seen: Tensor | None, key_weight: Tensor, value_weight: Tensor, value_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """`cell_attention` of n cells: query [n, H, c], tokens [M, n, C], seen [M, n] -> [n, H, c], [M, n]."""
    asked = torch.bmm(query.transpose(0, 1), key_weight).transpose(0, 1)  # [n, H, C]
    with devices.no_autocast(query.device):
        by_cell = devices.widened(tokens.transpose(0, 1))  # [n, M, C]
        logits = torch.bmm(devices.widened(asked), by_cell.transpose(1, 2))  # [n, H, M]
        if seen is not None:
            logits = logits.masked_fill(~seen.T[:, None], -math.inf)
        top = logits.amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
        weight = (logits - top).exp()
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-30)
        mixed = torch.bmm(weight, by_cell)  # [n, H, C]
    attended = torch.bmm(mixed.transpose(0, 1).to(value_weight.dtype), value_weight.transpose(1, 2)).transpose(0, 1)
    anything = weight.sum(-1, keepdim=True)  # 1, or 0 where nothing is seen
    # One modality after the other: the gradient of a transposed mean would lie across the weights in memory, and torch multiplies
    # batches of matrices that do so one by one.
    return attended + anything * value_bias, torch.stack([of_heads.mean(1) for of_heads in weight.unbind(-1)])
