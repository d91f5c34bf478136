"""Altered views of a sample, geometry kept true: what moves the points moves the boxes, velocities and poses with them.

A mirrored, turned and scaled reference frame is one 4 x 4 matrix; a cropped and mirrored picture is one 3 x 3 change of its
intrinsics (as in BEVDet, Huang et al. 2021). Letters: N cameras, M boxes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from bev.detection.boxes import Boxes
from robustbev import StrictModel
from sensors.camera.images import ImageChange
from sensors.frames import LidarSweep, SensorFrame
from training.data.failures import FailureConfig

Probability = Annotated[float, Field(ge=0, le=1)]
_GREY = np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601, which JPEG uses


def _check_range(name: str, value: tuple[float, float], above: float | None = None) -> None:
    low, high = value
    if not low <= high or (above is not None and not low > above):
        raise ValueError(
            f"{name}: expected low <= high{'' if above is None else f', both > {above:g}'}, got {low} and {high}"
        )


class BEVAugmentation(StrictModel):
    """Of the reference frame: mirror at the x or y axis, turn about z, scale about the origin."""

    mirror_x: Probability = 0.5  # x -> -x
    mirror_y: Probability = 0.5  # y -> -y
    turn_deg: Annotated[float, Field(ge=0, le=180)] = 22.5  # uniform in +-
    scale: tuple[float, float] = (0.95, 1.05)

    @model_validator(mode="after")
    def _check(self) -> BEVAugmentation:
        _check_range("scale", self.scale, above=0.0)
        return self


class ImageAugmentation(StrictModel):
    """Of each picture: zoom and place of the window, mirror, colour."""

    zoom: tuple[float, float] = (0.94, 1.11)  # 1 is the largest window that fits
    across: tuple[float, float] = (0.0, 1.0)  # place of the window in the room left at its sides
    down: tuple[float, float] = (0.9, 1.0)  # 1: at the bottom
    mirror: Probability = 0.5
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.2  # factor uniform in 1 +- this
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.2

    @model_validator(mode="after")
    def _check(self) -> ImageAugmentation:
        _check_range("zoom", self.zoom, above=0.0)
        _check_range("across", self.across)
        _check_range("down", self.down)
        return self


class AugmentationConfig(StrictModel):
    """Training only; None leaves that part as it is."""

    bev: BEVAugmentation | None = BEVAugmentation()
    image: ImageAugmentation | None = ImageAugmentation()
    failures: FailureConfig | None = None  # parts of sensors that fail in training; null: none
    intensity: tuple[float, float] | None = None
    """Factor on the intensity of all LiDAR points of a sample, log-uniform between these; null: none. LiDARs, and simulations,
    differ in what they call 1."""

    @model_validator(mode="after")
    def _check(self) -> AugmentationConfig:
        if self.intensity is not None:
            _check_range("intensity", self.intensity, above=0.0)
        return self


def draw_bev_change(config: BEVAugmentation, random: np.random.Generator) -> NDArray[np.float64]:
    """[4, 4] changed_T_reference: scale x turn x mirror."""
    mirror = np.where(random.random(2) < (config.mirror_x, config.mirror_y), -1.0, 1.0)
    turn = np.deg2rad(random.uniform(-config.turn_deg, config.turn_deg))
    cos, sin = np.cos(turn), np.sin(turn)
    change = np.eye(4)
    change[:2, :2] = np.array([[cos, -sin], [sin, cos]]) * mirror
    change[:3, :3] *= random.uniform(*config.scale)
    return change


def draw_image_changes(config: ImageAugmentation, cameras: int, random: np.random.Generator) -> tuple[ImageChange, ...]:
    """One change a camera, drawn independently."""
    return tuple(
        ImageChange(
            zoom=random.uniform(*config.zoom),
            across=random.uniform(*config.across),
            down=random.uniform(*config.down),
            mirror=bool(random.random() < config.mirror),
            colour=_colour_matrix(config, random),
        )
        for _ in range(cameras)
    )


def _colour_matrix(config: ImageAugmentation, random: np.random.Generator) -> NDArray[np.float32] | None:
    """[3, 4]: saturation about grey, contrast about the middle, brightness, in one affine map of (R, G, B, 1)."""
    if not (config.brightness or config.contrast or config.saturation):
        return None
    saturation, contrast, brightness = 1 + np.array(
        [random.uniform(-width, width) for width in (config.saturation, config.contrast, config.brightness)]
    )
    matrix = np.zeros((3, 4))
    matrix[:, :3] = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * _GREY)
    matrix[:, 3] = brightness * (1 - contrast) * 127.5
    return matrix.astype(np.float32)


def change_intensity(frame: SensorFrame, config: tuple[float, float], random: np.random.Generator) -> SensorFrame:
    """The frame with the intensity of its LiDAR points times one factor, at most 255."""
    factor = np.exp(random.uniform(*np.log(config)))

    def changed(sweep: LidarSweep) -> LidarSweep:
        points = sweep.points.copy()
        points[:, 3] = np.minimum(points[:, 3] * factor, 255.0)
        return replace(sweep, points=points)

    return replace(frame, lidar=None if frame.lidar is None else tuple(changed(sweep) for sweep in frame.lidar))


def change_boxes(boxes: Boxes, change: NDArray[np.float64]) -> Boxes:
    """Boxes [M] in the changed reference frame. `change` [4, 4] mirrors, turns about z and scales alike in all axes."""
    matrix = torch.from_numpy(change).float()
    linear = matrix[:3, :3]
    scale = float(np.cbrt(abs(np.linalg.det(change[:3, :3]))))
    heading = torch.stack([boxes.yaw_rad.cos(), boxes.yaw_rad.sin()], dim=-1) @ linear[:2, :2].T
    return Boxes(
        center_m=boxes.center_m @ linear.T + matrix[:3, 3],
        size_m=boxes.size_m * scale,
        yaw_rad=torch.atan2(heading[..., 1], heading[..., 0]),
        velocity_mps=boxes.velocity_mps @ linear[:2, :2].T,
        label=boxes.label,
        attribute=boxes.attribute,
        score=boxes.score,
    )
