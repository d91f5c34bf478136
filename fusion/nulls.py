"""Tokens of the modalities at every cell: what a sensor says, or what stands for its absence.

Letters: B samples, C channels, M modalities, X and Y cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .features import BEVFeatures
from .kernels.devices import autocasts, in_blocks, widened
from .kernels.means import mean_by_triton, means_by_triton
from .kernels.sums import weighted_sum
from .kernels.tokens import blended_by_triton, blended_on_cpu, blended_tokens, by_triton, sound_coverage
from .named import NamedModule, NamedModules, NamedParameters

Absent = Literal["null", "zeros", "mask"]
"""What stands for an absent modality: a learned embedding, zeros, or nothing (not attended to)."""


class ModalityTokens(NamedModule):
    """One token per modality and cell: coverage x features + (1 - coverage) x stand-in.

    The stand-in is a learned null embedding per modality (`absent="null"`), or zero (`"zeros"`, `"mask"`). Missing is not
    empty: a sensor that is there and sees nothing keeps its own features.

    Args:
        channels: channels of each modality's features by its name; each is projected to `out_channels`.
        out_channels: C.
        absent: what stands for an absent sensor.

    Raises:
        ValueError: no modality, channels below 1, an unknown `absent`; in `forward`, features that do not fit.
    """

    anchor: Tensor

    def __init__(self, channels: Mapping[str, int], out_channels: int, absent: Absent) -> None:
        super().__init__()
        if not channels:
            raise ValueError("a fuser needs at least one modality, got none")
        for name, count in (*channels.items(), ("out_channels", out_channels)):
            if count < 1:
                raise ValueError(f"{name}: expected at least one channel, got {count}")
        if absent not in get_args(Absent):
            raise ValueError(f"absent: expected {', '.join(get_args(Absent))}, got {absent!r}")
        self.modalities = tuple(channels)
        self.in_channels = dict(channels)
        self.out_channels = out_channels
        self.absent = absent
        self.project = NamedModules({
            name: nn.Identity() if count == out_channels else nn.Conv2d(count, out_channels, 1)
            for name, count in channels.items()
        })  # fmt: skip
        if absent == "null":
            self.null = NamedParameters(self.modalities, torch.randn(len(channels), out_channels) * 0.02)
        # Knows device and dtype of the module, which may have no parameter to ask.
        self.register_buffer("anchor", torch.empty(0), persistent=False)

    def forward(
        self, features: Mapping[str, BEVFeatures | None], grid_shape: tuple[int, int] | None = None, batch_size: int = 1
    ) -> tuple[Tensor, Tensor]:
        """-> tokens [M, B, X, Y, C] and coverage [M, B, X, Y] float32.

        Tokens are of the module's own dtype, whatever the features come in; under autocast half precision stays.
        `grid_shape` and `batch_size` are used only where every modality is None. ValueError where something does not fit.
        """
        check_features(features, self.in_channels)
        first = next((f for f in features.values() if f is not None), None)
        if first is not None:
            batch_size, grid_shape = first.features.shape[0], (first.features.shape[2], first.features.shape[3])
        elif grid_shape is None:
            raise ValueError("every modality is absent: give grid_shape=(X, Y) and batch_size")
        assert grid_shape is not None
        device = self.anchor.device
        if first is not None and first.features.device != device:
            raise ValueError(
                f"features are on {first.features.device}, the fuser on {device}: move one with .to({str(device)!r})"
            )
        sensed = [features.get(name) for name in self.modalities]
        coverages = [None if f is None else f.coverage for f in sensed]
        given = [self.anchor, *(f.features for f in sensed if f is not None)]
        kernel = by_triton(device, self.out_channels, given, coverages)
        if not kernel:
            coverages = [None if c is None else sound_coverage(c) for c in coverages]
        blended = blended_by_triton if kernel else blended_on_cpu if in_blocks(device) else blended_tokens
        reads_all = blended is blended_tokens
        grids = [
            None if f is None or coverage is None else self._projected(f.features, coverage, project, reads_all)
            for f, coverage, project in zip(sensed, coverages, self.project.values(), strict=True)
        ]
        dtype = next((grid.dtype for grid in grids if grid is not None), self.anchor.dtype)
        return blended(grids, coverages, self._stand_ins(device), (batch_size, *grid_shape), dtype)

    def _projected(self, features: Tensor, coverage: Tensor, project: nn.Module, reads_all: bool) -> Tensor:
        """[B, C, X, Y]; `reads_all`: what follows also reads where nothing is covered."""
        features = features.to(self._dtype_of(features))
        if not reads_all and isinstance(project, nn.Identity):
            return features
        # Not by coverage alone: what a blind sensor's encoder says must not pass, not even as 0 x NaN, and neither into
        # the gradient of the projection.
        projected: Tensor = project(torch.where(coverage[:, None] > 0, features, 0.0))
        return projected

    def _dtype_of(self, features: Tensor) -> torch.dtype:
        """In which dtype features go on: a whole encoder's half precision is not widened where autocast would narrow it again."""
        keeps = self.anchor.dtype == torch.float32 and features.dtype in (torch.float16, torch.bfloat16)
        return features.dtype if keeps and autocasts(features.device) else self.anchor.dtype

    def _stand_ins(self, device: torch.device | None) -> list[Tensor]:
        """Of each modality [C]."""
        if self.absent == "null":
            return [widened(null) for null in self.null.values()]
        return [torch.zeros(self.out_channels, device=device)] * len(self.modalities)


def present_mean(tokens: Tensor, coverage: Tensor, plus: Tensor | None = None) -> Tensor:
    """[M, B, X, Y, C], [M, B, X, Y] -> [B, X, Y, C], mean of the modalities that cover the cell; 0 where none does.

    `plus` [B, X, Y, C] or [X, Y, C] is added.
    """
    if means_by_triton(tokens):
        return mean_by_triton(tokens, coverage, None, plus)
    present = (coverage > 0).to(tokens.dtype)
    mean = weighted_sum(tokens, present) / present.sum(0).clamp(min=1)[..., None].to(tokens.dtype)
    return mean if plus is None else mean + plus


def trusted_mean(tokens: Tensor, coverage: Tensor, share: Tensor, plus: Tensor | None = None) -> Tensor:
    """[M, B, X, Y, C], [M, B, X, Y], [B, M, X, Y] -> [B, X, Y, C]: `present_mean`, each modality weighing its `share`.

    So a sensor to which a cell does not listen does not dilute what the others say there. What stands for an absent sensor
    has a share of the attention and none of the mean. `plus` [B, X, Y, C] or [X, Y, C] is added.
    """
    if means_by_triton(tokens):
        return mean_by_triton(tokens, coverage, share, plus)
    weight = torch.where(coverage > 0, share.transpose(0, 1).clamp(min=1e-6), 0.0)
    weight = weight / weight.sum(0).clamp(min=1e-6)
    mean = weighted_sum(tokens, weight)
    return mean if plus is None else mean + plus


def check_features(features: Mapping[str, BEVFeatures | None], channels: Mapping[str, int]) -> None:
    """ValueError where a modality is not among those of `channels`, or does not fit them or the other modalities.

    Values of coverage are looked at on a CPU alone, for a GPU would have to be waited for, and while no graph is made.
    """
    unknown = sorted(set(features) - set(channels))
    if unknown:
        raise ValueError(
            f"unknown modality {unknown[0]!r}; this fuser was built for {', '.join(channels)}: "
            "name one of these, or build the fuser with it"
        )
    first: tuple[str, Tensor] | None = None
    for name in channels:
        sensed = features.get(name)
        if sensed is None:
            continue
        if not all(isinstance(getattr(sensed, part, None), Tensor) for part in ("features", "coverage")):
            got = "a tensor" if isinstance(sensed, Tensor) else type(sensed).__name__
            raise ValueError(
                f"{name}: expected BEVFeatures(features, coverage) of two tensors, got {got}: say where the sensor sees"
            )
        shape = tuple(sensed.features.shape)
        if len(shape) != 4 or shape[1] != channels[name]:
            raise ValueError(
                f"{name}: expected features [B, {channels[name]}, X, Y], got {list(shape)}: build the fuser with "
                "the channels that the encoder gives"
            )
        if tuple(sensed.coverage.shape) != (shape[0], shape[2], shape[3]):
            raise ValueError(
                f"{name}: expected coverage {[shape[0], shape[2], shape[3]]} (B, X, Y as in its features), "
                f"got {list(sensed.coverage.shape)}"
            )
        if not sensed.features.is_floating_point():
            raise ValueError(
                f"{name}: expected features of a floating dtype, got {sensed.features.dtype}: use .float()"
            )
        if sensed.coverage.is_complex():
            raise ValueError(f"{name}: expected coverage of real numbers, got {sensed.coverage.dtype}: use .abs()")
        if sensed.coverage.device != sensed.features.device:
            raise ValueError(
                f"{name}: expected coverage on {sensed.features.device} as its features, got it on "
                f"{sensed.coverage.device}: move them to one device"
            )
        if first is None:
            first = (name, sensed.features)
        elif (shape[0], *shape[2:]) != (first[1].shape[0], *first[1].shape[2:]):
            raise ValueError(
                f"{name}: features {list(shape)} and {first[0]}: features {list(first[1].shape)} differ in batch or "
                "grid; every modality must be projected into the same grid"
            )
        elif sensed.features.device != first[1].device:
            raise ValueError(
                f"{name} is on {sensed.features.device}, {first[0]} on {first[1].device}: move them to one device"
            )
        _check_values(name, sensed.coverage)


def _check_values(name: str, coverage: Tensor) -> None:
    if torch.compiler.is_compiling() or coverage.device.type != "cpu" or not coverage.numel():
        return
    if type(coverage) not in (Tensor, nn.Parameter):  # torch's own stand-ins for tensors have no values
        return
    least, most = (float(bound) for bound in coverage.detach().float().aminmax())
    if least >= 0 and most <= 1:
        return
    if math.isnan(least):
        got, action = (
            f"NaN in {int(coverage.isnan().sum())} of {coverage.numel()} cells",
            "give 0 where the sensor is blind",
        )
    else:
        got = f"values from {least:g} to {most:g}"
        action = (
            "divide a mask of 0 to 255 by 255" if least >= 0 else "give 0 where the sensor is blind, 1 where it sees"
        )
    raise ValueError(f"{name}: expected coverage in 0..1, got {got}: {action}")
