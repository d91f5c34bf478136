"""LayerNorm without passes that only change the dtype, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import devices


class SameDtypeNorm(nn.LayerNorm):
    """LayerNorm in the dtype of what goes in, summed in float32. Autocast would widen every token, and narrow it again."""

    def forward(self, x: Tensor) -> Tensor:
        return same_dtype_norm(self, x)


def same_dtype_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """What `SameDtypeNorm` does, with the parameters of any LayerNorm."""
    if _by_triton(x):
        return _triton_norm(norm, x, None)
    weight: Tensor
    bias: Tensor
    weight, bias = norm.weight, norm.bias
    if devices.autocasts(x.device) and not devices.in_blocks(x.device):
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)  # CUDA wants one dtype, and sums in float32 all the same
    with devices.no_autocast(x.device):
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def kept_relu_norm(norm: nn.LayerNorm, x: Tensor, kept: Tensor) -> Tensor:
    """ReLU of the norm of x [.., C], 0 in rows that are not `kept` [..] bool."""
    if _by_triton(x):
        return _triton_norm(norm, x, kept)
    return F.relu(same_dtype_norm(norm, x)).masked_fill(~kept[..., None], 0.0)


def add_norm(norm: nn.LayerNorm, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
    """A residual stream x [.., C] plus `delta` [.., C] (None: nothing), and the norm of that, for layers that autocast narrows.

    On a GPU one kernel, where torch takes three passes over the stream; the norm then has autocast's dtype.
    """
    if _stream_by_triton(x):
        from .triton_norm import TritonAddNorm, TritonLayerNorm

        dtype = torch.get_autocast_dtype(x.device.type) if devices.autocasts(x.device) else x.dtype
        if delta is None:
            return x, TritonLayerNorm.apply(x, norm.weight, norm.bias, norm.eps, None, dtype)  # type: ignore[no-untyped-call]
        total, normed = TritonAddNorm.apply(x, delta, norm.weight, norm.bias, norm.eps, dtype)  # type: ignore[no-untyped-call]
        return total, normed
    total = x if delta is None else x + delta
    return total, norm(total)


def _stream_by_triton(x: Tensor) -> bool:
    if not devices.in_triton(x.device):
        return False
    from .triton_norm import fits_stream

    return fits_stream(x)


def _by_triton(x: Tensor) -> bool:
    if not devices.in_triton(x.device):
        return False
    from .triton_norm import fits  # Triton is there on machines with a GPU alone

    return fits(x)


def _triton_norm(norm: nn.LayerNorm, x: Tensor, kept: Tensor | None) -> Tensor:
    from .triton_norm import TritonLayerNorm

    normed: Tensor = TritonLayerNorm.apply(x, norm.weight, norm.bias, norm.eps, kept)  # type: ignore[no-untyped-call]
    return normed
