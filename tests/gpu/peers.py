"""Methods of others, written in Triton, to be timed beside ours on the same device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bev.lift.table import LiftTable


@triton.jit
def _pool_interval(context, depth, entry, offsets, canvas, D, C: tl.constexpr, BC: tl.constexpr):
    cell = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BC)
    total = tl.zeros((BC,), tl.float32)
    for e in range(tl.load(offsets + cell), tl.load(offsets + cell + 1)):
        at = tl.load(entry + e)
        total += tl.load(context + (at // D) * C + c, mask=c < C, other=0.0) * tl.load(depth + at)
    tl.store(canvas + cell * C + c, total, mask=c < C)


def bevpool_v2(context: Tensor, depth: Tensor, table: LiftTable) -> Tensor:
    """The lift as in BEVPoolv2 (Huang and Huang, arXiv 2211.17111): a thread for each cell and channel, which goes through the
    points of the cell one after the other. Float32 [1, N, h, w, C], [1, N, h, w, D] -> [cells, C]."""
    channels, cells = context.shape[-1], table.offsets.numel() - 1
    canvas = torch.empty(cells, channels, device=context.device)
    block = triton.next_power_of_2(channels)
    _pool_interval[(cells,)](
        context, depth, table.entry, table.offsets, canvas, depth.shape[-1], C=channels, BC=block, num_warps=block // 32
    )
    return canvas
