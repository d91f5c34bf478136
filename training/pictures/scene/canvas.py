"""A canvas of pixels [H, W, 3] to draw on quickly: text, lines, filled shapes, pictures; a page in some 30 milliseconds.

OpenCV draws the lines; Pillow the letters, which OpenCV has none to read of. Colours are RGB, 0..255.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sensors.palette import RGB
from sensors.text import plain
from training.files.atomic import replacing

Pixels = NDArray[np.uint8]

INK: RGB = (34, 34, 34)
GREY: RGB = (105, 105, 105)
FAINT: RGB = (205, 205, 205)
WHITE: RGB = (255, 255, 255)
_LONGEST = 500  # characters of a line, more than any picture is wide
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

    def of(self, pixels: Pixels) -> Pixels:
        """This part of a canvas, to be drawn on."""
        return pixels[self.top : self.bottom, self.left : self.right]


def blank(height_px: int, width_px: int) -> Pixels:
    """A white canvas."""
    return np.full((height_px, width_px, 3), 255, np.uint8)


def write(
    pixels: Pixels, words: str, at_px: tuple[int, int], *, size_px: int = 15, colour: RGB = INK, bold: bool = False,
    align: str = "left", room_px: int | None = None,
) -> int:  # fmt: skip
    """Write one line whose top left (or right, or middle) is at (x, y), with an ellipsis after `room_px`; -> its width."""
    mask = _letters(words if room_px is None else fitting(words, size_px, bold, room_px), size_px, bold)
    height, width = mask.shape
    x, y = at_px[0] - {"left": 0, "middle": width // 2, "right": width}[align], at_px[1]
    part = pixels[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    if part.size:
        alpha = mask[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1], None]
        part[:] = (part + (np.array(colour, np.float32) - part) * alpha + 0.5).astype(np.uint8)
    return width


@lru_cache(maxsize=4096)
def fitting(words: str, size_px: int, bold: bool, room_px: int) -> str:
    """The words, or as much of their beginning as fits with an ellipsis."""
    words = _one_line(words)
    if width_px(words, size_px, bold) <= room_px:
        return words
    kept = words
    while kept and width_px(kept.rstrip() + "…", size_px, bold) > room_px:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def wrapped(words: str, size_px: int, room_px: int, rows: int) -> list[str]:
    """The words in at most `rows` lines, broken at spaces; the last one holds the rest, however long."""
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and (len(lines) == rows or width_px(longer, size_px) <= room_px):
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def width_px(words: str, size_px: int, bold: bool = False) -> int:
    """How wide a line is."""
    return round(_font(size_px, bold).getlength(_one_line(words)))


def _one_line(words: str) -> str:
    """What can be drawn of words that may be of a log or a data set."""
    return plain(words[:_LONGEST]).replace("\n", " ")


@lru_cache(maxsize=2048)
def _letters(words: str, size_px: int, bold: bool) -> NDArray[np.float32]:
    """[H, W] in 0..1: how much of each pixel the letters cover. The height depends on the size alone."""
    font = _font(size_px, bold)
    picture = Image.new("L", (width_px(words, size_px, bold) + 1, sum(font.getmetrics())))
    ImageDraw.Draw(picture).text((0, 0), _one_line(words), fill=255, font=font)
    return np.asarray(picture, np.float32) / 255


@lru_cache(maxsize=64)
def _font(size_px: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: the same letters on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size_px)


def border(pixels: Pixels, colour: RGB) -> None:
    """An outline of one pixel, inside."""
    for edge in (pixels[:1], pixels[-1:], pixels[:, :1], pixels[:, -1:]):
        edge[:] = colour


def lines(pixels: Pixels, paths_px: Iterable[NDArray[Any]], colour: RGB, width: int = 1, closed: bool = False) -> None:
    """Lines through [K, 2] points each (x, y), with soft edges."""
    cv2.polylines(pixels, [_fixed(path) for path in paths_px], closed, colour, width, cv2.LINE_AA, _SHIFT)


def shape(pixels: Pixels, corners_px: NDArray[Any], colour: RGB) -> None:
    """A filled convex shape of [K, 2] points."""
    cv2.fillConvexPoly(pixels, _fixed(corners_px), colour, cv2.LINE_AA, _SHIFT)


def arrow(pixels: Pixels, start_px: NDArray[Any], end_px: NDArray[Any], colour: RGB) -> None:
    """A line with a filled head of fixed size at its end."""
    along = (end_px - start_px) / max(float(np.linalg.norm(end_px - start_px)), 1.0)
    across, head = np.array([-along[1], along[0]]), end_px - 6 * along
    lines(pixels, [np.stack([start_px, head])], colour)
    shape(pixels, np.stack([end_px, head + 3 * across, head - 3 * across]), colour)


def circle(pixels: Pixels, center_px: NDArray[Any], radius_px: float, colour: RGB) -> None:
    """A ring with soft edges."""
    cv2.circle(pixels, _fixed(center_px).tolist(), round(radius_px * 2**_SHIFT), colour, 1, cv2.LINE_AA, _SHIFT)


def dots(pixels: Pixels, at_px: NDArray[Any], colours: NDArray[np.uint8], width: int, height: int) -> None:
    """Rectangles whose top left is at [P, 2] each, in their colours [P, 3]; later ones lie on top."""
    for offset in np.ndindex(width, height):
        at = np.floor(at_px).astype(np.int64) + offset
        inside = ((at >= 0) & (at < pixels.shape[1::-1])).all(axis=1)
        pixels[at[inside, 1], at[inside, 0]] = colours[inside]


def fit(pixels: Pixels, picture: Pixels) -> tuple[Pixels, float]:
    """Put a picture [H, W, 3] into the middle, as large as it fits; -> where it lies, to be drawn on, and its scale."""
    scale = min(pixels.shape[0] / picture.shape[0], pixels.shape[1] / picture.shape[1])
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    there = Place((pixels.shape[1] - width) // 2, (pixels.shape[0] - height) // 2, width, height).of(pixels)
    there[:] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return there, scale


def light(colour: RGB) -> RGB:
    """A colour light enough to be seen on a dark photograph: dark ones are mixed with white, hues stay as they are."""
    luminance = (
        np.dot((0.2126, 0.7152, 0.0722), colour) / 255
    )  # Rec. 709 weights, on encoded values: a rough measure will do
    white = max(0.0, 0.4 - luminance) / (1 - luminance)
    red, green, blue = (round(value + (255 - value) * white) for value in colour)
    return (red, green, blue)


@lru_cache(maxsize=4)
def colour_map(name: str) -> Pixels:
    """[256, 3] of matplotlib's colour map of this name."""
    return (255 * matplotlib.colormaps[name](np.arange(256))[:, :3]).astype(np.uint8)


def save(path: Path, pixels: Pixels) -> Path:
    """Write the canvas as PNG, whole or not at all; -> the path."""
    done, data = cv2.imencode(".png", pixels[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 4])
    assert done
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())
    return path


def _fixed(points_px: NDArray[Any]) -> NDArray[np.int32]:
    return np.rint(np.clip(points_px, -_FAR_PX, _FAR_PX) * 2**_SHIFT).astype(np.int32)
