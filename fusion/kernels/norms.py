"""LayerNorm whose result has the dtype of what goes in, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import devices


def same_dtype_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """`norm` with its result in the dtype of `x`, summed in float32. Autocast would widen every token, and narrow it again."""
    if devices.in_blocks(x.device):
        with torch.autocast("cpu", enabled=False):
            return norm(x)
    if _by_triton(x):
        return _triton_norm(norm, x, None)
    if not devices.autocasts(x.device):
        return norm(x)
    with devices.no_autocast(x.device):  # CUDA wants weights in the dtype of `x`; it sums in float32 all the same
        return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def kept_relu_norm(norm: nn.LayerNorm, x: Tensor, kept: Tensor) -> Tensor:
    """ReLU of the norm of x [.., C], 0 in rows that are not `kept` [..] bool."""
    if _by_triton(x):
        return _triton_norm(norm, x, kept)
    return F.relu(same_dtype_norm(norm, x)).masked_fill(~kept[..., None], 0.0)


def _by_triton(x: Tensor) -> bool:
    if not devices.in_triton(x.device):
        return False
    from .triton_norm import fits  # Triton is there on machines with a GPU alone

    return fits(x)


def _triton_norm(norm: nn.LayerNorm, x: Tensor, kept: Tensor | None) -> Tensor:
    from .triton_norm import TritonLayerNorm

    normed: Tensor = TritonLayerNorm.apply(x, norm.weight, norm.bias, norm.eps, kept)  # type: ignore[no-untyped-call]
    return normed
