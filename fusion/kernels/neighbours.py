"""Each cell's query attends to the tokens of the cells around it.

Letters: B samples, H heads, c channels of a head, M modalities, X and Y cells, O offsets of the neighbourhood (1 or 9).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import devices
from .blocks import BlockAttention


def neighbour_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, neighbourhood: int
) -> tuple[Tensor, Tensor]:
    """Each cell's query attends to the M tokens of the cells around it.

    Args:
        query: [B, X, Y, H, c].
        key, value: [M, B, X, Y, H, c].
        seen: [M, B, X, Y] bool of tokens that may be attended to, or None for all.
        neighbourhood: 1 or 3, the side of the square of cells around the query's.

    Returns:
        [B, X, Y, H, c] float32 (float64 of float64; of a GPU's kernels in the queries' dtype) and the attention share of each
        modality [B, M, X, Y], mean over heads. Where nothing may be attended to, both are 0. Cells outside the grid are never
        attended to.
    """
    if by_triton(query):
        from .triton_neighbours import TritonAttention

        attended, share = TritonAttention.apply(query, key, value, seen, neighbourhood)  # type: ignore[no-untyped-call]
        return attended, share
    if devices.in_blocks(query.device) and query.dtype != torch.float64:
        attended, share = BlockAttention.apply(query, key, value, seen, neighbourhood)  # type: ignore[no-untyped-call]
        return attended, share
    return shifted_attention(query, key, value, seen, neighbourhood)


def by_triton(query: Tensor) -> bool:
    """Whether `neighbour_attention` of queries [B, X, Y, H, c] is done by a GPU's own kernels."""
    if not devices.in_triton(query.device):
        return False
    from .triton_neighbours import fits  # not at the top: only machines with a GPU need have Triton

    return fits(query)


def shifted_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, neighbourhood: int
) -> tuple[Tensor, Tensor]:
    """`neighbour_attention` of all cells at once, by grids of keys and values moved by each offset: for graphs, on any device."""
    query = devices.widened(query) / math.sqrt(query.shape[-1])
    reach = neighbourhood // 2
    offsets = [(i, j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)]
    logits = torch.stack(
        [(query * devices.widened(_shift(key, i, j))).sum(-1) for i, j in offsets]
    )  # [O, M, B, X, Y, H]
    allowed = _allowed(key, seen, offsets)
    if allowed is not None:
        logits = logits.masked_fill(~allowed[..., None], -math.inf)
    # Softmax by hand over O and M: a cell with nothing to attend to gives 0 and not NaN.
    top = logits.amax(dim=(0, 1)).clamp(min=torch.finfo(logits.dtype).min)
    weight = (logits - top).exp()
    weight = weight / weight.sum(dim=(0, 1)).clamp(min=1e-30)
    terms = (
        (weight[o, m, ..., None] * devices.widened(_shift(value[m], i, j)))
        for o, (i, j) in enumerate(offsets)
        for m in range(key.shape[0])
    )
    attended = sum(terms, start=torch.zeros((), dtype=query.dtype, device=query.device))
    return attended, weight.sum(0).mean(-1).transpose(0, 1)


def neighbour_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, neighbourhood: int
) -> tuple[Tensor, Tensor]:
    """`neighbour_attention` one cell at a time."""
    samples, x_cells, y_cells, _, width = query.shape
    modalities, reach = key.shape[0], neighbourhood // 2
    out = torch.zeros(query.shape, device=query.device)
    share = torch.zeros(samples, modalities, x_cells, y_cells, device=query.device)
    for b in range(samples):
        for x in range(x_cells):
            for y in range(y_cells):
                xs = slice(max(x - reach, 0), x + reach + 1)
                ys = slice(max(y - reach, 0), y + reach + 1)
                keys, values = key[:, b, xs, ys].flatten(1, 2), value[:, b, xs, ys].flatten(1, 2)  # [M, O, H, c]
                may = None if seen is None else seen[:, b, xs, ys].flatten(1, 2)
                if may is not None and not may.any():
                    continue
                logits = torch.einsum("hc,mohc->hmo", query[b, x, y].float(), keys.float()) / math.sqrt(width)
                if may is not None:
                    logits = logits.masked_fill(~may, -math.inf)
                weight = logits.flatten(1).softmax(-1).view_as(logits)
                out[b, x, y] = torch.einsum("hmo,mohc->hc", weight, values.float())
                share[b, :, x, y] = weight.sum(-1).mean(0)
    return out, share


def _shift(x: Tensor, i: int, j: int) -> Tensor:
    """[.., X, Y, H, c] moved so that cell (x, y) holds what stood at (x + i, y + j); zero beyond the edge."""
    if i == 0 and j == 0:
        return x
    x_cells, y_cells = x.shape[-4], x.shape[-3]
    padded = F.pad(x, (0, 0, 0, 0, max(-j, 0), max(j, 0), max(-i, 0), max(i, 0)))
    return padded.narrow(-4, max(i, 0), x_cells).narrow(-3, max(j, 0), y_cells)


def _allowed(key: Tensor, seen: Tensor | None, offsets: list[tuple[int, int]]) -> Tensor | None:
    """[O, M or 1, B, X, Y] bool of neighbours inside the grid that are seen; None where everything is allowed."""
    if seen is None and len(offsets) == 1:
        return None
    inside = torch.ones(1, *key.shape[1:4], dtype=torch.bool, device=key.device) if seen is None else seen
    cells = inside.float()[..., None, None]
    return torch.stack([_shift(cells, i, j)[..., 0, 0] > 0 for i, j in offsets])
