"""Raw pixels to RGB, by the names of ROS' image_encodings.hpp and of foxglove.RawImage.

Of samples of 16 bits the high byte counts. YUV is BT.601 of video range, as OpenCV takes it. Letters: H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sensors.errors import PictureError
from sensors.logs.messages import RawImage


@dataclass(frozen=True)
class _Layout:
    """How pixels lie in rows, and OpenCV's name of what makes them RGB; "" where they are."""

    samples: int  # a pixel, in the rows that are as many as the picture's
    convert: str = ""
    sample_bytes: int = 1
    even: tuple[int, int] = (1, 1)  # what height and width must be multiples of
    planes: float = 1.0  # bytes against those of the first plane: colours may lie below the grey picture


_PLAIN = {
    "mono": _Layout(1, "GRAY2RGB"), "rgb": _Layout(3), "bgr": _Layout(3, "BGR2RGB"),
    "rgba": _Layout(4, "RGBA2RGB"), "bgra": _Layout(4, "BGRA2RGB"),
    # ROS names a Bayer pattern by its first row; OpenCV by the second and third pixel of the second row.
    "bayer_rggb": _Layout(1, "BayerBG2RGB"), "bayer_bggr": _Layout(1, "BayerRG2RGB"),
    "bayer_gbrg": _Layout(1, "BayerGR2RGB"), "bayer_grbg": _Layout(1, "BayerGB2RGB"),
}  # fmt: skip
_LAYOUTS = (
    {f"{name}8": layout for name, layout in _PLAIN.items()}
    | {f"{name}16": replace(layout, sample_bytes=2) for name, layout in _PLAIN.items()}
    | {
        "uyvy": _Layout(2, "YUV2RGB_UYVY", even=(1, 2)),
        "yuyv": _Layout(2, "YUV2RGB_YUYV", even=(1, 2)),
        "nv12": _Layout(1, "YUV2RGB_NV12", even=(2, 2), planes=1.5),
        "nv21": _Layout(1, "YUV2RGB_NV21", even=(2, 2), planes=1.5),
    }
)
_ALIASES = {
    "8uc1": "mono8", "8uc3": "bgr8", "8uc4": "bgra8", "16uc1": "mono16", "16uc3": "bgr16", "16uc4": "bgra16",
    "yuv422": "uyvy", "yuv422_yuy2": "yuyv", "yuy2": "yuyv",
}  # fmt: skip
ENCODINGS = (*_LAYOUTS, *_ALIASES)


def unknown_encoding(encoding: str) -> str:
    """Why pixels of this name cannot be read; "" where they can."""
    if _layout(encoding) is not None:
        return ""
    return (
        f"expected a known layout of pixels, got {encoding[:40]!r}. Record the picture as one of {', '.join(ENCODINGS)}"
    )


def rows_fault(image: RawImage) -> str:
    """What is wrong with the amount of a raw picture's bytes; "" where nothing is. Of an unknown encoding rows are counted."""
    height, width, step, layout = image.height_px, image.width_px, image.step_bytes, _layout(image.encoding)
    if min(height, width, step) <= 0 or not image.data:
        return f"expected a picture, got {width} x {height} px, rows of {step} bytes, {len(image.data)} bytes"
    if layout is None:
        known = len(image.data) == height * step
        return "" if known else f"expected {height} rows of {step} bytes ({height * step}), got {len(image.data)}"
    if height % layout.even[0] or width % layout.even[1]:
        sides = "width" if layout.even[0] == 1 else "height and width"
        return f"expected an even {sides} for {image.encoding}, got {width} x {height}"
    row = width * layout.samples * layout.sample_bytes
    if _tight(image, layout):
        return ""
    if step < row:
        return f"expected rows of at least {row} bytes for {width} x {height} px of {image.encoding}, got rows of {step} bytes"
    wanted = round(height * step * layout.planes)
    if len(image.data) != wanted:
        rows = round(height * layout.planes)
        return f"expected {rows} rows of {step} bytes ({wanted}), got {len(image.data)}"
    return ""


def decode_raw(image: RawImage) -> NDArray[np.uint8]:
    """RGB [H, W, 3].

    Raises:
        PictureError: pixels of a layout that is not known, or fewer or more bytes than they take.
        ImportError: OpenCV, for all but rgb8 and rgb16, is not installed.
    """
    if fault := unknown_encoding(image.encoding) or rows_fault(image):
        raise PictureError(fault)
    layout = _layout(image.encoding)
    assert layout is not None, "the encoding is known"
    height, width = image.height_px, image.width_px
    step = width if _tight(image, layout) else image.step_bytes
    rows = np.frombuffer(image.data, np.uint8)
    if layout.planes != 1:
        return _by_opencv(rows.reshape(-1, step)[:, :width], layout.convert)
    size = layout.samples * layout.sample_bytes
    pixels = rows.reshape(height, step)[:, : width * size].reshape(height, width, size)
    pixels = pixels[..., layout.sample_bytes - 1 :: layout.sample_bytes]  # little endian: the high byte comes last
    return _by_opencv(pixels, layout.convert) if layout.convert else np.ascontiguousarray(pixels)


def little_endian(data: bytes, encoding: str, height: int, step: int) -> bytes:
    """Rows whose samples have their bytes in big endian, turned; of those of a byte nothing is changed."""
    size = next((bits // 8 for bits in (16, 32, 64) if str(bits) in encoding), 1)
    if size == 1 or len(data) != height * step:
        return data
    rows = np.frombuffer(data, np.uint8).reshape(height, step).copy()
    samples = rows[:, : step // size * size]
    samples[:] = samples.reshape(height, -1, size)[..., ::-1].reshape(samples.shape)
    return rows.tobytes()


def _layout(encoding: str) -> _Layout | None:
    name = encoding.lower()
    return _LAYOUTS.get(_ALIASES.get(name, name))


def _tight(image: RawImage, layout: _Layout) -> bool:
    """Whether planes lie one after the other without padding; drivers write what they like as their `step` then."""
    return layout.planes != 1 and len(image.data) == round(image.height_px * image.width_px * layout.planes)


def _by_opencv(pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    import cv2

    try:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), getattr(cv2, f"COLOR_{name}")), np.uint8)
    except cv2.error as error:
        raise PictureError(
            f"expected pixels that OpenCV can convert by {name}, got {pixels.shape}: {error.err}"
        ) from error
