"""What rectification promises: dots on their pixels, no pixel without a source, one map a calibration, and faults by name."""

from __future__ import annotations

import re
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.calibration import CalibrationError
from sensors.camera import rectification
from sensors.camera.images import resize, scaled_intrinsics
from sensors.camera.rectification import Lens, distortion_doubt, distortion_fault, model_of, trimmed
from sensors.errors import MissingExtraError
from tests.sensors.camera.distortion import apart, center_of_dot, distorted, dots, pixels

SIZE_PX = (360, 640)
K = np.array([[420.0, 0, 325], [0, 410, 176], [0, 0, 1]])
WIDE_K = np.array([[260.0, 0, 315], [0, 262, 183], [0, 0, 1]])

# Ranges of lenses on sale, and some beyond: wide-angle barrels, tele pincushions, decentring.
pinhole = st.tuples(
    st.floats(-0.4, 0.3), st.floats(-0.1, 0.2), st.floats(-0.01, 0.01), st.floats(-0.01, 0.01), st.floats(-0.05, 0.05)
)
rational = st.tuples(
    st.floats(-0.3, 0.5), st.floats(-0.1, 0.2), st.floats(-0.005, 0.005), st.floats(-0.005, 0.005),
    st.floats(-0.02, 0.02), st.floats(-0.2, 0.6), st.floats(0, 0.2), st.floats(0, 0.02),
)  # fmt: skip
fisheye = st.tuples(st.floats(-0.08, 0.08), st.floats(-0.02, 0.02), st.floats(-0.01, 0.01), st.floats(-0.004, 0.004))
lenses = st.one_of(
    st.tuples(st.just("plumb_bob"), pinhole, st.just(K)),
    st.tuples(st.just("rational_polynomial"), rational, st.just(K)),
    st.tuples(st.sampled_from(["equidistant", "fisheye", "kannala_brandt"]), fisheye, st.just(WIDE_K)),
).filter(lambda made: np.any(made[1]))


def made(model: str, coefficients: Any, matrix: Any = K, size_px: tuple[int, int] = SIZE_PX) -> Lens:
    lens = Lens.of(model, coefficients, matrix, size_px)
    assert lens is not None
    return lens


def rays_of(lens: Lens, scale: float, size_px: tuple[int, int]) -> np.ndarray[Any, Any]:
    """[P, 2] the rays of every pixel of a rectified picture."""
    matrix = scaled_intrinsics(lens.intrinsics, scale, scale)
    columns, rows = np.meshgrid(np.arange(size_px[1]), np.arange(size_px[0]))
    flat = np.stack([columns.ravel(), rows.ravel()], axis=1)
    return (flat - matrix[:2, 2]) / matrix[[0, 1], [0, 1]]


@given(lens=lenses, scale=st.sampled_from([1.0, 0.5, 0.25, 0.125]))
@settings(max_examples=15, deadline=None)
def test_every_pixel_of_the_rectified_picture_has_one_in_the_source(lens: Any, scale: float) -> None:
    model, coefficients, matrix = lens
    rectified = made(model, coefficients, matrix)
    height, width = SIZE_PX
    source = np.zeros((round(height * scale), round(width * scale), 3), np.uint8)
    image, intrinsics = rectified.rectify(source, scale)
    assert image.shape[0] <= source.shape[0]
    assert image.shape[1] <= source.shape[1]
    np.testing.assert_allclose(intrinsics, scaled_intrinsics(rectified.intrinsics, scale, scale))
    rays = rays_of(rectified, scale, (image.shape[0], image.shape[1]))
    u, v = pixels(matrix, distorted(model, trimmed(model, coefficients), rays)).T
    assert u.min() > -0.01
    assert u.max() < width - 0.99
    assert v.min() > -0.01
    assert v.max() < height - 0.99
    # Nowhere does the lens turn back on the way out: a pixel of the source is shown once.
    towards = np.linspace(0, 1, 60)[:, None, None] * rays[:: max(1, len(rays) // 300)]
    bent = distorted(model, trimmed(model, coefficients), towards.reshape(-1, 2)).reshape(towards.shape)
    assert (np.diff(np.linalg.norm(bent, axis=-1), axis=0) > -1e-9).all()


@given(lens=lenses, reduction=st.sampled_from([1, 2]))
@settings(max_examples=12, deadline=None)
def test_a_dot_comes_to_lie_where_the_rectified_intrinsics_say(lens: Any, reduction: int) -> None:
    model, coefficients, matrix = lens
    rectified = made(model, coefficients, matrix)
    height, width = rectified.rectified_size_px
    columns, rows = np.meshgrid(np.linspace(20.3, width - 20.7, 7), np.linspace(20.6, height - 20.4, 5))
    wanted = np.stack([columns.ravel(), rows.ravel()], axis=1)
    rays = (wanted - rectified.intrinsics[:2, 2]) / rectified.intrinsics[[0, 1], [0, 1]]
    shown = pixels(matrix, distorted(model, trimmed(model, coefficients), rays))
    chosen = apart(shown, 25)
    source = resize(dots(SIZE_PX, shown[chosen]), (SIZE_PX[0] // reduction, SIZE_PX[1] // reduction))
    image, intrinsics = rectified.rectify(source, 1 / reduction)
    places = pixels(intrinsics, rays[chosen])
    found = np.array([center_of_dot(image, place, 8 // reduction) for place in places])
    assert len(found) > 5
    assert np.linalg.norm(found - places, axis=1).max() < 0.6


def test_skew_counts_though_opencv_leaves_it_out() -> None:
    skewed = K + np.array([[0, 15.0, 0], [0, 0, 0], [0, 0, 0]])
    lens = made("plumb_bob", [-0.2, 0.05, 0, 0], skewed)
    ray = np.array([[0.2, 0.3]])
    source = dots(SIZE_PX, pixels(skewed, distorted("plumb_bob", [-0.2, 0.05, 0, 0], ray)))
    image, intrinsics = lens.rectify(source)
    assert np.linalg.norm(center_of_dot(image, pixels(intrinsics, ray)[0], 8) - pixels(intrinsics, ray)[0]) < 0.2


@pytest.mark.parametrize(("model", "counts"), rectification.MODELS.items())
def test_maps_and_projection_agree_for_every_model_and_number_of_coefficients(
    model: str, counts: tuple[int, ...]
) -> None:
    values = [-0.05, 0.01, 0.002, -0.001, 0.003, -0.04, 0.01, 0.001, 0.001, -0.001, 0.002, 0.001, 0.01, -0.02]
    for count in counts:
        lens = made(model, values[:count], WIDE_K)
        places, shares = rectification._maps(lens, 1.0)
        u, v = cv2.convertMaps(places, shares, cv2.CV_32FC1)
        rays = rays_of(lens, 1.0, lens.rectified_size_px)
        shown = pixels(WIDE_K, rectification._distorted(lens, rays[None])[0])
        np.testing.assert_allclose(np.stack([u.ravel(), v.ravel()], axis=1), shown, atol=0.05)  # 1/32 px of fixed point
        assert shown.min() > -0.01
        assert (shown.max(axis=0) < np.array([SIZE_PX[1], SIZE_PX[0]]) - 0.99).all()


@given(model=st.sampled_from(sorted(rectification.MODELS)), count=st.integers(0, 16))
def test_without_distortion_there_is_no_lens(model: str, count: int) -> None:
    assert Lens.of(model, np.zeros(count), K, SIZE_PX) is None
    assert Lens.of("whatever", [], K, SIZE_PX) is None


def test_zeros_that_drivers_fill_up_with_say_nothing() -> None:
    assert made("equidistant", [0.01, 0, 0, 0, 0]) == made("equidistant", [0.01, 0, 0, 0])
    assert made("plumb_bob", [0.1, 0, 0, 0, *[0] * 9]) == made("plumb_bob", [0.1, 0, 0, 0])
    np.testing.assert_array_equal(trimmed("rational_polynomial", [0.1] * 5 + [0] * 9), [0.1] * 5 + [0] * 3)


@pytest.mark.parametrize(
    ("model", "coefficients", "words"),
    [
        ("thin_prism", [0.1] * 4, "expected one of the distortion models plumb_bob, .*, got 'thin_prism'"),
        ("", [0.1] * 6, "expected 8 or 12 or 14 distortion coefficients of rational_polynomial, got 6"),
        ("plumb_bob", [0.1] * 3, "expected 4 or 5 distortion coefficients of plumb_bob, got 3"),
        ("plumb_bob", [0.1] * 8, "expected 4 or 5 distortion coefficients of plumb_bob, got 8"),
        ("rational_polynomial", [0.1] * 5, "expected 8 or 12 or 14 .* got 5"),
        ("equidistant", [0.1] * 5, "expected 4 distortion coefficients of equidistant, got 5"),
        ("plumb_bob", [0.1, float("nan"), 0, 0], "expected finite"),
        (
            "plumb_bob",
            [-90.0, 0, 0, 0],
            r"a quarter .* got \d+ x \d+ of 640 x 360 px .*camera_distortion.*camera_intrinsic",
        ),
    ],
)
def test_coefficients_that_cannot_be_are_refused_by_name(model: str, coefficients: list[float], words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        Lens.of(model, coefficients, K, SIZE_PX)


@pytest.mark.parametrize(
    ("matrix", "size_px", "words"),
    [
        (np.eye(2), SIZE_PX, "3 x 3"),
        (K * [[-1], [1], [1]], SIZE_PX, "positive focal lengths"),
        ([[420, 0, 1325], [0, 410, 176], [0, 0, 1]], SIZE_PX, "a quarter"),  # the axis passes beside the picture
        (K, (0, 0), "1 to 32767 px a side, got 0 x 0"),
        (K, (40_000, 10), "1 to 32767 px a side"),
    ],
)
def test_cameras_that_cannot_be_are_refused(matrix: Any, size_px: tuple[int, int], words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        Lens.of("plumb_bob", [-0.1, 0, 0, 0], matrix, size_px)


@given(
    st.sampled_from(["plumb_bob", "rational_polynomial", "equidistant", "odd"]),
    st.sampled_from([1, 4, 5, 8, 12, 14, 16]).flatmap(lambda n: st.lists(st.floats(), min_size=n, max_size=n)),
)
@settings(max_examples=30, deadline=None)
def test_whatever_the_numbers_there_is_a_lens_none_or_one_clear_error(model: str, coefficients: list[float]) -> None:
    lens, text = None, None
    try:
        lens = Lens.of(model, coefficients, K, SIZE_PX)
    except CalibrationError as error:
        text = str(error)
    assert text is None or re.fullmatch("expected .*, got .*", text)  # one line
    assert (text is not None) or distortion_fault(model, coefficients) is None
    assert lens is None or np.isfinite(lens.intrinsics).all()


def test_the_models_of_a_list_alone_are_opencvs_by_its_length() -> None:
    assert [model_of(" ", [0.1] * count) for count in (4, 5, 8, 12, 14)] == ["plumb_bob"] * 2 + [
        "rational_polynomial"
    ] * 3


@pytest.mark.parametrize("model", ["PLUMB_BOB", " Plumb_Bob", "plumb_bob\n", ""])
def test_a_models_name_may_be_of_any_case_and_have_spaces_around(model: str) -> None:
    assert Lens.of(model, [-0.1, 0, 0, 0], K, SIZE_PX) == Lens.of("plumb_bob", [-0.1, 0, 0, 0], K, SIZE_PX)
    assert distortion_fault(model, [-0.1, 0, 0, 0]) is None


@pytest.mark.parametrize(
    ("model", "doubted"),
    [("", False), (" ", False), ("Plumb_Bob", False), ("Fisheye ", True), ("equidistant", True), ("ocam", True)],
)
def test_what_may_be_a_lens_though_its_coefficients_are_all_0_is_doubted(model: str, doubted: bool) -> None:
    assert bool(distortion_doubt(model, [0] * 4)) == bool(distortion_doubt(model, [])) == doubted
    assert distortion_doubt(model, [0.1, 0, 0, 0]) is None


def test_maps_are_made_once_for_a_calibration_and_a_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = 0
    real = cv2.initUndistortRectifyMap

    def counted(*args: Any) -> Any:
        nonlocal maps
        maps += 1
        return real(*args)

    monkeypatch.setattr(cv2, "initUndistortRectifyMap", counted)
    image = np.zeros((*SIZE_PX, 3), np.uint8)
    for _ in range(5):
        made("plumb_bob", [-0.123, 0.01, 0, 0, 0.001]).rectify(image)  # a new, equal lens each time
        made("plumb_bob", [-0.123, 0.01, 0, 0, 0.002]).rectify(image)
        made("plumb_bob", [-0.123, 0.01, 0, 0, 0.001]).rectify(image[::2, ::2], 0.5)
    assert maps == 3


def test_a_picture_that_may_not_be_written_to_is_rectified(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.frombuffer(bytes(SIZE_PX[0] * SIZE_PX[1] * 3), np.uint8).reshape(*SIZE_PX, 3)
    assert made("plumb_bob", [-0.1, 0, 0, 0]).rectify(image)[0].dtype == np.uint8


def test_without_opencv_the_extra_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensors.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"rectifying .* needs cv2.*robustbev\[replay\]"):
        Lens.of("plumb_bob", [-0.31, 0, 0, 0], K, SIZE_PX)
    assert Lens.of("plumb_bob", [0, 0, 0, 0], K, SIZE_PX) is None
