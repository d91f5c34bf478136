"""Augmentation never tears apart what belongs together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev.detection.boxes import Boxes
from sensors.calibration import apply
from sensors.camera.depth import project
from sensors.camera.images import ImageChange, fit_image
from sensors.prepare import collate, prepare
from tests.sensors.test_prepare import CAMERA_POSE, INTRINSICS, PREPARATION, RADAR_POSE, camera, frame
from training.data.augmentation import (
    AugmentationConfig,
    BEVAugmentation,
    ImageAugmentation,
    change_boxes,
    change_intensity,
    draw_bev_change,
    draw_image_changes,
)

seeds = st.integers(0, 2**32 - 1)
WILD = BEVAugmentation(turn_deg=180, scale=(0.5, 2.0))


def boxes() -> Boxes:
    return Boxes(
        center_m=torch.tensor([[10.0, 2.0, 0.5], [-4.0, 7.0, 1.0]]),
        size_m=torch.tensor([[2.0, 4.5, 1.6], [0.6, 0.8, 1.8]]),
        yaw_rad=torch.tensor([0.3, -2.5]),
        velocity_mps=torch.tensor([[3.0, 1.0], [float("nan"), float("nan")]]),
        label=torch.tensor([0, 5]),
        attribute=torch.tensor([5, -1]),
        score=torch.ones(2),
    )


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_a_changed_point_falls_on_the_same_pixel_of_the_changed_camera(seed: int) -> None:
    """The lift maps pixels out through the changed pose: it must be the inverse of projecting the changed point."""
    random = np.random.default_rng(seed)
    change = draw_bev_change(WILD, random)
    points = random.uniform([3, -4, 0], [20, 4, 3], (20, 3))
    before, depth_m = project(points, INTRINSICS, CAMERA_POSE)
    changed_T_camera = change @ CAMERA_POSE
    u, v, w = INTRINSICS @ (np.linalg.inv(changed_T_camera) @ np.c_[apply(change, points), np.ones(20)].T)[:3]
    np.testing.assert_allclose(np.stack([u / w, v / w], 1), before, atol=1e-6)
    np.testing.assert_allclose(w, depth_m, atol=1e-8)  # depth stays in the camera's metres


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_prepared_points_poses_and_boxes_change_together(seed: int) -> None:
    change = draw_bev_change(BEVAugmentation(turn_deg=180, scale=(0.8, 1.25)), np.random.default_rng(seed))
    plain, changed = prepare(frame(), PREPARATION), prepare(frame(), PREPARATION, bev_change=change)
    assert plain.items["lidar"] is not None
    assert changed.items["lidar"] is not None
    assert plain.items["radar"] is not None
    assert changed.items["radar"] is not None
    np.testing.assert_allclose(
        changed.items["lidar"].points[:, :3], apply(change, plain.items["lidar"].points[:, :3].astype(float)), atol=1e-4
    )
    np.testing.assert_allclose(
        changed.items["radar"].points[:, 4:6], plain.items["radar"].points[:, 4:6] @ change[:2, :2].T, atol=1e-4
    )
    assert changed.items["radar"].reference_T_radar is not None
    np.testing.assert_allclose(changed.items["radar"].reference_T_radar[0], change @ RADAR_POSE, atol=1e-5)
    assert plain.items["camera"].depth_m is not None
    assert changed.items["camera"].depth_m is not None
    np.testing.assert_array_equal(changed.items["camera"].depth_m, plain.items["camera"].depth_m)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_the_corners_of_a_changed_box_are_the_changed_corners(seed: int) -> None:
    change = draw_bev_change(WILD, np.random.default_rng(seed))
    expected = apply(change, boxes().corners_m().double().reshape(-1, 3).numpy()).reshape(2, 8, 3)
    found = change_boxes(boxes(), change).corners_m().double().numpy()
    for box in range(2):  # a mirror swaps left and right corners
        distance = np.linalg.norm(found[box][:, None] - expected[box][None], axis=-1)
        assert distance.min(axis=1).max() < 1e-4
        assert distance.min(axis=0).max() < 1e-4


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_a_changed_box_moves_and_looks_where_it_did(seed: int) -> None:
    change = draw_bev_change(WILD, np.random.default_rng(seed))
    changed = change_boxes(boxes(), change)
    after_a_second = apply(change, np.array([[13.0, 3.0, 0.5]]))[0]
    np.testing.assert_allclose(changed.center_m[0, :2] + changed.velocity_mps[0], after_a_second[:2], atol=1e-4)
    nose = apply(change, np.array([[10 + np.cos(0.3), 2 + np.sin(0.3), 0.5]]))[0] - changed.center_m[0].numpy()
    np.testing.assert_allclose(np.arctan2(nose[1], nose[0]), changed.yaw_rad[0], atol=1e-4)
    assert changed.velocity_mps[1].isnan().all()


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_a_changed_picture_keeps_its_points(seed: int) -> None:
    """A blob in the picture is found where the changed intrinsics project the point that it stands for."""
    config = ImageAugmentation(zoom=(0.7, 1.5), down=(0.5, 1.0), brightness=0, contrast=0, saturation=0)
    (change,) = draw_image_changes(config, 1, np.random.default_rng(seed))
    point = np.array([[12.0, 0.3, 1.2]])
    (u, v), _ = (value[0] for value in project(point, INTRINSICS, CAMERA_POSE))
    rows, columns = np.mgrid[0:120, 0:200]
    blob = 255 * np.exp(-((rows - v) ** 2 + (columns - u) ** 2) / (2 * 4.0**2))
    fitted, intrinsics = fit_image(np.repeat(blob[:, :, None], 3, 2).astype(np.uint8), INTRINSICS, (64, 176), change)
    pixel = project(point, intrinsics, CAMERA_POSE)[0][0]
    weight = fitted[:, :, 0].astype(float)
    if not (15 < pixel[0] < 160 and 15 < pixel[1] < 49):
        return  # cut off
    found = [(weight * axis).sum() / weight.sum() for axis in np.mgrid[0:64, 0:176]]
    np.testing.assert_allclose(found[::-1], pixel, atol=0.3)


def test_the_lift_of_a_changed_rig_covers_the_changed_cells() -> None:
    """Mirroring the reference left to right mirrors which cells the cameras reach."""
    mirror = np.diag([1.0, -1.0, 1.0, 1.0])
    plain = collate([prepare(frame(), PREPARATION)], PREPARATION).part("camera")
    changed = collate([prepare(frame(), PREPARATION, bev_change=mirror)], PREPARATION).part("camera")
    assert plain is not None
    assert plain.lift is not None
    assert changed is not None
    assert changed.lift is not None
    assert plain.lift.visible.any()
    assert torch.equal(changed.lift.visible, plain.lift.visible.flip(-1))


def test_colour_changes_keep_the_picture_a_picture() -> None:
    config = ImageAugmentation(zoom=(1.0, 1.0), across=(0.5, 0.5), down=(1.0, 1.0), mirror=0)
    image = np.full((120, 200, 3), 200, np.uint8)
    seen = set()
    for seed in range(20):
        (change,) = draw_image_changes(config, 1, np.random.default_rng(seed))
        fitted, _ = fit_image(image, INTRINSICS, (64, 176), change)
        assert fitted.dtype == np.uint8
        assert np.ptp(fitted) <= 1  # grey stays grey
        seen.add(int(fitted[0, 0, 0]))
    assert len(seen) > 10
    assert 120 < min(seen) < 200 < max(seen) <= 255


def test_equal_seeds_give_equal_changes() -> None:
    one, two = (draw_image_changes(ImageAugmentation(), 6, np.random.default_rng(3)) for _ in range(2))
    assert [change.zoom for change in one] == [change.zoom for change in two]
    a, b = (draw_bev_change(BEVAugmentation(), np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("values", [{"scale": (1.1, 0.9)}, {"scale": (0.0, 1.0)}])
def test_impossible_ranges_are_refused(values: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="low <= high"):
        BEVAugmentation(**values)


def test_a_camera_that_is_not_changed_is_cut_as_in_evaluation() -> None:
    plain = prepare(frame(), PREPARATION)
    fitted, intrinsics = fit_image(camera().image, INTRINSICS, (64, 176), ImageChange())
    assert plain.items["camera"].images is not None
    assert plain.items["camera"].intrinsics is not None
    np.testing.assert_array_equal(plain.items["camera"].images[0], fitted)
    np.testing.assert_allclose(plain.items["camera"].intrinsics[0], intrinsics, rtol=1e-6)


@given(seeds, st.floats(0.2, 1.0), st.floats(1.0, 4.0))
def test_the_intensity_of_a_samples_points_changes_by_one_factor_and_stays_in_its_range(
    seed: int, low: float, high: float
) -> None:
    before = frame()
    after = change_intensity(before, (low, high), np.random.default_rng(seed))
    assert before.lidar is not None
    assert after.lidar is not None
    old, new = (np.concatenate([s.points for s in f.lidar or ()]) for f in (before, after))
    factor = (new[:, 3] / np.maximum(old[:, 3], 1e-9))[(old[:, 3] > 0) & (new[:, 3] < 255)]
    assert np.ptp(factor) < 1e-5
    assert ((factor > low - 1e-5) & (factor < high + 1e-5)).all()
    assert new[:, 3].max() <= 255
    np.testing.assert_array_equal(np.delete(new, 3, 1), np.delete(old, 3, 1))


@pytest.mark.parametrize("factors", [(0.0, 1.0), (2.0, 1.0)])
def test_a_factor_of_intensity_is_positive_and_a_range(factors: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="intensity: expected low <= high, both > 0"):
        AugmentationConfig(intensity=factors)
