"""Sines and cosines of a grid's axes on a GPU, in Triton: one launch for what torch takes two dozen for.

Letters: X and Y cells, F frequencies.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 16  # cells of a program


def axis_embeddings_by_triton(grid_shape: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """[X + Y, channels / 2] float32: `axis_embedding` of X and, behind it, of Y cells."""
    embeddings = torch.empty(sum(grid_shape), channels // 2, device=device)
    frequencies = channels // 4
    with torch.cuda.device_of(embeddings):
        _axes[(triton.cdiv(sum(grid_shape), _ROWS),)](
            embeddings,
            *grid_shape,
            5 / max(frequencies - 1, 1),
            F=frequencies,
            BF=triton.next_power_of_2(frequencies),
            BR=_ROWS,
        )
    return embeddings


@triton.jit(do_not_specialize=["X", "Y"])
def _axes(embeddings, X, Y, step, F: tl.constexpr, BF: tl.constexpr, BR: tl.constexpr):
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    f = tl.arange(0, BF)
    cells = tl.where(row < X, X, Y).to(tl.float32)
    place = (tl.where(row < X, row, row - X).to(tl.float32) + 0.5) / cells * 2.0 - 1.0
    turns = place[:, None] * tl.exp2(f.to(tl.float32) * step - 2.0)[None, :]  # octaves
    # Within half a turn, where a GPU's fast sine is as good as any.
    angle = (turns - tl.floor(turns + 0.5)) * 6.283185307179586
    at = row[:, None] * (2 * F) + f[None, :]
    there = (row < X + Y)[:, None] & (f < F)[None, :]
    tl.store(embeddings + at, tl.sin(angle), mask=there)
    tl.store(embeddings + at + F, tl.cos(angle), mask=there)
