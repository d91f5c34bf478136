"""A log that is converted to a data set is read as what was measured, by our reader and by the devkit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nuscenes")

from nuscenes import NuScenes
from typer.testing import CliRunner, Result

from sensors.logs.log import LogError
from sensors.logs.mapping.mapping import LidarTopics
from sensors.logs.messages import LogMessage
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import build_index
from sensors.nuscenes.reader import NuScenesReader
from sensors.replay.faults.messages import alter_messages
from sensors.replay.faults.script import parse_faults
from tests.sensors.replay.drive import MAPPING, MOUNTS, START_NS, MemoryLog, drive
from tests.small_nuscenes import SmallNuScenes, write_small_nuscenes
from training.commands.app import app
from training.replay import data_set
from training.replay.data_set import write_data_set
from training.replay.log_source import LogSource


def run(*words: Any) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, words)])


def reader_of(root: Path, **changes: Any) -> NuScenesReader:
    config = NuScenesConfig(
        root=root, version="v1.0-own", train_split="all", val_split="all", camera_channels=("CAM_FRONT",),
        radar_channels=("RADAR_FRONT",), lidar_sweeps=3, radar_sweeps=3,
    ).model_copy(update=changes)  # fmt: skip
    build_index(config)
    return NuScenesReader(config, "all")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallNuScenes:
    return write_small_nuscenes(tmp_path_factory.mktemp("small") / "data")


def test_a_scene_comes_back_from_a_log_as_it_was(small: SmallNuScenes, tmp_path: Path) -> None:
    """By way of MCAP: points and times to the bit, poses and boxes within a micrometre, pictures but for JPEG."""
    before = NuScenesReader(small.config, "small_train")
    log, root = tmp_path / "drive.mcap", tmp_path / "my own"
    assert run(small.root, "--scene", before.scene_name(0), "--out", log).exit_code == 0
    done = run(log, "--out", root, "--format", "nuscenes")
    assert done.exit_code == 0, done.output
    assert f"3 keyframes, 1 scene(s) in {root}\n" in done.output
    words = shlex.split(done.output.partition("to read it: ")[2])  # as a shell takes them
    assert {f"data.nuscenes.root={root}", "data.nuscenes.lidar_channels=[LIDAR_TOP]"} <= set(words)
    after = reader_of(root)
    assert len(after) == 3
    for k in range(3):
        old, new = before.frame(k), after.frame(k)
        assert abs(old.time_us - new.time_us) <= 1
        np.testing.assert_allclose(new.global_T_reference, old.global_T_reference, atol=1e-6)
        assert old.lidar is not None
        assert new.lidar is not None
        assert old.radar is not None
        assert new.radar is not None
        assert len(new.lidar) == len(old.lidar)
        for a, b in zip(old.lidar, new.lidar, strict=True):
            np.testing.assert_array_equal(a.points, b.points)
            np.testing.assert_allclose(a.reference_T_lidar, b.reference_T_lidar, atol=1e-6)
        np.testing.assert_allclose(new.radar[0].points, old.radar[0].points, atol=1e-4)
        assert old.cameras is not None
        assert new.cameras is not None
        assert old.cameras[0] is not None
        assert new.cameras[0] is not None
        np.testing.assert_allclose(new.cameras[0].reference_T_camera, old.cameras[0].reference_T_camera, atol=1e-6)
        assert np.abs(new.cameras[0].image.astype(int) - old.cameras[0].image).mean() < 3
        np.testing.assert_allclose(after.boxes(k).center_m, before.boxes(k).center_m, atol=1e-4)
        np.testing.assert_allclose(after.boxes(k).yaw_rad, before.boxes(k).yaw_rad, atol=1e-4)
        assert after.boxes(k).label.tolist() == before.boxes(k).label.tolist()
    devkit = NuScenes("v1.0-own", str(root), verbose=False)
    assert len(devkit.sample_annotation) == sum(len(before.boxes(k)) for k in range(3))


def written(messages: list[LogMessage], root: Path, mapping: Any = MAPPING) -> NuScenesReader:
    """Of a log without boxes."""
    said: list[str] = []
    path = root.parent / "mapping.yaml"
    path.write_text(mapping.model_dump_json())
    write_data_set(LogSource(MemoryLog(messages)), path, root, said.append)
    assert "without boxes: the log has none" in said[0]
    return reader_of(root, camera_channels=("CAM_FRONT", "CAM_BACK"), lidar_sweeps=2)


def test_a_sensor_that_fails_is_absent_at_its_keyframes_and_mounts_hold_no_motion(tmp_path: Path) -> None:
    faults = parse_faults(["LIDAR_TOP: drop 0.8s..1.3s", "cam_back: malformed 0.3s.."])
    messages = list(alter_messages(drive(2.2), faults, MAPPING, START_NS))
    reader = written(messages, tmp_path / "mine")
    frames = [reader.frame(k, motion=False) for k in range(len(reader))]
    assert [frame.lidar is not None for frame in frames] == [True, True, False, True, True]
    for k, frame in enumerate(frames):
        assert frame.cameras is not None
        assert frame.cameras[0] is not None
        assert (frame.cameras[1] is None) == (k > 0)
        np.testing.assert_allclose(frame.cameras[0].reference_T_camera[:3, 3], MOUNTS["CAM_FRONT"][0], atol=1e-9)
    x_m = [reader.global_T_reference(k)[0, 3] for k in range(5)]
    np.testing.assert_allclose(
        np.diff(x_m), 4.0, atol=0.12
    )  # 8 m/s; without the LiDAR the radar's pose 14 ms later is read


def test_a_long_drive_is_several_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_set, "SCENE_KEYFRAMES", 2)
    reader = written(drive(2.2), tmp_path / "mine")
    assert [reader.scene_name(k) for k in range(5)] == ["drive-000"] * 2 + ["drive-001"] * 2 + ["drive-002"]


def test_what_cannot_be_written_is_said_and_leaves_nothing(small: SmallNuScenes, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    odd = MAPPING.model_copy(update={"lidars": {"../LIDAR": LidarTopics(points="/lidar_top")}})
    with pytest.raises(LogError, match=r"expected channels that can be names of folders, got '\.\./LIDAR'"):
        written(drive(0.5), root, odd)
    with pytest.raises(LogError, match="expected a sensor that gives anything of use, got none"):
        written(list(alter_messages(drive(0.5), parse_faults(["all: malformed"]), MAPPING, START_NS)), root)
    assert not root.exists()
    scene = (small.root, "--scene", NuScenesReader(small.config, "small_train").scene_name(0))
    assert "not written over" in run(*scene, "--out", root, "--format", "nuscenes", "--overwrite").stderr
    assert "is for --format nuscenes" in run(*scene, "--out", tmp_path / "a.mcap", "--mapping", "m.yaml").stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "holds something" in run(*scene, "--out", tmp_path / "full", "--format", "nuscenes").stderr
