"""What the reader promises about any data set in nuScenes format."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud, RadarPointCloud
from pyquaternion import Quaternion

from bev.grid import BEVGrid
from sensors.calibration import apply, inverse_rigid, transforms
from sensors.camera.images import DecodeSize
from sensors.errors import DataRootError, SensorDataError, SensorDataWarning
from sensors.nuscenes.config import NuScenesConfig, RadarFilter
from sensors.nuscenes.reader import NuScenesReader
from sensors.nuscenes.summary import check_truth, describe
from tests.small_nuscenes import CHANNELS, VERSION, SmallNuScenes, box_tokens, write_radar

GRID = BEVGrid(-25.6, 25.6, -25.6, 25.6, 0.8)


@pytest.fixture(scope="module")
def reader(small_nuscenes: SmallNuScenes) -> NuScenesReader:
    return NuScenesReader(small_nuscenes.config, "small_train")


@pytest.fixture(scope="module")
def devkit(small_nuscenes: SmallNuScenes) -> NuScenes:
    return NuScenes(small_nuscenes.config.version, str(small_nuscenes.root), verbose=False)


@pytest.fixture
def copied(small_nuscenes: SmallNuScenes, tmp_path: Path) -> NuScenesConfig:
    """A copy whose files may be broken."""
    shutil.copytree(small_nuscenes.root, tmp_path / "copy")
    return small_nuscenes.config.model_copy(update={"root": tmp_path / "copy"})


def test_a_split_holds_its_scenes_and_ignores_those_that_are_elsewhere(
    reader: NuScenesReader, small_nuscenes: SmallNuScenes
) -> None:
    assert reader.tokens == ("sample-0-0", "sample-0-1", "sample-0-2")
    assert NuScenesReader(small_nuscenes.config, "small_val").tokens == ("sample-1-0", "sample-1-1", "sample-1-2")
    assert reader.index_of("sample-0-2") == 2
    assert reader.scene_name(0) == "scene-0"
    with pytest.raises(ValueError, match=r"sample-1-0.*small_train"):
        reader.index_of("sample-1-0")


def test_every_sweep_of_a_still_world_coincides_in_the_reference_frame(
    reader: NuScenesReader, small_nuscenes: SmallNuScenes
) -> None:
    frame = reader.frame(2)
    expected = apply(inverse_rigid(frame.global_T_reference), small_nuscenes.world_m)
    assert frame.lidar is not None
    assert frame.radar is not None
    assert len(frame.lidar) == 3
    assert len(frame.radar) == 3
    for sweep in frame.lidar:
        np.testing.assert_allclose(apply(sweep.reference_T_lidar, sweep.points[:, :3]), expected, atol=2e-4)
    for radar in frame.radar:
        np.testing.assert_allclose(apply(radar.reference_T_radar, radar.points[:, :3]), expected, atol=2e-4)


def test_without_motion_poses_are_the_mounts(reader: NuScenesReader, small_nuscenes: SmallNuScenes) -> None:
    moved, mounted = reader.frame(1), reader.frame(1, motion=False)
    assert moved.lidar is not None
    assert mounted.lidar is not None
    mount = transforms(small_nuscenes.channels["LIDAR_TOP"][1])
    for then, sweep in zip(moved.lidar, mounted.lidar, strict=True):
        np.testing.assert_allclose(sweep.reference_T_lidar, mount, atol=1e-9)
        np.testing.assert_array_equal(sweep.points, then.points)
    assert not np.allclose(moved.lidar[-1].reference_T_lidar, mount)


def test_sweeps_come_newest_first_and_no_more_than_there_are(reader: NuScenesReader) -> None:
    frame = reader.frame(2)
    assert frame.lidar is not None
    times = [sweep.time_us for sweep in frame.lidar]
    assert times == sorted(times, reverse=True)
    assert times[0] == frame.time_us
    first = reader.frame(0).lidar
    assert first is not None
    assert len(first) == 1


@pytest.mark.parametrize(("gap_s", "sweeps"), [(0.1, 1), (0.3, 3), (None, 3)])
def test_sweeps_of_another_time_are_left_out_and_told_once(
    small_nuscenes: SmallNuScenes, gap_s: float | None, sweeps: int
) -> None:
    """They are a sixth of a second apart here; without sweeps between the keyframes it would be half a second."""
    reader = NuScenesReader(small_nuscenes.config.model_copy(update={"max_sweep_gap_s": gap_s}), "small_train")
    frame = reader.frame(2)
    assert frame.radar is not None
    assert len(frame.radar) == sweeps
    lines = reader.left_out_sweeps()
    assert [line.partition(":")[0] for line in lines] == (["lidar_sweeps=3", "radar_sweeps=3"] if sweeps == 1 else [])
    assert all("0.17 s older" in line and "max_sweep_gap_s=0.1 " in line for line in lines)


def test_sweeps_merge_as_the_devkit_merges_them(reader: NuScenesReader, devkit: NuScenes) -> None:
    cloud, ages = LidarPointCloud.from_file_multisweep(
        devkit, devkit.get("sample", "sample-0-2"), "LIDAR_TOP", "LIDAR_TOP", nsweeps=3, min_distance=0.0
    )
    frame = reader.frame(2)
    assert frame.lidar is not None
    lidar_T_reference = inverse_rigid(frame.lidar[0].reference_T_lidar)
    ours = [apply(lidar_T_reference @ sweep.reference_T_lidar, sweep.points[:, :3]) for sweep in frame.lidar]
    np.testing.assert_allclose(np.concatenate(ours), cloud.points[:3].T, atol=2e-4)
    our_ages = [(frame.time_us - sweep.time_us) * 1e-6 for sweep in frame.lidar for _ in sweep.points]
    np.testing.assert_allclose(our_ages, ages[0], atol=1e-6)


def test_radar_velocity_is_over_ground_in_reference_axes(reader: NuScenesReader, small_nuscenes: SmallNuScenes) -> None:
    frame = reader.frame(1)
    assert frame.radar is not None
    expected = frame.global_T_reference[:2, :2].T @ small_nuscenes.object_velocity_mps
    for sweep in frame.radar:
        velocity = sweep.points[:, 4:6] @ sweep.reference_T_radar[:2, :2].T
        np.testing.assert_allclose(velocity, np.broadcast_to(expected, velocity.shape), atol=0.02)  # the vehicle nods


def test_boxes_are_the_devkits_in_the_reference_frame(reader: NuScenesReader, devkit: NuScenes) -> None:
    pose = reader.global_T_reference(1)
    rotation = Quaternion(matrix=pose[:3, :3], rtol=1e-4, atol=1e-6)
    boxes = reader.boxes(1)
    assert len(boxes) == 2
    for i, token in enumerate(box_tokens(reader, 1)):
        box = devkit.get_box(token)
        velocity = rotation.inverse.rotate(np.nan_to_num(devkit.box_velocity(token)))
        box.translate(-pose[:3, 3])
        box.rotate(rotation.inverse)
        np.testing.assert_allclose(boxes.center_m[i], box.center, atol=1e-4)
        np.testing.assert_allclose(boxes.size_m[i], box.wlh, atol=1e-6)
        heading = box.orientation.rotation_matrix[:2, 0]
        np.testing.assert_allclose(boxes.yaw_rad[i], np.arctan2(heading[1], heading[0]), atol=1e-5)
        if token.startswith("car"):
            np.testing.assert_allclose(boxes.velocity_mps[i], velocity[:2], atol=1e-4)
        else:  # one annotation alone has no velocity
            assert boxes.velocity_mps[i].isnan().all()
    assert [reader.classes[label] for label in boxes.label] == ["car", "pedestrian"]
    assert reader.attributes[int(boxes.attribute[0])] == "vehicle.moving"
    assert boxes.attribute[1] == -1
    assert reader.num_points(1).tolist() == [22, 0]


def test_class_counts_leave_out_boxes_without_points(reader: NuScenesReader) -> None:
    counts = reader.class_counts()
    assert counts.shape == (3, 10)
    assert counts[:, reader.classes.index("car")].tolist() == [1, 1, 1]
    assert counts.sum() == 3


@pytest.mark.parametrize(
    ("change", "class_map", "min_points", "grid", "words"),
    [
        ({}, {}, 1, GRID, "3 of 4 boxes in small_train (car 3); left out: 1 with fewer points than data.min_points=1"),
        ({}, {}, 0, GRID, "4 of 4 boxes in small_train (car 3, pedestrian 1)"),
        ({}, {}, 1, BEVGrid(-2, 2, -2, 2, 1), "0 of 4 boxes in small_train; left out: 1 with fewer points than "
            "data.min_points=1; 3 outside model.grid"),
        ({}, {"animal": "barrier"}, 1, GRID, "0 of 4 boxes in small_train; left out: 4 of no category that "
            "data.nuscenes.class_map names (vehicle.car 3, human.pedestrian.child 1)"),
        ({"num_lidar_pts": -1, "num_radar_pts": 0}, {}, 2, GRID, "0 of 4 boxes in small_train; left out: 4 whose points were "
            "not counted, where data.min_points=2 asks for some: data.min_points=0 takes them"),
        ({"num_lidar_pts": None, "num_radar_pts": None}, {}, 1, GRID, "0 of 4 boxes in small_train; left out: 4 whose points"),
        ({"num_lidar_pts": -1, "num_radar_pts": 0}, {}, 0, GRID, "4 of 4 boxes in small_train (car 3, pedestrian 1)"),
        ({"num_lidar_pts": -1, "num_radar_pts": 3}, {}, 3, GRID, "4 of 4 boxes in small_train (car 3, pedestrian 1)"),
        (None, {}, 1, GRID, "0 of 0 boxes in small_train"),
    ],
)  # fmt: skip
def test_what_training_sees_is_counted_and_nothing_is_refused(
    copied: NuScenesConfig,
    change: dict[str, Any] | None,
    class_map: dict[str, str],
    min_points: int,
    grid: BEVGrid,
    words: str,
) -> None:
    """`change` of every annotation, None: there is none."""
    for table in ("sample_annotation", "instance"):
        path = copied.root / VERSION / f"{table}.json"
        rows = json.loads(path.read_text())
        path.write_text(json.dumps([] if change is None else [row | change for row in rows]))
    config = copied.model_copy(update={"class_map": class_map or copied.class_map})
    reader = NuScenesReader(config, "small_train")
    assert str(reader.truth(min_points, grid)).startswith(words)
    seen = sum(
        int(((grid.flat_index(reader.boxes(i).center_m[:, :2]) < grid.num_cells) & (points >= min_points)).sum())
        for i, points in enumerate(reader.num_points(i) for i in range(len(reader)))
    )
    if seen:
        assert sum(check_truth(reader, min_points, grid).per_class.values()) == seen
    else:
        with pytest.raises(
            DataRootError, match=r"nothing to learn from: training would see 0 of [04] boxes in small_train"
        ):
            check_truth(reader, min_points, grid)


def test_balanced_sampling_counts_the_boxes_that_training_sees(reader: NuScenesReader) -> None:
    assert reader.class_counts(0).sum() == 4
    assert reader.class_counts(23).sum() == 0


def test_the_class_map_of_the_config_decides_the_classes(small_nuscenes: SmallNuScenes) -> None:
    config = small_nuscenes.config.model_copy(update={"class_map": {"human.pedestrian.child": "small_person"}})
    reader = NuScenesReader(config, "small_train")
    assert reader.classes == ("small_person",)
    assert reader.boxes(1).label.tolist() == [0]
    assert len(reader.boxes(0)) == 0
    with pytest.raises(DataRootError, match=r"class_map.*small_person.*car"):
        NuScenesReader(config, "small_train", classes=("car",))


def test_a_radar_that_the_data_set_lacks_counts_as_missing(reader: NuScenesReader) -> None:
    frame = reader.frame(0)
    assert frame.radar is not None
    assert {sweep.channel for sweep in frame.radar} == {"RADAR_FRONT"}


def test_a_channel_that_the_data_set_does_not_know_is_a_slip(small_nuscenes: SmallNuScenes) -> None:
    config = small_nuscenes.config.model_copy(update={"radar_channels": ("RADAR_FRNT",)})
    with pytest.raises(DataRootError, match=r"radar_channels: .*RADAR_FRNT \(the nearest is RADAR_FRONT\)"):
        NuScenesReader(config, "small_train")
    assert describe(config)["channels_missing"] == ["RADAR_FRNT"]


def test_a_channel_of_another_modality_is_a_slip(small_nuscenes: SmallNuScenes) -> None:
    config = small_nuscenes.config.model_copy(update={"camera_channels": ("LIDAR_TOP",), "lidar_channels": ()})
    with pytest.raises(DataRootError, match=r"camera_channels: LIDAR_TOP is a lidar there, expected a camera"):
        NuScenesReader(config, "small_train")


def test_the_reference_is_a_lidar_of_the_rig_or_any_channel_where_there_is_none(small_nuscenes: SmallNuScenes) -> None:
    with pytest.raises(
        ValueError, match=r"reference_channel must be one of lidar_channels \(LIDAR_TOP\), got CAM_FRONT"
    ):
        NuScenesConfig(reference_channel="CAM_FRONT")
    camera = NuScenesConfig.model_validate(
        small_nuscenes.config.model_dump() | {"lidar_channels": (), "reference_channel": "CAM_FRONT"}
    )
    reader = NuScenesReader(camera, "small_train")
    picture = reader.frame(0).cameras
    assert picture is not None
    assert picture[0] is not None
    np.testing.assert_allclose(picture[0].reference_T_camera[:3, 3], CHANNELS["CAM_FRONT"][1][:3], atol=1e-9)
    with pytest.raises(DataRootError, match=r"reference_channel: .*got CAM_FRNT \(the nearest is CAM_FRONT\)"):
        NuScenesReader(camera.model_copy(update={"reference_channel": "CAM_FRNT"}), "small_train")


def test_a_missing_camera_leaves_its_place_empty(small_nuscenes: SmallNuScenes) -> None:
    config = small_nuscenes.config.model_copy(update={"camera_channels": ("CAM_BACK", "CAM_FRONT")})
    cameras = NuScenesReader(config, "small_train").frame(0).cameras
    assert cameras is not None
    assert cameras[0] is None
    assert cameras[1] is not None
    assert cameras[1].channel == "CAM_FRONT"


def test_images_decoded_small_keep_their_geometry(small_nuscenes: SmallNuScenes) -> None:
    full = NuScenesReader(small_nuscenes.config, "small_train").frame(0).cameras
    reduced = NuScenesReader(small_nuscenes.config, "small_train", decode=DecodeSize(40, 80)).frame(0).cameras
    assert full is not None
    assert reduced is not None
    assert full[0] is not None
    assert reduced[0] is not None
    assert full[0].image.shape == (180, 320, 3)
    assert reduced[0].image.shape == (45, 80, 3)
    # The picture is a grey ramp: where a ray falls in one picture it is as grey as where it falls in the other.
    columns = np.arange(80)
    same_ray = np.linalg.solve(reduced[0].intrinsics, np.stack([columns, columns, np.ones(80)]))
    in_full = full[0].intrinsics[0] @ same_ray
    grey = np.interp(in_full, np.arange(320), full[0].image[20, :, 0])
    assert np.mean(grey - reduced[0].image[20, :, 0]) == pytest.approx(
        0, abs=0.1
    )  # half a pixel off would be 0.4 or 1.6
    np.testing.assert_allclose(reduced[0].intrinsics[0, 2], (160 + 0.5) / 4 - 0.5)


def test_radar_filters_are_off_unless_asked_for(small_nuscenes: SmallNuScenes, reader: NuScenesReader) -> None:
    strict = small_nuscenes.config.model_copy(update={"radar_filter": RadarFilter(invalid_states=(0,))})
    everything, filtered = reader.frame(0).radar, NuScenesReader(strict, "small_train").frame(0).radar
    assert everything is not None
    assert filtered is not None
    assert len(everything[0].points) == 200
    assert len(filtered[0].points) == 100


@pytest.mark.parametrize("filters", [None, RadarFilter(invalid_states=(0,), dynprop_states=(0,), ambig_states=(3,))])
def test_radar_points_are_the_devkits(small_nuscenes: SmallNuScenes, filters: RadarFilter | None) -> None:
    file = "samples/RADAR_FRONT/RADAR_FRONT-0-0.pcd"
    states = list(range(18))
    devkit = RadarPointCloud.from_file(
        str(small_nuscenes.root / file),
        invalid_states=states if filters is None else list(filters.invalid_states or ()),
        dynprop_states=states if filters is None else list(filters.dynprop_states or ()),
        ambig_states=states if filters is None else list(filters.ambig_states or ()),
    )
    config = small_nuscenes.config.model_copy(update={"radar_filter": filters or RadarFilter()})
    ours = NuScenesReader(config, "small_train").frame(0).radar
    assert ours is not None
    np.testing.assert_allclose(ours[0].points, devkit.points[[0, 1, 2, 5, 8, 9]].T)


def test_a_reader_travels_to_other_processes(reader: NuScenesReader) -> None:
    pickled = pickle.dumps(reader)
    assert len(pickled) < 10_000
    again = pickle.loads(pickled)
    assert again.tokens == reader.tokens
    assert torch.equal(again.boxes(0).center_m, reader.boxes(0).center_m)


def test_describe_says_what_is_there_and_what_is_not(small_nuscenes: SmallNuScenes) -> None:
    summary = describe(small_nuscenes.config)
    assert summary["samples_per_split"] == {"small_train": 3, "small_val": 3}
    assert summary["channels_missing"] == ["RADAR_BACK_LEFT"]
    assert summary["boxes_per_class"]["car"] == 6
    assert summary["boxes_per_class"]["pedestrian"] == 2
    assert summary["sweeps"] == 16


@pytest.mark.parametrize(
    ("channel", "file", "keep_bytes", "words"),
    [
        ("LIDAR_TOP", "samples/LIDAR_TOP/LIDAR_TOP-0-3.pcd.bin", 3990, r"whole points of 20 bytes, got 3990 bytes"),
        ("LIDAR_TOP", "samples/LIDAR_TOP/LIDAR_TOP-0-3.pcd.bin", 0, r"expected data, got 0 bytes"),
        ("RADAR_FRONT", "samples/RADAR_FRONT/RADAR_FRONT-0-3.pcd", 2000, r"200 points of 43 bytes"),
        ("RADAR_FRONT", "samples/RADAR_FRONT/RADAR_FRONT-0-3.pcd", 100, r"PCD header.*without a line 'DATA binary'"),
        ("CAM_FRONT", "samples/CAM_FRONT/CAM_FRONT-0-1.jpg", 1500, r"a whole JPEG"),
        ("CAM_FRONT", "samples/CAM_FRONT/CAM_FRONT-0-1.jpg", 0, r"expected data, got 0 bytes"),
    ],
)
def test_a_truncated_file_is_named_with_its_sensor_and_token(
    copied: NuScenesConfig, channel: str, file: str, keep_bytes: int, words: str
) -> None:
    path = copied.root / file
    path.write_bytes(path.read_bytes()[:keep_bytes])
    reader = NuScenesReader(copied, "small_train")
    token = path.name.split(".")[0]
    with pytest.raises(SensorDataError, match=words) as fault:
        reader.frame(1)
    message = str(fault.value)
    assert channel in message
    assert str(path) in message
    assert token in message
    assert "on_bad_file" in message


def test_a_broken_file_counts_as_a_missing_sensor_where_the_config_says_so(copied: NuScenesConfig) -> None:
    for file in ("LIDAR_TOP/LIDAR_TOP-0-3.pcd.bin", "CAM_FRONT/CAM_FRONT-0-1.jpg"):
        path = copied.root / "samples" / file
        path.write_bytes(path.read_bytes()[:999])
    reader = NuScenesReader(copied.model_copy(update={"on_bad_file": "absent"}), "small_train")
    with pytest.warns(SensorDataWarning, match="counts as absent"):
        frame = reader.frame(1)
    assert frame.lidar is None
    assert frame.cameras is None
    assert frame.radar is not None


def test_a_broken_older_sweep_ends_the_history_but_not_the_sensor(copied: NuScenesConfig) -> None:
    (copied.root / "sweeps/LIDAR_TOP/LIDAR_TOP-0-2.pcd.bin").unlink()
    reader = NuScenesReader(copied.model_copy(update={"on_bad_file": "absent"}), "small_train")
    with pytest.warns(SensorDataWarning, match="none there"):
        lidar = reader.frame(1).lidar
    assert lidar is not None
    assert len(lidar) == 1


def test_a_lidar_file_without_one_finite_point_is_a_fault(copied: NuScenesConfig) -> None:
    path = copied.root / "samples/LIDAR_TOP/LIDAR_TOP-0-0.pcd.bin"
    np.full((50, 5), np.nan, "<f4").tofile(path)
    with pytest.raises(SensorDataError, match=r"LIDAR_TOP.*50 points, all of them NaN"):
        NuScenesReader(copied, "small_train").frame(0)


def test_lidar_columns_say_what_a_point_of_a_file_holds(copied: NuScenesConfig) -> None:
    whole = NuScenesReader(copied, "small_train").frame(0)
    for path in copied.root.glob("s*/LIDAR_TOP/*"):
        points = np.fromfile(path, "<f4").reshape(-1, 5)
        points[:, [3, 0, 1, 2]].tofile(path)  # intensity first, no ring
    with pytest.raises(SensorDataError, match=r"LIDAR_TOP-0-0\.pcd\.bin .*data\.nuscenes\.lidar_columns"):
        NuScenesReader(copied, "small_train").frame(0)
    config = copied.model_copy(update={"lidar_columns": ("intensity", "x", "y", "z")})
    frame = NuScenesReader(config, "small_train").frame(0)
    assert frame.lidar is not None
    assert whole.lidar is not None
    for sweep, old in zip(frame.lidar, whole.lidar, strict=True):
        np.testing.assert_array_equal(sweep.points[:, :4], old.points[:, :4])
        assert (sweep.points[:, 4] == -1).all()


@pytest.mark.parametrize("columns", [("x", "y", "intensity"), ("x", "y", "z", "ring", "ring"), ()])
def test_lidar_columns_hold_a_place_at_least(columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="lidar_columns: expected each of x, y, z once"):
        NuScenesConfig(lidar_columns=columns)


def test_a_radar_that_saw_nothing_is_present(copied: NuScenesConfig) -> None:
    """The data set's own way to say so is one point of NaN."""
    write_radar(copied.root / "samples/RADAR_FRONT/RADAR_FRONT-0-0.pcd", np.full((1, 3), np.nan), np.zeros((1, 2)))
    frame = NuScenesReader(copied, "small_train").frame(0)
    assert frame.radar is not None


def test_a_picture_of_another_size_than_its_row_says_is_a_fault(copied: NuScenesConfig) -> None:
    shutil.copy(copied.root / "samples/CAM_FRONT/CAM_FRONT-0-0.jpg", copied.root / "keep.jpg")
    import simplejpeg

    (copied.root / "samples/CAM_FRONT/CAM_FRONT-0-0.jpg").write_bytes(
        simplejpeg.encode_jpeg(np.zeros((90, 160, 3), np.uint8))
    )
    with pytest.raises(SensorDataError, match=r"CAM_FRONT.*320 x 180 px.*got 160 x 90 px"):
        NuScenesReader(copied, "small_train").frame(0)


def test_without_its_reference_channel_a_sample_takes_the_pose_nearest_in_time(
    reader: NuScenesReader, small_nuscenes: SmallNuScenes
) -> None:
    config = small_nuscenes.config.model_copy(update={"reference_channel": "LIDAR_FRONT"})
    other = NuScenesReader(config, "small_train")
    np.testing.assert_array_equal(
        other.global_T_reference(1), reader.global_T_reference(1)
    )  # LIDAR_TOP has its very time
