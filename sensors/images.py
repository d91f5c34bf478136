"""JPEG files to pixels, pixels to the network's size, and what that does to the intrinsics.

Pixel (u, v) has its centre at whole numbers. Scaling by s keeps continuous image coordinates, in which the centre of pixel 0 is
at 0.5, in proportion: u' = (u + 0.5) s - 0.5. Letters: H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import FloatArray
from sensors.errors import sensor_fault
from sensors.point_files import COPY_AGAIN, read_bytes

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


def read_jpeg(
    path: Path,
    *,
    sensor: str,
    token: str,
    size_px: tuple[int, int] | None = None,
    decode: DecodeSize | None = None,
) -> tuple[NDArray[np.uint8], float]:
    """RGB [H, W, 3] and the scale against the full picture: 1, 1/2, 1/4 or 1/8.

    `size_px` (H, W) is what the tables say of the picture, which the intrinsics rest on; None skips that check.

    Raises:
        SensorDataError: missing, truncated or damaged file, no JPEG, or of another size.
    """
    data = read_bytes(path, sensor=sensor, token=token)
    try:
        image, scale, (height, width) = decode_jpeg(data, decode)
    except ValueError as error:
        raise sensor_fault(
            sensor=sensor, file=path, token=token, action=COPY_AGAIN,
            expected="a whole JPEG", got=f"{len(data)} bytes, of which the decoder says: {error}",
        ) from error  # fmt: skip
    if size_px is not None and min(size_px) > 0 and (height, width) != size_px:
        raise sensor_fault(
            sensor=sensor, file=path, token=token,
            expected=f"{size_px[1]} x {size_px[0]} px as its row in sample_data says", got=f"{width} x {height} px",
            action="The intrinsics belong to the size in the table: correct width and height there, or the picture",
        )  # fmt: skip
    return image, scale


def decode_jpeg(data: bytes, decode: DecodeSize | None = None) -> tuple[NDArray[np.uint8], float, tuple[int, int]]:
    """RGB [H, W, 3], its scale against the full picture (1, 1/2, 1/4 or 1/8), and the full picture's (height, width) in px.

    Raises:
        ValueError: no JPEG, or a truncated or damaged one; the decoder's words.
    """
    import simplejpeg

    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    reduction = decode.reduction(height, width) if decode else 1
    least = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)}
    image = simplejpeg.decode_jpeg(data, "RGB", fastupsample=True, **least)
    return image, 1 / reduction, (height, width)  # sizes are rounded up; the scale is not


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
    import cv2

    height, width = size_px
    scale = max(height / image.shape[0], width / image.shape[1]) * change.zoom
    window_h, window_w = max(1, round(height / scale)), max(1, round(width / scale))
    top = round(change.down * (image.shape[0] - window_h))
    left = round(change.across * (image.shape[1] - window_w))
    window = image[max(top, 0) : top + window_h, max(left, 0) : left + window_w]
    if window.shape[:2] != (window_h, window_w):
        above, before = max(-top, 0), max(-left, 0)
        below, after = window_h - above - window.shape[0], window_w - before - window.shape[1]
        window = cv2.copyMakeBorder(window, above, below, before, after, cv2.BORDER_CONSTANT, value=0)
    # Below half the size linear interpolation would skip pixels; above it is seven times as fast.
    way = cv2.INTER_AREA if window_w > 2 * width else cv2.INTER_LINEAR
    fitted = cv2.resize(window, (width, height), interpolation=way)
    moved = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]]) @ intrinsics
    matrix = scaled_intrinsics(moved, width / window_w, height / window_h)
    if change.mirror:
        fitted = fitted[:, ::-1]
        matrix = np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]]) @ matrix
    if change.colour is not None:
        fitted = cv2.transform(np.ascontiguousarray(fitted), change.colour)
    return fitted, matrix
