"""`neighbour_attention` on a GPU, in Triton: tokens are read once, and the backward pass needs no atomic sums.

Letters: B samples, H heads, W channels of a head, C = H * W, M modalities, P = M rounded up to a power of two, X and Y cells,
T cells of a tile; b and m are one sample and one modality. A plane is the X * Y cells of one sample, or of one modality of it.

Logits are in base 2, for a GPU has that exponential: a weight is 2 ** (logit - total), where `total` is the logarithm of the sum
over all tokens that a query attends to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Tile:
    """The cells of one program, and the warps that share them. Cells side by side read the same neighbours, from the L1 cache.

    Attributes:
        x_cells, y_cells: powers of two.
        warps: for cells of 256 bytes (128 channels in bfloat16); wider cells have more, in proportion.
    """

    x_cells: int
    y_cells: int
    warps: int

    def warps_for(self, query: Tensor) -> int:
        """A power of two, as all that it is made of."""
        cell_bytes = query.shape[-2] * query.shape[-1] * query.element_size()
        return min(max(self.warps * cell_bytes // 256, 1), 16)


_TILES = {
    ("attend", 1): Tile(1, 4, 1),
    ("attend", 3): Tile(1, 4, 1),
    ("backward of queries", 1): Tile(1, 2, 1),
    ("backward of queries", 3): Tile(1, 2, 1),
    ("backward of tokens", 3): Tile(1, 2, 1),
}
"""By kernel and neighbourhood, the fastest of a sweep on an H200; read at each call, so that a benchmark may put others here.

A program of tokens has more threads than T * H. Otherwise Triton brings what each neighbour's query has kept, [T, H], to the
threads that need it by way of shared memory and its barriers.
"""


def fits(query: Tensor) -> bool:
    """Whether `TritonAttention` can take queries [B, X, Y, H, W].

    A kernel's tensors have powers of two for sides, so H and W have to be some. Offsets inside a plane have 32 bits. Sums are in
    float32, which float64 would lose by.
    """
    x_cells, y_cells, heads, width = query.shape[1:]
    powers = all(side > 0 and side & (side - 1) == 0 for side in (heads, width))
    small = heads * width <= 1024 and x_cells * y_cells * heads * width < 2**31
    return powers and small and query.dtype in _DTYPES


class TritonAttention(torch.autograd.Function):
    """Arguments, results and mathematics of `neighbour_attention`, for queries that `fits` says yes to.

    Sums are in float32; what a cell draws is given, and kept for the gradient, in the queries' dtype, for a projection that wants
    it so.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, neighbourhood: int
    ) -> tuple[Tensor, Tensor]:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        # Where there is no mask, or later no gradient, stands a tensor that is not read.
        mask = query if seen is None else seen.contiguous().view(torch.uint8)
        modalities, (samples, x_cells, y_cells, heads, width) = len(key), query.shape
        rounded = 1 << (modalities - 1).bit_length()
        sizes = {"B": samples, "X": x_cells, "Y": y_cells, "scale": 1 / math.sqrt(width)}
        constants = {"M": modalities, "H": heads, "W": width, "SIDE": neighbourhood, "SEEN": seen is not None}
        kept = any(ctx.needs_input_grad)
        attended = torch.empty_like(query)
        share = _empty(query, samples, modalities, x_cells, y_cells)
        total = _empty(query, *query.shape[:-1]) if kept else _empty(query, 0)
        head_share = _empty(query, *query.shape[:-1], rounded) if kept else _empty(query, 0)
        _launch(
            _attend, _TILES["attend", neighbourhood], query, 1,
            query, key, value, mask, attended, share, total, head_share, **sizes, **constants, P=rounded, KEPT=kept,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, mask, attended, total, head_share)
        ctx.sizes, ctx.constants = sizes, constants
        ctx.set_materialize_grads(False)
        return attended, share

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_attended: Tensor | None, of_share: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        if of_attended is None and of_share is None:
            return None, None, None, None, None
        query, key, value, mask, attended, total, head_share = ctx.saved_tensors
        neighbourhood = ctx.constants["SIDE"]
        named = {**ctx.sizes, **ctx.constants, "ATTENDED": of_attended is not None, "SHARE": of_share is not None}
        of_attended, of_share = (total if t is None else t.contiguous() for t in (of_attended, of_share))
        of_query, of_key, of_value = (torch.empty_like(t) for t in (query, key, value))
        delta = _empty(query, len(key) if named["SHARE"] else 1, *total.shape) if neighbourhood > 1 else total
        _launch(
            _backward_of_queries, _TILES["backward of queries", neighbourhood], query, 1,
            query, key, value, mask, of_attended, of_share, total, attended, head_share, delta, of_query, of_key, of_value,
            **named, P=head_share.shape[-1],
        )  # fmt: skip
        if neighbourhood > 1:
            _launch(
                _backward_of_tokens, _TILES["backward of tokens", neighbourhood], query, len(key),
                query, key, value, mask, of_attended, total, delta, of_key, of_value, **named,
            )  # fmt: skip
        return of_query, of_key, of_value, None, None


def _empty(query: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=query.device)


def _launch(kernel: Any, tile: Tile, query: Tensor, planes: int, *tensors: Tensor, **named: Any) -> None:
    """A program for each tile of each of a sample's `planes`, on the device of `query`."""
    samples, x_cells, y_cells = query.shape[:3]
    tiles = -(-x_cells // tile.x_cells) * -(-y_cells // tile.y_cells)
    if not samples * tiles:
        return
    with torch.cuda.device_of(query):  # of itself Triton takes the current device; for a CPU's tensor this does nothing
        kernel[planes * tiles, samples](
            *tensors, **named, TX=tile.x_cells, TY=tile.y_cells, num_warps=tile.warps_for(query)
        )


# Sizes are not specialised: a batch of 1 or 16 would be compiled anew. 1.4426950408889634 is the base-2 logarithm of e.


@triton.jit(do_not_specialize=["B", "X", "Y"])
def _attend(
    query, key, value, seen, attended, share, total, head_share, B, X, Y, scale,
    M: tl.constexpr, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr, SEEN: tl.constexpr,
    KEPT: tl.constexpr, TX: tl.constexpr, TY: tl.constexpr,
):  # fmt: skip
    """A tile of queries. Sums are relative to the greatest logit so far, and shrink when a greater one comes.

    They do so once for three neighbours; sums of a modality's weights, of which the shares are made, once for a modality.
    """
    T: tl.constexpr = TX * TY
    b = tl.program_id(1)
    x, y = _cells_of_tile(tl.program_id(0), Y, TX, TY)
    own, inside = _nearest(x, y, X, Y)
    channels, heads = _channels(own, H, W), _heads(own, H)
    plane_of_b = _plane(b, X, Y)
    asked = _load(query, plane_of_b, channels, inside, H * W, False).to(tl.float32) * (scale * 1.4426950408889634)
    modality = tl.arange(0, P)
    top = tl.full((T, H), -1e30, tl.float32)  # finite: a hidden token's -inf - top is no NaN
    whole = tl.full((T, H), 0.0, tl.float32)
    parts = tl.full((T, H, P), 0.0, tl.float32)
    mixed = tl.full((T, H, W), 0.0, tl.float32)
    for m in range(M):
        plane = _plane(m * B + b, X, Y)
        before = top
        part = tl.full((T, H), 0.0, tl.float32)
        for i in tl.static_range(SIDE):
            logit, _, row = _neighbour(
                asked, key, value, seen, plane, x + i - SIDE // 2, y - SIDE // 2, X, Y, H, W, SEEN
            )
            new = tl.maximum(top, logit)
            if SIDE == 3:
                logit_1, _, row_1 = _neighbour(asked, key, value, seen, plane, x + i - 1, y, X, Y, H, W, SEEN)
                logit_2, _, row_2 = _neighbour(asked, key, value, seen, plane, x + i - 1, y + 1, X, Y, H, W, SEEN)
                new = tl.maximum(new, tl.maximum(logit_1, logit_2))
            shrink = tl.exp2(top - new)
            weight = tl.exp2(logit - new)
            part = part * shrink + weight
            mixed = mixed * shrink[:, :, None] + row.to(tl.float32) * weight[:, :, None]
            if SIDE == 3:
                weight_1 = tl.exp2(logit_1 - new)
                weight_2 = tl.exp2(logit_2 - new)
                part += weight_1 + weight_2
                mixed += row_1.to(tl.float32) * weight_1[:, :, None]
                mixed += row_2.to(tl.float32) * weight_2[:, :, None]
            top = new
        shrink_parts = tl.exp2(before - top)
        whole = whole * shrink_parts + part
        parts = tl.where(modality[None, None, :] == m, part[:, :, None], parts * shrink_parts[:, :, None])
    anything = whole > 0
    whole = tl.where(anything, whole, 1.0)
    inverse = 1.0 / whole
    parts = parts * inverse[:, :, None]
    _store(attended, plane_of_b, channels, inside, mixed * inverse[:, :, None], H * W)
    of_modality = _plane(b * M, X, Y) + modality[None, :] * X * Y + own[:, None]
    tl.store(share + of_modality, tl.sum(parts, 1) * (1.0 / H), mask=inside[:, None] & (modality < M)[None, :])
    if KEPT:
        logarithm = tl.where(anything, top + tl.log2(whole), 0.0)
        tl.store(total + plane_of_b * H + heads, logarithm, mask=inside[:, None])
        _store(head_share, plane_of_b, _channels(own, H, P), inside, parts, H * P)


@triton.jit(do_not_specialize=["B", "X", "Y"])
def _backward_of_queries(
    query, key, value, seen, of_attended, of_share, total, attended, head_share, delta, of_query, of_key, of_value,
    B, X, Y, scale,
    M: tl.constexpr, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr, SEEN: tl.constexpr,
    ATTENDED: tl.constexpr, SHARE: tl.constexpr, TX: tl.constexpr, TY: tl.constexpr,
):  # fmt: skip
    """A tile of queries. With neighbourhood 1 a token has this one query, and its gradients are made here too.

    The gradient of a logit is weight * (gradient of the weight - mean of the weights' gradients). That mean follows from the
    results, without a look at the tokens. For the tokens' kernel it is kept as `delta` [B, X, Y, H], or, where the shares have
    a gradient, less what this adds to all of a modality's weights [M, B, X, Y, H].
    """
    T: tl.constexpr = TX * TY
    b = tl.program_id(1)
    x, y = _cells_of_tile(tl.program_id(0), Y, TX, TY)
    own, inside = _nearest(x, y, X, Y)
    channels, heads = _channels(own, H, W), _heads(own, H)
    plane_of_b = _plane(b, X, Y)
    asked = _load(query, plane_of_b, channels, inside, H * W, False).to(tl.float32) * (scale * 1.4426950408889634)
    logarithm = tl.load(total + plane_of_b * H + heads)
    mean = tl.full((T, H), 0.0, tl.float32)
    incoming = tl.full((T, H, W), 0.0, tl.float32)
    if ATTENDED:
        incoming = _load(of_attended, plane_of_b, channels, inside, H * W, False).to(tl.float32)
        mean += tl.sum(incoming * _load(attended, plane_of_b, channels, inside, H * W, False), 2)
    if SHARE:
        modality = tl.arange(0, P)
        of_modality = _plane(b * M, X, Y) + modality[None, :] * X * Y + own[:, None]
        for_shares = tl.load(of_share + of_modality, mask=inside[:, None] & (modality < M)[None, :], other=0.0)
        shares = _load(head_share, plane_of_b, _channels(own, H, P), inside, H * P, False)
        mean += tl.sum(shares * for_shares.to(tl.float32)[:, None, :], 2) * (1.0 / H)
    elif SIDE == 3:
        tl.store(delta + plane_of_b * H + heads, mean, mask=inside[:, None])
    to_query = tl.full((T, H, W), 0.0, tl.float32)
    for m in range(M):
        plane = _plane(m * B + b, X, Y)
        beyond = mean
        if SHARE:
            beyond = mean - tl.load(of_share + _plane(b * M + m, X, Y) + own).to(tl.float32)[:, None] * (1.0 / H)
            if SIDE == 3:
                tl.store(delta + plane * H + heads, beyond, mask=inside[:, None])
        for i in tl.static_range(SIDE):
            for j in tl.static_range(SIDE):
                logit, key_row, value_row = _neighbour(
                    asked, key, value, seen, plane, x + i - SIDE // 2, y + j - SIDE // 2, X, Y, H, W, SEEN
                )
                weight = tl.exp2(logit - logarithm)
                of_weight = -beyond
                if ATTENDED:
                    of_weight += tl.sum(incoming * value_row.to(tl.float32), 2)
                slope = weight * of_weight
                to_query += key_row * slope[:, :, None]
                if SIDE == 1:
                    to_key = asked * (slope * (1 / 1.4426950408889634))[:, :, None]
                    _store(of_key, plane, channels, inside, to_key, H * W)
                    _store(of_value, plane, channels, inside, incoming * weight[:, :, None], H * W)
    _store(of_query, plane_of_b, channels, inside, to_query * scale, H * W)


@triton.jit(do_not_specialize=["B", "X", "Y"])
def _backward_of_tokens(
    query, key, value, seen, of_attended, total, delta, of_key, of_value, B, X, Y, scale,
    M: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr, SEEN: tl.constexpr, ATTENDED: tl.constexpr,
    SHARE: tl.constexpr, TX: tl.constexpr, TY: tl.constexpr,
):  # fmt: skip
    """A tile of one modality's tokens, each of which gathers from the queries around it.

    The modalities of a tile follow each other, for they read the same queries.
    """
    T: tl.constexpr = TX * TY
    b, m = tl.program_id(1), tl.program_id(0) % M
    x, y = _cells_of_tile(tl.program_id(0) // M, Y, TX, TY)
    own, inside = _nearest(x, y, X, Y)
    channels = _channels(own, H, W)
    plane_of_b, plane = _plane(b, X, Y), _plane(m * B + b, X, Y)
    plane_of_delta = plane_of_b
    if SHARE:
        plane_of_delta = plane
    usable = inside
    if SEEN:
        usable = inside & (tl.load(seen + plane + own, mask=inside, other=0) != 0)
    key_row = _load(key, plane, channels, usable, H * W, SEEN).to(tl.float32) * (scale * 1.4426950408889634)
    value_row = _load(value, plane, channels, usable, H * W, SEEN).to(tl.float32)
    to_key = tl.full((T, H, W), 0.0, tl.float32)
    to_value = tl.full((T, H, W), 0.0, tl.float32)
    for i in tl.static_range(SIDE):
        for j in tl.static_range(SIDE):
            there, ok = _nearest(x + i - SIDE // 2, y + j - SIDE // 2, X, Y)
            ok = ok & usable
            places, of_heads = _channels(there, H, W), _heads(there, H)
            asked = _load(query, plane_of_b, places, ok, H * W, SEEN).to(tl.float32)
            logit = tl.where(ok[:, None], tl.sum(asked * key_row, 2), -float("inf"))
            weight = tl.exp2(logit - tl.load(total + plane_of_b * H + of_heads))
            of_weight = -tl.load(delta + plane_of_delta * H + of_heads)
            if ATTENDED:
                incoming = _load(of_attended, plane_of_b, places, ok, H * W, SEEN).to(tl.float32)
                of_weight += tl.sum(incoming * value_row, 2)
                to_value += incoming * weight[:, :, None]
            to_key += asked * (weight * of_weight)[:, :, None]
    _store(of_key, plane, channels, inside, to_key * scale, H * W)
    _store(of_value, plane, channels, inside, to_value, H * W)


@triton.jit
def _neighbour(asked, key, value, seen, plane, x, y, X, Y, H: tl.constexpr, W: tl.constexpr, SEEN: tl.constexpr):
    """Of the tokens at x, y [T]: logits [T, H], -inf where hidden; keys [T, H, W] float32 and values, as they come."""
    there, ok = _nearest(x, y, X, Y)
    if SEEN:
        ok = ok & (tl.load(seen + plane + there, mask=ok, other=0) != 0)
    places = _channels(there, H, W)
    key_row = _load(key, plane, places, ok, H * W, SEEN).to(tl.float32)
    value_row = _load(value, plane, places, ok, H * W, SEEN)
    return tl.where(ok[:, None], tl.sum(asked * key_row, 2), -float("inf")), key_row, value_row


@triton.jit
def _plane(number, X, Y):
    """Cells before a plane, in 64 bits: a batch may have more than 2 ** 31 channels."""
    return number.to(tl.int64) * X * Y


@triton.jit
def _cells_of_tile(tile, Y, TX: tl.constexpr, TY: tl.constexpr):
    """[T] x and y of cells, some of which may lie beyond the far edges of the grid."""
    across = (Y + TY - 1) // TY
    t = tl.arange(0, TX * TY)
    return (tile // across) * TX + t // TY, (tile % across) * TY + t % TY


@triton.jit
def _nearest(x, y, X, Y):
    """[T] place in the plane of the cell, or of the nearest one if it lies beyond the grid; and whether it lies inside.

    So there is something to read everywhere, without a mask. Beyond the edge it is what the tile's cell attends to anyway.
    """
    inside = (x >= 0) & (x < X) & (y >= 0) & (y < Y)
    return tl.minimum(tl.maximum(x, 0), X - 1) * Y + tl.minimum(tl.maximum(y, 0), Y - 1), inside


@triton.jit
def _heads(cell, H: tl.constexpr):
    """[T] -> [T, H] places of the cells' heads."""
    return cell[:, None] * H + tl.arange(0, H)[None, :]


@triton.jit
def _channels(cell, H: tl.constexpr, W: tl.constexpr):
    """[T] -> [T, H, W] places of the cells' channels."""
    return cell[:, None, None] * (H * W) + tl.arange(0, H)[None, :, None] * W + tl.arange(0, W)[None, None, :]


@triton.jit
def _load(planes, plane, places, ok, C: tl.constexpr, MASKED: tl.constexpr):
    """[T, H, W] of a plane's cells, each of C numbers. MASKED: 0 where not ok, and nothing is read there."""
    at = planes + plane * C + places
    return tl.load(at, mask=ok[:, None, None], other=0.0) if MASKED else tl.load(at)


@triton.jit
def _store(planes, plane, places, inside, rows, C: tl.constexpr):
    tl.store(planes + plane * C + places, rows, mask=inside[:, None, None])
