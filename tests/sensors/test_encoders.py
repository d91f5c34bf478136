"""Encoders promise: coverage says where a sensor can see, and what an absent sensor's buffers hold changes no bit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bev.lift.table import build_lift_table
from fusion import BEVFeatures
from sensors import frames
from sensors.batch import CameraBatch
from sensors.camera.encoder import CameraEncoder
from sensors.camera.vit import VisionTransformer
from sensors.lidar.encoder import LidarEncoder, azimuth_sectors
from sensors.radar.encoder import RadarEncoder, radar_view
from tests.tiny_model import (
    CAMERAS,
    IMAGE_SIZE,
    RADAR_YAWS_DEG,
    SECTORS,
    random_cameras,
    random_lidar,
    random_radar,
    tiny_model,
)

GARBAGE = [math.nan, math.inf, -math.inf, 1e30, 0.0]


@pytest.fixture(scope="module")
def camera() -> CameraEncoder:
    encoder = tiny_model().encoder("camera")
    assert encoder is not None
    return encoder


@pytest.fixture(scope="module")
def lidar() -> LidarEncoder:
    encoder = tiny_model().encoder("lidar")
    assert encoder is not None
    return encoder


@pytest.fixture(scope="module")
def radar() -> RadarEncoder:
    encoder = tiny_model().encoder("radar")
    assert encoder is not None
    return encoder


def assert_same(got: BEVFeatures, expected: BEVFeatures) -> None:
    assert torch.equal(got.features, expected.features)
    assert torch.equal(got.coverage, expected.coverage)
    assert got.features.isfinite().all()


def with_table(batch: CameraBatch, encoder: CameraEncoder, present: Tensor | None = None) -> CameraBatch:
    table = build_lift_table(
        batch.intrinsics, batch.reference_T_camera, present,
        image_size=encoder.image_size, stride=encoder.stride_px, bins=encoder.bins,
        grid=encoder.grid, z_range_m=encoder.z_range_m, samples=encoder.lift_samples,
    )  # fmt: skip
    return replace(batch, lift=table)


def test_cameras_give_the_grid_and_a_depth_for_every_feature_pixel(camera: CameraEncoder) -> None:
    output = camera(random_cameras())
    assert output.bev.features.shape == (2, 16, 16, 16)
    assert output.bev.coverage.shape == (2, 16, 16)
    assert output.extras["depth_logits"].shape == (2, CAMERAS, IMAGE_SIZE[0] // 8, IMAGE_SIZE[1] // 8, 12)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("table", ["none", "of those present", "of all"])
def test_an_absent_camera_leaves_no_trace(camera: CameraEncoder, garbage: float, table: str) -> None:
    """Nor does a look-up table made when the camera was still there: single cameras are dropped after loading, too."""
    batch = random_cameras()
    present = torch.ones(2, CAMERAS, dtype=torch.bool)
    present[0, 2] = present[1, 0] = present[1, 5] = False
    batch = replace(batch, present=present)
    if table != "none":
        batch = with_table(batch, camera, present if table == "of those present" else None)
    expected = camera(batch)
    gone = ~present[..., None, None]
    images = batch.images.clone()
    images[~present] = 255 - images[~present]
    stale = replace(
        batch,
        images=images,
        intrinsics=batch.intrinsics.masked_fill(gone, garbage),
        reference_T_camera=batch.reference_T_camera.masked_fill(gone, garbage),
    )
    got = camera(stale)
    assert_same(got.bev, expected.bev)
    assert torch.equal(got.extras["depth_logits"], expected.extras["depth_logits"])


def test_a_look_up_table_made_by_the_loader_gives_what_the_encoder_makes_itself(camera: CameraEncoder) -> None:
    batch = random_cameras()
    assert_same(camera(with_table(batch, camera)).bev, camera(batch).bev)


def test_a_camera_dropped_after_its_table_was_made_is_as_absent_as_any(camera: CameraEncoder) -> None:
    batch = random_cameras()
    present = batch.present.clone()
    present[:, 1:3] = False
    dropped = replace(batch, present=present)
    assert_same(camera(with_table(dropped, camera)).bev, camera(with_table(dropped, camera, present)).bev)


def test_only_where_the_lost_cameras_looked_is_coverage_gone(camera: CameraEncoder) -> None:
    """Cameras 2, 3 and 4 look to the rear left, the rear and the rear right."""
    batch = random_cameras(batch_size=1)
    whole = camera(batch).bev.coverage[0]
    present = torch.tensor([[True, True, False, False, False, True]])
    ahead = camera(replace(batch, present=present)).bev.coverage[0]
    behind = camera(replace(batch, present=~present)).bev.coverage[0]
    assert torch.equal(whole, torch.maximum(ahead, behind))
    assert (ahead < whole).any()
    assert ahead[10:, 6:10].all(), "the road ahead is still seen"
    assert not ahead[:6, 6:10].any(), "the road behind is not"
    assert not camera(replace(batch, present=torch.zeros_like(present))).bev.coverage.any()


def test_cameras_are_told_where_they_look(camera: CameraEncoder) -> None:
    """The same picture from another place in the rig gives other tokens, not only other cells."""
    batch = random_cameras(batch_size=1)
    turned = replace(batch, reference_T_camera=batch.reference_T_camera.roll(1, dims=1))
    assert not torch.allclose(camera(batch).extras["depth_logits"], camera(turned).extras["depth_logits"])


def test_cameras_of_the_wrong_size_are_refused_by_name(camera: CameraEncoder) -> None:
    batch = random_cameras()
    with pytest.raises(ValueError, match=r"cameras.images: expected \[2, 6, 3, 32, 64\], got \[2, 6, 3, 32, 48\]"):
        camera(replace(batch, images=batch.images[..., :48]))
    with pytest.raises(ValueError, match=r"cameras.intrinsics: expected \[2, 6, 3, 3\]"):
        camera(replace(batch, intrinsics=batch.intrinsics[:, :5]))


@pytest.mark.parametrize(("stem", "stride"), [("conv", 8), ("patch", 8), ("patch", 16)])
@pytest.mark.parametrize("layer_scale", [True, False])
def test_the_vit_gives_its_feature_map(stem: str, stride: int, layer_scale: bool) -> None:
    vit = VisionTransformer(
        image_size=(32, 48), stem=stem, patch_px=16, dim=16, depth=1, heads=2, layer_scale=layer_scale,
        feature_stride_px=stride, out_channels=12,
    )  # fmt: skip
    assert vit(torch.randn(3, 3, 32, 48), torch.randn(3, 6, 16)).shape == (3, 12, 32 // stride, 48 // stride)


def test_lidar_gives_the_grid(lidar: LidarEncoder) -> None:
    output = lidar(random_lidar())
    assert output.features.shape == (2, 16, 16, 16)
    assert output.coverage.eq(1).all()


@pytest.mark.parametrize("garbage", GARBAGE)
def test_an_absent_lidar_leaves_no_trace(lidar: LidarEncoder, garbage: float) -> None:
    batch = replace(random_lidar(), present=torch.tensor([[True], [False]]))
    expected = lidar(batch)
    assert not expected.coverage[1].any()
    points, sectors, count = batch.points.clone(), batch.sectors.clone(), batch.count.clone()
    points[1], sectors[1], count[1] = garbage, garbage, 2**40
    assert_same(lidar(replace(batch, points=points, sectors=sectors, count=count)), expected)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_of_lidar_and_radar_leaves_no_trace(lidar: LidarEncoder, radar: RadarEncoder, garbage: float) -> None:
    for encoder, batch in ((lidar, random_lidar()), (radar, random_radar())):
        points = batch.points.clone()
        points[:, int(batch.count[0]) :] = garbage
        assert_same(encoder(replace(batch, points=points)), encoder(batch))


def test_a_lidar_without_its_rear_half_covers_the_front(lidar: LidarEncoder) -> None:
    """Sectors count from -pi, the rear, counter-clockwise: the middle half of them looks ahead."""
    batch = random_lidar(batch_size=1)
    ahead = torch.zeros(1, 1, SECTORS)
    ahead[..., SECTORS // 4 : 3 * SECTORS // 4] = 1
    coverage = lidar(replace(batch, sectors=ahead)).coverage[0]
    assert coverage[8:].eq(1).all()
    assert coverage[:8].eq(0).all()


@pytest.mark.parametrize("garbage", [0.5, math.nan])
def test_of_two_lidars_each_covers_its_own_cells(lidar: LidarEncoder, garbage: float) -> None:
    batch = random_lidar()
    ahead = torch.zeros(SECTORS)
    ahead[SECTORS // 4 : 3 * SECTORS // 4] = 1
    both = replace(
        batch, present=torch.ones(2, 2, dtype=torch.bool), sectors=torch.stack([ahead, 1 - ahead]).repeat(2, 1, 1)
    )
    assert_same(lidar(both), lidar(batch))
    rear_dead, sectors = torch.tensor([[True, False], [True, True]]), both.sectors.clone()
    sectors[0, 1] = garbage
    seen = lidar(replace(both, present=rear_dead, sectors=sectors))
    assert_same(seen, lidar(replace(both, present=rear_dead)))
    assert seen.coverage[0, 8:].eq(1).all()
    assert seen.coverage[0, :8].eq(0).all()
    assert seen.coverage[1].eq(1).all()


def test_what_a_dead_sector_still_says_is_not_heard(lidar: LidarEncoder) -> None:
    """A driver may go on sending old points; the map of working sectors decides."""
    batch = random_lidar()
    sectors = batch.sectors.clone()
    sectors[..., : SECTORS // 2] = 0  # from -pi to 0: the right side, y < 0
    right = batch.points[..., 1] < 0
    garbage = batch.points.clone()
    garbage[right] += torch.tensor([0.3, -0.3, 0.2, 0.5, 0.0])
    dead = replace(batch, sectors=sectors)
    assert_same(lidar(replace(dead, points=garbage)), lidar(dead))
    assert not torch.equal(lidar(replace(batch, points=garbage)).features, lidar(batch).features)


def test_sectors_stand_where_they_are_said_to() -> None:
    grid = tiny_model().grid
    sector = azimuth_sectors(grid, 4)
    x, y = 12, 3
    assert [sector[y, y], sector[x, y], sector[x, x], sector[y, x]] == [0, 1, 2, 3]
    assert azimuth_sectors(grid, 1).eq(0).all()
    assert set(azimuth_sectors(grid, 7).flatten().tolist()) == set(range(7))


@pytest.mark.parametrize("count", [frames.SECTORS, 7])
def test_a_cell_is_covered_as_its_sector_is(lidar: LidarEncoder, count: int) -> None:
    batch = random_lidar()
    sectors = torch.linspace(0, 1, count).expand(*batch.present.shape, -1)
    expected = sectors[0, 0, azimuth_sectors(lidar.grid, count)]
    assert torch.equal(lidar(replace(batch, sectors=sectors)).coverage[0], expected)


@pytest.mark.parametrize("points", [0, 7])
def test_a_lidar_that_sees_nothing_is_covered_all_the_same(lidar: LidarEncoder, points: int) -> None:
    batch = random_lidar(points=points)
    output = lidar(replace(batch, count=torch.zeros(2, dtype=torch.long)))
    assert output.coverage.eq(1).all()
    assert output.features.isfinite().all()


def test_radar_gives_the_grid_and_covers_what_its_radars_look_at(radar: RadarEncoder) -> None:
    output = radar(random_radar())
    assert output.features.shape == (2, 16, 16, 16)
    assert output.coverage.float().mean() > 0.9, "five radars look nearly everywhere"
    batch = random_radar(batch_size=1)
    front = torch.zeros_like(batch.present)
    front[:, RADAR_YAWS_DEG.index(0.0)] = True
    coverage = radar(replace(batch, present=front)).coverage[0]
    assert coverage[12:, 6:10].all()
    assert not coverage[:8].any()


@pytest.mark.parametrize("garbage", GARBAGE)
def test_an_absent_radar_leaves_no_trace(radar: RadarEncoder, garbage: float) -> None:
    batch = random_radar()
    present = batch.present.clone()
    present[0, 1] = False
    present[1] = False
    batch = replace(batch, present=present)
    expected = radar(batch)
    assert not expected.coverage[1].any()
    mounts = batch.reference_T_radar.masked_fill(~present[..., None, None], garbage)
    points, count = batch.points.clone(), batch.count.clone()
    points[1], count[1] = garbage, 2**40
    assert_same(radar(replace(batch, reference_T_radar=mounts, points=points, count=count)), expected)


@pytest.mark.parametrize("yaw_deg", [0, 40, 90, 165, -125])
def test_a_radar_views_its_angle_from_where_it_sits(yaw_deg: float) -> None:
    grid, yaw = tiny_model().grid, math.radians(yaw_deg)
    mount = torch.eye(4)[None, None].clone()
    mount[..., :2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    mount[..., :2, 3] = torch.tensor([2.0, -1.0])
    view = radar_view(mount, grid, math.radians(30))[0, 0]
    offset_m = grid.centers_m() - torch.tensor([2.0, -1.0])
    turned = torch.atan2(offset_m[..., 1], offset_m[..., 0]) - yaw
    expected = torch.atan2(turned.sin(), turned.cos()).abs() <= math.radians(30)
    assert torch.equal(view, expected)
    assert 0 < view.sum() < view.numel()


def test_points_with_the_wrong_columns_are_refused_by_name(lidar: LidarEncoder, radar: RadarEncoder) -> None:
    with pytest.raises(ValueError, match=r"lidar.points: expected \[B, P, 5\], got \[2, 300, 4\]"):
        lidar(replace(random_lidar(), points=random_lidar().points[..., :4]))
    with pytest.raises(ValueError, match=r"radar.points: expected \[B, P, 7\], got \[2, 40, 5\]"):
        radar(replace(random_radar(), points=random_radar().points[..., :5]))
