"""Measurements of one camera's picture: light, sharpness, noise, and whether it is the picture of before.

Every figure means something by itself, so that a score can be explained.

Letters: H and W pixels, h and w pixels of the small maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sensors.calibration import FloatArray
from sensors.camera.images import scaled_intrinsics
from sensors.frames import CameraImage

Float32 = NDArray[np.float32]

WIDTH_PX = 288  # wider pictures are measured at this width
SHRINK = 2  # the maps that LiDAR points are compared with are smaller by this
MARGIN_PX = 16  # around those maps, so that shifted points still find a value
_DARK, _BRIGHT = 8, 247
_HAIR = 1e-3
# Immerkaer's mask: the difference of two Laplacians, blind to edges and to ramps.
_NOISE_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


@dataclass(frozen=True)
class Picture:
    """A camera's picture made ready to be measured and compared.

    `maps` [3, h + 2 m, w + 2 m] with a margin of m = MARGIN_PX: upright edges, fine brightness, level edges, each made equally
    strong everywhere, so that a single signboard does not outweigh the street.
    """

    channel: str
    grey: Float32  # [H, W] 0..255
    colour: NDArray[np.uint8]  # [H, W, 3] RGB, at the size of `grey`
    maps: Float32
    intrinsics: FloatArray  # [3, 3] of the small maps, without the margin
    reference_T_camera: FloatArray  # [4, 4]

    @property
    def map_size_px(self) -> tuple[int, int]:
        """(h, w) without the margin."""
        return self.maps.shape[1] - 2 * MARGIN_PX, self.maps.shape[2] - 2 * MARGIN_PX


def view(camera: CameraImage, *, only_fine: bool = False) -> Picture:
    """A picture at the size it is measured at, with its maps; `only_fine` leaves the edges at zero, for a picture of the past."""
    colour, scale = camera.image, 1.0
    if colour.shape[1] > WIDTH_PX:
        scale = WIDTH_PX / colour.shape[1]
        size = (WIDTH_PX, max(8, round(colour.shape[0] * scale)))
        colour = np.asarray(cv2.resize(colour, size, interpolation=cv2.INTER_AREA), np.uint8)
    grey = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY).astype(np.float32)
    size = (max(4, grey.shape[1] // SHRINK), max(4, grey.shape[0] // SHRINK))
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    m = MARGIN_PX
    padded = np.zeros((3, size[1] + 2 * m, size[0] + 2 * m), np.float32)
    padded[1] = cv2.copyMakeBorder(_even(small, 15, 21, 4.0), m, m, m, m, cv2.BORDER_REPLICATE)
    for place, way in () if only_fine else ((0, (1, 0)), (2, (0, 1))):
        edges = _even(np.sqrt(np.abs(cv2.Sobel(small, cv2.CV_32F, *way))), 21, 31, 0.5)
        padded[place] = cv2.copyMakeBorder(edges, m, m, m, m, cv2.BORDER_REPLICATE)
    intrinsics = scaled_intrinsics(camera.intrinsics, size[0] / camera.image.shape[1], size[1] / camera.image.shape[0])
    return Picture(camera.channel, grey, colour, padded, intrinsics, camera.reference_T_camera)


def look(picture: Picture) -> dict[str, float]:
    """What one picture alone tells."""
    grey, height = picture.grey, picture.grey.shape[0]
    shares = np.cumsum(cv2.calcHist([grey.astype(np.uint8)], [0], None, [256], [0, 256])) / grey.size
    laplacian = cv2.Laplacian(grey, cv2.CV_32F)
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    energy_across, energy_down = (float(cv2.norm(way, cv2.NORM_L2SQR)) / grey.size for way in (across, down))
    (mean,), (spread,) = cv2.meanStdDev(grey)[0][0], cv2.meanStdDev(grey)[1][0]
    roughness = float(cv2.meanStdDev(laplacian)[1][0, 0]) ** 2
    red, green, blue = cv2.split(picture.colour)
    highest, lowest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    dark = np.cumsum(cv2.calcHist([lowest], [0], None, [256], [0, 256])) / grey.size
    noise = cv2.filter2D(grey, cv2.CV_32F, _NOISE_MASK)
    return {
        "brightness": float(mean) / 255,
        "contrast": float(spread) / 255,
        "black_share": float(shares[_DARK]),
        "white_share": 1 - float(shares[_BRIGHT - 1]),
        "brightness_below": float(cv2.mean(grey[height // 2 :])[0]) / 255,
        "sharpness": float(np.log((roughness + 1) / (float(spread) ** 2 + 1))),
        "strongest_edge": float(np.log(_high(np.abs(laplacian), 0.99) + 1)),
        "blur_direction": float(np.log((energy_across + 1) / (energy_down + 1))),
        "noise": float(np.log(_high(np.abs(noise), 0.5) * (np.sqrt(np.pi / 2) / 6) + 0.1)),
        "colourfulness": (cv2.mean(highest)[0] - cv2.mean(lowest)[0]) / 255,
        "haze": float(np.searchsorted(dark, 0.1)) / 255,  # nowhere dark: the dark channel of He et al., CVPR 2009
    }


def compare(now: Picture, before: Picture) -> dict[str, float]:
    """What changed since the picture delivered before. Two pictures of a real sensor are never equal: its noise is not."""
    if now.grey.shape != before.grey.shape:
        return {}
    difference = np.abs(now.grey - before.grey)
    return {"equal_share": float((difference <= _HAIR).mean()), "change": float(np.log(difference.mean() + 0.1))}


def _even(layer: Float32, fine_px: int, wide_px: int, floor: float) -> Float32:
    """What is finer than `fine_px`, with the same strength everywhere."""
    fine = layer - cv2.blur(layer, (fine_px, fine_px))
    strength = np.sqrt(
        np.maximum(cv2.blur(fine * fine, (wide_px, wide_px)), 0)
    )  # sums of a box filter may fall below 0
    return np.asarray(fine / (strength + floor), np.float32)


def _high(values: Float32, share: float) -> float:
    """The value that this share of a picture (every seventh pixel will do) stays below."""
    some = values.ravel()[::7]
    place = int(share * (len(some) - 1))
    return float(np.partition(some, place)[place])
