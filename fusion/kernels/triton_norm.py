"""LayerNorm of many narrow rows on a GPU, in Triton: torch gives each row of 64 numbers a block of threads of its own.

With RELU, negative results are 0, and so are rows that are not kept.

Letters: N rows, C channels, BR rows and BC >= C channels of a block.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDEST = 256  # channels; torch's own kernel is made for more
_NUMBERS = 4096  # of a block
_PROGRAMS = 1024  # that each sum the gradients of weight and bias over their share of the rows


def fits(x: Tensor) -> bool:
    """Whether `TritonLayerNorm` is for rows of this width and dtype."""
    return x.shape[-1] <= WIDEST and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


@triton.jit(do_not_specialize=["N"])
def _normalise(
    x, weight, bias, kept, y, N, eps, C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, RELU: tl.constexpr
):  # fmt: skip
    c = tl.arange(0, BC)
    used = (c < C)[None, :]
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    at = row[:, None] * C + c[None, :]
    there = (row < N)[:, None] & used
    value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    centred = tl.where(used, value - (tl.sum(value, 1) * (1.0 / C))[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) * (1.0 / C) + eps)
    w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    result = centred * scale[:, None] * w[None, :] + b[None, :]
    if RELU:
        keep = tl.load(kept + row, mask=row < N, other=0) != 0
        result = tl.where(keep[:, None] & (result > 0), result, 0.0)
    tl.store(y + at, result, mask=there)


@triton.jit(do_not_specialize=["N", "programs"])
def _backward(
    x, weight, bias, kept, grad, of_x, of_weight, of_bias, N, eps, programs,
    C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Gradients of the rows, and each program's part [BC] of those of weight and bias."""
    c = tl.arange(0, BC)
    used = (c < C)[None, :]
    w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    to_weight = tl.zeros((BC,), tl.float32)
    to_bias = tl.zeros((BC,), tl.float32)
    for start in range(tl.program_id(0) * BR, N, programs * BR):
        row = (start + tl.arange(0, BR)).to(tl.int64)
        at = row[:, None] * C + c[None, :]
        there = (row < N)[:, None] & used
        value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        centred = tl.where(used, value - (tl.sum(value, 1) * (1.0 / C))[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) * (1.0 / C) + eps)
        normal = centred * scale[:, None]
        upward = tl.load(grad + at, mask=there, other=0.0).to(tl.float32)
        if RELU:
            keep = tl.load(kept + row, mask=row < N, other=0) != 0
            upward = tl.where(keep[:, None] & (normal * w[None, :] + b[None, :] > 0), upward, 0.0)
        to_weight += tl.sum(upward * normal, 0)
        to_bias += tl.sum(upward, 0)
        weighted = upward * w[None, :]
        along = tl.sum(weighted * normal, 1) * (1.0 / C)
        mean = tl.sum(weighted, 1) * (1.0 / C)
        tl.store(of_x + at, (weighted - mean[:, None] - normal * along[:, None]) * scale[:, None], mask=there)
    part = tl.program_id(0) * BC + c
    tl.store(of_weight + part, to_weight)
    tl.store(of_bias + part, to_bias)


class TritonLayerNorm(torch.autograd.Function):
    """`F.layer_norm` over the last axis of x [.., C], in the dtype of `x` and summed in float32; weight and bias [C].

    `kept` [..] bool: then a ReLU follows, and rows that are not kept are 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, kept: Tensor | None = None) -> Tensor:
        x = x.contiguous()
        mask = x if kept is None else kept.contiguous().view(torch.uint8)  # any pointer, where none is read
        channels = x.shape[-1]
        rows, y = x.numel() // channels, torch.empty_like(x)
        ctx.eps, ctx.named = eps, {**_sizes(channels), "RELU": kept is not None}
        if rows:
            with torch.cuda.device_of(x):
                _normalise[(triton.cdiv(rows, ctx.named["BR"]),)](x, weight, bias, mask, y, rows, eps, **ctx.named)
        ctx.save_for_backward(x, weight, bias, mask)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mask = ctx.saved_tensors
        channels, block = ctx.named["C"], ctx.named["BC"]
        rows, of_x = x.numel() // channels, torch.empty_like(x)
        programs = max(1, min(_PROGRAMS, triton.cdiv(rows, ctx.named["BR"])))
        parts = torch.zeros(2, programs, block, device=x.device, dtype=torch.float32)
        if rows:
            with torch.cuda.device_of(x):
                _backward[(programs,)](
                    x,
                    weight,
                    bias,
                    mask,
                    grads[0].contiguous(),
                    of_x,
                    parts[0],
                    parts[1],
                    rows,
                    ctx.eps,
                    programs,
                    **ctx.named,
                )
        of_weight, of_bias = parts.sum(1)[:, :channels]
        return of_x, of_weight.to(weight.dtype), of_bias.to(bias.dtype), None, None


def _sizes(channels: int) -> dict[str, int]:
    block = triton.next_power_of_2(channels)
    return {"C": channels, "BC": block, "BR": max(_NUMBERS // block, 1)}
