"""Tokens of the modalities on a GPU, in Triton: one kernel for each takes its grid to its place among all tokens.

Letters: B samples, C channels, M modalities, X and Y cells, N = B * X * Y rows, BR rows and BC >= C channels of a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_NUMBERS = 2048  # of a block
_PROGRAMS = 1024  # that each sum the gradient of a stand-in over their share of the rows
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(channels: int, dtypes: Iterable[torch.dtype]) -> bool:
    """Whether `TritonTokens` can make tokens of so many channels of grids of these dtypes."""
    return channels <= 1024 and all(dtype in _DTYPES for dtype in dtypes)


@triton.jit
def _at(row, cells, Y, of_sample, of_x, of_y):
    """[BR] offsets of cells in a grid of any strides."""
    sample = row // cells
    within = row - sample * cells
    x = within // Y
    return sample.to(tl.int64) * of_sample + x.to(tl.int64) * of_x + (within - x * Y).to(tl.int64) * of_y


@triton.jit(do_not_specialize=["N", "cells", "Y"])
def _blend(
    grid, coverage, stand_in, tokens, sound, N, cells, Y, of_sample, of_channel, of_x, of_y,
    C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, SENSED: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, BC)
    used = (c < C)[None, :]
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    there = row < N
    share = tl.zeros((BR,), tl.float32)
    value = tl.zeros((BR, BC), tl.float32)
    if SENSED:
        given = tl.load(coverage + row, mask=there, other=0.0)
        share = tl.minimum(tl.where(given > 0, given, 0.0), 1.0)
        at = _at(row, cells, Y, of_sample, of_x, of_y)[:, None] + c[None, :] * of_channel
        value = tl.load(grid + at, mask=(share > 0)[:, None] & used, other=0.0).to(tl.float32)
    null = tl.load(stand_in + c, mask=c < C, other=0.0).to(tl.float32)
    result = share[:, None] * value + (1.0 - share)[:, None] * null[None, :]
    tl.store(tokens + row.to(tl.int64)[:, None] * C + c[None, :], result, mask=there[:, None] & used)
    tl.store(sound + row, share, mask=there)


@triton.jit(do_not_specialize=["N", "cells", "Y", "programs"])
def _backward(
    grad, sound, of_grid, of_stand_in, N, cells, Y, of_sample, of_channel, of_x, of_y, programs,
    C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, OF_GRID: tl.constexpr, OF_STAND_IN: tl.constexpr,
):  # fmt: skip
    """The gradient of the grid, exactly 0 where nothing is covered, and each program's part [BC] of that of the stand-in."""
    c = tl.arange(0, BC)
    used = (c < C)[None, :]
    to_stand_in = tl.zeros((BR, BC), tl.float32)
    for start in range(tl.program_id(0) * BR, N, programs * BR):
        row = start + tl.arange(0, BR)
        there = row < N
        inside = there[:, None] & used
        share = tl.load(sound + row, mask=there, other=0.0)[:, None]
        upward = tl.load(grad + row.to(tl.int64)[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
        if OF_GRID:
            at = _at(row, cells, Y, of_sample, of_x, of_y)[:, None] + c[None, :] * of_channel
            tl.store(of_grid + at, tl.where(share > 0, share * upward, 0.0), mask=inside)
        if OF_STAND_IN:
            to_stand_in += (1.0 - share) * upward
    if OF_STAND_IN:
        tl.store(of_stand_in + tl.program_id(0) * BC + c, tl.sum(to_stand_in, 0))


class TritonTokens(torch.autograd.Function):
    """`blended_tokens` of sizes and dtypes that `fits` says yes to; grids may hold anything where nothing is covered.

    apply(shape [B, X, Y], dtype, count M, M grids [B, C, X, Y] or None, M coverages [B, X, Y] or None, M stand-ins [C]). Grids of
    any strides; nothing of the size of a grid is kept for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, shape: tuple[int, int, int], dtype: torch.dtype, count: int, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        grids, coverages, stand_ins = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        first = stand_ins[0]
        assert first is not None
        channels, (samples, x_cells, y_cells) = len(first), shape
        tokens = torch.empty(count, *shape, channels, dtype=dtype, device=first.device)
        sound = torch.empty(count, *shape, dtype=torch.float32, device=first.device)
        block = triton.next_power_of_2(channels)
        ctx.sizes = {"N": samples * x_cells * y_cells, "cells": x_cells * y_cells, "Y": y_cells}
        ctx.named = {"C": channels, "BC": block, "BR": max(_NUMBERS // block, 1)}
        if ctx.sizes["N"]:
            programs = triton.cdiv(ctx.sizes["N"], ctx.named["BR"])
            with torch.cuda.device_of(first):
                for m, (grid, coverage, stand_in) in enumerate(zip(grids, coverages, stand_ins, strict=True)):
                    _blend[(programs,)](
                        first if grid is None else grid,
                        sound if coverage is None else coverage.float().contiguous(),
                        stand_in,
                        tokens[m],
                        sound[m],
                        **ctx.sizes,
                        **_strides(grid),
                        **ctx.named,
                        SENSED=grid is not None,
                    )
        # Of each grid what its gradient is to be like, without the grid.
        ctx.like = [None if grid is None else (grid.shape, grid.dtype, _memory_format(grid)) for grid in grids]
        needed = ctx.needs_input_grad[-count:]
        ctx.of_stand_ins = [(t.dtype, n) for t, n in zip(stand_ins, needed, strict=True) if t is not None]
        ctx.save_for_backward(sound)
        ctx.mark_non_differentiable(sound)
        ctx.set_materialize_grads(False)
        return tokens, sound

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        (sound,) = ctx.saved_tensors
        count = len(sound)
        if grad is None:
            return (None,) * (3 + 3 * count)
        grad = grad.contiguous()
        programs = max(1, min(_PROGRAMS, triton.cdiv(ctx.sizes["N"], ctx.named["BR"])))
        parts = torch.zeros(count, programs, ctx.named["BC"], dtype=torch.float32, device=grad.device)
        of_grids: list[Tensor | None] = []
        with torch.cuda.device_of(grad):
            for m, (like, (_, of_stand_in)) in enumerate(zip(ctx.like, ctx.of_stand_ins, strict=True)):
                of_grid = None
                if like is not None and ctx.needs_input_grad[3 + m]:
                    shape, dtype, memory = like
                    of_grid = torch.empty(shape, dtype=dtype, device=grad.device, memory_format=memory)
                of_grids.append(of_grid)
                if ctx.sizes["N"] and (of_grid is not None or of_stand_in):
                    _backward[(programs,)](
                        grad[m],
                        sound[m],
                        grad if of_grid is None else of_grid,
                        parts[m],
                        **ctx.sizes,
                        **_strides(of_grid),
                        programs=programs,
                        **ctx.named,
                        OF_GRID=of_grid is not None,
                        OF_STAND_IN=of_stand_in,
                    )
        sums = parts.sum(1)[:, : ctx.named["C"]]
        of_stand_ins = [
            total.to(dtype) if needed else None for total, (dtype, needed) in zip(sums, ctx.of_stand_ins, strict=True)
        ]
        return None, None, None, *of_grids, *[None] * count, *of_stand_ins


def _strides(grid: Tensor | None) -> dict[str, int]:
    strides = (0, 1, 0, 0) if grid is None else grid.stride()
    return dict(zip(("of_sample", "of_channel", "of_x", "of_y"), strides, strict=True))


def _memory_format(grid: Tensor) -> torch.memory_format:
    last = grid.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
