"""Results as Rerun recording: the file opens, and has what was found in it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbev.results.rerun import RerunResults
from robustbev.results.result import TickResult
from sensors.logs.log import LogError
from sensors.palette import class_rgb
from sensors.replay.tick import SensorState
from tests.robustbev.results.replay_results import CLASSES, COUNTS, GRID, START_US, boxes, result

dataframe = pytest.importorskip("rerun.dataframe", reason="rerun-sdk is an extra of its own: robustbev[rerun]")


def written(path: Path, *results: TickResult, **settings: Any) -> Any:
    """The recording, opened again."""
    writer = RerunResults(path, GRID, **settings)
    for one in results:
        writer.write(one)
    writer.close()
    return dataframe.load_recording(path)


def rows(recording: Any, entity: str) -> list[dict[str, Any]]:
    """The rows of an entity in order of time, component (without the entity's name) -> value."""
    view = recording.view(index="log_time", contents=entity, include_tombstone_columns=True)
    table = view.select().read_all()
    return [{key.rsplit(":", 1)[-1]: value for key, value in row.items()} for row in table.to_pylist()]


def test_boxes_are_where_they_were_found(tmp_path: Path) -> None:
    recording = written(
        tmp_path / "out.rrd", result(0), result(1, found=boxes()), result(2, found=boxes((1, 2, 0, 1, 0.7)))
    )
    first, second, third = rows(recording, "/map/ego/found")
    assert np.allclose(first["PoseTranslation3D"], [[10, 3, 0.8], [5, -6, 0.8]])
    assert np.allclose(first["HalfSize3D"], [[2.25, 0.95, 0.8]] * 2)  # x along the heading
    assert np.allclose(first["PoseRotationQuat"][0], [0, 0, np.sin(0.25), np.cos(0.25)])
    assert first["Text"] == ["car 0.90", "forklift 0.60"]
    assert second["HalfSize3D"] == []  # gone, and not left standing
    assert third["Text"] == ["pedestrian 0.70"]


def test_one_timeline_the_drives_own(tmp_path: Path) -> None:
    recording = written(tmp_path / "out.rrd", result(0), result(3))
    assert [column.name for column in recording.schema().index_columns()] == ["log_time"]
    times = [row["log_time"] for row in rows(recording, "/map/ego/found")]
    assert [np.datetime64(t).astype("datetime64[us]").astype(int) for t in times] == [START_US, START_US + 1_500_000]


def test_curves_of_shares_and_states(tmp_path: Path) -> None:
    states = {"LIDAR_TOP": SensorState.RATE_LOW}
    recording = written(tmp_path / "out.rrd", result(0, states=states), result(1, perceived=False))
    curve = [(row["log_time"], row["Scalar"]) for row in rows(recording, "/sensors/LIDAR_TOP")]
    assert [value for _, value in curve] == [[1.0], [1.0], [2.0]]  # a step: no ramp leads from one to the other
    assert curve[2][0] - curve[1][0] == np.timedelta64(1, "us")
    assert len(rows(recording, "/sensors/CAM_BACK")) == 2
    assert np.allclose([row["Scalar"] for row in rows(recording, "/shares/nulls")], [[0.125], [1.0]])
    for name, share in result().trust.items():
        assert np.allclose(rows(recording, f"/shares/{name}")[0]["Scalar"], share)
    assert [row["Scalar"] for row in rows(recording, "/boxes")] == [[2.0], [0.0]]


def test_no_perception_is_said(tmp_path: Path) -> None:
    recording = written(tmp_path / "out.rrd", result(0), result(1, perceived=False))
    first, second = (row["Text"][0] for row in rows(recording, "/perception"))
    assert "NO PERCEPTION" not in first
    assert second.startswith("# NO PERCEPTION")
    assert "| LIDAR_TOP | stale | as told |" in second
    assert first.index("CAM_BACK") < first.index("CAM_FRONT")  # what is in trouble stands above the rest
    assert any("NO PERCEPTION" in row["Text"][0] for row in rows(recording, "/log"))


def test_a_tasks_map_is_grey_where_it_is_known_and_transparent_elsewhere(tmp_path: Path) -> None:
    recording = written(tmp_path / "out.rrd", result(maps=COUNTS))
    (row,) = rows(recording, "/tasks/counts/count")
    picture = np.array(row["ImageBuffer"][0], np.uint8).reshape(12, 12, 4)[::-1, ::-1]  # x up, y to the left
    assert picture[:2, :3, 0].tolist() == [[0, 128, 255], [255, 0, 0]]
    assert picture[:2, :3, 3].tolist() == [[255, 255, 255], [255, 255, 0]]
    assert not picture[2:, :, 3].any()


def test_pictures_and_points_of_absent_sensors_are_cleared(tmp_path: Path) -> None:
    recording = written(tmp_path / "out.rrd", result(0), result(1, perceived=False))
    entities = {str(column.entity_path) for column in recording.schema().component_columns()}
    assert {"/map/ego/CAM_FRONT", "/map/ego/LIDAR_TOP", "/map/ego/RADAR_FRONT", "/attention/camera"} <= entities
    assert "/map/ego/CAM_BACK" not in entities
    lidar = rows(recording, "/map/ego/LIDAR_TOP")
    assert np.allclose(lidar[0]["Position3D"][0], [10.9, 0, 0.8], atol=1e-5)
    for entity in ("/map/ego/LIDAR_TOP", "/map/ego/CAM_FRONT/picture"):
        assert rows(recording, entity)[1]["ClearIsRecursive"] == [False], entity
    assert len(rows(recording, "/map/ego/CAM_FRONT")) == 1  # where it looks stays known, and boxes are drawn there


def test_far_points_do_not_pull_the_view_out(tmp_path: Path) -> None:
    one = result()
    (sweep,) = one.tick.frame.radar or ()
    sweep = replace(sweep, points=np.array([[4, 0, 0, 7, 2, 0], [80, 0, 0, 7, 2, 0]], np.float32))
    tick = replace(one.tick, frame=replace(one.tick.frame, radar=(sweep,)))
    recording = written(tmp_path / "out.rrd", replace(one, tick=tick), result(1, perceived=False))
    (near, *_), far = (rows(recording, f"/map/ego/{name}RADAR_FRONT") for name in ("", "far/"))
    assert np.allclose(near["Position3D"], [[3.4, 4, 0.5]])
    assert np.allclose(far[0]["Position3D"], [[3.4, 80, 0.5]])
    assert far[1]["ClearIsRecursive"] == [False]


def test_it_has_a_name_and_a_legend(tmp_path: Path) -> None:
    recording = written(tmp_path / "out.rrd", result())
    names, shown = (
        recording.view(index="log_time", contents=f"/{entity}").select_static().read_all().to_pylist()[0]
        for entity in ("__properties/recording", "classes")
    )
    assert names["/__properties/recording:Name"] == ["robustbev replay: out"]
    assert shown["/classes:Text"] == [*CLASSES]
    assert shown["/classes:Color"] == [
        (r << 24) + (g << 16) + (b << 8) + 255 for r, g, b in map(class_rgb, CLASSES, range(3))
    ]


def test_what_is_always_there_keeps_the_view_when_sensors_are_lost(tmp_path: Path) -> None:
    recording = written(tmp_path / "out.rrd", result(perceived=False))
    view = recording.view(index="log_time", contents="/map/ego/rings").select_static().read_all().to_pylist()[0]
    radii_m = [np.linalg.norm(ring, axis=1) for ring in view["/map/ego/rings:LineStrip3D"]]
    assert np.allclose(radii_m, np.array([[10], [20], [30]]))


def test_the_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    writer = RerunResults(tmp_path / "out.rrd", GRID)
    writer.write(result())
    assert not (tmp_path / "out.rrd").exists()
    writer.abort()
    assert not list(tmp_path.iterdir())
    written(tmp_path / "out.rrd", result())
    with pytest.raises(LogError, match="exists already"):
        RerunResults(tmp_path / "out.rrd", GRID)
    assert [path.name for path in tmp_path.iterdir()] == ["out.rrd"]


def test_a_missing_library_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ImportError, match=r'needs rerun, which is not installed: pip install "robustbev\[rerun\]"'):
        RerunResults(tmp_path / "out.rrd", GRID)
    assert not list(tmp_path.iterdir())
