"""Greedy suppression in one launch, where a loop in torch launches two kernels for each box.

Letters: B samples, T boxes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch


@triton.jit
def _suppress(close, kept, T, BT: tl.constexpr):
    """One sample: box after box, best first, takes away those after it that it is close to, if it stands itself."""
    sample = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BT)
    standing = (t < T).to(tl.int32)
    for i in tl.range(0, T, loop_unroll_factor=4):  # so that rows are loaded ahead
        row = tl.load(close + (sample * T + i) * T + t, mask=(t < T) & (t > i), other=0)
        stands = tl.sum(tl.where(t == i, standing, 0), 0)
        standing = tl.where((row != 0) & (stands != 0), 0, standing)
    tl.store(kept + sample * T + t, standing, mask=t < T)


def suppress(close: Tensor) -> Tensor:
    """As `bev.detection.suppression.greedy_suppression`: [B, T, T] bool -> [B, T] bool."""
    samples, boxes = close.shape[:2]
    kept = torch.empty(samples, boxes, device=close.device, dtype=torch.int32)
    if kept.numel():
        given = close.transpose(1, 2).contiguous().view(torch.uint8)  # a row: those that a box may take away
        launch(_suppress, (samples,), given, kept, boxes, BT=triton.next_power_of_2(boxes), num_warps=1)
    return kept.bool()
