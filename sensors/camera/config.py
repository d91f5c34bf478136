"""Settings of a camera modality."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from bev.lift.table import DepthBins
from sensors.settings import Layers, LayersOrNone, ModalityConfig, Positive, StrictModel


class DepthConfig(StrictModel):
    """Depth bins of the lift, metres along the camera's z axis."""

    min_m: float = 1.0
    max_m: float = 33.0
    count: Positive = 32

    @model_validator(mode="after")
    def _check(self) -> DepthConfig:
        self.bins()
        return self

    def bins(self) -> DepthBins:
        return DepthBins(self.min_m, self.max_m, self.count)


class CameraConfig(ModalityConfig):
    """ViT image encoder, neck, depth and lift."""

    kind: Literal["camera"] = "camera"
    image_height_px: Positive = 64
    image_width_px: Positive = 176
    stem: Literal["patch", "conv"] = "conv"
    patch_px: Positive = 16
    dim: Positive = 128
    depth: Layers = 3
    heads: Positive = 4
    layer_scale: bool = False
    feature_stride_px: Positive = 8
    feature_channels: Positive = 96
    context_channels: Positive = 64  # of what is lifted
    lift_samples: tuple[Layers, Layers] = (2, 2)  # points across and along each depth bin of each feature pixel
    bev_blocks: LayersOrNone = 0  # residual blocks on the lifted grid
    depth_bins: DepthConfig = DepthConfig()

    @model_validator(mode="after")
    def _check(self) -> CameraConfig:
        for name, size in (("image_height_px", self.image_height_px), ("image_width_px", self.image_width_px)):
            if size % self.patch_px:
                raise ValueError(f"{name} must be a multiple of patch_px ({self.patch_px}), got {size}")
        if self.stem == "conv" and (self.patch_px, self.feature_stride_px) != (16, 8):
            raise ValueError("stem conv needs patch_px 16 and feature_stride_px 8; choose stem patch for other strides")
        if self.patch_px % self.feature_stride_px:
            raise ValueError(f"feature_stride_px must divide patch_px ({self.patch_px}), got {self.feature_stride_px}")
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads ({self.heads}), got {self.dim}")
        return self

    @property
    def image_size(self) -> tuple[int, int]:
        return self.image_height_px, self.image_width_px
