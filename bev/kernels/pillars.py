"""The linear map and maximum of pillars in Triton.

Letters: P points, F features of a point, C channels, R rows of the canvas.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import launch

FORWARD_POINTS, FORWARD_WARPS = 32, 4  # points a program takes on at a time
BACKWARD_POINTS, BACKWARD_WARPS = 16, 2
_PROGRAMS = 1024  # that each sum the weight's gradient over their share of the points
_LEAST_PRODUCT = 16  # numbers that a GPU's product of matrices sums, at least


@triton.jit
def _linear(points, weight, bias, p, c, there, F: tl.constexpr, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """[BP, BC]: weight @ point + bias. Forward and backward call it, so that a maximum equals itself to the last bit."""
    total = tl.zeros((BP, BC), tl.float32) + tl.load(bias + c, mask=c < C, other=0.0)[None, :]
    for f in tl.static_range(F):
        x = tl.load(points + p * F + f, mask=there, other=0.0)
        w = tl.load(weight + c * F + f, mask=c < C, other=0.0)
        total += x[:, None] * w[None, :]
    return total


@triton.jit
def _maximum(
    points, weight, bias, rows, canvas, P, F: tl.constexpr, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """BP points into the canvas [R, BC], which starts at zero."""
    p = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    c = tl.arange(0, BC)
    there = p < P
    row = tl.load(rows + p, mask=there, other=0).to(tl.int64)
    value = _linear(points, weight, bias, p, c, there, F, C, BP, BC)
    at = canvas + row[:, None] * BC + c[None, :]
    use = there[:, None] & (c < C)[None, :]
    # Most points are no maximum: reading is cheaper than an atomic that changes nothing.
    best = tl.load(at, mask=use, other=0.0)
    tl.atomic_max(at, value, mask=use & (value > best), sem="relaxed")


@triton.jit
def _count_ties(
    points, weight, bias, rows, canvas, grad, ties, P,
    F: tl.constexpr, C: tl.constexpr, G: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """How many points reach each maximum that has a gradient, [R, BC]: all that is left out shares the last row, and is alike."""
    p = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    c = tl.arange(0, BC)
    there = p < P
    row = tl.load(rows + p, mask=there, other=0).to(tl.int64)
    value = _linear(points, weight, bias, p, c, there, F, C, BP, BC)
    at = row[:, None] * BC + c[None, :]
    use = there[:, None] & (c < C)[None, :]
    best = tl.load(canvas + at, mask=use, other=0.0)
    won = use & (best > 0) & (value == best)
    won = won & (tl.load(grad + row[:, None] * G + c[None, :], mask=won, other=0.0) != 0)
    tl.atomic_add(ties + at, tl.full((BP, BC), 1.0, tl.float32), mask=won, sem="relaxed")


@triton.jit
def _share_out(
    points, weight, bias, rows, canvas, grad, ties, of_points, of_weight, of_bias, P, programs,
    F: tl.constexpr, C: tl.constexpr, G: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Gradients of the points, and each program's part of those of weight [BF, BC] and bias [BC]."""
    c, f = tl.arange(0, BC), tl.arange(0, BF)
    w = tl.load(weight + c[None, :] * F + f[:, None], mask=(f < F)[:, None] & (c < C)[None, :], other=0.0)  # [BF, BC]
    of_w = tl.zeros((BF, BC), tl.float32)
    of_b = tl.zeros((BC,), tl.float32)
    for first in range(tl.program_id(0) * BP, P, programs * BP):
        p = (first + tl.arange(0, BP)).to(tl.int64)
        there = p < P
        row = tl.load(rows + p, mask=there, other=0).to(tl.int64)
        value = _linear(points, weight, bias, p, c, there, F, C, BP, BC)
        at = row[:, None] * BC + c[None, :]
        use = there[:, None] & (c < C)[None, :]
        best = tl.load(canvas + at, mask=use, other=0.0)
        won = use & (best > 0) & (value == best)
        upward = tl.load(grad + row[:, None] * G + c[None, :], mask=won, other=0.0)
        into = tl.where(upward != 0, upward / tl.load(ties + at, mask=upward != 0, other=1.0), 0.0)  # [BP, BC]
        x = tl.load(points + p[None, :] * F + f[:, None], mask=there[None, :] & (f < F)[:, None], other=0.0)  # [BF, BP]
        of_w += tl.dot(x, into, input_precision="ieee")
        of_b += tl.sum(into, 0)
        of_x = tl.dot(into, tl.trans(w), input_precision="ieee")  # [BP, BF]
        tl.store(of_points + p[:, None] * F + f[None, :], of_x, mask=there[:, None] & (f < F)[None, :])
    part = tl.program_id(0)
    tl.store(of_weight + (part * BF + f[:, None]) * BC + c[None, :], of_w)
    tl.store(of_bias + part * BC + c, of_b)


class TritonLinearMax(torch.autograd.Function):
    """Arguments, result and mathematics of `bev.pillars.linear_max`, all float32; with `counts` [R] of the points of each row,
    one more channel: log(1 + count).
    """

    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        weight: Tensor,
        bias: Tensor,
        rows: Tensor,
        num_rows: int,
        counts: Tensor | None = None,
    ) -> Tensor:
        points, weight, bias, rows = points.contiguous(), weight.contiguous(), bias.contiguous(), rows.contiguous()
        count, features = points.shape
        channels = weight.shape[0]
        results = channels + (counts is not None)
        block = max(triton.next_power_of_2(results), _LEAST_PRODUCT)
        canvas = torch.zeros(num_rows, block, device=points.device, dtype=torch.float32)
        launch(
            _maximum, (triton.cdiv(count, FORWARD_POINTS),),
            points, weight, bias, rows, canvas, count, F=features, C=channels, BP=FORWARD_POINTS, BC=block,
            num_warps=FORWARD_WARPS,
        )  # fmt: skip
        if counts is not None:
            torch.log1p(counts, out=canvas[:, channels])
        ctx.save_for_backward(points, weight, bias, rows, canvas)
        return canvas[:, :results]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        points, weight, bias, rows, canvas = ctx.saved_tensors
        (count, features), (channels, block) = points.shape, (weight.shape[0], canvas.shape[1])
        width = max(triton.next_power_of_2(features), _LEAST_PRODUCT)
        programs = max(1, min(_PROGRAMS, triton.cdiv(count, BACKWARD_POINTS)))
        of_points, ties = torch.empty_like(points), torch.zeros_like(canvas)
        of_weight = torch.zeros(programs, width, block, device=points.device, dtype=torch.float32)
        of_bias = torch.zeros(programs, block, device=points.device, dtype=torch.float32)
        of = {"F": features, "C": channels, "G": grads[0].shape[1], "BP": BACKWARD_POINTS, "BC": block}
        of["num_warps"] = BACKWARD_WARPS
        given = (points, weight, bias, rows, canvas, grads[0].contiguous(), ties)
        blocks = triton.cdiv(count, BACKWARD_POINTS)
        launch(_count_ties, (blocks,), *given, count, **of)
        results = of_points, of_weight, of_bias
        launch(_share_out, (min(blocks, programs),), *given, *results, count, programs, BF=width, **of)
        return of_points, of_weight.sum(0)[:features, :channels].T, of_bias.sum(0)[:channels], None, None, None
