"""Payloads become pictures, intrinsics and points; what cannot is said by name."""

from __future__ import annotations

import sys
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sensors.camera.images import DecodeSize
from sensors.errors import SensorDataError
from sensors.logs.messages import CameraInfo, EncodedImage, PointCloud, RawImage
from sensors.replay.readings import (
    decode_picture,
    frame_T_camera,
    lidar_points,
    picture_size_px,
    radar_points,
    rectified_intrinsics,
)

H, W = 24, 40
RGB = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)


def raw(encoding: str, pixels: Any, padding: int = 0) -> RawImage:
    rows = pixels.reshape(H, -1)
    rows = np.hstack([rows, np.full((H, padding), 7, np.uint8)])
    return RawImage(0, "cam", encoding, H, W, rows.shape[1], rows.tobytes())


def smooth() -> np.ndarray[Any, np.dtype[np.uint8]]:
    across = np.linspace(0, 255, 640)
    return np.stack(np.broadcast_arrays(across[None], 255 - across[None], across[:480, None]), axis=2).astype(np.uint8)


def test_raw_pixels_come_back_exactly() -> None:
    payload = raw("bgr8", RGB[..., ::-1], padding=8)
    np.testing.assert_array_equal(decode_picture(payload).image, RGB)
    assert picture_size_px(payload) == (H, W)


def test_a_png_comes_back_exactly() -> None:
    data = cv2.imencode(".png", RGB[..., ::-1])[1].tobytes()
    payload = EncodedImage(0, "cam", "png", data)
    np.testing.assert_array_equal(decode_picture(payload).image, RGB)
    assert picture_size_px(payload) == (H, W)


@pytest.mark.parametrize(("decode", "scale"), [(None, 1.0), (DecodeSize(120, 160), 0.25), (DecodeSize(480, 640), 1.0)])
def test_a_jpeg_comes_at_the_scale_that_is_asked_for(decode: DecodeSize | None, scale: float) -> None:
    payload = EncodedImage(0, "cam", "rgb8; jpeg compressed bgr8", simplejpeg.encode_jpeg(smooth(), quality=95))
    picture = decode_picture(payload, decode)
    assert picture.scale == scale
    assert picture.image.shape == (int(480 * scale), int(640 * scale), 3)
    assert picture_size_px(payload) == (480, 640)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (EncodedImage(0, "cam", "jpeg", b""), "0 bytes"),
        (EncodedImage(0, "cam", "webp", b"RIFF1234WEBP"), "'webp'"),
        (EncodedImage(0, "cam", "jpeg", simplejpeg.encode_jpeg(smooth())[:900]), "900 bytes"),
        (EncodedImage(0, "cam", "png", b"\x89PNG\r\n\x1a\n" + bytes(40)), "PNG"),
        (EncodedImage(0, "cam", "h264", bytes(9)), "9 bytes that begin with 00 00 00 00; the log calls it 'h264'"),
        (raw("32FC1", RGB), "'32FC1'"),
        (RawImage(0, "cam", "rgb8", H, W, 3 * W, b"1234"), "got 4$"),
        (RawImage(0, "cam", "rgb8", H, W, 10, bytes(9999)), "rows of 10 bytes"),
        (RawImage(0, "cam", "rgb8", 0, 0, 0, b""), "0 x 0"),
    ],
)
def test_what_is_no_picture_is_said_to_be_none(payload: EncodedImage | RawImage, says: str) -> None:
    with pytest.raises(SensorDataError, match=says) as error:
        decode_picture(payload)
    assert "\n" not in str(error.value)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = cv2.imencode(".png", RGB)[1].tobytes()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"the library cv2, .*pip install 'robustbev\[replay\]'"):
        decode_picture(EncodedImage(0, "cam", "png", data))


focal = st.floats(100, 2000)
angle = st.floats(-0.2, 0.2)


@given(focal, focal, st.tuples(angle, angle, angle), st.tuples(*[st.floats(-0.5, 0.5)] * 3), st.integers(0, 2**31))
def test_points_project_as_camera_info_says(
    fx: float, fy: float, turn: tuple[float, ...], baseline: tuple[float, ...], seed: int
) -> None:
    K = np.array([[fx, 0, 640.0], [0, fy, 190.0], [0, 0, 1]])
    R = Rotation.from_rotvec(turn).as_matrix()
    P = np.hstack([K, (K @ baseline)[:, None]])
    info = CameraInfo(0, "cam", 1280, 380, "plumb_bob", np.zeros(5), K, R, P)
    X = np.random.default_rng(seed).uniform([-5, -5, 4], [5, 5, 40], (20, 3))
    theirs = (P @ np.vstack([R @ X.T, np.ones(20)])).T
    camera_T_frame = np.linalg.inv(frame_T_camera(info))
    ours = (X @ camera_T_frame[:3, :3].T + camera_T_frame[:3, 3]) @ rectified_intrinsics(info).T
    np.testing.assert_allclose(ours[:, :2] / ours[:, 2:], theirs[:, :2] / theirs[:, 2:], atol=1e-6)


def test_without_p_the_intrinsics_are_k() -> None:
    K = np.array([[50.0, 0, 32], [0, 50, 18], [0, 0, 1]])
    info = CameraInfo(0, "cam", 64, 36, "", np.zeros(0), K, np.zeros((3, 3)), np.zeros((3, 4)))
    np.testing.assert_array_equal(rectified_intrinsics(info), K)
    np.testing.assert_array_equal(frame_T_camera(info), np.eye(4))


def cloud(columns: dict[str, Any], count: int = 3) -> PointCloud:
    dtype = np.dtype([(name, np.asarray(column).dtype) for name, column in columns.items()])
    points = np.zeros(count, dtype)
    for name, column in columns.items():
        points[name] = column
    return PointCloud(0, "lidar", points)


def test_lidar_fields_of_any_type_and_name() -> None:
    xyz: dict[str, Any] = {name: np.float64(n) for n, name in enumerate(("x", "y", "z"), 1)}
    points, doubts = lidar_points(cloud(xyz | {"intensity": np.uint16(7), "ring": np.uint8(3)}), {}, 1.0)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, np.tile([1, 2, 3, 7, 3], (3, 1)))
    assert doubts == ()
    points, _ = lidar_points(cloud(xyz | {"i": np.float32(0.5)}), {"intensity": "i"}, 255.0)
    np.testing.assert_array_equal(points[0], [1, 2, 3, 127.5, -1])
    points, doubts = lidar_points(cloud(xyz), {}, 255.0)
    np.testing.assert_array_equal(points[0], [1, 2, 3, 0, -1])
    assert "no intensity" in doubts[0]


def test_an_empty_cloud_can_be_read() -> None:
    points, _ = lidar_points(cloud(dict.fromkeys("xyz", np.float32(0)), 0), {}, 1.0)
    assert points.shape == (0, 5)


def test_points_may_be_nan() -> None:
    """What can be used of them is said where frames are prepared, for every source alike."""
    some = cloud(dict.fromkeys("xyz", np.array([np.nan, 1, 2], np.float32)))
    assert np.isnan(lidar_points(some, {}, 1.0)[0][0, 0])


@pytest.mark.parametrize("lacking", ["x", "y", "rcs", "vx_comp", "vy_comp"])
def test_a_radar_without_what_it_must_have_lists_the_fields_that_it_has(lacking: str) -> None:
    fields = {name: np.float32(1) for name in ("x", "y", "z", "rcs", "vx_comp", "vy_comp") if name != lacking}
    with pytest.raises(SensorDataError, match=f"got {', '.join(fields)}: no {lacking}"):
        radar_points(cloud(fields), {})
    with pytest.raises(SensorDataError, match="range_rate"):
        radar_points(cloud(fields), {lacking: "range_rate"})


def test_a_flat_radar_has_height_0() -> None:
    fields = {name: np.float32(2) for name in ("x", "y", "rcs", "vx", "vy_comp")}
    points = radar_points(cloud(fields), {"vx_comp": "vx"})
    np.testing.assert_array_equal(points[0], [2, 2, 0, 2, 2, 2])
