"""Preparing and collating: geometry stays true through cuts and augmentation, and what is absent stays absent.

Augmented geometry is checked where `training.data.augmentation` draws it, in `tests/training/data/test_augmentation.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bev.grid import BEVGrid
from bev.lift.table import DepthBins
from sensors.calibration import CalibrationError, apply, inverse_rigid, transforms
from sensors.camera.depth import depth_targets, project
from sensors.camera.images import ImageChange, fit_image
from sensors.camera.prepare import Camera
from sensors.frames import CameraImage, LidarSweep, RadarSweep, SensorFrame
from sensors.lidar.prepare import Lidar
from sensors.modality import Preparation
from sensors.points import DroppedPoints
from sensors.prepare import collate, prepare
from sensors.radar.prepare import Radar

GRID = BEVGrid(-20.0, 20.0, -20.0, 20.0, 1.0)
SIZE_PX = (64, 176)
CAMERA = Camera("camera", ("CAM_FRONT", "CAM_BACK"), SIZE_PX, 8, DepthBins(1.0, 21.0, 20))
RADAR = Radar("radar", ("RADAR_FRONT", "RADAR_BACK"))
PREPARATION = Preparation(
    grid=GRID,
    z_range_m=(-2.0, 4.0),
    modalities=(CAMERA, Lidar("lidar", ("LIDAR_TOP",)), RADAR),
    camera_channels=CAMERA.channels,
    depth_targets=True,
)
LIDAR_POSE = transforms([1.0, 0.0, 1.5, np.cos(0.1), 0.0, 0.0, np.sin(0.1)])
RADAR_POSE = transforms([3.0, 0.5, 0.5, np.cos(0.4), 0.0, 0.0, np.sin(0.4)])
CAMERA_POSE = transforms([1.5, 0.0, 1.5, 0.5, -0.5, 0.5, -0.5])  # looks ahead
INTRINSICS = np.array([[120.0, 0.0, 99.5], [0.0, 120.0, 55.0], [0.0, 0.0, 1.0]])


def camera(height: int = 120, width: int = 200) -> CameraImage:
    image = np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return CameraImage("CAM_FRONT", image, INTRINSICS, CAMERA_POSE, 1_000_000)


def lidar(points: NDArray[Any], time_us: int = 1_000_000) -> LidarSweep:
    return LidarSweep("LIDAR_TOP", points.astype(np.float32), LIDAR_POSE, time_us)


def frame(**changes: object) -> SensorFrame:
    points = np.array([[5.0, 1.0, -1.0, 51.0, 3.0], [-6.0, 2.0, 0.0, 255.0, 4.0]])
    radar = np.array([[8.0, -1.0, 0.0, 7.5, 2.0, 1.0]], np.float32)
    base = SensorFrame(
        token="t",
        time_us=1_000_000,
        cameras=(camera(), None),
        lidar=(lidar(points), lidar(points + np.array([0.5, 0, 0, 0, 0]), 900_000)),
        radar=(RadarSweep("RADAR_FRONT", radar, RADAR_POSE, 950_000),),
        global_T_reference=np.eye(4),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_sweeps_merge_into_the_reference_with_age_and_intensity() -> None:
    points = prepare(frame(), PREPARATION).items["lidar"].points
    assert points is not None
    np.testing.assert_allclose(points[0, :3], apply(LIDAR_POSE, np.array([[5.0, 1.0, -1.0]]))[0], rtol=1e-6)
    np.testing.assert_allclose(points[:, 3], [0.2, 1.0, 0.2, 1.0])
    np.testing.assert_allclose(points[:, 4], [0.0, 0.0, 0.1, 0.1], atol=1e-6)


def test_radar_velocity_turns_with_its_sensor() -> None:
    points = prepare(frame(), PREPARATION).items["radar"].points
    assert points is not None
    turn = 0.8
    expected = [2 * np.cos(turn) - np.sin(turn), 2 * np.sin(turn) + np.cos(turn)]
    np.testing.assert_allclose(points[0, 4:6], expected, rtol=1e-6)
    np.testing.assert_allclose(points[0, [3, 6]], [7.5, 0.05], rtol=1e-5)


def test_points_that_are_no_points_are_dropped_and_counted() -> None:
    points = np.array([
        [5.0, 0.0, 0.0, 1.0, 0.0],
        [np.nan, 0.0, 0.0, 1.0, 0.0],
        [5.0, np.inf, 0.0, 1.0, 0.0],
        [0.3, 0.4, 0.0, 1.0, 0.0],  # on the vehicle
        [500.0, 0.0, 0.0, 1.0, 0.0],
        [5.0, 0.0, 30.0, 1.0, 0.0],
    ])  # fmt: skip
    radar = np.array([[np.nan] * 6, [500.0, 0.0, 0.0, 1.0, 0.0, 0.0], [5.0, 0.0, 7.0, 1.0, 0.0, 0.0]], np.float32)
    sweep = RadarSweep("RADAR_FRONT", radar, RADAR_POSE, 1_000_000)
    prepared = prepare(frame(lidar=(lidar(points),), radar=(sweep,)), PREPARATION)
    assert prepared.items["lidar"] is not None
    assert prepared.items["radar"] is not None
    assert (len(prepared.items["lidar"].points), len(prepared.items["radar"].points)) == (
        1,
        1,
    )  # radars hardly measure height
    assert prepared.dropped == DroppedPoints(
        lidar_not_finite=2, lidar_near=1, lidar_outside=2, radar_not_finite=1, radar_outside=1
    )
    assert np.isfinite(prepared.items["lidar"].points).all()


def test_points_outside_the_grid_stay_where_the_config_says_so() -> None:
    points = np.array([[500.0, 0.0, 0.0, 1.0, 0.0], [5.0, 0.0, 0.0, 1.0, 0.0]])
    kept = replace(PREPARATION, keep_outside=True)
    prepared = prepare(frame(lidar=(lidar(points),)), kept)
    assert prepared.items["lidar"] is not None
    assert len(prepared.items["lidar"].points) == 2
    assert prepare(frame(lidar=(lidar(points[:1]),)), kept).items["lidar"] is None  # and are no use there


@pytest.mark.parametrize("change", [
    ImageChange(), ImageChange(zoom=1.3, across=0.1, down=0.7), ImageChange(zoom=0.8), ImageChange(mirror=True),
])  # fmt: skip
def test_the_intrinsics_follow_the_cut(change: ImageChange) -> None:
    """A white blob painted where a point projects is found where it projects with the new intrinsics."""
    point = np.array([[12.0, 0.8, 0.6]])
    (u, v), _ = (value[0] for value in project(point, INTRINSICS, CAMERA_POSE))
    rows, columns = np.mgrid[0:120, 0:200]
    blob = 255 * np.exp(-((rows - v) ** 2 + (columns - u) ** 2) / (2 * 3.0**2))
    image = np.repeat(blob[:, :, None], 3, axis=2).astype(np.uint8)
    fitted, intrinsics = fit_image(image, INTRINSICS, (64, 176), change)
    assert fitted.shape == (64, 176, 3)
    pixel, _ = project(point, intrinsics, CAMERA_POSE)
    weight = fitted[:, :, 0].astype(float)
    found = [(weight * axis).sum() / weight.sum() for axis in np.mgrid[0:64, 0:176]]
    np.testing.assert_allclose(found[::-1], pixel[0], atol=0.1)


def test_a_picture_keeps_its_bottom_and_loses_its_sky() -> None:
    image = np.zeros((120, 200, 3), np.uint8)
    image[-1] = 255
    fitted, _ = fit_image(image, INTRINSICS, (64, 176), ImageChange())
    assert fitted[-1].min() > 0
    assert fitted[:-2].max() == 0


def test_a_batch_is_the_same_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    one = frame(cameras=(camera(*SIZE_PX), camera(*SIZE_PX)))  # of the network's size: nothing is resized
    changes = (ImageChange(mirror=True), ImageChange())

    def images() -> torch.Tensor:
        cameras = collate([prepare(one, PREPARATION, image_changes=changes)], PREPARATION).part("camera")
        assert cameras is not None
        return cameras.images

    expected = images()
    assert one.cameras is not None
    assert one.cameras[0] is not None
    np.testing.assert_array_equal(expected[0, 0].numpy().transpose(1, 2, 0), one.cameras[0].image[:, ::-1])
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert torch.equal(images(), expected)


THREADS_OF_A_FORK = """
import os, sys
import numpy as np
from tests.sensors.test_prepare import PREPARATION, frame, lidar, prepare
points = np.random.default_rng(0).normal(size=(35_000, 5)) * 10
if os.fork() == 0:  # BLAS starts its threads anew in a process that was forked, once one is needed
    prepare(frame(lidar=(lidar(points), lidar(points))), PREPARATION)
    os._exit(len(os.listdir("/proc/self/task")))
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_preparing_a_full_size_frame_wakes_no_other_core() -> None:
    variables = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "4")
    done = subprocess.run([sys.executable, "-c", THREADS_OF_A_FORK], env=variables, timeout=120)
    assert done.returncode == 1


def test_absent_cameras_are_zeros_that_say_so_and_can_be_inverted() -> None:
    batch = collate([prepare(frame(), PREPARATION)], PREPARATION)
    assert batch.part("camera") is not None
    assert batch.part("camera").present.tolist() == [[True, False]]
    assert batch.part("camera").images[0, 1].max() == 0
    assert torch.linalg.det(batch.part("camera").intrinsics).abs().min() > 0
    assert torch.linalg.det(batch.part("camera").reference_T_camera).abs().min() > 0
    assert batch.part("camera").lift is not None


def test_absent_modalities_are_none_and_masked_in_a_mixed_batch() -> None:
    whole = prepare(frame(), PREPARATION)
    blind = prepare(frame(lidar=None, cameras=None, radar=None), PREPARATION)
    mixed = collate([whole, blind], PREPARATION)
    assert mixed.batch_size == 2
    assert mixed.part("lidar") is not None
    assert mixed.part("lidar").present.tolist() == [[True], [False]]
    assert mixed.part("lidar").count.tolist() == [4, 0]
    assert mixed.part("radar") is not None
    assert mixed.part("radar").present.tolist() == [[True, False], [False, False]]
    assert mixed.part("camera") is not None
    assert mixed.part("camera").present.tolist() == [[True, False], [False, False]]
    nothing = collate([blind, blind], PREPARATION)
    assert (nothing.part("camera"), nothing.part("lidar"), nothing.part("radar")) == (None, None, None)


def test_a_model_without_a_camera_or_lidar_encoder_is_given_none() -> None:
    preparation = replace(PREPARATION, modalities=(RADAR,), camera_channels=())
    batch = collate([prepare(frame(), preparation)], preparation)
    assert batch.part("camera") is None
    assert batch.part("lidar") is None
    assert batch.part("radar") is not None


def test_depth_is_that_of_the_nearest_point_in_a_feature_pixel() -> None:
    points = np.array([[11.5, 0.0, 1.5], [6.5, 0.001, 1.5], [-5.0, 0.0, 1.5], [7.0, 3.0, 1.5]], np.float32)
    matrix = (INTRINSICS @ inverse_rigid(CAMERA_POSE)[:3])[None]
    depth = depth_targets(points.T, matrix, image_size_px=(120, 200), stride_px=8)
    pixels, depth_m = project(points, INTRINSICS, CAMERA_POSE)
    column, row = np.floor((pixels[0] + 0.5) / 8).astype(int)
    assert depth[0, row, column] == pytest.approx(5.0)  # not 10 m, which lies behind it
    assert (depth > 0).sum() == 2
    column, row = np.floor((pixels[3] + 0.5) / 8).astype(int)
    assert depth[0, row, column] == pytest.approx(depth_m[3], rel=1e-5)


def test_depth_comes_from_the_newest_sweep_alone() -> None:
    ahead = np.array([[10.0, 0.0, 0.0, 1.0, 0.0]])
    old = np.array([[5.0, 0.0, 0.0, 1.0, 0.0]])
    both = prepare(frame(lidar=(lidar(ahead), lidar(old, 900_000))), PREPARATION).items["camera"].depth_m
    alone = prepare(frame(lidar=(lidar(ahead),)), PREPARATION).items["camera"].depth_m
    assert both is not None
    assert alone is not None
    np.testing.assert_array_equal(both, alone)
    assert (both > 0).sum() == 1
    assert both[1].max() == 0  # the absent camera


def test_what_falls_into_the_black_around_a_picture_teaches_no_depth() -> None:
    points = np.random.default_rng(0).uniform([3, -15, -1.5, 0, 0], [15, 15, 4, 0, 0], (5000, 5))
    whole = frame(lidar=(lidar(points),))
    changes = [ImageChange(zoom=0.5), ImageChange()]
    prepared = prepare(whole, PREPARATION, image_changes=changes)
    assert prepared.items["camera"].depth_m is not None
    assert prepared.items["camera"].images is not None
    pictured = prepared.items["camera"].images[0].reshape(8, 8, 22, 8, 3).max(axis=(1, 3, 4)) > 0
    assert not pictured.all()
    assert (prepared.items["camera"].depth_m[0] > 0).any()
    assert not (prepared.items["camera"].depth_m[0] > 0)[~pictured].any()


def test_impossible_calibration_is_named() -> None:
    singular = replace(camera(), intrinsics=np.diag([120.0, 0.0, 1.0]))
    with pytest.raises(CalibrationError, match=r"sample t, CAM_FRONT: .*invertible"):
        prepare(frame(cameras=(singular, None)), PREPARATION)
    bent = replace(lidar(np.zeros((1, 5))), reference_T_lidar=np.diag([1.0, 1.0, 2.0, 1.0]))
    with pytest.raises(CalibrationError, match=r"sample t, LIDAR_TOP: .*rotation"):
        prepare(frame(lidar=(bent,)), PREPARATION)


def test_a_wrong_number_of_cameras_is_said() -> None:
    with pytest.raises(ValueError, match=r"expected 2 cameras, got 1"):
        prepare(frame(cameras=(camera(),)), PREPARATION)


def only_sector(angle_deg: float) -> NDArray[np.bool_]:
    """[36] the sector that a direction of the reference frame lies in."""
    return np.arange(36) == int((angle_deg + 180) // 10)


def test_points_of_dead_sectors_are_dropped_counted_and_said() -> None:
    points = np.array([[8.0, 0.5, 0.0, 1.0, 0.0], [0.0, 8.0, 0.0, 1.0, 0.0]])  # ahead and to the left
    sweep = LidarSweep("LIDAR_TOP", points.astype(np.float32), np.eye(4), 1_000_000)
    whole = frame(lidar=(sweep,))
    left_dead = replace(whole, lidar_sectors=~(only_sector(90) | only_sector(-90)))
    prepared = prepare(left_dead, PREPARATION)
    assert prepared.items["lidar"] is not None
    assert prepared.items["lidar"].points[:, :2].tolist() == [[8.0, 0.5]]
    assert prepared.dropped.lidar_dead_sector == 1
    sectors = collate([prepared, prepare(whole, PREPARATION)], PREPARATION).part("lidar").sectors
    assert sectors[:, 0].tolist() == [(~(only_sector(90) | only_sector(-90))).astype(float).tolist(), [1.0] * 36]


def test_dead_sectors_turn_and_mirror_with_the_reference() -> None:
    sweep = LidarSweep("LIDAR_TOP", np.array([[-8.0, 0, 0, 1, 0]], np.float32), np.eye(4), 1_000_000)
    dead = frame(lidar=(sweep,), lidar_sectors=~only_sector(45))
    mirror = np.diag([1.0, -1.0, 1.0, 1.0])
    quarter = np.array([[0.0, -1.0, 0, 0], [1.0, 0.0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) * [[1.1], [1.1], [1.1], [1]]
    for change, angle_deg in ((np.eye(4), 45), (mirror, -45), (quarter, 135)):
        prepared = prepare(dead, PREPARATION, bev_change=change)
        np.testing.assert_array_equal(prepared.items["lidar"].sectors[0], (~only_sector(angle_deg)).astype(np.float32))
    cos, sin = np.cos(np.deg2rad(5)), np.sin(np.deg2rad(5))
    turn = np.eye(4)
    turn[:2, :2] = [[cos, -sin], [sin, cos]]
    half = prepare(dead, PREPARATION, bev_change=turn).items["lidar"].sectors[0]
    np.testing.assert_allclose(half[[22, 23]], 0.5)  # two sectors share the dead one
    assert half.sum() == 35


TWO = replace(PREPARATION, modalities=(CAMERA, Lidar("lidar", ("FRONT", "REAR")), RADAR))


def half_turns() -> tuple[LidarSweep, LidarSweep]:
    """A LiDAR before and one behind, each with points of its own half of the turn, two in every sector."""
    angle = np.deg2rad(np.arange(-90, 90, 5) + 2.5)
    around = np.stack([9 * np.cos(angle), 9 * np.sin(angle), 0 * angle, 10 + 0 * angle, 0 * angle], 1).astype(
        np.float32
    )
    turned = transforms([0, 0, 0, 0, 0, 0, 1])
    return LidarSweep("FRONT", around, np.eye(4), 1_000_000), LidarSweep("REAR", around, turned, 1_000_000)


def test_each_of_two_lidars_covers_the_sectors_in_which_it_delivers_points() -> None:
    ahead = np.isin(np.arange(36), np.arange(9, 27)).astype(np.float32)
    both = prepare(frame(lidar=half_turns()), TWO)
    np.testing.assert_array_equal(both.items["lidar"].sectors, [ahead, 1 - ahead])
    assert both.items["lidar"].present.tolist() == [True, True]
    left = prepare(frame(lidar=half_turns(), lidar_sectors=~only_sector(5)), TWO, bev_change=np.diag([1.0, -1, 1, 1]))
    np.testing.assert_array_equal(left.items["lidar"].sectors, [ahead * ~only_sector(-5), 1 - ahead])


@pytest.mark.parametrize("dead", ["FRONT", "REAR"])
@pytest.mark.parametrize("how", ["not given", "no return", "not finite"])
def test_of_two_lidars_a_dead_one_takes_its_cells_along(dead: str, how: str) -> None:
    sweeps = [sweep for sweep in half_turns() if sweep.channel != dead]
    (gone,) = (sweep for sweep in half_turns() if sweep.channel == dead)
    if how != "not given":
        sweeps.append(replace(gone, points=gone.points[:0] if how == "no return" else gone.points * np.float32(np.nan)))
    prepared = prepare(frame(lidar=tuple(sweeps)), TWO)
    batch = collate([prepared, prepare(frame(lidar=None), TWO)], TWO).part("lidar")
    assert batch is not None
    assert batch.present.tolist() == [[dead != "FRONT", dead != "REAR"], [False, False]]
    assert batch.sectors[0].sum(1).tolist() == [0.0 if dead == "FRONT" else 18.0, 0.0 if dead == "REAR" else 18.0]
    assert list(prepared.absent) == ["CAM_BACK", dead, "RADAR_BACK"]


def test_a_rigs_only_lidar_looks_all_around() -> None:
    """A sector without a return is open sky to it; `SensorFrame.lidar_sectors` says which are dead."""
    one = replace(TWO, modalities=(CAMERA, Lidar("lidar", ("FRONT",)), RADAR))
    assert prepare(frame(lidar=half_turns()[:1]), one).items["lidar"].sectors.tolist() == [[1.0] * 36]


def test_sectors_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sample t, lidar_sectors: expected \[36\] bool, got shape \[12\]"):
        prepare(frame(lidar_sectors=np.ones(12, bool)), PREPARATION)


def test_depth_may_be_taken_from_another_frame() -> None:
    points = np.random.default_rng(0).uniform([3, -15, -1.5, 0, 0], [15, 15, 4, 0, 0], (5000, 5))
    clean = frame(lidar=(lidar(points),))
    failed = frame(lidar=(lidar(np.array([[5.0, 1.0, 0.0, 1.0, 0.0]])),))
    taught, expected = (prepare(failed, PREPARATION, depth_from=clean), prepare(clean, PREPARATION))
    assert taught.items["camera"].depth_m is not None
    assert expected.items["camera"].depth_m is not None
    np.testing.assert_array_equal(taught.items["camera"].depth_m, expected.items["camera"].depth_m)
    assert taught.items["lidar"] is not None
    assert len(taught.items["lidar"].points) == 1
    without = prepare(failed, PREPARATION, depth_from=replace(clean, cameras=(None, None))).items["camera"].depth_m
    assert without is not None
    assert not without.any()
    blind = prepare(replace(failed, lidar=None), PREPARATION, depth_from=clean)
    assert blind.items["lidar"] is None
    np.testing.assert_array_equal(blind.items["camera"].depth_m, expected.items["camera"].depth_m)
