"""A canvas of pixels to draw on quickly: text, lines, filled shapes and pictures, a video's frame in milliseconds.

OpenCV draws the lines; Pillow the letters, which OpenCV has none to read of. Colours are RGB, 0..255. Letters: H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.palette import RGB

_SHIFT = 4  # bits after the point in the coordinates that OpenCV is given
_FAR_PX = 1e5  # lines that end further away are cut there, so that their coordinates stay whole numbers of 32 bits


@dataclass(frozen=True)
class Place:
    """A rectangle of the canvas, in whole pixels from its top left."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height

    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """This part of a canvas, to be drawn on."""
        return pixels[self.top : self.bottom, self.left : self.right]


def blank(height_px: int, width_px: int, colour: RGB = (255, 255, 255)) -> NDArray[np.uint8]:
    """[H, W, 3] of one colour."""
    canvas = np.empty((height_px, width_px, 3), np.uint8)
    canvas[:] = colour
    return canvas


def write(
    pixels: NDArray[np.uint8],
    words: str,
    at_px: tuple[int, int],
    *,
    size_px: int = 15,
    colour: RGB = (34, 34, 34),
    bold: bool = False,
    align: str = "left",
    room_px: int | None = None,
) -> int:
    """Write one line whose top left (or right, or middle) is at (x, y); -> its width.

    What does not fit into `room_px` is left out, with an ellipsis.
    """
    words = words if room_px is None else fitting(words, size_px, bold, room_px)
    mask = _letters(words, size_px, bold)
    height, width = mask.shape
    x = at_px[0] - {"left": 0, "middle": width // 2, "right": width}[align]
    y = at_px[1]
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, pixels.shape[1]), min(y + height, pixels.shape[0])
    if left < right and top < bottom:
        part = pixels[top:bottom, left:right]
        alpha = mask[top - y : bottom - y, left - x : right - x, None]
        part[:] = (part + (np.array(colour, np.float32) - part) * alpha + 0.5).astype(np.uint8)
    return width


@lru_cache(maxsize=4096)
def fitting(words: str, size_px: int, bold: bool, room_px: int) -> str:
    """The words, or as much of their beginning as fits with an ellipsis."""
    font = _font(size_px, bold)
    if font.getlength(words) <= room_px:
        return words
    kept = words
    while kept and font.getlength(kept.rstrip() + "…") > room_px:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def wrapped(words: str, size_px: int, room_px: int, rows: int) -> list[str]:
    """The words in at most `rows` lines, broken at spaces; the last one holds the rest, however long."""
    found: list[str] = []
    for word in words.split():
        longer = f"{found[-1]} {word}" if found else word
        if found and (len(found) == rows or width_px(longer, size_px) <= room_px):
            found[-1] = longer
        else:
            found.append(word)
    return found


def width_px(words: str, size_px: int, *, bold: bool = False) -> int:
    """How wide a line is."""
    return round(_font(size_px, bold).getlength(words))


@lru_cache(maxsize=2048)
def _letters(words: str, size_px: int, bold: bool) -> NDArray[np.float32]:
    """[H, W] in 0..1: how much of each pixel the letters cover. The height depends on the size alone."""
    from PIL import Image, ImageDraw

    font = _font(size_px, bold)
    ascent, descent = font.getmetrics()
    picture = Image.new("L", (max(1, round(font.getlength(words)) + 1), ascent + descent))
    ImageDraw.Draw(picture).text((0, 0), words, fill=255, font=font)
    return np.asarray(picture, np.float32) / 255


@lru_cache(maxsize=64)
def _font(size_px: int, bold: bool) -> Any:
    """DejaVu Sans, which comes with matplotlib: the same letters on every machine."""
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")), size_px)


def fill(pixels: NDArray[np.uint8], place: Place, colour: RGB) -> None:
    """Fill a rectangle."""
    place.of(pixels)[:] = colour


def border(pixels: NDArray[np.uint8], place: Place, colour: RGB, width: int = 1) -> None:
    """The outline of a rectangle, inside it."""
    part = place.of(pixels)
    for edge in (part[:width], part[-width:], part[:, :width], part[:, -width:]):
        edge[:] = colour


def lines(pixels: NDArray[np.uint8], paths_px: Iterable[NDArray[Any]], colour: RGB, width: int = 1) -> None:
    """Open lines through [K, 2] points each (x, y), with soft edges."""
    import cv2

    cv2.polylines(pixels, [_fixed(path) for path in paths_px], False, colour, width, cv2.LINE_AA, _SHIFT)


def outlines(pixels: NDArray[np.uint8], shapes_px: Iterable[NDArray[Any]], colour: RGB, width: int = 1) -> None:
    """Closed lines through [K, 2] points each."""
    import cv2

    cv2.polylines(pixels, [_fixed(shape) for shape in shapes_px], True, colour, width, cv2.LINE_AA, _SHIFT)


def shapes(pixels: NDArray[np.uint8], shapes_px: Iterable[NDArray[Any]], colour: RGB) -> None:
    """Filled convex shapes of [K, 2] points each."""
    import cv2

    for shape in shapes_px:
        cv2.fillConvexPoly(pixels, _fixed(shape), colour, cv2.LINE_AA, _SHIFT)


def arrow(pixels: NDArray[np.uint8], start_px: Sequence[float], end_px: Sequence[float], colour: RGB) -> None:
    """A line with a filled head of fixed size at its end."""
    start, end = np.asarray(start_px, float), np.asarray(end_px, float)
    length = float(np.linalg.norm(end - start))
    if length < 1:
        return
    along = (end - start) / length
    across = np.array([-along[1], along[0]])
    head = end - 6 * along
    lines(pixels, [np.stack([start, head])], colour)
    shapes(pixels, [np.stack([end, head + 3 * across, head - 3 * across])], colour)


def circle(
    pixels: NDArray[np.uint8], center_px: Sequence[float], radius_px: float, colour: RGB, width: int = 1
) -> None:
    """A ring with soft edges."""
    import cv2

    center = _fixed(np.array([center_px]))[0]
    cv2.circle(
        pixels, (int(center[0]), int(center[1])), round(radius_px * 2**_SHIFT), colour, width, cv2.LINE_AA, _SHIFT
    )


def fit(pixels: NDArray[np.uint8], place: Place, picture: NDArray[np.uint8]) -> tuple[Place, float]:
    """Put a picture [H, W, 3] into the middle of a place, as large as it fits; -> where it lies, and its scale."""
    import cv2

    scale = min(place.height / picture.shape[0], place.width / picture.shape[1])
    height = min(place.height, max(1, round(picture.shape[0] * scale)))
    width = min(place.width, max(1, round(picture.shape[1] * scale)))
    there = Place(place.left + (place.width - width) // 2, place.top + (place.height - height) // 2, width, height)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    there.of(pixels)[:] = cv2.resize(picture, (width, height), interpolation=way)
    return there, scale


def _fixed(points_px: NDArray[Any]) -> NDArray[np.int32]:
    return np.rint(np.clip(points_px, -_FAR_PX, _FAR_PX) * 2**_SHIFT).astype(np.int32)
