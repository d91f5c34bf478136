"""What is written as a data set of one's own is what is read: by our reader, by the devkit, by `index` and `doctor`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("nuscenes")

from nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud, RadarPointCloud
from typer.testing import CliRunner

from sensors.calibration import apply, inverse_rigid
from sensors.errors import SensorDataError
from sensors.motion.poses import LINK_T_OPTICAL, pose
from sensors.motion.trajectory import Trajectory
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.reader import NuScenesReader
from sensors.nuscenes.write import Annotation, NuScenesWriter, write_nuscenes
from sensors.readings import CameraReading, LidarReading, RadarReading, Reading, frame_at
from training.commands.app import app

AHEAD = (1, 0, 0, 0)
MOUNTS = {
    "front": pose((1.7, 0, 1.5), wxyz=AHEAD) @ LINK_T_OPTICAL,
    "roof": pose((0.9, 0.1, 1.8), wxyz=(np.cos(0.4), 0, 0, np.sin(0.4))),
    "bumper": pose((3.4, 0, 0.5), wxyz=AHEAD),
}
K = np.array([[100.0, 0, 80], [0, 100, 48], [0, 0, 1]])
START_US = 1_700_000_000_000_000
SPLITS = {"own_train": ["yard"], "own_val": ["street"]}
WORLD = np.random.default_rng(0).uniform((-12, -12, 0.2), (40, 12, 2), (900, 3))  # fixed points, global
VAN = np.array([14.0, 4.0, 1.0])  # its middle at the start, global; it drives 2 m/s along x


def global_T_ego(time_us: int) -> NDArray[np.float64]:  # noqa: N802
    """10 m/s, turning."""
    seconds = (time_us - START_US) / 1e6
    return pose((10 * seconds, 0, 0), wxyz=(np.cos(0.1 * seconds), 0, 0, np.sin(0.1 * seconds)))


def trajectory() -> Trajectory:
    times = range(START_US - 300_000, START_US + 1_300_001, 1_000)
    return Trajectory(times, map(global_T_ego, times))


def seen(channel: str, time_us: int) -> NDArray[np.float64]:
    return apply(inverse_rigid(global_T_ego(time_us) @ MOUNTS[channel]), WORLD)


def sweep(time_us: int) -> LidarReading:
    xyz = seen("roof", time_us)
    return LidarReading("roof", np.column_stack([xyz, np.full((len(xyz), 2), (51, 7))]).astype(np.float32), time_us)


def radar(time_us: int) -> RadarReading:
    xyz = seen("bumper", time_us)
    points = np.column_stack([xyz, np.full((len(xyz), 3), (5, 1.5, -0.5))]).astype(np.float32)
    return RadarReading("bumper", points, time_us)


def camera(time_us: int) -> CameraReading:
    ramp = np.broadcast_to(np.linspace(0, 255, 160)[None, :, None], (96, 160, 3))
    return CameraReading("front", ramp.astype(np.uint8), K, time_us)


def readings(now_us: int) -> list[Reading]:
    """Sweeps are handed over again at the next keyframe, as a robot that keeps its last ones does."""
    sweeps = [sweep(now_us - 100_000 * k) for k in range(7)]
    return [*sweeps, camera(now_us - 20_000), radar(now_us + 10_000)]


def boxes(now_us: int) -> list[Annotation]:
    moved = VAN + np.array([2 * (now_us - START_US) / 1e6, 0, 0])
    ego_T_global = inverse_rigid(global_T_ego(now_us))
    yaw_rad = float(np.arctan2(ego_T_global[1, 0], ego_T_global[0, 0]))
    here = apply(ego_T_global, moved[None])[0].tolist()
    return [Annotation("van-1", "own.van", here, (2, 5, 2), yaw_rad, "own.loaded")]


def write(root: Path) -> None:
    with write_nuscenes(root, MOUNTS, SPLITS) as writer:
        for scene in ("yard", "street"):
            for k in range(3):
                now_us = START_US + 500_000 * k
                writer.keyframe(scene, now_us, readings(now_us), boxes(now_us), trajectory())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "data"
    write(folder)
    return folder


@pytest.fixture(scope="module")
def config(root: Path) -> NuScenesConfig:
    return NuScenesConfig(
        root=root, version="v1.0-own", train_split="own_train", val_split="own_val", camera_channels=("front",),
        lidar_channels=("roof",), radar_channels=("bumper",), reference_channel="roof", lidar_sweeps=5, radar_sweeps=1,
        class_map={"own.van": "van"},
    )  # fmt: skip


def test_every_sweep_is_read_where_the_world_is(config: NuScenesConfig) -> None:
    reader = NuScenesReader(config, "own_val")
    frame = reader.frame(1)
    now_us = START_US + 500_000
    assert frame.time_us == now_us
    np.testing.assert_allclose(frame.global_T_reference, global_T_ego(now_us), atol=1e-9)
    world = apply(inverse_rigid(global_T_ego(now_us)), WORLD)
    assert frame.lidar is not None
    assert [one.time_us for one in frame.lidar] == [now_us - 100_000 * k for k in range(5)]
    for one in frame.lidar:
        np.testing.assert_allclose(apply(one.reference_T_lidar, one.points[:, :3].astype(float)), world, atol=1e-4)
        assert (one.points[:, 3:] == (51, 7)).all()
    assert frame.radar is not None
    (echoes,) = frame.radar
    np.testing.assert_allclose(apply(echoes.reference_T_radar, echoes.points[:, :3].astype(float)), world, atol=1e-4)
    assert (echoes.points[:, 3:] == (5, 1.5, -0.5)).all()
    assert frame.cameras is not None
    (picture,) = frame.cameras
    assert picture is not None
    assert picture.time_us == now_us - 20_000
    np.testing.assert_array_equal(picture.intrinsics, K)
    assert np.abs(picture.image.astype(int) - camera(now_us).image).max() <= 6  # a JPEG


def test_boxes_have_their_place_speed_and_points(config: NuScenesConfig) -> None:
    reader = NuScenesReader(config, "own_train", attributes=("own.loaded",))
    found, now_us = reader.boxes(1), START_US + 500_000
    (box,) = boxes(now_us)
    np.testing.assert_allclose(found.center_m[0], box.center_m, atol=1e-4)
    np.testing.assert_allclose(found.size_m[0], (2, 5, 2))
    assert float(found.yaw_rad[0]) == pytest.approx(box.yaw_rad, abs=1e-6)
    turned = global_T_ego(now_us)[:2, :2].T @ (2, 0)
    np.testing.assert_allclose(found.velocity_mps[0], turned, atol=1e-4)
    assert reader.classes == ("van",)
    assert found.attribute.tolist() == [0]
    local = np.abs(WORLD - VAN - np.array([1, 0, 0]))
    inside = int((local <= (2.5, 1, 1)).all(axis=1).sum())
    assert inside > 0
    assert reader.num_points(1).tolist() == [2 * inside]  # of the LiDAR and of the radar, which see the same


def test_the_devkit_takes_it(root: Path) -> None:
    nusc = NuScenes("v1.0-own", str(root), verbose=False)
    assert [scene["name"] for scene in nusc.scene] == ["yard", "street"]
    sample = nusc.sample[1]
    assert set(sample["data"]) == set(MOUNTS)
    many, times = LidarPointCloud.from_file_multisweep(nusc, sample, "roof", "roof", nsweeps=5, min_distance=0)
    assert many.points.shape[1] == 5 * len(WORLD)
    assert len(np.unique(times.round(3))) == 5
    one = RadarPointCloud.from_file(nusc.get_sample_data_path(sample["data"]["bumper"]))
    assert one.points.shape[1] == len(WORLD)
    np.testing.assert_allclose(nusc.box_velocity(sample["anns"][0])[:2], (2, 0), atol=1e-6)


def test_index_and_doctor_take_it(config: NuScenesConfig, root: Path, tmp_path: Path) -> None:
    own = config.model_dump(mode="json")
    keys = ("version", "train_split", "val_split", "reference_channel")
    words = [f"data.nuscenes.{key}={own[key]}" for key in keys] + [f"data.nuscenes.root={root}"]
    words += [f"data.nuscenes.{kind}_channels=[{own[f'{kind}_channels'][0]}]" for kind in ("camera", "lidar", "radar")]
    words += ["data.nuscenes.class_map={own.van: van}", "model.classes=[van]"]
    file = tmp_path / "own.yaml"
    file.write_text("name: own\n")
    for command in ("index", "doctor"):
        result = CliRunner().invoke(app, [command, "--config", str(file), *words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert "3 of 3 boxes in own_train" in " ".join(result.output.split())


def test_a_lidar_whose_points_have_times_is_written_at_one(tmp_path: Path) -> None:
    now_us = START_US + 500_000
    times = now_us - np.linspace(100_000, 0, len(WORLD)).astype(np.int64)
    skewed = np.stack([seen("roof", int(time))[i] for i, time in enumerate(times.tolist())])
    points = np.column_stack([skewed, np.zeros((len(WORLD), 2))]).astype(np.float32)
    with write_nuscenes(tmp_path / "data", MOUNTS, {"own": ["yard"]}) as writer:
        writer.keyframe("yard", now_us, [LidarReading("roof", points, now_us, point_times_us=times)], [], trajectory())
    (file,) = (tmp_path / "data" / "samples" / "roof").iterdir()
    written = np.fromfile(file, "<f4").reshape(-1, 5)[:, :3]
    np.testing.assert_allclose(written, seen("roof", now_us), atol=1e-3)
    assert np.abs(points[:, :3] - written).max() > 0.5


def first(
    writer: NuScenesWriter, what: Iterable[Reading], found: Iterable[Annotation] = (), at_us: int = START_US
) -> Any:
    writer.keyframe("yard", at_us, what, found, trajectory())


EMPTY = LidarReading("roof", np.zeros((0, 5), np.float32), START_US)
BOX = Annotation("a", "own.van", (5, 0, 1), (2, 5, 2), 0.0)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (lambda w: first(w, [EMPTY]), SensorDataError, "roof at .* at least one finite point. Leave it out"),
        (lambda w: first(w, [sweep(START_US - 2_000_000)]), SensorDataError, "roof: its nearest reading is 2.000 s older"),
        (lambda w: first(w, [LidarReading("front", sweep(START_US).points, START_US), camera(START_US)]), ValueError,
         "front: expected readings of one kind"),
        (lambda w: first(w, [LidarReading("rear", sweep(START_US).points, START_US)]), ValueError, "mount of every sensor"),
        (lambda w: w.frame("yard", frame_at(START_US, [sweep(START_US)], MOUNTS, None), [], {}), ValueError,
         "got none of roof; there are none"),
        (lambda w: first(w, [], [Annotation("a", "own.van", (5, 0, 1), (2, 0, 2), 0.0)]), ValueError, "a size above 0"),
        (lambda w: first(w, [], [BOX, Annotation("a", "own.bus", (5, 0, 1), (2, 5, 2), 0)]), ValueError, "one category"),
        (lambda w: (first(w, []), first(w, [])), ValueError, "expected times that rise"),
        (lambda w: first(w, []), ValueError, r"expected scenes that were written \(yard\), got elsewhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_and_nothing_is_left_behind(
    fault: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    with (
        pytest.raises(error, match=words),
        write_nuscenes(tmp_path / "data", MOUNTS, {"own": ["yard", "elsewhere"]}) as writer,
    ):
        fault(writer)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_splits_have_names_of_their_own(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="holds something"), write_nuscenes(root, MOUNTS, SPLITS):
        pass
    with pytest.raises(ValueError, match="'val', which stands for nuScenes' scenes"):  # noqa: SIM117
        with write_nuscenes(tmp_path / "data", MOUNTS, {"val": ["yard"]}):
            pass


def test_without_lidar_and_radar_points_are_not_counted(tmp_path: Path) -> None:
    with write_nuscenes(tmp_path / "data", MOUNTS, {"own": ["yard"]}) as writer:
        first(writer, [camera(START_US)], [BOX])
    config = NuScenesConfig(
        root=tmp_path / "data", version="v1.0-own", train_split="own", camera_channels=("front",), lidar_channels=(),
        radar_channels=(), reference_channel="front", class_map={"own.van": "van"},
    )  # fmt: skip
    nusc = NuScenes("v1.0-own", str(tmp_path / "data"), verbose=False)
    (row,) = nusc.sample_annotation
    assert (row["num_lidar_pts"], row["num_radar_pts"]) == (-1, -1)
    assert len(NuScenesReader(config, "own").boxes(0)) == 1
