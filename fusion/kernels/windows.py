"""Attention to 3 x 3 cells for inference on a CPU: no keys, no values, no copies of neighbours.

Letters: B samples, C channels, H heads, c channels of a head, M modalities, X and Y cells, R rows of cells, T tokens around a
cell (9 M, rounded up).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_BLOCK = 1024  # cells that are projected at a time; what they make on the way stays in a core's cache
_VECTOR = 16  # float32 numbers in a vector register


@torch.no_grad()
def window_attention(
    asking: Tensor,
    tokens: Tensor,
    seen: Tensor | None,
    heads: int,
    query: nn.Linear,
    key_value: nn.Linear,
    out: nn.Linear,
) -> tuple[Tensor, Tensor]:
    """Each cell's query attends to the M tokens of its 3 x 3 cells. No gradients.

    Equals `out(neighbour_attention(query(asking), *key_value(tokens), seen, 3))`; keys and values are never formed, by the
    identities of `cell_attention`.

    Args:
        asking: [B, X, Y, C] float32, what `query` makes queries of.
        tokens: [M, B, X, Y, C] float32.
        seen: [M, B, X, Y] bool of tokens that may be attended to, or None for all.
        heads: H.
        query, key_value, out: C to C, C to 2 C (keys first) and C to C.

    Returns:
        [B, X, Y, C] and the attention share of each modality [B, M, X, Y]. Where nothing is seen the share is 0 and the result
        that of `out` for 0.
    """
    samples, x_cells, y_cells, _ = asking.shape
    attended, share = torch.empty_like(asking), asking.new_empty(*asking.shape[:3], tokens.shape[0])
    step = max(_BLOCK // y_cells, 1)
    blocks = [slice(low, min(low + step, x_cells)) for low in range(0, x_cells, step)]
    parts = _Parts(heads, query, key_value, out)
    for b in range(samples):
        window = _Window(tokens[:, b], None if seen is None else seen[:, b])
        parts.make_room(asking[b, blocks[0]], window.count)
        for block in blocks:
            parts.attend(window, asking[b, block], attended[b, block], share[b, block])
    return attended, share.permute(0, 3, 1, 2)


class _Parts:
    """The projections as matrices, and what they do to a block of R rows."""

    def __init__(self, heads: int, query: nn.Linear, key_value: nn.Linear, out: nn.Linear) -> None:
        self.heads, self.query, self.out = heads, query, out
        self.width = query.out_features // heads
        key, value = key_value.weight.unflatten(0, (2, heads, self.width)).unbind(0)  # [H, c, C]
        self.key, self.value = key / math.sqrt(self.width), value.transpose(1, 2)
        # Weights sum to 1, so the values' bias passes through them into the result.
        self.of_value_bias = key_value.bias.chunk(2)[1] @ out.weight.T

    def make_room(self, block: Tensor, count: int) -> None:
        """For the products of one block [R, Y, C]: memory that is used again is in the cache, and new memory is not."""
        rows, y_cells, channels = block.shape
        self.queries = block.new_empty(rows * y_cells, channels)
        self.asked = block.new_empty(rows, y_cells, self.heads, channels)
        self.logits = block.new_empty(y_cells, self.heads, count)
        self.weight = block.new_empty(rows, y_cells, self.heads, count)
        self.values = block.new_empty(rows * y_cells, self.heads, self.width)

    def attend(self, window: _Window, asking: Tensor, attended: Tensor, share: Tensor) -> None:
        """The next rows of `window`, [R, Y, C] -> into `attended` [R, Y, C] and `share` [R, Y, M]."""
        rows, cells, around = len(asking), asking.shape[:2].numel(), 9 * share.shape[-1]
        queries, asked, weight, values = (
            self.queries[:cells],
            self.asked[:rows],
            self.weight[:rows],
            self.values[:cells],
        )
        by_head = asked.flatten(0, 1).transpose(0, 1)
        torch.addmm(self.query.bias, asking.flatten(0, 1), self.query.weight.T, out=queries)
        torch.bmm(queries.unflatten(-1, (self.heads, -1)).transpose(0, 1), self.key, out=by_head)
        for i in range(rows):
            window.advance()
            torch.bmm(asked[i], window.tokens.transpose(1, 2), out=self.logits)
            torch.softmax(self.logits.add_(window.bias), -1, out=weight[i])
            if window.blind is not None:
                weight[i].masked_fill_(window.blind, 0.0)
            # Into the place of the row's queries, which are not needed again.
            torch.bmm(weight[i, ..., :around], window.tokens[:, :around], out=asked[i])
        torch.bmm(by_head, self.value, out=values.transpose(0, 1))
        torch.sum(weight[..., :around].unflatten(-1, (9, -1)), (2, 3), out=share)
        share /= self.heads
        bias = self.out.bias + self.of_value_bias if window.seen is None else self.out.bias
        torch.addmm(bias, values.flatten(1), self.out.weight.T, out=attended.flatten(0, 1))
        if window.seen is not None:
            attended.addcmul_(share.sum(-1, keepdim=True), self.of_value_bias)


class _Window:
    """Three rows of one sample's tokens, so laid out that those around a cell lie one after the other in memory.

    Those of the next cell overlap with them, so that a product with the tokens around every cell of a row is one batched matrix
    product, without a copy. The rows are a ring: going on by a row takes in one. In which order the three stand makes no
    difference to attention. What is rounded up is of cells further on, and never attended to.

    Attributes:
        count: T.
        tokens: [Y, T, C] around each cell of the middle row, overlapping views.
        bias: [Y, 1, T] -inf for what may not be attended to, else 0.
        blind: [Y, 1, 1] bool of cells that may attend to nothing; None where there are none.
    """

    def __init__(self, tokens: Tensor, seen: Tensor | None) -> None:
        modalities, x_cells, y_cells, channels = tokens.shape
        self.given, self.seen, self.x_cells, self.x = tokens, seen, x_cells, -1
        step, around = 3 * modalities, 9 * modalities
        whole = -(-around // _VECTOR) * _VECTOR
        self.count = whole if whole <= 1.25 * around else around  # whole registers, where they cost little
        columns = y_cells + 2 + -(-(self.count - around) // step)
        self.rows = tokens.new_zeros(columns, 3, modalities, channels)
        self.hidden = tokens.new_full((columns, 3, modalities), -math.inf)
        self.tokens = self.rows.as_strided((y_cells, self.count, channels), (step * channels, channels, 1))
        self.overlapping = self.hidden.as_strided((y_cells, 1, self.count), (step, step, 1))
        self.bias = self.overlapping.clone()
        self.blind: Tensor | None = None
        self._take(0)

    def advance(self) -> None:
        """On to the next row, from row 0."""
        self.x += 1
        self._take(self.x + 1)
        if self.seen is None and 2 < self.x < self.x_cells - 1:
            return  # away from the edges the bias stays as it is
        self.bias = self.overlapping.clone()
        self.bias[..., 3 * self.rows.stride(0) // self.rows.stride(2) :] = -math.inf
        if self.seen is not None:
            self.blind = self.bias.amax(-1, keepdim=True) == -math.inf

    def _take(self, x: int) -> None:
        y_cells = self.given.shape[2]
        rows, hidden = self.rows[1 : y_cells + 1, x % 3], self.hidden[1 : y_cells + 1, x % 3]
        if x == self.x_cells:  # beyond the edge
            rows.zero_()
            hidden.fill_(-math.inf)
            return
        rows.copy_(self.given[:, x].transpose(0, 1))
        hidden.zero_()
        if self.seen is not None:
            hidden.masked_fill_(~self.seen[:, x].T, -math.inf)
