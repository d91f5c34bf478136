"""Means of tokens by a GPU's own kernel. Their plain twins are `present_mean` and `trusted_mean` themselves.

Letters: B samples, C channels, M modalities, X and Y cells.
"""

from __future__ import annotations

from torch import Tensor

from . import devices


def means_by_triton(tokens: Tensor) -> bool:
    """Whether `mean_by_triton` can take tokens [M, B, X, Y, C], here and now."""
    if not devices.in_triton(tokens.device):
        return False
    from .triton_means import fits  # not at the top: only machines with a GPU need have Triton

    return fits(tokens)


def mean_by_triton(tokens: Tensor, coverage: Tensor, share: Tensor | None, plus: Tensor | None) -> Tensor:
    """Tokens [M, B, X, Y, C], coverage [M, B, X, Y], share [B, M, X, Y], plus [B, X, Y, C] or [X, Y, C] -> [B, X, Y, C].

    The mean of what is covered, each modality weighing its share, or all alike where there is none, with `plus` added: in the
    tokens' dtype and summed in float32. Of coverage there is no gradient.
    """
    from .triton_means import TritonMean

    mean: Tensor = TritonMean.apply(tokens, coverage, share, plus)  # type: ignore[no-untyped-call]
    return mean
