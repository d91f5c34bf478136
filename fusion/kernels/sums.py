"""The sum over modalities of tokens times a number a cell, in one pass on a CPU.

Letters: B samples, C channels, M modalities, X and Y cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import devices


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
        of_tokens = of_weight = None
        if ctx.needs_input_grad[0]:
            of_tokens = weight[..., None].to(tokens.dtype) * grad
        if ctx.needs_input_grad[1]:
            of_weight = torch.stack([(grad * token).sum(-1) for token in tokens]).to(weight.dtype)
        return of_tokens, of_weight
