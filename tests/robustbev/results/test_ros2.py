"""Results as ROS 2 bag: read back by rosbags, as a ROS node would see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from robustbev.results.result import TickResult
from robustbev.results.ros2.bag import Ros2Results
from sensors.logs.log import LogError
from sensors.replay.tick import SensorState
from tests.robustbev.results.replay_results import COUNTS, GRID, START_US, boxes, result


def written(path: Path, *results: TickResult, **settings: Any) -> dict[str, list[Any]]:
    """Topic -> messages, decoded by the definitions that the file itself carries."""
    writer = Ros2Results(path, GRID, **settings)
    for one in results:
        writer.write(one)
    writer.close()
    found: dict[str, list[Any]] = {}
    with AnyReader([path]) as reader:
        for connection, time_ns, data in reader.messages():
            assert START_US * 1000 <= time_ns < START_US * 1000 + 60_000_000_000
            found.setdefault(connection.topic, []).append(reader.deserialize(data, connection.msgtype))
    return found


def test_detections_are_vision_msgs(tmp_path: Path) -> None:
    (array,) = written(tmp_path / "out.mcap", result(4))["/detections"]
    assert array.__msgtype__ == "vision_msgs/msg/Detection3DArray"
    car, forklift = array.detections
    assert (car.id, forklift.id) == ("car-000004-00", "forklift-000004-01")
    assert car.header.frame_id == "base_link"
    assert car.header.stamp.sec == START_US // 1_000_000 + 2
    hypothesis = car.results[0].hypothesis
    assert hypothesis.class_id == "car"
    assert hypothesis.score == pytest.approx(0.9)
    center, size = car.bbox.center, car.bbox.size
    assert np.allclose([center.position.x, center.position.y, center.position.z], [10, 3, 0.8])
    assert np.allclose([center.orientation.z, center.orientation.w], [np.sin(0.25), np.cos(0.25)])
    assert np.allclose([size.x, size.y, size.z], [4.5, 1.9, 1.6])  # x along the heading
    assert car.results[0].pose.pose.position.x == center.position.x


def test_all_scores_are_kept_unless_asked_otherwise(tmp_path: Path) -> None:
    faint = result(found=boxes((1, 2, 0, 0, 0.5), (3, 4, 0, 1, 0.01)))
    assert len(written(tmp_path / "all.mcap", faint)["/detections"][0].detections) == 2
    assert len(written(tmp_path / "some.mcap", faint, min_score=0.1)["/detections"][0].detections) == 1


def test_every_tick_answers_and_no_perception_is_an_error(tmp_path: Path) -> None:
    topics = written(tmp_path / "out.mcap", result(0), result(1, perceived=False))
    assert [len(array.detections) for array in topics["/detections"]] == [2, 0]
    first, second = topics["/diagnostics"]
    assert (first.status[0].level, second.status[0].level) == (0, 2)
    assert "NO PERCEPTION" in second.status[0].message
    assert (second.status[0].values[0].key, second.status[0].values[0].value) == ("tick", "1")
    names = [status.name for status in second.status]
    assert names == ["perception", "sensors/CAM_FRONT", "sensors/CAM_BACK", "sensors/LIDAR_TOP", "sensors/RADAR_FRONT"]
    assert second.status[3].message.startswith(str(SensorState.STALE))
    assert {pair.key: pair.value for pair in first.status[1].values}["given"] == "true"


def test_markers_show_the_boxes_in_any_viewer_and_an_alarm_without_perception(tmp_path: Path) -> None:
    seen, blind = written(tmp_path / "out.mcap", result(0), result(1, perceived=False), lifetime_s=1.5)["/markers"]
    clearing, car, name, arrow, forklift, _ = seen.markers
    assert clearing.action == 3  # what stood there before goes
    assert (car.ns, car.id, car.type, car.header.frame_id) == ("boxes", 0, 1, "base_link")
    assert np.allclose([car.pose.position.x, car.pose.position.y, car.scale.x, car.scale.z], [10, 3, 4.5, 1.6])
    assert (name.text, arrow.scale.x) == ("car 0.90", pytest.approx(5.0))  # of 3, -4 m/s
    assert forklift.pose.position.x == 5
    assert (car.lifetime.sec, car.lifetime.nanosec) == (1, 500_000_000)
    assert [marker.text for marker in blind.markers] == ["", "NO PERCEPTION"]


def test_the_log_says_what_changed(tmp_path: Path) -> None:
    stale = {"RADAR_FRONT": SensorState.STALE}
    results = result(0), result(1, states=stale), result(2, states=stale), result(3, perceived=False), result(4)
    log = [(line.level, line.msg) for line in written(tmp_path / "out.mcap", *results)["/log"]]
    assert log[:2] == [(40, "CAM_BACK: ok -> missing (as told)"), (40, "RADAR_FRONT: ok -> stale (as told)")]
    assert [level for level, text in log if text.startswith("NO PERCEPTION")] == [40]
    assert log[-1] == (20, "perception is back")


def test_attention_is_an_occupancy_grid_that_lies_right(tmp_path: Path) -> None:
    topics = written(tmp_path / "out.mcap", result())
    (grid,) = topics["/attention/radar"]
    assert (grid.info.width, grid.info.height, grid.info.resolution) == (12, 12, 2)
    assert (grid.info.origin.position.x, grid.info.origin.position.y) == (-8, -12)
    values = grid.data.reshape(grid.info.height, grid.info.width)  # ROS: row-major, x first, from the origin
    assert np.array_equal(values, np.rint(100 * result().attention[2]).T)


def test_a_tasks_map_is_one_too_and_unknown_is_not_free(tmp_path: Path) -> None:
    (grid,) = written(tmp_path / "out.mcap", result(maps=COUNTS))["/tasks/counts/count"]
    values = grid.data.reshape(12, 12).T
    assert values[:2, :3].tolist() == [[0, 50, 100], [100, 0, -1]]
    assert (values[2:] == -1).all()


def test_the_pose_is_left_out_where_the_log_knows_none(tmp_path: Path) -> None:
    (sent,) = written(tmp_path / "out.mcap", result(0), result(1, ego_pose_known=False))["/tf"]
    (transform,) = sent.transforms
    assert (transform.header.frame_id, transform.child_frame_id) == ("map", "base_link")
    assert transform.transform.translation.x == 100
    assert np.allclose(transform.transform.rotation.z, np.sqrt(0.5))


def test_with_inputs_the_bag_stands_alone(tmp_path: Path) -> None:
    topics = written(tmp_path / "out.mcap", result(), inputs=True)
    frames = {t.child_frame_id for t in topics["/tf"][0].transforms}
    assert frames == {"base_link", "given/CAM_FRONT", "given/LIDAR_TOP", "given/RADAR_FRONT"}
    assert topics["/given/cam_front/image_rect_compressed"][0].header.frame_id == "given/CAM_FRONT"
    (cloud,) = topics["/given/lidar_top"]
    assert cloud.width == 4
    assert np.allclose(cloud.data.view("<f4").reshape(4, 6)[0], [10.9, 0, 0.8, 20, 3, 0], atol=1e-5)


def test_with_inputs_a_sensor_that_is_lost_does_not_stay_on_the_screen(tmp_path: Path) -> None:
    topics = written(tmp_path / "out.mcap", result(0), result(1, perceived=False), inputs=True)
    assert [cloud.width for cloud in topics["/given/lidar_top"]] == [4, 0]
    assert [cloud.width for cloud in topics["/given/radar_front"]] == [1, 0]
    before, after = topics["/given/cam_front/image_rect_compressed"]
    assert bytes(before.data) != bytes(after.data)


def test_equal_results_give_equal_bytes_and_nothing_half_written(tmp_path: Path) -> None:
    paths = [tmp_path / name / "out.mcap" for name in ("a", "b")]  # a bag holds its own name
    for path in paths:
        written(path, result(0), result(1, perceived=False))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    writer = Ros2Results(tmp_path / "a" / "other.mcap", GRID)
    writer.write(result())
    writer.abort()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out.mcap"]
    with pytest.raises(LogError, match="exists already"):
        Ros2Results(paths[0], GRID)
