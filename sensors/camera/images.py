"""Pixels to the network's size, and what that does to the intrinsics. `sensors.camera.picture_files` makes pixels of files.

Pixel (u, v) has its centre at whole numbers. Scaling by s keeps continuous image coordinates, in which the centre of pixel 0 is
at 0.5, in proportion: u' = (u + 0.5) s - 0.5. Letters: H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import FloatArray

_REDUCTIONS = (8, 4, 2)  # libjpeg also decodes at 3/8, 5/8 ..., but more slowly than in full


@dataclass(frozen=True)
class DecodeSize:
    """Decode at 1, 1/2, 1/4 or 1/8, whichever is the least that still covers height x width, `zoom` times enlarged."""

    height_px: int
    width_px: int
    zoom: float = 1.0

    def reduction(self, height_px: int, width_px: int) -> int:
        """By how much a picture of this size may be reduced."""
        room = min(height_px / self.height_px, width_px / self.width_px) / self.zoom
        return next((factor for factor in _REDUCTIONS if factor <= room), 1)


def scaled_intrinsics(intrinsics: FloatArray, scale_u: float, scale_v: float) -> FloatArray:
    """The intrinsics [3, 3] of an image resized by these factors, half a pixel kept right."""
    change = np.array([[scale_u, 0, 0.5 * scale_u - 0.5], [0, scale_v, 0.5 * scale_v - 0.5], [0, 0, 1]])
    return change @ intrinsics


@dataclass(frozen=True)
class ImageChange:
    """How a picture is cut to the network's size, and how it is altered in training.

    The window has the network's aspect and covers as much of the picture as it can, `zoom` times enlarged (below 1 it is larger
    than the picture; black fills the rest). `across` and `down` (0..1) place it in the room that is left: by default
    in the middle and at the bottom, because the top of a nuScenes picture is sky. `mirror` swaps left and right.
    `colour` [3, 4] maps (R, G, B, 1).
    """

    zoom: float = 1.0
    across: float = 0.5
    down: float = 1.0
    mirror: bool = False
    colour: NDArray[np.float32] | None = None


def fit_image(
    image: NDArray[np.uint8], intrinsics: FloatArray, size_px: tuple[int, int], change: ImageChange
) -> tuple[NDArray[np.uint8], FloatArray]:
    """The picture [H', W', 3] at the network's size (H, W), with the intrinsics [3, 3] that belong to it.

    The window lies on whole pixels and the intrinsics follow the window that was cut, so that rounding costs nothing. A mirrored
    picture keeps its camera's pose and gets a negative focal length.
    """
    height, width = size_px
    scale = max(height / image.shape[0], width / image.shape[1]) * change.zoom
    window_h, window_w = max(1, round(height / scale)), max(1, round(width / scale))
    top = round(change.down * (image.shape[0] - window_h))
    left = round(change.across * (image.shape[1] - window_w))
    window = image[max(top, 0) : top + window_h, max(left, 0) : left + window_w]
    if window.shape[:2] != (window_h, window_w):
        above, before = max(-top, 0), max(-left, 0)
        below, after = window_h - above - window.shape[0], window_w - before - window.shape[1]
        window = np.pad(window, ((above, below), (before, after), (0, 0)))
    fitted = resize(window, size_px)
    moved = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]]) @ intrinsics
    matrix = scaled_intrinsics(moved, width / window_w, height / window_h)
    if change.mirror:
        fitted = _mirrored(fitted)
        matrix = np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]]) @ matrix
    if change.colour is not None:
        import cv2

        fitted = cv2.transform(fitted, change.colour)
    return fitted, matrix


def _mirrored(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    try:
        import cv2
    except ImportError:
        return np.ascontiguousarray(image[:, ::-1])
    mirrored: NDArray[np.uint8] = cv2.flip(image, 1)  # numpy takes fifty times as long
    return mirrored


def split_colours(image: NDArray[np.uint8], planes: NDArray[np.uint8]) -> None:
    """Write the picture [H, W, 3] to `planes` [3, H, W], a contiguous array."""
    try:
        import cv2
    except ImportError:
        planes[:] = image.transpose(2, 0, 1)
    else:
        cv2.split(image, list(planes))  # numpy takes ten times as long


def resize(image: NDArray[np.uint8], size_px: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture [H', W', 3] at another size (H, W), by OpenCV where it is installed, else by `resize_reference`.

    The two differ by at most one of 256 levels.
    """
    if image.shape[:2] == size_px:
        return image
    try:
        import cv2
    except ImportError:  # a robot need not have it
        return resize_reference(image, size_px)
    way = cv2.INTER_AREA if _shrinks(image.shape[1], size_px[1]) else cv2.INTER_LINEAR
    fitted: NDArray[np.uint8] = cv2.resize(image, size_px[::-1], interpolation=way)
    return fitted


def resize_reference(image: NDArray[np.uint8], size_px: tuple[int, int]) -> NDArray[np.uint8]:
    """`resize` in numpy: a picture is a weighted mean along each axis, one after the other."""
    area = _shrinks(image.shape[1], size_px[1])
    down, across = (_weights(old, new, area) for old, new in zip(image.shape[:2], size_px, strict=True))
    rows = np.tensordot(down, image.astype(np.float32), axes=1)
    fitted = np.matmul(across, rows)  # [H, W, W'] x [H, W', 3]
    return np.rint(fitted).clip(0, 255).astype(np.uint8)


def _shrinks(old_px: int, new_px: int) -> bool:
    """Whether pixels are averaged: below half the size linear interpolation would skip some; above it is seven times as fast."""
    return old_px > 2 * new_px


def _weights(old_px: int, new_px: int, area: bool) -> NDArray[np.float32]:
    """[new, old] how much of each old pixel goes into each new one: the part that it covers, or its share by distance."""
    scale = old_px / new_px
    pixel = np.arange(old_px)
    if area:
        begin = np.arange(new_px)[:, None] * scale
        overlap = np.minimum(begin + scale, pixel + 1) - np.maximum(begin, pixel)
        weights = overlap.clip(min=0) / scale
    else:
        middle = ((np.arange(new_px) + 0.5) * scale - 0.5).clip(0, old_px - 1)
        weights = (1 - np.abs(middle[:, None] - pixel)).clip(min=0)
    return weights.astype(np.float32)
