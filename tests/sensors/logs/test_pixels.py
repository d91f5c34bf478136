"""Raw pixels of every layout that ROS and Foxglove name become the same RGB; what does not fit is said by name."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.errors import PictureError
from sensors.logs.messages import RawImage
from sensors.logs.pixels import ENCODINGS, decode_raw, little_endian, rows_fault, unknown_encoding

H, W = 24, 40
RGB = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
COLOUR = (200, 120, 40)
# COLOUR by BT.601 in video range: 16 + .257 R + .504 G + .098 B; 128 - .148 R - .291 G + .439 B; 128 + .439 R - .368 G - .071 B.
Y, U, V = 132, 81, 169


def raw(encoding: str, pixels: Any, padding: int = 0) -> RawImage:
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(H, -1)
    rows = np.hstack([rows, np.full((H, padding), 7, np.uint8)])
    return RawImage(0, "cam", encoding, H, W, rows.shape[1], rows.tobytes())


def deep(pixels: Any) -> Any:
    """As numbers of 16 bits in little endian, with noise in the low byte."""
    return pixels.astype("<u2") * 256 + np.random.default_rng(1).integers(0, 256, pixels.shape)


@pytest.mark.parametrize("padding", [0, 8])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("name", "alias", "pixels"),
    [
        ("rgb", "rgb{}", RGB),
        ("bgr", "{}UC3", RGB[..., ::-1]),
        ("rgba", "rgba{}", np.dstack([RGB, RGB[..., 0]])),
        ("bgra", "{}UC4", np.dstack([RGB[..., ::-1], RGB[..., 0]])),
    ],
)
def test_every_layout_gives_the_same_rgb(name: str, alias: str, pixels: Any, bits: int, padding: int) -> None:
    pixels = deep(pixels).astype("<u2") if bits == 16 else pixels
    for encoding in (f"{name}{bits}", alias.format(bits)):
        np.testing.assert_array_equal(decode_raw(raw(encoding, pixels, padding)), RGB)


@pytest.mark.parametrize("encoding", ["mono8", "8UC1", "mono16", "16UC1"])
def test_grey_is_grey_in_all_three(encoding: str) -> None:
    grey = deep(RGB[..., 0]).astype("<u2") if "16" in encoding else RGB[..., 0]
    np.testing.assert_array_equal(decode_raw(raw(encoding, grey)), np.repeat(RGB[..., :1], 3, axis=2))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_bayer_mosaic_of_one_colour_is_that_colour(pattern: str, bits: int) -> None:
    tile = np.array([COLOUR["rgb".index(letter)] for letter in pattern], np.uint8).reshape(2, 2)
    mosaic = np.tile(tile, (H // 2, W // 2))
    image = decode_raw(raw(f"bayer_{pattern}{bits}", deep(mosaic).astype("<u2") if bits == 16 else mosaic))
    np.testing.assert_array_equal(image[4:-4, 4:-4], np.broadcast_to(COLOUR, (H - 8, W - 8, 3)))


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize(
    ("encodings", "grey", "colours"),
    [
        (("uyvy", "yuv422"), None, [U, Y, V, Y]),
        (("yuyv", "yuv422_yuy2", "yuy2"), None, [Y, U, Y, V]),
        (("nv12",), (H, W), [U, V]),
        (("nv21",), (H, W), [V, U]),
    ],
)
def test_yuv_is_the_colour_that_the_standard_says(
    encodings: tuple[str, ...], grey: tuple[int, int] | None, colours: list[int], padding: int
) -> None:
    for encoding in encodings:
        if grey is None:
            payload = raw(encoding, np.tile(np.array(colours, np.uint8), (H, W // 2)), padding)
        else:
            planes = np.vstack([np.full(grey, Y, np.uint8), np.tile(np.array(colours, np.uint8), (H // 2, W // 2))])
            planes = np.pad(planes, [(0, 0), (0, padding)])
            payload = RawImage(0, "cam", encoding, H, W, W + padding, planes.tobytes())
        assert rows_fault(payload) == ""
        assert np.abs(decode_raw(payload).astype(int) - COLOUR).max() <= 2, encoding


def test_colours_stand_beside_their_own_pixels() -> None:
    """A picture with a red left and a blue right half, by OpenCV's own way into YUV and back by each layout."""
    picture = np.zeros((H, W, 3), np.uint8)
    picture[:, : W // 2, 0], picture[:, W // 2 :, 2] = 255, 255
    planes = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)
    grey, chroma = planes[:H], planes[H:].reshape(2, H // 2, W // 2)
    pairs = np.stack([chroma[0], chroma[1]], axis=2)
    full = pairs.repeat(2, axis=0)
    packed = np.stack([full[..., 0], grey[:, ::2], full[..., 1], grey[:, 1::2]], axis=2)
    for encoding, data in {
        "nv12": grey.tobytes() + pairs.tobytes(), "nv21": grey.tobytes() + pairs[..., ::-1].tobytes(),
        "uyvy": packed.tobytes(), "yuyv": packed[..., [1, 0, 3, 2]].tobytes(),
    }.items():  # fmt: skip
        step = 2 * W if encoding in ("uyvy", "yuyv") else W
        image = decode_raw(RawImage(0, "cam", encoding, H, W, step, data))
        assert np.abs(image.astype(int) - picture).max() <= 4, encoding


def test_planes_without_padding_are_read_whatever_their_step_says() -> None:
    """cv_bridge wants height x step bytes, so drivers write a step of one and a half rows."""
    data = bytes([Y]) * (H * W) + bytes([U, V]) * (H * W // 4)
    images = [decode_raw(RawImage(0, "cam", "nv12", H, W, step, data)) for step in (W, W * 3 // 2, 2 * W)]
    assert all((image == images[0]).all() for image in images)


@pytest.mark.parametrize("encoding", ["mono16", "rgb16", "16UC1", "bayer_rggb16", "32FC1", "mono8"])
@pytest.mark.parametrize("step", [24, 27])
def test_big_endian_is_turned_within_its_rows(encoding: str, step: int) -> None:
    size = 4 if "32" in encoding else 2 if "16" in encoding else 1
    rows = np.random.default_rng(2).integers(0, 256, (3, step), np.uint8)
    turned = np.frombuffer(little_endian(rows.tobytes(), encoding, 3, step), np.uint8).reshape(3, step)
    length = step // size * size
    expected = np.ascontiguousarray(rows[:, :length]).view(f">u{size}").astype(f"<u{size}").view(np.uint8)
    np.testing.assert_array_equal(turned[:, :length], expected)
    np.testing.assert_array_equal(turned[:, length:], rows[:, length:])


@pytest.mark.parametrize(
    ("encoding", "size", "step", "count", "says"),
    [
        ("nv12", (35, 64), 64, 64 * 54, "even height and width for nv12, got 64 x 35"),
        ("nv21", (36, 63), 63, 63 * 54, "even height and width"),
        ("yuv422", (36, 63), 128, 36 * 128, "even width for yuv422, got 63 x 36"),
        ("nv12", (36, 64), 64, 36 * 64, r"54 rows of 64 bytes \(3456\), got 2304"),
        ("mono16", (36, 64), 64, 36 * 64, "rows of at least 128 bytes for 64 x 36 px of mono16, got rows of 64 bytes"),
        ("bayer_rggb16", (4, 4), 8, 31, r"4 rows of 8 bytes \(32\), got 31"),
        ("rgb8", (4, 4), 12, 49, r"4 rows of 12 bytes \(48\), got 49"),
        ("rgb8", (0, 4), 12, 0, "expected a picture, got 4 x 0 px"),
        ("rgb8", (4, 4), 12, 0, "expected a picture, .* 0 bytes"),
        ("32FC1", (4, 4), 16, 64, "expected a known layout of pixels, got '32FC1'. Record .* mono8, rgb8"),
        ("x" * 9999, (4, 4), 16, 64, "got 'x{40}'"),
    ],
)
def test_what_does_not_fit_is_said_with_its_numbers(
    encoding: str, size: tuple[int, int], step: int, count: int, says: str
) -> None:
    with pytest.raises(PictureError, match=says) as error:
        decode_raw(RawImage(0, "cam", encoding, *size, step, bytes(count)))
    assert "\n" not in str(error.value)


@settings(deadline=2000)
@given(
    encoding=st.sampled_from([*ENCODINGS, "32FC1", "yuv444", ""]), height=st.integers(-1, 9), width=st.integers(-1, 9),
    step=st.integers(-1, 60), rows=st.integers(0, 30), more=st.integers(-1, 1),
)  # fmt: skip
def test_any_size_and_amount_of_bytes_is_a_picture_or_a_reason(
    encoding: str, height: int, width: int, step: int, rows: int, more: int
) -> None:
    image = RawImage(0, "cam", encoding, height, width, step, bytes(max(0, rows * step + more)))
    try:
        decoded = decode_raw(image)
    except PictureError:
        return
    assert decoded.shape == (height, width, 3)
    assert decoded.dtype == np.uint8
    assert not rows_fault(image)
    assert not unknown_encoding(encoding)
