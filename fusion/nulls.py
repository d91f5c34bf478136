"""Tokens of the modalities at every cell: what a sensor says, or what stands for its absence.

Letters: B samples, C channels, M modalities, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .features import BEVFeatures
from .named import NamedModule, NamedModules, NamedParameters

Absent = Literal["null", "null_cell", "zeros", "mask"]
"""What stands for an absent modality: a learned embedding, one that each cell may shift, zeros, or nothing (not attended to)."""


class ModalityTokens(NamedModule):
    """One token per modality and cell: coverage x features + (1 - coverage) x stand-in.

    The stand-in is a learned null embedding per modality (`absent="null"`), the same plus a learned offset for each cell
    (`"null_cell"`; the offsets start at zero, so that both start alike), or zero (`"zeros"`, `"mask"`). Missing is not empty:
    a sensor that is there and sees nothing keeps its own features.

    Args:
        channels: channels of each modality's features by its name; each is projected to `out_channels`.
        out_channels: C.
        absent: what stands for an absent sensor.
        grid_shape: (X, Y), needed by `null_cell` alone, whose parameters belong to one grid.

    Raises:
        ValueError: no modality, channels below 1, an unknown `absent`, or `null_cell` without a grid; in `forward`, features that
            do not fit.
    """

    device_anchor: Tensor

    def __init__(
        self,
        channels: Mapping[str, int],
        out_channels: int,
        absent: Absent,
        grid_shape: tuple[int, int] | None = None,
    ) -> None:
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
        if absent in ("null", "null_cell"):
            self.null = NamedParameters(self.modalities, torch.randn(len(channels), out_channels) * 0.02)
        self.grid_shape = None
        if absent == "null_cell":
            if grid_shape is None:
                raise ValueError("absent null_cell has a parameter for each cell: give the fuser grid_shape=(X, Y)")
            self.grid_shape = tuple(grid_shape)
            self.null_offset = NamedParameters(self.modalities, torch.zeros(len(channels), out_channels, *grid_shape))
        # Knows the device where no features are given and there is no parameter to ask.
        self.register_buffer("device_anchor", torch.empty(0), persistent=False)

    def forward(
        self, features: Mapping[str, BEVFeatures | None], grid_shape: tuple[int, int] | None = None, batch_size: int = 1
    ) -> tuple[Tensor, Tensor]:
        """-> tokens [M, B, X, Y, C] in the dtype of the features, and coverage [M, B, X, Y] float32.

        `grid_shape` and `batch_size` are used only where every modality is None. ValueError where something does not fit.
        """
        check_features(features, self.in_channels)
        given = next((f for f in features.values() if f is not None), None)
        if given is not None:
            batch_size, grid_shape = given.features.shape[0], (given.features.shape[2], given.features.shape[3])
        elif grid_shape is None:
            raise ValueError("every modality is absent: give grid_shape=(X, Y) and batch_size")
        assert grid_shape is not None
        if self.grid_shape is not None and tuple(grid_shape) != self.grid_shape:
            raise ValueError(
                f"this fuser has a null embedding for each cell of a grid of {list(self.grid_shape)}, got features on "
                f"{list(grid_shape)}: build it for this grid, or with absent null, which fits every grid"
            )
        device = self.device_anchor.device if given is None else given.features.device
        tokens, coverages = [], []
        for name, project, stand_in in zip(
            self.modalities, self.project.values(), self._stand_ins(device), strict=True
        ):
            sensed = features.get(name)
            if sensed is None:
                tokens.append(stand_in.expand(batch_size, *grid_shape, -1))
                coverages.append(torch.zeros(batch_size, *grid_shape, device=device))
                continue
            # Not by coverage alone: what a blind sensor's encoder says must not pass, not even as 0 x NaN, and neither into
            # the gradient of the projection.
            seen = torch.where(sensed.coverage[:, None] > 0, sensed.features, 0.0)
            said = project(seen).permute(0, 2, 3, 1)
            coverage = sensed.coverage[..., None].to(said.dtype)
            stand_in = stand_in.to(said.dtype)
            tokens.append(coverage * said + (1 - coverage) * stand_in)
            coverages.append(sensed.coverage.float())
        dtype = next(
            (t.dtype for t, f in zip(tokens, self.modalities, strict=True) if features.get(f) is not None), None
        )
        return torch.stack([t.to(dtype) for t in tokens]), torch.stack(coverages)

    def _stand_ins(self, device: torch.device | None) -> list[Tensor]:
        """Of each modality [C], or [X, Y, C] where it differs from cell to cell."""
        if self.absent == "null":
            return [null.float() for null in self.null.values()]
        if self.absent == "null_cell":
            pairs = zip(self.null.values(), self.null_offset.values(), strict=True)
            return [null.float() + offset.float().permute(1, 2, 0) for null, offset in pairs]
        return [torch.zeros(self.out_channels, device=device)] * len(self.modalities)


def present_mean(tokens: Tensor, coverage: Tensor) -> Tensor:
    """[M, B, X, Y, C], [M, B, X, Y] -> [B, X, Y, C], mean of the modalities that cover the cell; 0 where none does."""
    present = (coverage > 0)[..., None].to(tokens.dtype)
    return (tokens * present).sum(0) / present.sum(0).clamp(min=1)


def check_features(features: Mapping[str, BEVFeatures | None], channels: Mapping[str, int]) -> None:
    """ValueError where a modality is not among those of `channels`, or does not fit them or the other modalities."""
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
        if isinstance(sensed, Tensor):
            raise ValueError(
                f"{name}: expected BEVFeatures(features, coverage), got a tensor: say where the sensor sees"
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
