"""Bytes of a picture's file to RGB: JPEG by simplejpeg, PNG and WebP by OpenCV, their sizes read before anything is decoded.

What a file calls itself counts for nothing, only how it begins. AVIF is refused: its header may tell 64 x 36 px and its stream
hold 16,384 x 16,384, which libavif decodes and scales down. Of a PNG only what its pixels need reaches OpenCV, whose version 4.11
ends in a segmentation fault where a frame of an animation does not fit. Letters: H and W pixels.
"""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensors.camera.images import DecodeSize
from sensors.errors import PictureError, sensor_fault
from sensors.files import COPY_AGAIN, read_bytes

MOST_PX = 1 << 26  # 67 million: four times the largest camera of a car. More is no picture, whatever a calibration says
_MOST_SCANS = 100  # of a JPEG; each walks the whole picture, and costs a file some ten bytes
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_JPEG_END, _SCAN = b"\xff\xd9", b"\xff\xda"
_TAIL = 4096  # bytes in which a file's end is looked for: some cameras append to it
_COLOURS = {b"IHDR", b"PLTE", b"IDAT", _PNG_END}  # what pixels need; the rest (animation, text, profiles) is left out


def file_format(data: bytes) -> str:
    """One of "jpeg", "png" and "webp", by how it begins; PictureError for anything else."""
    if data.startswith(b"\xff\xd8"):
        return "jpeg"
    if data.startswith(_PNG_START):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    avif = ": AVIF, whose size cannot be known before it is decoded" if data[4:8] == b"ftyp" else ""
    begins = data[:4].hex(" ") or "nothing"
    raise PictureError(f"expected a JPEG, PNG or WebP, got {len(data)} bytes that begin with {begins}{avif}")


def check_whole(data: bytes) -> str:
    """The format of a file whose end is there; PictureError where it is not. Its pixels are whoever decodes it to judge."""
    kind = file_format(data)
    if kind == "webp":
        whole = len(data) >= 8 + int.from_bytes(data[4:8], "little")
    else:
        whole = (_JPEG_END if kind == "jpeg" else _PNG_END) in data[-_TAIL:]
    if not whole:
        name = {"jpeg": "JPEG", "png": "PNG", "webp": "WebP"}[kind]
        raise PictureError(f"expected a whole {name}, got {len(data)} bytes without its end")
    return kind


def file_size_px(data: bytes) -> tuple[int, int]:
    """(height, width) of the full picture by its header; PictureError where that makes no sense, or is more than `MOST_PX`."""
    match file_format(data):
        case "jpeg":
            height, width = _jpeg_size(data)
        case "png":
            height, width = _png_size(data)
        case _:
            height, width = _webp_size(data)
    if not 0 < height * width <= MOST_PX:
        raise PictureError(f"expected a picture of at most {MOST_PX:,} px, got one that claims {width} x {height}")
    return height, width


def decode_file(data: bytes, decode: DecodeSize | None = None) -> tuple[NDArray[np.uint8], float]:
    """RGB [H, W, 3] and its scale against the full picture: 1, or for a JPEG also 1/2, 1/4 or 1/8. The first picture of a film.

    What it takes is as large as `file_size_px` says, which is to be held against the calibration before.

    Raises:
        PictureError: no JPEG, PNG or WebP, or a truncated or damaged one.
        ImportError: simplejpeg, for JPEG, or OpenCV, for the others, is not installed.
    """
    height, width = file_size_px(data)
    kind = file_format(data)
    if kind == "jpeg":
        reduction = decode.reduction(height, width) if decode else 1
        return _jpeg(data, -(-height // reduction), -(-width // reduction)), 1 / reduction  # sizes are rounded up
    if kind == "png":
        data = _plain_png(data)
    return _by_opencv(data, "PNG" if kind == "png" else "WebP", (height, width)), 1.0


def read_picture(
    path: Path,
    *,
    sensor: str,
    token: str,
    size_px: tuple[int, int] | None = None,
    decode: DecodeSize | None = None,
) -> tuple[NDArray[np.uint8], float]:
    """RGB [H, W, 3] of a file and the scale against the full picture, as `decode_file`.

    `size_px` (H, W) is what the tables say of the picture, which the intrinsics rest on; None, or a 0 in it, skips that check.

    Raises:
        SensorDataError: missing, truncated or damaged file, none of the formats, or of another size.
    """
    data = read_bytes(path, sensor=sensor, token=token)
    fault = partial(sensor_fault, sensor=sensor, file=path, token=token)
    try:
        height, width = file_size_px(data)
        if size_px is not None and min(size_px) > 0 and (height, width) != size_px:
            raise fault(
                expected=f"{size_px[1]} x {size_px[0]} px as its row in sample_data says",
                got=f"{width} x {height} px",
                action="The intrinsics belong to the size in the table: correct width and height there, or the picture",
            )
        return decode_file(data, decode)
    except PictureError as error:
        raise fault(
            action=COPY_AGAIN, expected="a whole JPEG, PNG or WebP", got=f"{len(data)} bytes: {error}"
        ) from error


def _jpeg_size(data: bytes) -> tuple[int, int]:
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except Exception as error:
        raise _damaged("JPEG", data, error) from error
    return int(height), int(width)


def _jpeg(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    import simplejpeg

    if (scans := data.count(_SCAN)) > _MOST_SCANS:
        raise PictureError(f"expected a JPEG of at most {_MOST_SCANS} scans, got {scans}")
    try:
        image: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", fastupsample=True, min_height=height, min_width=width
        )
    except Exception as error:
        raise _damaged("JPEG", data, error) from error
    return image


def _png_size(data: bytes) -> tuple[int, int]:
    if data[8:16] != b"\0\0\0\rIHDR" or len(data) < 33:
        raise PictureError(f"expected a PNG that begins with its header, got {len(data)} bytes that go on otherwise")
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


def _webp_size(data: bytes) -> tuple[int, int]:
    kind, head = data[12:16], data[20:30]
    if len(head) == 10 and kind == b"VP8X":
        return 1 + int.from_bytes(head[7:10], "little"), 1 + int.from_bytes(head[4:7], "little")
    if len(head) == 10 and kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if len(head) == 10 and kind == b"VP8 ":
        return int.from_bytes(head[8:10], "little") & 0x3FFF, int.from_bytes(head[6:8], "little") & 0x3FFF
    raise PictureError(
        f"expected a WebP that begins with its size, got {len(data)} bytes that go on with {kind.hex(' ')}"
    )


def _plain_png(data: bytes) -> bytes:
    """The PNG without what its pixels do not need, the checksums of what is left looked at."""
    parts, at, name = [_PNG_START], len(_PNG_START), b""
    while name != _PNG_END:
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if len(name) < 4 or end > len(data):
            raise PictureError(f"expected a whole PNG, got {len(data)} bytes without its end")
        if name in _COLOURS:
            if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise PictureError(f"expected a whole PNG, got a chunk {name.decode()} whose checksum is wrong")
            parts.append(data[at:end])
        at = end
    return b"".join(parts)


def _by_opencv(data: bytes, name: str, size_px: tuple[int, int]) -> NDArray[np.uint8]:
    import cv2

    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except Exception as error:
        raise _damaged(name, data, error) from error
    if pixels is None or pixels.shape[:2] != size_px:
        raise PictureError(f"expected a whole {name}, got {len(data)} bytes that OpenCV cannot decode")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)


def _damaged(name: str, data: bytes, error: Exception) -> PictureError:
    words = " ".join(str(error).split())[:120]
    return PictureError(f"expected a whole {name}, got {len(data)} bytes, of which the decoder says: {words}")
