"""The readers of point files take what nuScenes writes and nothing less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensors.errors import SensorDataError
from sensors.nuscenes.point_files import read_lidar_file, read_radar_file, read_radar_records
from tests.small_nuscenes import RADAR_HEADER, write_radar

POINTS = np.arange(30, dtype=float).reshape(10, 3)
VELOCITY = np.ones((10, 2))


@pytest.mark.parametrize("spare", [0, 1, 4096])
def test_bytes_after_the_last_radar_point_are_not_points(tmp_path: Path, spare: int) -> None:
    path = tmp_path / "radar.pcd"
    write_radar(path, POINTS, VELOCITY, spare=spare)
    points = read_radar_file(path, sensor="RADAR_FRONT", token="t")
    np.testing.assert_array_equal(points[:, :3], POINTS)
    assert points.shape == (10, 6)


def test_a_radar_file_of_no_points_is_empty_and_not_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "radar.pcd"
    write_radar(path, np.zeros((0, 3)), np.zeros((0, 2)))
    assert read_radar_file(path, sensor="RADAR_FRONT", token="t").shape == (0, 6)


@pytest.mark.parametrize("cut", [1, 20, 43, 400])
def test_a_radar_file_cut_anywhere_in_its_points_is_a_fault(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "radar.pcd"
    write_radar(path, POINTS, VELOCITY, spare=0)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(
        SensorDataError, match=rf"RADAR_FRONT: .*radar\.pcd \(token t\): expected 10 points .*got {430 - cut} bytes"
    ):
        read_radar_file(path, sensor="RADAR_FRONT", token="t")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("DATA binary", "DATA ascii", "DATA ascii"),
        ("vx_comp", "vx_other", "no field vx_comp"),
        ("POINTS 10", "POINTS ten", "make no sense"),
        ("POINTS 10", "POINTS -1", "POINTS -1"),
        ("SIZE 4 4", "SIZE 4", "make no sense"),
        ("FIELDS", "FELDER", "without FIELDS"),
        ("TYPE F", "TYPE Q", "make no sense"),
    ],
)
def test_a_radar_header_that_cannot_be_is_a_fault(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "radar.pcd"
    path.write_bytes(RADAR_HEADER.format(count=10).replace(old, new).encode() + bytes(430))
    with pytest.raises(SensorDataError, match=words):
        read_radar_file(path, sensor="RADAR_FRONT", token="t")


def test_every_field_of_a_radar_point_can_be_had(tmp_path: Path) -> None:
    path = tmp_path / "radar.pcd"
    write_radar(path, POINTS, VELOCITY)
    records = read_radar_records(path, sensor="RADAR_FRONT", token="t")
    assert records["invalid_state"].tolist() == [0, 4] * 5
    assert records["ambig_state"].tolist() == [3] * 10


def test_single_nan_points_are_left_to_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "lidar.pcd.bin"
    points = np.ones((4, 5), "<f4")
    points[0] = np.nan
    points.tofile(path)
    assert read_lidar_file(path, sensor="LIDAR_TOP", token="t").shape == (4, 5)


def test_a_file_that_is_not_there_says_what_to_unpack(tmp_path: Path) -> None:
    with pytest.raises(SensorDataError, match=r"LIDAR_TOP: .*gone\.pcd\.bin \(token t\): .*none there\. Unpack"):
        read_lidar_file(tmp_path / "gone.pcd.bin", sensor="LIDAR_TOP", token="t")


def test_a_folder_in_the_place_of_a_file_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(SensorDataError, match="readable file"):
        read_lidar_file(tmp_path, sensor="LIDAR_TOP", token="t")


@pytest.mark.parametrize(
    "begins", ["# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\n", "VERSION 0.7\nFIELDS x y z\n"]
)
def test_a_lidar_file_with_a_header_is_not_taken_for_points(tmp_path: Path, begins: str) -> None:
    """As in data sets that name their tables as nuScenes does, but not their files; of any length, a multiple of 20 too."""
    path = tmp_path / "lidar.pcd"
    path.write_bytes(begins.encode().ljust(200, b"\0"))
    with pytest.raises(
        SensorDataError, match=r"LIDAR_LEFT: .*got a PCD file with a header\. Convert it.*docs/rigs\.md"
    ):
        read_lidar_file(path, sensor="LIDAR_LEFT", token="t")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    columns=st.permutations(["x", "y", "z", "intensity", "ring", "time", "spare"]).flatmap(
        lambda names: st.integers(0, 4).map(
            lambda left_out: tuple(n for n in names if n not in ("ring", "intensity", "time", "spare")[:left_out])
        )
    ),
    count=st.integers(20, 3000),
    seed=st.integers(0, 2**32 - 1),
    brightest=st.sampled_from([1, 255]),
)
def test_a_file_of_another_layout_is_noticed_and_read_by_its_columns(
    tmp_path: Path, columns: tuple[str, ...], count: int, seed: int, brightest: int
) -> None:
    random = np.random.default_rng(seed)
    of: dict[str, Any] = {name: random.normal(0, 20, count) for name in ("x", "y", "z", "spare")}
    of |= {"intensity": random.uniform(0, brightest, count), "ring": np.arange(count) % 32}
    of |= {"time": random.uniform(-0.05, 0.05, count)}
    path = tmp_path / "lidar.bin"
    np.stack([of[name] for name in columns], axis=1).astype("<f4").tofile(path)
    points = read_lidar_file(path, sensor="LIDAR_TOP", token="t", columns=columns)
    zero = np.zeros(count)
    expected = [of["x"], of["y"], of["z"], of["intensity"] if "intensity" in columns else zero]
    expected.append(of["ring"] if "ring" in columns else zero - 1)
    np.testing.assert_array_equal(points, np.stack(expected, axis=1).astype(np.float32))
    if columns[4:5] != ("ring",) or len(columns) != 5:
        with pytest.raises(SensorDataError, match=r"lidar\.bin .*lidar_columns, in the order of the file") as fault:
            read_lidar_file(path, sensor="LIDAR_TOP", token="t")
        assert len(str(fault.value).splitlines()) == 1


def test_single_damaged_points_are_no_other_layout(tmp_path: Path) -> None:
    path = tmp_path / "lidar.bin"
    points = np.tile(np.array([1, 2, 3, 51, 7], "<f4"), (1000, 1))
    points[::40] = [1e9, -1e9, 3, 999, 0.5]  # one in twenty of those that are there
    points[1::2] = np.nan  # no return: half of them
    points.tofile(path)
    np.testing.assert_array_equal(read_lidar_file(path, sensor="LIDAR_TOP", token="t"), points)
