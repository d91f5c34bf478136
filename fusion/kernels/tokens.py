"""Grids of the modalities and what stands for their absence, blended to tokens.

Letters: B samples, C channels, M modalities, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import devices


def blended_tokens(
    grids: Sequence[Tensor | None],
    coverages: Sequence[Tensor | None],
    stand_ins: Sequence[Tensor],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Of each modality coverage x grid + (1 - coverage) x stand-in.

    Args:
        grids: M of [B, C, X, Y], 0 where nothing is covered; None where all of a modality is absent.
        coverages: M of [B, X, Y], as of `sound_coverage`; None likewise.
        stand_ins: M of [C].
        shape: B, X, Y.
        dtype: of the tokens.

    Returns:
        Tokens [M, B, X, Y, C] and coverage [M, B, X, Y] float32.
    """
    tokens, whole = [], []
    for grid, coverage, stand_in in zip(grids, coverages, stand_ins, strict=True):
        if grid is None or coverage is None:
            tokens.append(stand_in.expand(*shape, -1))
            whole.append(torch.zeros(shape, device=stand_in.device))
            continue
        grid, share = grid.permute(0, 2, 3, 1), coverage[..., None].to(grid.dtype)
        tokens.append(share * grid + (1 - share) * stand_in.to(grid.dtype))
        whole.append(coverage)
    return torch.stack([t.to(dtype) for t in tokens]), torch.stack(whole)


def blended_by_triton(
    grids: Sequence[Tensor | None],
    coverages: Sequence[Tensor | None],
    stand_ins: Sequence[Tensor],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """`blended_tokens` by a GPU's own kernel, for what `by_triton` says yes to.

    It makes coverage sound itself, and reads nothing of a grid where that is 0.
    """
    from .triton_tokens import TritonTokens

    tokens: Tensor
    tokens, coverage = TritonTokens.apply(shape, dtype, len(grids), *grids, *coverages, *stand_ins)  # type: ignore[no-untyped-call]
    return tokens, coverage


def blended_on_cpu(
    grids: Sequence[Tensor | None],
    coverages: Sequence[Tensor | None],
    stand_ins: Sequence[Tensor],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """`blended_tokens` in one pass over memory in each direction, where that writes and reads each product and then all again.

    Where coverage is 0, what a grid holds there, NaN too, enters neither tokens nor gradients.
    """
    nowhere = torch.zeros(shape, device=stand_ins[0].device)
    coverage = torch.stack([nowhere if c is None else c for c in coverages])
    features = (None if grid is None else grid.permute(0, 2, 3, 1).to(dtype) for grid in grids)
    tokens: Tensor = _OnePass.apply(coverage, torch.stack(list(stand_ins)).to(dtype), *features)  # type: ignore[no-untyped-call]
    return tokens, coverage


class _OnePass(torch.autograd.Function):
    """Coverage [M, B, X, Y], stand-ins [M, C], M of features [B, X, Y, C] or None -> tokens [M, B, X, Y, C]."""

    @staticmethod
    def forward(ctx: Any, coverage: Tensor, stand_in: Tensor, *features: Tensor | None) -> Tensor:
        ctx.save_for_backward(coverage, stand_in, *features)
        tokens = stand_in.new_empty(*coverage.shape, stand_in.shape[1])
        for token, sensed, covered, instead in zip(tokens, features, coverage, stand_in, strict=True):
            if sensed is None:
                token.copy_(instead)
                continue
            blind = covered <= 0
            if blind.any():
                sensed = sensed.masked_fill(blind[..., None], 0.0)
            torch.lerp(instead, sensed, covered[..., None].to(instead.dtype), out=token)
        return tokens

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        coverage, stand_in, *features = ctx.saved_tensors
        (grad,) = grads
        shares = coverage.to(grad.dtype)
        of_coverage = torch.zeros_like(coverage) if ctx.needs_input_grad[0] else None
        of_stand_in = torch.zeros_like(stand_in) if ctx.needs_input_grad[1] else None
        of_features: list[Tensor | None] = []
        for i, sensed in enumerate(features):
            if of_stand_in is not None:
                of_stand_in[i] = (1 - shares[i]).flatten() @ grad[i].flatten(0, -2)
            if of_coverage is not None and sensed is not None:
                seen = torch.where(coverage[i, ..., None] > 0, sensed, 0.0)
                of_coverage[i] = (grad[i] * (seen - stand_in[i])).sum(-1)
            of_features.append(shares[i][..., None] * grad[i] if ctx.needs_input_grad[2 + i] else None)
        return of_coverage, of_stand_in, *of_features


def by_triton(device: torch.device, channels: int, given: Sequence[Tensor], coverages: Sequence[Tensor | None]) -> bool:
    """Whether `blended_by_triton` can make tokens of so many channels, of what is `given`. It knows no gradient of coverage."""
    if not devices.in_triton(device) or any(c is not None and c.requires_grad for c in coverages):
        return False
    from .triton_tokens import fits  # not at the top: only machines with a GPU need have Triton

    return fits(channels, (tensor.dtype for tensor in given))


def sound_coverage(coverage: Tensor) -> Tensor:
    """[B, X, Y] float32 in 0..1 whatever is given: NaN is 0, what lies outside goes to the nearer bound.

    So the promises of `FusedBEV` hold also where `check_features` does not look at values.
    """
    return torch.where(coverage > 0, coverage.float(), 0.0).clamp(max=1.0)
