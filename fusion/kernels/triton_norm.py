"""LayerNorm on a GPU, in Triton: of many narrow rows, for torch gives each row of 64 numbers a block of threads of its own; and
of a residual stream, where the addition before it and the cast after it are passes over the whole stream themselves.

With RELU, negative results are 0, and so are rows that are not kept. With ADD, what is normalised is a sum, which is kept.

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
WIDEST_STREAM = 2048  # of a residual stream
_NUMBERS = 4096  # of a block
_PROGRAMS = 1024  # that each sum the gradients of weight and bias over their share of the rows


def fits(x: Tensor) -> bool:
    """Whether `TritonLayerNorm` is for rows of this width and dtype."""
    return x.shape[-1] <= WIDEST and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def fits_stream(x: Tensor) -> bool:
    """Whether `TritonAddNorm` is for a stream of this width and dtype."""
    return x.shape[-1] <= WIDEST_STREAM and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


@triton.jit(do_not_specialize=["N"])
def _normalise(
    x, delta, total, weight, bias, kept, y, N, eps,
    C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, RELU: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, BC)
    used = (c < C)[None, :]
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    at = row[:, None] * C + c[None, :]
    there = (row < N)[:, None] & used
    value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(delta + at, mask=there, other=0.0).to(tl.float32)
        tl.store(total + at, value, mask=there)
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
    x, weight, bias, kept, grad, of_total, of_x, of_delta, of_weight, of_bias, N, eps, programs,
    C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, RELU: tl.constexpr, ADD: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """Gradients of the rows, and each program's part [BC] of those of weight and bias.

    With ADD, that of the sum itself comes on top; with NARROW, what was added has another dtype and gets a copy.
    """
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
        result = (weighted - mean[:, None] - normal * along[:, None]) * scale[:, None]
        if ADD:
            result += tl.load(of_total + at, mask=there, other=0.0).to(tl.float32)
        tl.store(of_x + at, result, mask=there)
        if NARROW:
            tl.store(of_delta + at, result, mask=there)
    part = tl.program_id(0) * BC + c
    tl.store(of_weight + part, to_weight)
    tl.store(of_bias + part, to_bias)


class TritonLayerNorm(torch.autograd.Function):
    """`F.layer_norm` over the last axis of x [.., C], summed in float32, in the dtype of `x` or in `dtype`; weight and bias [C].

    `kept` [..] bool: then a ReLU follows, and rows that are not kept are 0.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, kept: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        x = x.contiguous()
        mask = x if kept is None else kept.contiguous().view(torch.uint8)  # any pointer, where none is read
        y = torch.empty_like(x, dtype=dtype)
        ctx.eps, ctx.relu = eps, kept is not None
        _forward(x, x, x, weight, bias, mask, y, eps, relu=ctx.relu, add=False)
        ctx.save_for_backward(x, weight, bias, mask)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mask = ctx.saved_tensors
        of_x = torch.empty_like(x)
        parts = _gradients(x, weight, bias, mask, grads[0], None, of_x, of_x, ctx.eps, relu=ctx.relu)
        return of_x, *parts, None, None, None


class TritonAddNorm(torch.autograd.Function):
    """x [.., C], delta [.., C] -> x + delta in the dtype of `x`, and its norm in `dtype`; weight and bias [C]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        x, delta = x.contiguous(), delta.contiguous()
        total, y = torch.empty_like(x), torch.empty_like(x, dtype=dtype)
        _forward(x, delta, total, weight, bias, x, y, eps, relu=False, add=True)
        ctx.save_for_backward(total, weight, bias)
        ctx.eps, ctx.dtype = eps, delta.dtype
        ctx.set_materialize_grads(False)
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight, bias = ctx.saved_tensors
        of_total, of_y = grads
        if of_y is None:
            of_delta = None if of_total is None else of_total.to(ctx.dtype)
            return of_total, of_delta, None, None, None, None
        of_x = torch.empty_like(total)
        of_delta = of_x if ctx.dtype == total.dtype else torch.empty_like(total, dtype=ctx.dtype)
        parts = _gradients(total, weight, bias, total, of_y, of_total, of_x, of_delta, ctx.eps, relu=False)
        return of_x, of_delta, *parts, None, None


def _forward(
    x: Tensor, delta: Tensor, total: Tensor, weight: Tensor, bias: Tensor, kept: Tensor, y: Tensor, eps: float, *,
    relu: bool, add: bool,
) -> None:  # fmt: skip
    sizes = _sizes(x.shape[-1])
    rows = x.numel() // x.shape[-1]
    if rows:
        with torch.cuda.device_of(x):
            _normalise[(triton.cdiv(rows, sizes["BR"]),)](
                x, delta, total, weight, bias, kept, y, rows, eps, **sizes, RELU=relu, ADD=add
            )


def _gradients(
    x: Tensor, weight: Tensor, bias: Tensor, kept: Tensor, grad: Tensor, of_total: Tensor | None, of_x: Tensor,
    of_delta: Tensor, eps: float, *, relu: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Fills `of_x` and `of_delta`; -> gradients of weight and bias."""
    sizes = _sizes(x.shape[-1])
    channels, block = sizes["C"], sizes["BC"]
    rows = x.numel() // channels
    programs = max(1, min(_PROGRAMS, triton.cdiv(rows, sizes["BR"])))
    parts = torch.zeros(2, programs, block, device=x.device, dtype=torch.float32)
    if rows:
        with torch.cuda.device_of(x):
            _backward[(programs,)](
                x, weight, bias, kept, grad.contiguous(), x if of_total is None else of_total.contiguous(),
                of_x, of_delta, parts[0], parts[1], rows, eps, programs, **sizes,
                RELU=relu, ADD=of_total is not None, NARROW=of_delta is not of_x,
            )  # fmt: skip
    of_weight, of_bias = parts.sum(1)[:, :channels]
    return of_weight.to(weight.dtype), of_bias.to(bias.dtype)


def _sizes(channels: int) -> dict[str, int]:
    block = triton.next_power_of_2(channels)
    return {"C": channels, "BC": block, "BR": max(_NUMBERS // block, 1)}
