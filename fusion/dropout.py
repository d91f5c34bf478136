"""Modality dropout: which sensors a training sample goes without.

Letters: B samples, M modalities, N cameras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import overload

import torch
from torch import Tensor

from .features import BEVFeatures

_MOST = 16  # modalities whose 2^M parts are listed


@overload
def drop_modalities(
    batch_size: int,
    probabilities: Mapping[str, float],
    generator: torch.Generator,
    *,
    available: Tensor | None = None,
) -> dict[str, Tensor]: ...


@overload
def drop_modalities(
    batch_size: int,
    probabilities: Sequence[float],
    generator: torch.Generator,
    *,
    available: Tensor | None = None,
) -> Tensor: ...


def drop_modalities(
    batch_size: int,
    probabilities: Mapping[str, float] | Sequence[float],
    generator: torch.Generator,
    *,
    available: Tensor | None = None,
) -> Tensor | dict[str, Tensor]:
    """[B, M] bool of modalities that stay: each is dropped by its own probability, never all of a sample's.

    Whole modalities are dropped as single neurons are in dropout (ModDrop: Neverova et al., TPAMI 2016).

    Args:
        batch_size: B.
        probabilities: M values in 0..1; or by name, and then who stays comes by name, too, each [B].
        generator: a CPU generator; the draw depends on nothing else.
        available: [B, M] bool on the CPU, modalities that the sample has at all; None for all. Where the draw leaves none of
            these, one of them, drawn evenly, stays.

    Raises:
        ValueError: no probability, one outside 0..1, or not one for each modality of `available`.
    """
    if isinstance(probabilities, Mapping):
        kept = drop_modalities(batch_size, list(probabilities.values()), generator, available=available)
        return dict(zip(probabilities, kept.unbind(1), strict=True))
    count = len(probabilities)
    if batch_size < 1 or not count:
        raise ValueError(
            f"modality dropout: expected a batch of at least 1 and a probability for each modality, got {batch_size} and {count}"
        )
    if any(not 0.0 <= p <= 1.0 for p in probabilities):
        raise ValueError(f"modality dropout: probabilities must lie in 0..1, got {list(probabilities)}")
    draw = torch.rand(batch_size, count, generator=generator)
    rescue = torch.rand(batch_size, count, generator=generator)
    kept = draw >= torch.tensor(list(probabilities))
    if available is None:
        available = torch.ones_like(kept)
    _check_mask("available", available, "B, M")
    if available.shape != kept.shape:
        raise ValueError(
            f"modality dropout: expected available {list(kept.shape)} (B, M), got {list(available.shape)}: give {batch_size} "
            f"samples and {count} modalities, or as many probabilities as there are modalities"
        )
    kept = kept & available
    chosen = torch.where(available, rescue, -1.0).argmax(dim=1, keepdim=True)
    one = torch.zeros_like(kept).scatter(1, chosen, True) & available
    return torch.where(kept.any(dim=1, keepdim=True), kept, one)


def draw_subsets(available: Tensor, generator: torch.Generator) -> Tensor:
    """[B, M] bool: of each sample's modalities a part, every part but none and all drawn alike.

    A sample that has one modality keeps it.

    Args:
        available: [B, M] bool on the CPU, modalities that the sample has; M at most 16, for all 2^M parts are weighed.
        generator: a CPU generator; the draw depends on nothing else.

    Raises:
        ValueError: more modalities than that, or a mask of another shape, dtype or device.
    """
    _check_mask("available", available, "B, M")
    count = available.shape[1]
    if count > _MOST:
        raise ValueError(
            f"expected at most {_MOST} modalities, whose {2**_MOST} parts can be listed, got {count}: drop them one by one with "
            "drop_modalities"
        )
    codes = torch.arange(1, 2**count)
    subsets = (codes[:, None] >> torch.arange(count)) & 1 == 1  # [2^M - 1, M]
    score = torch.rand(len(available), len(codes), generator=generator)
    # Parts of what the sample has: nothing that it lacks, and not all of it.
    lacking = (subsets[None] & ~available[:, None]).any(-1)
    whole = (subsets[None] == available[:, None]).all(-1)
    best = score.masked_fill(lacking | whole, -1.0).argmax(1)
    drawn = subsets[best] & available
    return torch.where(available.sum(1, keepdim=True) > 1, drawn, available)


def hide(
    features: Mapping[str, BEVFeatures | None], kept: Tensor | Mapping[str, Tensor]
) -> dict[str, BEVFeatures | None]:
    """The same features [B, C, X, Y], with coverage 0 where a sample goes without the modality: to a fuser that is its absence.

    Args:
        features: by modality; one that is None stays so.
        kept: who stays: [B, M] bool in the order of `features`, or [B] bool by name, as `drop_modalities` gives them.

    Raises:
        ValueError: not of as many modalities as `features`, or of other names.
    """
    if not isinstance(kept, Mapping):
        if kept.ndim != 2 or kept.shape[1] != len(features):
            raise ValueError(
                f"hide: expected kept [B, {len(features)}], a column for each of features, got {list(kept.shape)}"
            )
        kept = dict(zip(features, kept.unbind(1), strict=True))
    if kept.keys() != features.keys():
        raise ValueError(f"hide: expected kept of {', '.join(features)}, got {', '.join(kept)}")
    return {name: None if f is None else _hidden(f, kept[name]) for name, f in features.items()}


def _hidden(features: BEVFeatures, kept: Tensor) -> BEVFeatures:
    coverage = features.coverage
    return replace(features, coverage=torch.where(kept[:, None, None], coverage, torch.zeros_like(coverage)))


def drop_members(present: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """[B, N] bool of single sensors (cameras, say) that stay, out of `present`; never are all of a sample's present ones dropped.

    Args:
        present: [B, N] bool on the CPU, sensors that the sample has.
        probability: of each to be dropped, in 0..1.
        generator: a CPU generator; the draw depends on nothing else.

    Raises:
        ValueError: a probability outside 0..1, or a mask of another shape, dtype or device.
    """
    _check_mask("present", present, "B, N")
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"sensor dropout: probability must lie in 0..1, got {probability}")
    draw = torch.rand(present.shape, generator=generator)
    kept = present & (draw >= probability)
    # The one with the highest draw is the last that a rising probability would take.
    chosen = torch.where(present, draw, -1.0).argmax(dim=1, keepdim=True)
    one = torch.zeros_like(present).scatter(1, chosen, True) & present
    return torch.where(kept.any(dim=1, keepdim=True), kept, one)


def _check_mask(name: str, mask: object, axes: str) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 2 or not mask.shape[1]:
        got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"sensor dropout: expected {name} bool [{axes}], at least one of each sample, got {got}")
    if mask.device.type != "cpu":
        raise ValueError(
            f"sensor dropout: expected {name} on the CPU, where dropout is drawn, got it on {mask.device}: use .cpu()"
        )
