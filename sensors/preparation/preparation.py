"""What the network wants to be given of a frame."""

from __future__ import annotations

from dataclasses import dataclass

from bev.grid import BEVGrid
from bev.lift.table import DepthBins


@dataclass(frozen=True)
class Preparation:
    """What the network wants to be given."""

    grid: BEVGrid
    z_range_m: tuple[float, float]
    image_size_px: tuple[int, int] | None  # (H, W); None: no camera encoder, cameras count as absent
    camera_channels: tuple[str, ...]  # N
    lidar_channels: tuple[str, ...]  # L; others serve depth targets only
    radar_channels: tuple[str, ...]  # R
    feature_stride_px: int = 8
    lift_samples: tuple[int, int] = (1, 1)  # of the lift table
    depth_bins: DepthBins | None = None  # given: `sensors.preparation.collate` builds the lift table
    depth_targets: bool = False
    lidar_min_range_m: float = 1.0
    keep_outside: bool = False  # True: points outside the grid stay, at the cost of padding
