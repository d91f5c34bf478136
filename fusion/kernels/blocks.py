"""`neighbour_attention` on a CPU: blocks of rows that stay in a core's cache, and a backward pass written by hand.

Letters: B samples, H heads, c channels of a head, M modalities, X and Y cells, O offsets of the neighbourhood (1 or 9).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 4096  # cells whose products are made at a time
Block = tuple[int, int, int]  # sample, first row, row after the last


class BlockAttention(torch.autograd.Function):
    """Arguments, results and mathematics of `neighbour_attention`; only the order of the work is another.

    Autograd would keep and reload every product of a query with a key. Here the weights alone are kept, and the products are
    made again where the gradient needs them.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, neighbourhood: int
    ) -> tuple[Tensor, Tensor]:
        modalities, samples, x_cells, y_cells, heads, _ = key.shape
        offsets = neighbourhood**2
        attended = query.new_empty(query.shape, dtype=torch.float32)
        weights = query.new_empty(offsets * modalities, samples, x_cells, y_cells, heads, dtype=torch.float32)
        allowed = None if seen is None and offsets == 1 else _allowed(seen, key, neighbourhood)
        for b, low, high in _blocks(samples, x_cells, y_cells):
            asked = _scaled(query, b, low, high)
            weight = weights[:, b, low:high]
            for i, k in enumerate(_around(key, b, low, high, neighbourhood)):
                torch.sum(asked * k, -1, out=weight[i])
            _softmax(weight, None if allowed is None else allowed[:, b, low:high])
            total = attended[b, low:high].zero_()
            for i, v in enumerate(_around(value, b, low, high, neighbourhood)):
                total.addcmul_(weight[i, ..., None], v)
        ctx.save_for_backward(query, key, value, weights)
        ctx.neighbourhood = neighbourhood
        ctx.set_materialize_grads(False)
        share = weights.unflatten(0, (offsets, modalities)).sum(0).mean(-1)
        return attended, share.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_attended: Tensor | None, of_share: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, weights = ctx.saved_tensors
        samples, x_cells, y_cells, heads = key.shape[1:5]
        side, scale = ctx.neighbourhood, 1 / math.sqrt(query.shape[-1])
        of_query = torch.empty_like(query)
        of_key, of_value = (_Sum(t, side) for t in (key, value))
        for b, low, high in _blocks(samples, x_cells, y_cells):
            asked, weight = _scaled(query, b, low, high), weights[:, b, low:high]
            of_weight = torch.zeros_like(weight)
            if of_share is not None:
                shares = of_share[b, :, low:high, :, None].float() / heads
                of_weight += shares.repeat(side**2, 1, 1, 1)[..., :1]
            if of_attended is not None:
                incoming = of_attended[b, low:high].float()
                for i, v in enumerate(_around(value, b, low, high, side)):
                    of_weight[i] += (incoming * v).sum(-1)
                    of_value.add(i, b, low, high, weight[i, ..., None], incoming)
            of_logits = weight * (of_weight - (weight * of_weight).sum(0))
            total = torch.zeros_like(asked)
            for i, k in enumerate(_around(key, b, low, high, side)):
                total.addcmul_(of_logits[i, ..., None], k)
                of_key.add(i, b, low, high, of_logits[i, ..., None], asked)
            of_query[b, low:high] = total * scale
        return of_query, of_key.total(), of_value.total(), None, None


class _Sum:
    """Gradient of keys or values [M, B, X, Y, H, c], each cell's summed over those who attended to it."""

    def __init__(self, like: Tensor, side: int) -> None:
        self.like, self.side, self.reach = like, side, side // 2
        if side == 1:
            self.sums = torch.empty_like(like)
        else:
            modalities, samples, x_cells, y_cells, heads, width = like.shape
            padded = (modalities, samples, x_cells + 2 * self.reach, y_cells + 2 * self.reach, heads, width)
            self.sums = like.new_zeros(padded, dtype=torch.float32)

    def add(self, index: int, b: int, low: int, high: int, weight: Tensor, gradient: Tensor) -> None:
        """Token `index` (offset-major) of the rows got `weight` x `gradient`."""
        offset, m = divmod(index, self.like.shape[0])
        if self.side == 1:
            self.sums[m, b, low:high] = weight * gradient
            return
        i, j = divmod(offset, self.side)
        self.sums[m, b, low + i : high + i, j : j + self.like.shape[3]].addcmul_(weight, gradient)

    def total(self) -> Tensor:
        if self.side == 1:
            return self.sums
        reach, (x_cells, y_cells) = self.reach, self.like.shape[2:4]
        return self.sums[:, :, reach : reach + x_cells, reach : reach + y_cells].to(self.like.dtype)


def _blocks(samples: int, x_cells: int, y_cells: int) -> list[Block]:
    rows = max(_BLOCK // y_cells, 1)
    return [(b, low, min(low + rows, x_cells)) for b in range(samples) for low in range(0, x_cells, rows)]


def _scaled(query: Tensor, b: int, low: int, high: int) -> Tensor:
    return query[b, low:high].float() / math.sqrt(query.shape[-1])


def _around(tokens: Tensor, b: int, low: int, high: int, side: int) -> list[Tensor]:
    """O * M views [rows, Y, H, c] float32 of what stands around each cell of the rows, zero beyond the edge."""
    if side == 1:
        return [t.float() for t in tokens[:, b, low:high]]
    reach, (x_cells, y_cells) = side // 2, tokens.shape[2:4]
    first, last = max(low - reach, 0), min(high + reach, x_cells)
    rows = tokens[:, b, first:last].float()
    beyond = (0, 0, 0, 0, reach, reach, first - (low - reach), high + reach - last)
    padded = F.pad(rows, beyond)
    return [t[i : i + high - low, j : j + y_cells] for i in range(side) for j in range(side) for t in padded]


def _softmax(logits: Tensor, allowed: Tensor | None) -> None:
    """Over the first axis, in place. Where nothing is allowed the weights are 0 and not NaN."""
    if allowed is not None:
        logits.masked_fill_(~allowed[..., None], -math.inf)
    top = logits.amax(0).clamp(min=torch.finfo(torch.float32).min)
    logits.sub_(top).exp_()
    logits.div_(logits.sum(0).clamp(min=1e-30))


def _allowed(seen: Tensor | None, key: Tensor, side: int) -> Tensor:
    """[O * M, B, X, Y] bool of tokens inside the grid that are seen."""
    inside = torch.ones(key.shape[:4], dtype=torch.bool, device=key.device) if seen is None else seen
    reach, (x_cells, y_cells) = side // 2, key.shape[2:4]
    padded = F.pad(inside, (reach,) * 4)
    return torch.cat([padded[..., i : i + x_cells, j : j + y_cells] for i in range(side) for j in range(side)])
