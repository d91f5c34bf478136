"""The sum over modalities of tokens times a number a cell, in one pass on a CPU.

Letters: B samples, C channels, M modalities, X and Y cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import devices

_PIECE = 4096  # cells; a modality's part of so many stays in a core's cache


def weighted_sum(tokens: Tensor, weight: Tensor) -> Tensor:
    """[M, B, X, Y, C], [M, B, X, Y] -> [B, X, Y, C] in the tokens' dtype.

    Equals `weighted_sum_reference`, whose product of the size of all tokens is written and read again, in both directions: on a
    CPU a modality at a time is added to what is there.
    """
    if devices.in_blocks(tokens.device):
        summed: Tensor = _WeightedSum.apply(tokens, weight)  # type: ignore[no-untyped-call]
        return summed
    return weighted_sum_reference(tokens, weight)


def weighted_sum_reference(tokens: Tensor, weight: Tensor) -> Tensor:
    """`weighted_sum` in plain torch. On CUDA autocast would make a float32 copy of all tokens to begin with."""
    with devices.no_autocast(tokens.device):
        return (weight[..., None].to(tokens.dtype) * tokens).sum(0)


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        factors = weight[..., None].to(tokens.dtype)
        summed = factors[0] * tokens[0]
        for factor, token in zip(factors[1:], tokens[1:], strict=True):
            summed.addcmul_(factor, token)
        return summed

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        tokens, weight = ctx.saved_tensors
        (grad,) = grads
        # By pieces, so that the gradient of the sum is read from memory once and not for each modality and input.
        cells = tokens.flatten(1, -2), weight.flatten(1)[..., None].to(tokens.dtype)
        of_tokens = torch.empty_like(cells[0]) if ctx.needs_input_grad[0] else None
        of_weight = torch.empty_like(cells[1][..., 0]) if ctx.needs_input_grad[1] else None
        start = 0
        for piece in grad.flatten(0, -2).split(_PIECE):
            part = slice(start, start := start + len(piece))
            if of_tokens is not None:
                torch.mul(cells[1][:, part], piece, out=of_tokens[:, part])
            if of_weight is not None:
                for dot, token in zip(of_weight, cells[0], strict=True):
                    dot[part] = (piece * token[part]).sum(-1)
        return (
            None if of_tokens is None else of_tokens.view(tokens.shape),
            None if of_weight is None else of_weight.view(weight.shape).to(weight.dtype),
        )
