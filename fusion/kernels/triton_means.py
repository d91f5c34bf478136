"""Means of the modalities' tokens on a GPU, in Triton: tokens are read once, and no product of their size is written.

Letters: B samples, C channels, M modalities, P = M rounded up to a power of two, X and Y cells, N = B * X * Y rows, BR rows and
BC >= C channels of a block.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_NUMBERS = 2048  # of a block
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(tokens: Tensor) -> bool:
    """Whether `TritonMean` can take tokens [M, B, X, Y, C]: sums are in float32, which float64 would lose by."""
    return len(tokens) <= 16 and 0 < tokens.shape[-1] <= 1024 and tokens.dtype in _DTYPES


@triton.jit
def _weight(coverage, share, m, row, sample, there, N, cells, M: tl.constexpr, SHARE: tl.constexpr):
    """What a modality weighs in each row, before all weights are divided by their sum."""
    weight = tl.where(tl.load(coverage + (row + m * N), mask=there, other=0.0) > 0, 1.0, 0.0)
    if SHARE:
        of_share = tl.load(share + (row + (sample * (M - 1) + m) * cells), mask=there, other=0.0).to(tl.float32)
        weight *= tl.maximum(of_share, 1e-6)
    return weight


@triton.jit(do_not_specialize=["N", "cells"])
def _mean(
    tokens, coverage, share, plus, mean, N, cells, C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, M: tl.constexpr,
    SHARE: tl.constexpr, PLUS: tl.constexpr, PLUS_OF_EACH: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, BC)
    used = (c < C)[None, :]
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    there = row < N
    sample = row // cells
    row = row.to(tl.int64)
    total = tl.zeros((BR,), tl.float32)
    for m in tl.static_range(M):
        total += _weight(coverage, share, m, row, sample, there, N, cells, M, SHARE)
    total = tl.where(total > 0, total, 1.0)
    result = tl.zeros((BR, BC), tl.float32)
    for m in tl.static_range(M):
        weight = tl.div_rn(_weight(coverage, share, m, row, sample, there, N, cells, M, SHARE), total)
        at = (row + m * N)[:, None] * C + c[None, :]
        result += tl.load(tokens + at, mask=(weight > 0)[:, None] & used, other=0.0).to(tl.float32) * weight[:, None]
    if PLUS:
        of_plus = row
        if not PLUS_OF_EACH:
            of_plus = row - sample.to(tl.int64) * cells
        at = of_plus[:, None] * C + c[None, :]
        result += tl.load(plus + at, mask=there[:, None] & used, other=0.0).to(tl.float32)
    tl.store(mean + row[:, None] * C + c[None, :], result, mask=there[:, None] & used)


@triton.jit(do_not_specialize=["N", "cells"])
def _backward(
    tokens, coverage, share, grad, of_tokens, of_share, N, cells, C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
    M: tl.constexpr, P: tl.constexpr, SHARE: tl.constexpr, OF_SHARE: tl.constexpr,
):  # fmt: skip
    """Without OF_SHARE the tokens are not read.

    The gradient of a weight is (gradient's product with the token - its product with the mean) / sum of the weights, as a sum of
    differences between tokens: where one weighs nearly all, its own difference is exactly 0.
    """
    c = tl.arange(0, BC)
    used = (c < C)[None, :]
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    there = row < N
    sample = row // cells
    row = row.to(tl.int64)
    total = tl.zeros((BR,), tl.float32)
    for m in tl.static_range(M):
        total += _weight(coverage, share, m, row, sample, there, N, cells, M, SHARE)
    total = tl.where(total > 0, total, 1.0)
    inside = there[:, None] & used
    upward = tl.load(grad + row[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
    modality = tl.arange(0, P)
    products = tl.zeros((BR, P), tl.float32)
    for m in tl.static_range(M):
        weight = tl.div_rn(_weight(coverage, share, m, row, sample, there, N, cells, M, SHARE), total)
        at = (row + m * N)[:, None] * C + c[None, :]
        if OF_SHARE:
            token = tl.load(tokens + at, mask=(weight > 0)[:, None] & used, other=0.0).to(tl.float32)
            product = tl.sum(token * upward, 1)
            products = tl.where(modality[None, :] == m, product[:, None], products)
        tl.store(of_tokens + at, tl.where((weight > 0)[:, None], upward * weight[:, None], 0.0), mask=inside)
    if OF_SHARE:
        each = there[:, None] & (modality < M)[None, :]
        at = row[:, None] + (sample[:, None] * (M - 1) + modality[None, :]) * cells
        seen = tl.load(coverage + (row[:, None] + modality[None, :] * N), mask=each, other=0.0) > 0
        learns = seen & (tl.load(share + at, mask=each, other=0.0).to(tl.float32) >= 1e-6)
        slope = tl.zeros((BR, P), tl.float32)
        for m in tl.static_range(M):
            weight = tl.div_rn(_weight(coverage, share, m, row, sample, there, N, cells, M, SHARE), total)
            of_m = tl.sum(tl.where(modality[None, :] == m, products, 0.0), 1)
            slope += weight[:, None] * (products - of_m[:, None])
        slope = slope / total[:, None]
        tl.store(of_share + at, tl.where(learns, slope, 0.0), mask=each)


class TritonMean(torch.autograd.Function):
    """`present_mean`, or `trusted_mean` where there is a share, and `plus` added: tokens that `fits` says yes to, in their dtype.

    tokens [M, B, X, Y, C]; coverage [M, B, X, Y], whose gradient is 0; share [B, M, X, Y]; plus [B, X, Y, C], or [X, Y, C] for
    all samples alike. -> [B, X, Y, C]. Tokens of a weight of 0 are not read.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, coverage: Tensor, share: Tensor | None, plus: Tensor | None) -> Tensor:
        tokens, coverage = tokens.contiguous(), coverage.contiguous()
        share, plus = (None if t is None else t.contiguous() for t in (share, plus))
        modalities, *shape, channels = tokens.shape
        mean = torch.empty(*shape, channels, dtype=tokens.dtype, device=tokens.device)
        block = triton.next_power_of_2(channels)
        ctx.sizes = {"N": mean.numel() // channels, "cells": shape[1] * shape[2]}
        ctx.named = {
            "C": channels,
            "BC": block,
            "BR": max(_NUMBERS // block, 1),
            "M": modalities,
            "SHARE": share is not None,
        }
        ctx.plus = None if plus is None else (plus.dtype, plus.ndim)
        which = {"PLUS": plus is not None, "PLUS_OF_EACH": plus is not None and plus.ndim == mean.ndim}
        # Where there is no share, and nothing to add, stands a tensor that is not read.
        others = (coverage if share is None else share, tokens if plus is None else plus)
        _launch(_mean, tokens, tokens, coverage, *others, mean, **ctx.sizes, **ctx.named, **which)
        # The tokens themselves only tell the gradient of the share.
        ctx.save_for_backward(tokens if ctx.needs_input_grad[2] else None, coverage, share)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tokens, coverage, share = ctx.saved_tensors
        grad = grads[0].contiguous()
        of_tokens = of_share = of_plus = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
            of_tokens = torch.empty(ctx.named["M"], *grad.shape, dtype=grad.dtype, device=grad.device)
            of_share = None if tokens is None else torch.empty_like(share)
            pointers = (
                grad if tokens is None else tokens,
                coverage,
                coverage if share is None else share,
                grad,
                of_tokens,
                coverage if of_share is None else of_share,
            )
            rounded = 1 << (ctx.named["M"] - 1).bit_length()
            _launch(_backward, grad, *pointers, **ctx.sizes, **ctx.named, P=rounded, OF_SHARE=of_share is not None)
        if ctx.needs_input_grad[3]:
            dtype, axes = ctx.plus
            of_plus = grad if axes == grad.ndim else grad.sum(0, dtype=dtype)
        return of_tokens, None, of_share, of_plus


def _launch(kernel: Any, like: Tensor, *pointers: Tensor, **named: Any) -> None:
    if named["N"]:
        with torch.cuda.device_of(like):  # of itself Triton takes the current one; for a CPU's tensor this does nothing
            kernel[(triton.cdiv(named["N"], named["BR"]),)](*pointers, **named)
