"""Corruptions: pure, seeded, worse with severity, never silently nothing, and what their names say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sensors.corruptions import (
    CORRUPTIONS,
    MULTICORRUPT,
    SEVERITIES,
    Corruption,
    CorruptionError,
    corrupt,
)
from sensors.corruptions.camera import brighten, darken
from sensors.corruptions.lidar import keep_beams
from sensors.corruptions.weather import foggy_pictures, foggy_points
from sensors.frames import SECTORS, SensorFrame, azimuth_sector
from tests.sensors.health.failing_rig import KEYFRAME_US, arrays, no_past, past_of, rig_frame

TIMED = [name for name in CORRUPTIONS if name.endswith(("frozen", "lagging")) or name.startswith("temporal")]
FROZEN = [name for name in CORRUPTIONS if name.endswith("frozen")]


def cloud_gap(before: list[NDArray[Any]], after: list[NDArray[Any]]) -> float:
    """0 for equal points, towards 2 as points move away, vanish or appear."""
    from scipy.spatial import cKDTree

    one, two = (np.concatenate([np.zeros((1, clouds[0].shape[1])), *clouds]) for clouds in (before, after))
    gaps = cKDTree(two).query(one)[0], cKDTree(one).query(two)[0]
    return sum(float(np.mean(1 - np.exp(-gap))) for gap in gaps)


def distance(before: SensorFrame, after: SensorFrame) -> float:
    """How far the data and the claims of two frames are apart, over all sensors."""
    total = 0.0
    for n, camera in enumerate(before.cameras or ()):
        other = after.cameras[n] if after.cameras is not None else None
        if camera is None or other is None:
            total += 1.0 if camera is not other else 0.0
        else:
            total += float(np.abs(camera.image.astype(float) - other.image).mean()) / 255
            total += float(np.abs(camera.reference_T_camera - other.reference_T_camera).max())
    for sweeps, others in ((before.lidar, after.lidar), (before.radar, after.radar)):
        if sweeps and others:
            total += cloud_gap([sweep.points for sweep in sweeps], [sweep.points for sweep in others])
        elif sweeps:
            total += 2.0
    for mine, theirs in zip(before.lidar or (), after.lidar or (), strict=False):
        total += float(np.abs(mine.reference_T_lidar - theirs.reference_T_lidar).max())
    return total


def digest(frame: SensorFrame) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays(frame))).hexdigest()


def readings(modality: tuple[Any, ...]) -> list[bytes]:
    """What the sensors of one modality measured, without what they claim."""
    return [(reading.image if hasattr(reading, "image") else reading.points).tobytes() for reading in modality]


def test_the_ten_of_multicorrupt_are_there() -> None:
    assert len(MULTICORRUPT) == 10
    assert set(MULTICORRUPT) <= set(CORRUPTIONS)
    assert len(CORRUPTIONS) == 27


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in FROZEN])
def test_a_higher_severity_is_further_from_the_clean_data(name: str) -> None:
    mean = []
    for severity in SEVERITIES:
        frames = [rig_frame(token=f"t{k}") for k in range(4)]
        mean.append(np.mean([distance(f, corrupt(f, Corruption(name, severity), past_of(f))) for f in frames]))
    assert np.all(np.diff(mean) >= -1e-9), mean
    assert mean[0] > 0 or name in (
        "missing_camera",
        "spatial_misalignment",
        "temporal_misalignment",
    )  # the draw may spare
    assert mean[-1] > mean[0] + 1e-3


@settings(max_examples=120)
@given(
    name=st.sampled_from(list(CORRUPTIONS)),
    severity=st.sampled_from(SEVERITIES),
    seed=st.integers(0, 2**70),
    number=st.integers(0, 6),
    cameras=st.integers(0, 4),
    size_px=st.tuples(st.integers(9, 60), st.integers(16, 90)),
    points=st.sampled_from([-1, 0, 64, 500]),
    rings=st.booleans(),
    sweeps=st.integers(1, 3),
    radars=st.integers(0, 3),
)
def test_any_frame_of_any_rig_comes_out_whole(name: str, severity: int, seed: int, number: int, **rig: Any) -> None:
    """The arrays of the rig cannot be written to, so that an operation that is not pure raises."""
    frame, corruption = rig_frame(number, **rig), Corruption(name, severity, seed)
    changed = corrupt(frame, corruption, past_of(frame, **rig))
    assert digest(corrupt(frame, corruption, past_of(frame, **rig))) == digest(changed)
    assert (changed.token, changed.time_us) == (frame.token, frame.time_us)
    for before, after in zip(frame.cameras or (), changed.cameras or (), strict=changed.cameras is not None):
        assert before is not None
        if after is not None:
            assert after.image.dtype == np.uint8
            assert after.image.shape == before.image.shape
            assert (after.channel, after.time_us) == (before.channel, before.time_us)
    for now, then in ((frame.lidar, changed.lidar), (frame.radar, changed.radar)):
        assert then is None or now is not None
        assert {s.time_us for s in then or ()} <= {s.time_us for s in now or ()}
        for sweep in then or ():
            assert sweep.points.dtype == np.float32
            assert np.isfinite(sweep.points).all()
            assert sweep.points.shape[1] == (6 if sweep.channel.startswith("RADAR") else 5)
    for modality in {"camera", "lidar", "radar"} - set(corruption.modalities):
        field = {"camera": "cameras"}.get(modality, modality)
        assert getattr(changed, field) is getattr(frame, field)


def test_draws_are_the_same_in_every_process() -> None:
    """Figures written down from another process: nothing may hang on Python's own hashes, which differ from run to run."""
    lost = []
    for k in range(6):
        frame = rig_frame(1, cameras=4, size_px=(9, 16), token=f"t{k}")
        cameras = corrupt(frame, Corruption("missing_camera", 2, seed=5), no_past).cameras or (None,) * 4
        lost.append("".join("x" if camera is None else "." for camera in cameras))
    assert lost == ["x..x", "..x.", "x..x", ".x..", "....", "...."]


@pytest.mark.parametrize("name", ["dark", "snow", "points_reducing", "radar_clutter", "camera_misaligned"])
def test_seeds_and_samples_draw_differently(name: str) -> None:
    made = {
        digest(corrupt(replace(rig_frame(), token=token), Corruption(name, 3, seed), no_past))
        for token in ("a", "b") for seed in (0, 1)
    }  # fmt: skip
    assert len(made) == 4


@pytest.mark.parametrize(("name", "severity", "message"), [
    ("fogg", 3, r"unknown corruption 'fogg', expected one of bright, dark, .*radar_lagging"),
    ("fog", 0, "fog: severity: expected a whole number from 1 to 5, got 0"),
    ("fog", 6, "got 6"),
    ("fog", 2.5, "got 2.5"),
    ("fog", True, "got True"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_what_can(name: str, severity: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Corruption(name, severity)


def test_names_with_severity_are_read_and_written() -> None:
    assert Corruption.parse("camera_lagging-4", seed=2) == Corruption("camera_lagging", 4, 2)
    assert str(Corruption("fog", 3)) == "fog-3"
    for text in ("fog", "fog-", "-3", "fog-x"):
        with pytest.raises(ValueError, match="expect"):
            Corruption.parse(text)


@pytest.mark.parametrize("name", [name for name in TIMED if name not in FROZEN])
def test_a_corruption_that_changes_nothing_is_an_error(name: str) -> None:
    """A history that hands out the present is a fault that would let clean data pass for old."""
    frame = rig_frame()
    with pytest.raises(
        CorruptionError, match=rf"{name}-5 changed nothing in sample sample-5: expected .* data or poses"
    ):
        corrupt(frame, Corruption(name, 5), lambda n: frame)


def test_black_pictures_cannot_get_darker() -> None:
    frame = rig_frame(cameras=1)
    assert frame.cameras is not None
    camera = frame.cameras[0]
    assert camera is not None
    black = replace(frame, cameras=(replace(camera, image=np.zeros_like(camera.image)),))
    with pytest.raises(CorruptionError, match="camera_black-1 changed nothing"):
        corrupt(black, Corruption("camera_black", 1), no_past)


@pytest.mark.parametrize("name", TIMED)
def test_a_scene_that_has_just_begun_has_no_old_data(name: str) -> None:
    frame = rig_frame(0)
    assert corrupt(frame, Corruption(name, 5), past_of(frame)) is frame


def test_late_data_claims_to_be_of_now() -> None:
    frame = rig_frame(4, sweeps=2)
    for name, field in (("camera", "cameras"), ("lidar", "lidar"), ("radar", "radar")):
        late = corrupt(frame, Corruption(f"{name}_lagging", 2), past_of(frame, sweeps=2))
        old = rig_frame(2, sweeps=2)
        for was, now, then in zip(*(getattr(f, field) for f in (old, frame, late)), strict=True):
            data, pose = ("image", "reference_T_camera") if name == "camera" else ("points", f"reference_T_{name}")
            np.testing.assert_array_equal(getattr(then, data), getattr(was, data))
            assert getattr(then, pose) is getattr(now, pose)
            assert then.time_us == now.time_us


def test_a_late_sensor_of_a_young_scene_is_as_late_as_can_be() -> None:
    frame = rig_frame(1)
    late = corrupt(frame, Corruption("lidar_lagging", 5), past_of(frame))
    old = rig_frame(0)
    assert late.lidar is not None
    assert old.lidar is not None
    np.testing.assert_array_equal(late.lidar[0].points, old.lidar[0].points)


@pytest.mark.parametrize("name", FROZEN)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_frozen_sensor_repeats_itself_until_it_comes_back_to_life(name: str, severity: int) -> None:
    rig: dict[str, Any] = {"cameras": 1, "size_px": (9, 16), "points": 32, "radars": 1}
    drive = [rig_frame(number, **rig) for number in range(24)]
    seen = [corrupt(frame, Corruption(name, severity), past_of(frame, **rig)) for frame in drive]
    data = {"camera": "cameras", "lidar": "lidar", "radar": "radar"}[name.split("_")[0]]
    prints = [hashlib.sha256(b"".join(readings(getattr(frame, data)))).hexdigest() for frame in seen]
    every = severity + 1  # keyframes
    assert len(set(prints)) == -(-24 // every)
    assert all(prints[k] == prints[k - k % every] for k in range(24))


@pytest.mark.parametrize(("name", "severity", "share"), [
    ("missing_camera", 1, 0.2), ("missing_camera", 3, 0.6), ("spatial_misalignment", 2, 0.4), ("temporal_misalignment", 3, 0.6),
])  # fmt: skip
def test_probabilities_are_those_of_multicorrupt(name: str, severity: int, share: float) -> None:
    """Within four standard deviations of a binomial draw."""
    hits, draws = 0, 0
    for k in range(300):
        frame = rig_frame(1, cameras=3, size_px=(9, 16), points=32, radars=0, token=f"t{k}")
        changed = corrupt(frame, Corruption(name, severity), past_of(frame, cameras=3, size_px=(9, 16), points=32))
        cameras = changed.cameras or (None,) * 3
        if name == "spatial_misalignment":
            hits, draws = hits + (changed is not frame), draws + 1
        else:
            hits += sum(a is not b for a, b in zip(frame.cameras or (), cameras, strict=True))
            draws += 3
    assert hits / draws == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / draws))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_lost_and_black_cameras_are_counted_by_severity(severity: int) -> None:
    frame = rig_frame(cameras=6, size_px=(18, 32))
    lost = corrupt(frame, Corruption("single_camera_lost", severity), no_past).cameras
    assert sum(camera is None for camera in lost or ()) == severity
    black = corrupt(frame, Corruption("camera_black", severity), no_past).cameras
    assert sum(camera is not None and not camera.image.any() for camera in black or ()) == severity
    two = corrupt(rig_frame(cameras=2), Corruption("single_camera_lost", severity), no_past).cameras
    assert sum(camera is None for camera in two or ()) == 1  # one is left
    assert corrupt(rig_frame(cameras=1), Corruption("single_camera_lost", severity), no_past).cameras is None


def test_radars_are_lost_one_by_one_until_the_modality_is_absent() -> None:
    for severity in SEVERITIES[:4]:
        left = corrupt(rig_frame(), Corruption("radar_lost", severity), no_past).radar
        assert len({sweep.channel for sweep in left or ()}) == 5 - severity
    assert corrupt(rig_frame(), Corruption("radar_lost", 5), no_past).radar is None


def test_bright_raises_the_value_and_keeps_the_hue() -> None:
    image = np.array([[[100, 50, 25], [0, 0, 0], [250, 10, 10], [120, 120, 120]]], np.uint8)
    made = brighten(image, 0.2)[0]
    np.testing.assert_array_equal(made[:, :].max(axis=1), [151, 51, 255, 171])
    np.testing.assert_allclose(made[0] / made[0].max(), [1, 0.5, 0.25], atol=0.01)
    np.testing.assert_array_equal(made[1], [51, 51, 51])


def test_darkness_has_the_noise_of_few_photons() -> None:
    """Variance of a level m in 0..1: m / photons + read noise^2."""
    ramp = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8)[None, :, None], (400, 1, 3))
    made = darken(ramp, 0.4, 120.0, 0.018, np.random.default_rng(0)) / 255
    expected = 0.4 * (ramp[0, :, 0] / 255) ** 2
    bright = expected > 0.1  # black cuts the noise of what is darker
    np.testing.assert_allclose(made[:, bright].mean(axis=(0, 2)), expected[bright], atol=0.01)
    spread = made[:, bright].std(axis=(0, 2))
    np.testing.assert_allclose(spread, np.sqrt(expected[bright] / 120 + 0.018**2), rtol=0.1)


def test_fog_hides_what_is_far_and_not_what_is_near() -> None:
    """Koschmieder: contrast fades by exp(-extinction x distance), here on two walls that the LiDAR measured."""
    frame = rig_frame(cameras=1, size_px=(90, 160), radars=0)
    assert frame.cameras is not None
    camera = frame.cameras[0]
    assert camera is not None
    checks = np.indices((90, 160)).sum(axis=0)[..., None] // 2 % 2
    v, u = (axis.ravel() for axis in np.mgrid[0:90:1, 0:160:1])
    depth = np.where(u < 80, 10.0, 50.0)
    rays = np.linalg.inv(camera.intrinsics) @ np.stack([u, v, np.ones_like(u)]).astype(float)
    walls = (camera.reference_T_camera[:3, :3] @ (rays * depth)).T + camera.reference_T_camera[:3, 3]
    assert frame.lidar is not None
    cloud = np.pad(walls, ((0, 0), (0, 2))).astype(np.float32)
    scene = replace(
        frame,
        cameras=(replace(camera, image=(checks * np.full(3, 200)).astype(np.uint8)),),
        lidar=(replace(frame.lidar[0], points=cloud, reference_T_lidar=np.eye(4)),),
    )
    made = foggy_pictures(scene, 0.03, np.random.default_rng(1)).cameras
    assert made is not None
    assert made[0] is not None
    near, far = (np.ptp(made[0].image[5:-5, part, 0], axis=0).mean() / 200 for part in (slice(10, 70), slice(90, 150)))
    assert near == pytest.approx(np.exp(-0.03 * 10), abs=0.1)
    assert far == pytest.approx(np.exp(-0.03 * 50), abs=0.15)


def test_points_in_fog_fade_and_far_ones_come_back_from_the_fog() -> None:
    ranges = np.array([5.0, 10.0, 30.0, 90.0], np.float32)
    points = np.zeros((4, 5), np.float32)
    points[:, 1], points[:, 3] = ranges, 200
    made = foggy_points(points, 0.06, 0.05, np.random.default_rng(0))
    assert made[0, 1] == 5.0
    assert made[0, 3] == pytest.approx(200 * np.exp(-2 * 0.06 * 5), rel=1e-5)
    assert (made[2:, 1] < 12).all()  # on the ray, near the sensor
    assert (made[2:, [0, 2]] == 0).all()
    dim = points.copy()
    dim[:, 3] = 3
    assert len(foggy_points(dim, 0.06, 0.0, np.random.default_rng(0))) == 1  # without backscatter far returns are lost


def test_beams_are_those_that_multicorrupt_keeps() -> None:
    frame = rig_frame()
    assert frame.lidar is not None
    points = frame.lidar[0].points
    kept = {1: range(1, 32, 2), 2: range(1, 32, 4), 3: [1, 9, 17, 25], 4: [1, 17], 5: [17]}
    for severity, rings in kept.items():
        left = corrupt(frame, Corruption("beams_reducing", severity), no_past).lidar
        assert left is not None
        assert set(left[0].points[:, 4]) == set(rings)
        assert len(left[0].points) == np.isin(points[:, 4], list(rings)).sum()


def test_beams_that_are_not_told_are_found_by_elevation() -> None:
    known, unknown = (rig_frame(points=6400, rings=rings).lidar for rings in (True, False))
    assert known is not None
    assert unknown is not None
    cloud = unknown[0].points.copy()
    cloud[:, 0] -= 1.5  # to where the rings are cones about the sensor again
    kept = keep_beams(cloud, 4)
    assert len(kept) == pytest.approx(len(cloud) / 4, rel=0.2)
    true_ring = known[0].points[np.isin(cloud[:, 1], kept[:, 1]), 4].astype(int)
    assert len(set(true_ring)) <= 12  # 8 of 32, and some at the edges of two


@pytest.mark.parametrize(("severity", "lost"), [(1, 0.2), (2, 0.4), (3, 0.6)])
def test_points_are_lost_by_the_published_share(severity: int, lost: float) -> None:
    left = corrupt(rig_frame(points=640), Corruption("points_reducing", severity), no_past).lidar
    assert left is not None
    assert len(left[0].points) == round(640 * (1 - lost))


def test_dead_sectors_are_known_side_by_side_and_empty() -> None:
    frame = rig_frame(points=3000)
    made = corrupt(frame, Corruption("lidar_sectors", 3), no_past)
    assert made.lidar_sectors is not None
    assert made.lidar is not None
    assert (~made.lidar_sectors).sum() == 12
    assert np.abs(np.diff(made.lidar_sectors, append=made.lidar_sectors[0]).astype(int)).sum() == 2
    sweep = made.lidar[0]
    x_m, y_m, _ = (sweep.points[:, :3] @ sweep.reference_T_lidar[:3, :3].T + sweep.reference_T_lidar[:3, 3]).T
    assert made.lidar_sectors[azimuth_sector(x_m, y_m)].all()
    again = corrupt(replace(made, token="other"), Corruption("lidar_sectors", 1), no_past)
    assert again.lidar_sectors is not None
    assert not (again.lidar_sectors & ~made.lidar_sectors).any()  # what is dead stays dead


@pytest.mark.parametrize("name", ["spatial_misalignment", "lidar_misaligned", "camera_misaligned"])
def test_a_misaligned_sensor_delivers_its_data_with_a_wrong_pose(name: str) -> None:
    frame = rig_frame()
    made = corrupt(frame, Corruption(name, 5), no_past)
    moved = 0
    for before, after in zip((*(frame.cameras or ()), *(frame.lidar or ())), (*(made.cameras or ()), *(made.lidar or ())),
                             strict=True):  # fmt: skip
        data, pose = ("image", "reference_T_camera") if hasattr(before, "image") else ("points", "reference_T_lidar")
        assert getattr(after, data) is getattr(before, data)
        old, new = getattr(before, pose), getattr(after, pose)
        np.testing.assert_allclose(new[:3, :3] @ new[:3, :3].T, np.eye(3), atol=1e-9)
        moved += not np.array_equal(old, new)
    assert moved == 1
    if name == "spatial_misalignment":
        assert made.lidar is not None
        error = np.linalg.inv(frame.lidar[0].reference_T_lidar) @ made.lidar[0].reference_T_lidar  # type: ignore[index]
        np.testing.assert_allclose(error[:3, 3], [2, 0, 0], atol=1e-9)


def test_radar_velocities_stay_radial() -> None:
    made = corrupt(rig_frame(), Corruption("radar_clutter", 5), no_past).radar
    for sweep in made or ():
        false = sweep.points[12:]
        assert len(false) == 48
        np.testing.assert_allclose(np.cross(false[:, :2], false[:, 4:6]), 0, atol=1e-3)
        assert (np.abs(np.arctan2(false[:, 1], false[:, 0])) <= np.deg2rad(60.1)).all()
    noisy, clean = corrupt(rig_frame(), Corruption("radar_velocity_noise", 3), no_past).radar, rig_frame().radar
    for one, two in zip(noisy or (), clean or (), strict=True):
        change = one.points - two.points
        assert not change[:, :4].any()
        np.testing.assert_allclose(np.cross(two.points[:, :2], change[:, 4:6]), 0, atol=1e-3)


def test_points_that_are_no_points_are_borne() -> None:
    """Real files hold NaN; what they become is dropped later, but nothing else may suffer."""
    frame = rig_frame()
    assert frame.lidar is not None
    broken = frame.lidar[0].points.copy()
    broken[::50, :3] = np.nan
    frame = replace(frame, lidar=(replace(frame.lidar[0], points=broken),))
    for name, operation in CORRUPTIONS.items():
        if "lidar" in operation.modalities:
            made = corrupt(frame, Corruption(name, 5), past_of(frame)).lidar
            assert made is not None
            assert np.isfinite(made[0].points[:, :3]).all(axis=1).sum() > 0


def test_a_corruption_is_what_a_loader_can_be_altered_by() -> None:
    change: Callable[..., SensorFrame] = Corruption("fog", 2)
    assert digest(change(rig_frame(), no_past)) == digest(corrupt(rig_frame(), Corruption("fog", 2), no_past))


def test_sectors_count_from_behind_to_the_left_of_the_reference() -> None:
    angle = (np.arange(SECTORS) + 0.5) * 2 * np.pi / SECTORS - np.pi
    np.testing.assert_array_equal(azimuth_sector(np.cos(angle), np.sin(angle)), np.arange(SECTORS))
    edge = np.array([-1.0, -1.0, np.nan])
    np.testing.assert_array_equal(azimuth_sector(edge, np.array([0.0, -0.0, 1.0])), [SECTORS - 1, 0, 0])


def test_keyframes_of_the_rig_are_half_a_second_apart() -> None:
    """What the hangs of frozen sensors are counted in."""
    assert rig_frame(2).time_us - rig_frame(1).time_us == KEYFRAME_US
