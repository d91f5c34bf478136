"""Greedy suppression in one launch, where a loop in torch launches two kernels for each box.

Letters: B samples, T boxes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch

_ROWS = 16  # boxes that are asked at a time


@triton.jit
def _suppress(close, kept, T, BT: tl.constexpr, ROWS: tl.constexpr):
    """One sample, in rounds: who is close to none of those before it that the last round kept, stays.

    After round n at least the best n are settled, and a round that changes nothing is the last; mostly it is the third or fourth.
    """
    sample = tl.program_id(0).to(tl.int64)
    other = tl.arange(0, BT)
    standing = (other < T).to(tl.int32)
    changed = 1
    while changed != 0:
        for first in range(0, T, ROWS):
            t = first + tl.arange(0, ROWS)
            better = (t < T)[:, None] & (other[None, :] < t[:, None])
            row = tl.load(close + (sample * T + t[:, None]) * T + other[None, :], mask=better, other=0)
            beaten = tl.max((row != 0).to(tl.int32) * standing[None, :], 1)
            tl.store(kept + sample * T + t, 1 - beaten, mask=t < T)
        tl.debug_barrier()  # what one warp has stored, all read
        left = tl.load(kept + sample * T + other, mask=other < T, other=0)
        tl.debug_barrier()
        changed = tl.max((left != standing).to(tl.int32), 0)
        standing = left


def suppress(close: Tensor) -> Tensor:
    """As `bev.detection.suppression.greedy_suppression`: [B, T, T] bool -> [B, T] bool."""
    samples, boxes = close.shape[:2]
    kept = torch.empty(samples, boxes, device=close.device, dtype=torch.int32)
    if kept.numel():
        given = close.contiguous().view(torch.uint8)
        launch(_suppress, (samples,), given, kept, boxes, BT=triton.next_power_of_2(boxes), ROWS=_ROWS, num_warps=8)
    return kept.bool()
