"""Pictures' files become RGB, or one error of ours: whatever the bytes, nothing dies and nothing large is made of little."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sensors.camera.images import DecodeSize
from sensors.camera.picture_files import check_whole, decode_file, file_size_px, read_picture
from sensors.errors import PictureError, SensorDataError

H, W = 36, 64
RGB = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
SMALL_PX = 1_000_000
# A PNG with an animation whose first frame does not fit: it ends cv2.imdecode of OpenCV 4.11 in a segmentation fault.
ANIMATED = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000040000000240802000000b66eabc5000000086163544c0000000200000000f3"
    "8d93700000001a6663544c00000000ffffffff000000010000000000000000000100010000d61e1176000000434944415478"
    "9cedcf310d00300cc0b0521b7f5205b1c3aa142348e61d373ae057035a035a035a035a035a035a035a035a035a035a035a03"
    "5a035a035a035a035a03da0274e7db5b1f44dc970000000049454e44ae426082"
)


def saved(pixels: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def summed_up(data: bytes) -> bytes:
    """A PNG with right checksums, so that what is wrong in it reaches the decoder."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        out += chunk(data[at + 4 : at + 8], data[at + 8 : end - 4])
        at = end
    return out + data[at:]


def modes(picture: Image.Image) -> list[bytes]:
    return [saved(picture.convert(mode), "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1")]


FILES = [
    *modes(Image.fromarray(RGB)), saved(RGB[..., 0].astype(np.uint16) * 257, "PNG"), ANIMATED,
    saved(RGB, "WEBP", lossless=True), saved(RGB, "WEBP"),
    saved(RGB, "WEBP", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
    simplejpeg.encode_jpeg(RGB), saved(RGB, "JPEG", progressive=True), saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(7))
def test_a_png_of_any_kind_comes_back_exactly(number: int) -> None:
    image, scale = decode_file(FILES[number])
    expected = (
        np.asarray(Image.open(io.BytesIO(modes(Image.fromarray(RGB))[number])).convert("RGB"))
        if number < 6
        else RGB[..., [0] * 3]
    )
    np.testing.assert_array_equal(image, expected)
    assert (scale, file_size_px(FILES[number])) == (1.0, (H, W))


@pytest.mark.parametrize("films", [False, True])
def test_a_webp_comes_back_exactly_and_of_a_film_the_first_picture(films: bool) -> None:
    more = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]} if films else {}
    data = saved(RGB, "WEBP", lossless=True, **more)
    np.testing.assert_array_equal(decode_file(data)[0], RGB)
    assert file_size_px(data) == (H, W)
    lossy = saved(np.full((H, W, 3), (200, 120, 40), np.uint8), "WEBP")
    assert np.abs(decode_file(lossy)[0].astype(int) - (200, 120, 40)).max() <= 4


def test_a_jpeg_is_simplejpegs_to_the_bit() -> None:
    """Golden outputs rest on it."""
    data = simplejpeg.encode_jpeg(RGB, quality=90)
    np.testing.assert_array_equal(decode_file(data)[0], simplejpeg.decode_jpeg(data, "RGB", fastupsample=True))
    image, scale = decode_file(data, DecodeSize(H // 2, W // 2))
    assert (image.shape, scale) == ((H // 2, W // 2, 3), 0.5)


def test_an_animation_in_a_png_never_reaches_the_decoder() -> None:
    """Run apart, because the fault ended the process."""
    decode = f"decode_file(bytes.fromhex({ANIMATED.hex()!r}))"
    code = f"from sensors.camera.picture_files import decode_file; print({decode}[0].shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"({H}, {W}, 3)\n"), done.stderr


def test_text_and_profiles_in_a_png_are_left_out() -> None:
    data = saved(RGB, "PNG")
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10_000_000)))
    np.testing.assert_array_equal(decode_file(data[:33] + bomb + data[33:])[0], RGB)


def claims(height: int, width: int) -> bytes:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_of_many_scans() -> bytes:
    data = saved(RGB, "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 200 + b"\xff\xd9"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (claims(30_000, 40_000), "at most 67,108,864 px, got one that claims 40000 x 30000"),
        (claims(0, 64), "claims 64 x 0"),
        (claims(H, W), "a whole PNG"),
        (saved(RGB, "PNG")[:-300], "a whole PNG, got .* without its end"),
        (saved(RGB, "PNG")[:20], "PNG that begins with its header, got 20 bytes"),
        (saved(RGB, "PNG").replace(b"IDAT", b"IDAT\xff", 1)[:-1], "PNG"),
        (saved(RGB, "WEBP")[:-300], "a whole WebP"),
        (saved(RGB, "WEBP")[:20], "WebP that begins with its size"),
        (b"RIFF1234WEBPVP8X" + bytes(8) + b"\xff" * 6, "claims 16777216 x 16777216"),
        (simplejpeg.encode_jpeg(RGB)[:-300], "a whole JPEG"),
        (jpeg_of_many_scans(), "at most 100 scans, got 2.."),
        (saved(RGB, "AVIF"), "begin with 00 00 00 .*: AVIF, whose size cannot be known"),
        (saved(RGB, "TIFF"), "expected a JPEG, PNG or WebP, got .* begin with 49 49 2a 00"),
        (saved(RGB, "GIF"), "begin with 47 49 46 38"),
        (saved(RGB, "BMP"), "begin with 42 4d"),
        (b"", "0 bytes that begin with nothing"),
    ],
)
def test_what_is_no_picture_is_said_to_be_none(data: bytes, says: str) -> None:
    with pytest.raises(PictureError, match=says) as error:
        decode_file(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_another_size_than_the_tables_is_refused_before_anything_is_decoded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(saved(np.zeros((2000, 3000, 3), np.uint8), kind))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(SensorDataError, match="expected 64 x 36 px as its row in sample_data says, got 3000 x 2000 px"):
        read_picture(path, sensor="CAM_FRONT", token="t", size_px=(H, W))


def test_whatever_a_decoder_raises_is_our_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable\nto allocate")

    monkeypatch.setattr(cv2, "imdecode", fails)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", fails)
    for data in (FILES[0], FILES[8], FILES[11]):
        with pytest.raises(PictureError, match="the decoder says: Unable to allocate"):
            decode_file(data)


def tried(data: bytes) -> None:
    """Decode what may be no picture; only our own error is let pass."""
    with contextlib.suppress(PictureError):
        height, width = file_size_px(data)
        if height * width <= SMALL_PX:  # larger ones are refused by their calibration
            assert decode_file(data)[0].shape == (height, width, 3)
    with contextlib.suppress(PictureError):
        check_whole(data)


@settings(deadline=5000)
@given(
    st.sampled_from(
        [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"RIFF\x20\0\0\0WEBPVP8X"]
    ),
    st.binary(max_size=200),
)
def test_random_bytes_are_no_picture(begin: bytes, data: bytes) -> None:
    tried(begin + data)


edits = st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=6), st.integers(0, 6)), min_size=1, max_size=6)


@settings(deadline=5000, max_examples=300)
@given(st.sampled_from(FILES), edits, st.booleans())
@example(FILES[7], [(4000, b"", 0)], False)
def test_an_edited_picture_is_a_picture_or_a_reason(
    data: bytes, changes: list[tuple[int, bytes, int]], right_sums: bool
) -> None:
    for at, new, cut in changes:
        at %= len(data) + 1
        data = data[:at] + new + data[at + cut :]
    tried(summed_up(data) if right_sums and data[:4] == b"\x89PNG" else data)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_a_data_sets_picture_is_read_by_what_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(saved(RGB, kind))
    image, scale = read_picture(path, sensor="CAM_FRONT", token="t", size_px=(H, W))
    assert (image.shape, scale) == ((H, W, 3), 1.0)
    if kind == "PNG":
        np.testing.assert_array_equal(image, RGB)
    path.write_bytes(saved(RGB, kind)[:-100])
    with pytest.raises(SensorDataError, match=r"expected a whole JPEG, PNG or WebP, got .*Copy the file again"):
        read_picture(path, sensor="CAM_FRONT", token="t", size_px=(0, 0))
