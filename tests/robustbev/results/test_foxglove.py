"""Results for Foxglove: what the viewer shows is where it was found, and goes when it is gone."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory

from robustbev.results.foxglove.layout import foxglove_layout
from robustbev.results.foxglove.results import TICK_SCHEMA, FoxgloveResults
from robustbev.results.given import FrameNames
from robustbev.results.result import TickResult
from sensors.frames import Absence, Lack
from sensors.logs.encode import MissingLogLibraryError
from sensors.logs.log import LogError
from sensors.nuscenes.config import NuScenesConfig
from sensors.points import DroppedPoints, SensorUse
from sensors.replay.tick import SensorState, SensorStatus
from tests.robustbev.results.replay_results import COUNTS, GRID, LIDAR_POSE, LOOKS_AHEAD, START_US, boxes, frame, result


def written(path: Path, *results: TickResult, **settings: Any) -> dict[str, list[Any]]:
    """Topic -> decoded messages (protobuf objects, or JSON)."""
    writer = FoxgloveResults(path, GRID, **settings)
    for one in results:
        writer.write(one)
    writer.close()
    found: dict[str, list[Any]] = {}
    decode = DecoderFactory()
    with path.open("rb") as file:
        for schema, channel, message in make_reader(file, validate_crcs=True).iter_messages(log_time_order=False):
            assert schema is not None
            decoder = decode.decoder_for(channel.message_encoding, schema)
            content = json.loads(message.data) if decoder is None else decoder(message.data)
            found.setdefault(channel.topic, []).append(content)
    return found


def test_boxes_are_where_they_were_found_under_full_ids(tmp_path: Path) -> None:
    (update,) = written(tmp_path / "out.mcap", result(12))["/detections"]
    car, forklift = update.entities
    assert [car.id, forklift.id] == ["car-000012-00", "forklift-000012-01"]
    assert car.frame_id == "base_link"
    (cube,) = car.cubes
    assert np.allclose([cube.size.x, cube.size.y, cube.size.z], [4.5, 1.9, 1.6])  # length, width, height
    assert np.allclose([cube.pose.position.x, cube.pose.position.y, cube.pose.position.z], [10, 3, 0.8])
    assert np.allclose([cube.pose.orientation.z, cube.pose.orientation.w], [np.sin(0.25), np.cos(0.25)])
    assert cube.color != forklift.cubes[0].color
    assert car.texts[0].text == "car 0.90"
    metadata = {pair.key: pair.value for pair in car.metadata}
    expected = {"class": "car", "score": "0.9000", "attribute": "vehicle.moving", "velocity (m/s)": "3.00, -4.00"}
    assert metadata == expected
    assert {pair.key: pair.value for pair in forklift.metadata}["velocity (m/s)"] == "unknown"


def test_words_do_not_lie_on_words(tmp_path: Path) -> None:
    found = boxes((10, 3, 0, 0, 0.9), (10, 8, 0, 1, 0.8), (10, 10, 0, 2, 0.7))  # 5 m and 7 m from the first
    (update,) = written(tmp_path / "out.mcap", result(found=found))["/detections"]
    assert [[text.text for text in entity.texts] for entity in update.entities] == [["car 0.90"], [], ["forklift 0.70"]]
    assert [pair.value for pair in update.entities[1].metadata][:2] == ["pedestrian", "0.8000"]  # which a click shows


def test_an_arrow_points_along_the_velocity_and_is_as_long_as_the_way_in_a_second(tmp_path: Path) -> None:
    (update,) = written(tmp_path / "out.mcap", result())["/detections"]
    (arrow,) = update.entities[0].arrows
    assert arrow.shaft_length + arrow.head_length == pytest.approx(5.0)
    yaw = 2 * np.arctan2(arrow.pose.orientation.z, arrow.pose.orientation.w)
    assert yaw == pytest.approx(np.arctan2(-4, 3))
    assert not update.entities[1].arrows


def test_every_tick_deletes_what_was_there_before(tmp_path: Path) -> None:
    updates = written(tmp_path / "out.mcap", result(0), result(1, found=boxes()))["/detections"]
    assert [len(update.entities) for update in updates] == [2, 0]
    for update in updates:
        (deletion,) = update.deletions
        assert deletion.type == 1  # ALL
    assert (updates[0].entities[0].lifetime.seconds, updates[0].entities[0].lifetime.nanos) == (1, 0)


def test_boxes_below_the_score_are_left_out_and_counted_so(tmp_path: Path) -> None:
    topics = written(tmp_path / "out.mcap", result(), min_score=0.7)
    assert [entity.id for entity in topics["/detections"][0].entities] == ["car-000000-00"]
    assert topics["/replay/tick"][0]["boxes"] == 1


def test_no_perception_is_said_and_taken_back(tmp_path: Path) -> None:
    topics = written(tmp_path / "out.mcap", result(0), result(1, perceived=False), result(2))
    assert [len(update.entities) for update in topics["/perceived"]] == [0, 1, 0]
    assert topics["/perceived"][1].entities[0].texts[0].text == "NO PERCEPTION"  # longer ones are cut off
    assert all(update.deletions for update in topics["/perceived"])
    log = [(message.level, message.message) for message in topics["/log"]]
    assert any(level == 4 and message.startswith("tick 1: NO PERCEPTION") for level, message in log)
    assert any(level == 2 and message == "tick 2: perception is back" for level, message in log)
    assert [tick["perceived"] for tick in topics["/replay/tick"]] == [True, False, True]
    levels = [array["status"][0]["level"] for array in topics["/diagnostics"]]
    assert levels == [0, 2, 0]


def test_the_truth_is_outlined_where_it_is_known_and_goes_where_it_is_not(tmp_path: Path) -> None:
    truths = {0: boxes((10.0, 3.0, 0.5, 1, 1.0)), 1: None, 2: boxes()}
    topics = written(tmp_path / "out.mcap", *map(result, truths), truth_at=lambda one: truths[one.tick.index])
    first, *others = topics["/truth"]
    (entity,) = first.entities
    assert entity.metadata[0].value == "pedestrian"
    (lines,) = entity.lines
    assert np.allclose([lines.pose.position.x, lines.pose.position.y, lines.pose.position.z], [10, 3, 0.8])
    assert np.allclose(lines.pose.orientation.z, np.sin(0.25))
    ends = np.array([(p.x, p.y, p.z) for p in lines.points]).reshape(-1, 2, 3)
    lengths = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
    assert sorted(lengths.round(3)) == sorted([4.5] * 4 + [1.9] * 4 + [1.6] * 4 + [2.25])
    assert np.allclose(np.abs(ends[:12]), [2.25, 0.95, 0.8])  # edges go from corner to corner
    assert [(len(one.entities), len(one.deletions)) for one in others] == [(0, 1), (0, 1)]
    assert "/truth" not in written(tmp_path / "unknown.mcap", result())


def test_what_went_to_nulls_is_no_sensors_share(tmp_path: Path) -> None:
    blind = dataclasses.replace(result(1), trust={"camera": 0.0, "lidar": 0.75, "radar": 0.0})
    first, second = written(tmp_path / "out.mcap", result(0), blind)["/replay/tick"]
    assert first["shares"] == {"camera": 0.25, "lidar": 0.5, "radar": 0.125}
    assert second["shares"] == {"lidar": 0.75}  # curves of those that do not see end
    assert (first["shares_null"], second["shares_null"]) == (0.125, 0.25)


def test_states_have_numbers_of_their_own(tmp_path: Path) -> None:
    """Foxglove colours by them: of the words, "missing" and "ok" were both green."""
    ticks = written(tmp_path / "out.mcap", *(result(n, states={"LIDAR_TOP": s}) for n, s in enumerate(SensorState)))
    numbers = {tick["states"]["LIDAR_TOP"]: tick["state_numbers"]["LIDAR_TOP"] for tick in ticks["/replay/tick"]}
    assert len(set(numbers.values())) == len(numbers) == len(SensorState)
    page = (Path(__file__).resolve().parents[3] / "docs" / "replay.md").read_text(encoding="utf-8")
    for state, number in numbers.items():
        assert f"| {number} | {state} | " in page


def test_a_file_says_what_it_came_of(tmp_path: Path) -> None:
    written(tmp_path / "out.mcap", result(), metadata={"checkpoint": "robust/step-330", "faults": "all: drop 1s.."})
    with (tmp_path / "out.mcap").open("rb") as file:
        (record,) = make_reader(file).iter_metadata()
    assert (record.name, record.metadata["faults"]) == ("robustbev", "all: drop 1s..")


def test_grids_lie_right(tmp_path: Path) -> None:
    topics = written(tmp_path / "out.mcap", result(found=boxes((10.9, 3.1, 0.0, 0, 0.75)), maps=COUNTS))
    attention = result().attention
    for m, name in enumerate(("camera", "lidar", "radar")):
        (grid,) = topics[f"/attention/{name}"]
        assert (grid.column_count, grid.row_stride, grid.cell_stride) == (12, 48, 4)
        assert (grid.pose.position.x, grid.pose.position.y, grid.pose.orientation.w) == (-8, -12, 1)
        assert (grid.cell_size.x, grid.cell_size.y) == (2, 2)
        values = np.frombuffer(grid.data, "<f4").reshape(-1, grid.column_count)  # [rows along y, columns along x]
        assert np.array_equal(values, attention[m].T)
    (counts,) = topics["/tasks/counts/count"]
    assert [field.name for field in counts.fields] == ["count"]
    values = np.frombuffer(counts.data, "<f4").reshape(-1, counts.column_count)
    np.testing.assert_array_equal(values, COUNTS["counts/count"].values.T)  # NaN where nothing is known
    (score,) = topics["/bev/score"]
    values = np.frombuffer(score.data, "<f4").reshape(-1, score.column_count)
    row, column = int((3.1 + 12) // 2), int((10.9 + 8) // 2)
    assert values[row, column] == np.float32(0.75)
    assert values[column, row] == 0


def test_the_vehicle_moves_in_the_map_where_the_log_knows_how(tmp_path: Path) -> None:
    sent = written(tmp_path / "out.mcap", result(0), result(1, ego_pose_known=False))["/tf"]
    known, unknown = ({t.child_frame_id: t for t in one.transforms} for one in sent)
    ego = known["base_link"]
    assert ego.parent_frame_id == "map"
    assert (ego.translation.x, ego.translation.y, ego.translation.z) == (100, 50, 1)
    assert np.allclose([ego.rotation.z, ego.rotation.w], [np.sqrt(0.5), np.sqrt(0.5)])
    assert "base_link" not in unknown
    for transforms in (known, unknown):
        lidar = transforms["given/LIDAR_TOP"]
        assert lidar.parent_frame_id == "base_link"
        assert np.allclose([lidar.translation.x, lidar.translation.z], LIDAR_POSE[[0, 2], 3])


def test_poses_of_sensors_that_went_silent_stay_until_the_clock_jumps(tmp_path: Path) -> None:
    gone = result(1, perceived=False)
    later = dataclasses.replace(gone, tick=dataclasses.replace(gone.tick, index=2, reset=True))
    sent = written(tmp_path / "out.mcap", result(0), gone, later)
    frames = [{t.child_frame_id for t in one.transforms} for one in sent["/tf"]]
    assert "given/CAM_FRONT" in frames[0] & frames[1]
    assert frames[2] == {"base_link"}
    assert any("clock jumped" in message.message for message in sent["/log"])


def test_frames_are_named_as_in_the_log(tmp_path: Path) -> None:
    topics = written(tmp_path / "out.mcap", result(), names=FrameNames(map="odom", ego="vehicle"), inputs=True)
    used = {t.parent_frame_id for t in topics["/tf"][0].transforms}
    used |= {topics["/detections"][0].entities[0].frame_id, topics["/given/lidar_top"][0].frame_id}
    used |= {topics["/attention/lidar"][0].frame_id, topics["/diagnostics"][0]["header"]["frame_id"]}
    assert used == {"odom", "vehicle"}


def test_the_layout_of_the_docs_shows_topics_that_there_are(tmp_path: Path) -> None:
    rig = NuScenesConfig()
    kinds = {"camera": rig.camera_channels, "lidar": rig.lidar_channels, "radar": rig.radar_channels}
    sensors = {
        channel: SensorStatus(channel, kind, SensorState.MISSING, None)
        for kind, names in kinds.items()
        for channel in names
    }
    one = result()
    tick = dataclasses.replace(one.tick, sensors=sensors, frame=frame(START_US, camera=False, lidar=False, radar=False))
    topics = written(tmp_path / "out.mcap", dataclasses.replace(one, tick=tick), inputs=True, truth_at=lambda _: None)
    text = (Path(__file__).resolve().parents[3] / "docs" / "foxglove-layout.json").read_text(encoding="utf-8")
    layout = foxglove_layout({channel: status.modality for channel, status in sensors.items()}, one.modalities)
    assert json.loads(text) == layout, "write it anew: robustbev replay ... --layout docs/foxglove-layout.json"
    panels = set(re.findall(r'"([^"]*![^"]*)"', json.dumps(layout["layout"])))
    assert panels == set(layout["configById"])  # each is somewhere on the screen
    for shown in re.findall(r'"(/[a-z][^"]*)"', text):
        topic, *path = shown.replace("camera_info", "image_rect_compressed").split(
            "."
        )  # a calibration comes with a picture
        assert topic in topics, shown
        if path:
            value: Any = topics[topic][0]
            for key in path:
                value = value[key]
            assert isinstance(value, int | float), shown
            assert path[0] in TICK_SCHEMA["properties"]


def test_with_inputs_a_sensor_that_is_lost_does_not_stay_on_the_screen(tmp_path: Path) -> None:
    """A viewer goes on showing the last message of a topic: each has one at every tick."""
    topics = written(tmp_path / "out.mcap", result(0), result(1, perceived=False), inputs=True)
    assert [len(topics[f"/given/{name}"]) for name in ("lidar_top", "radar_front")] == [2, 2]
    for name in ("lidar_top", "radar_front"):
        before, after = topics[f"/given/{name}"]
        assert (len(before.data) > 0, len(after.data)) == (True, 0)
        assert [field.name for field in after.fields] == [field.name for field in before.fields]
    for name in ("cam_front", "cam_back"):
        lost = topics[f"/given/{name}/image_rect_compressed"][1]
        image = cv2.imdecode(np.frombuffer(lost.data, np.uint8), cv2.IMREAD_COLOR)
        assert np.median(image) < 40
        assert image[..., 2].max() > 120  # in red, why


def test_with_inputs_the_pictures_and_points_that_the_model_was_given_go_along(tmp_path: Path) -> None:
    topics = written(tmp_path / "out.mcap", result(), inputs=True)
    (picture,) = topics["/given/cam_front/image_rect_compressed"]
    image = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert image.shape == (90, 160, 3)
    assert np.abs(image[40, 20].astype(int) - [200, 40, 40]).max() < 12  # RGB, the left half
    assert image[40, 140].max() < 12
    (info,) = topics["/given/cam_front/camera_info"]
    assert (info.width, info.height, picture.frame_id) == (160, 90, info.frame_id)
    # A point ahead, by the file alone: transform of the camera, then P.
    pose = {t.child_frame_id: t for t in topics["/tf"][0].transforms}[info.frame_id]
    assert np.allclose([pose.translation.x, pose.translation.y, pose.translation.z], LOOKS_AHEAD[:3, 3])
    assert np.allclose(np.reshape(info.P, (3, 4)) @ [0, 0, 5, 1], [79.5 * 5, 44.5 * 5, 5])
    (lidar,) = topics["/given/lidar_top"]
    points = np.frombuffer(lidar.data, "<f4").reshape(-1, lidar.point_stride // 4)
    assert [field.name for field in lidar.fields] == ["x", "y", "z", "intensity", "ring", "age_s"]
    # (0, -10, -1) of a LiDAR turned by 90 degrees at (0.9, 0, 1.8)
    assert np.allclose(points[0], [10.9, 0, 0.8, 20, 3, 0], atol=1e-5)
    assert np.allclose(points[2:, 5], 0.05)
    (radar,) = topics["/given/radar_front"]
    echo = np.frombuffer(radar.data, "<f4")
    assert np.allclose(echo, [3.4, 4, 0.5, 7.5, 0, 2, 0.01], atol=1e-5)  # its velocity is turned, too
    assert "/given/cam_back/camera_info" not in topics
    assert not any(topic.startswith("/given") for topic in written(tmp_path / "less.mcap", result()))


def test_every_sensor_has_a_status_at_every_tick(tmp_path: Path) -> None:
    states = {"LIDAR_TOP": SensorState.RATE_LOW}
    (array,) = written(tmp_path / "out.mcap", result(states=states))["/diagnostics"]
    assert array["header"]["stamp"] == {"sec": START_US // 1_000_000, "nsec": 0}
    status = {one["name"]: one for one in array["status"]}
    assert list(status) == [
        "perception",
        *(f"sensors/{c}" for c in ("CAM_FRONT", "CAM_BACK", "LIDAR_TOP", "RADAR_FRONT")),
    ]
    levels = {name: one["level"] for name, one in status.items()}
    assert (levels["sensors/CAM_FRONT"], levels["sensors/LIDAR_TOP"], levels["sensors/CAM_BACK"]) == (0, 1, 2)
    assert status["sensors/CAM_BACK"]["message"] == "missing: as told"
    assert {"key": "age (ms)", "value": "20.000"} in status["sensors/CAM_FRONT"]["values"]


def test_a_status_has_what_became_of_the_sensor_as_detections_say_it(tmp_path: Path) -> None:
    uses = {
        "LIDAR_TOP": SensorUse(None, 0, 100, DroppedPoints(lidar_outside=30), 0.8),
        "CAM_FRONT": SensorUse(None, 20_000, coverage=0.25),
        "RADAR_FRONT": SensorUse(Absence(Lack.USABLE, "none of 4"), 0, 4, DroppedPoints(radar_near=4)),
    }
    (array,) = written(tmp_path / "out.mcap", result(sensors=uses))["/diagnostics"]
    values = {one["name"]: {pair["key"]: pair["value"] for pair in one["values"]} for one in array["status"]}
    assert values["sensors/LIDAR_TOP"]["points used"] == "70 of 100: 30 outside the grid or its heights"
    assert values["sensors/LIDAR_TOP"]["sees of the grid"] == "0.800"
    assert values["sensors/CAM_FRONT"]["sees of the grid"] == "0.250"
    assert values["sensors/RADAR_FRONT"]["points used"] == "0 of 4: 4 on the vehicle itself"
    for name, key in (("CAM_FRONT", "points used"), ("RADAR_FRONT", "sees of the grid"), ("CAM_BACK", "points used")):
        assert key not in values[f"sensors/{name}"]


def test_a_sensor_that_changes_its_state_is_logged_once(tmp_path: Path) -> None:
    stale = {"RADAR_FRONT": SensorState.STALE}
    log = written(tmp_path / "out.mcap", result(0), result(1, states=stale), result(2, states=stale))["/log"]
    assert [m.message for m in log if "RADAR_FRONT" in m.message] == ["tick 1: RADAR_FRONT: ok -> stale (as told)"]


def test_messages_carry_the_ticks_time(tmp_path: Path) -> None:
    written(tmp_path / "out.mcap", result(3))
    with (tmp_path / "out.mcap").open("rb") as file:
        times = {(m.log_time, m.publish_time) for _, _, m in make_reader(file).iter_messages()}
    assert times == {((START_US + 1_500_000) * 1000, (START_US + 1_530_000) * 1000)}


def test_schemas_are_foxgloves_own(tmp_path: Path) -> None:
    written(tmp_path / "out.mcap", result(), inputs=True)
    with (tmp_path / "out.mcap").open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    kinds = {channel.topic: summary.schemas[channel.schema_id] for channel in summary.channels.values()}
    names = {topic: schema.name for topic, schema in kinds.items()}
    assert names["/tf"] == "foxglove.FrameTransforms"
    assert names["/given/lidar_top"] == "foxglove.PointCloud"
    assert names["/diagnostics"] == "diagnostic_msgs/DiagnosticArray"
    assert {schema.encoding for schema in kinds.values()} == {"protobuf", "jsonschema"}
    assert json.loads(kinds["/diagnostics"].data)["type"] == "object"


def test_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / f"{name}.mcap", result(0), result(1, perceived=False), result(2), inputs=True)
    assert (tmp_path / "a.mcap").read_bytes() == (tmp_path / "b.mcap").read_bytes()


def test_the_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    writer = FoxgloveResults(tmp_path / "out.mcap", GRID)
    writer.write(result())
    assert not (tmp_path / "out.mcap").exists()
    writer.abort()
    assert not list(tmp_path.iterdir())
    (tmp_path / "out.mcap").write_text("precious")
    with pytest.raises(LogError, match="exists already"):
        FoxgloveResults(tmp_path / "out.mcap", GRID)
    assert [p.name for p in tmp_path.iterdir()] == ["out.mcap"]
    FoxgloveResults(tmp_path / "out.mcap", GRID, overwrite=True).close()
    assert (tmp_path / "out.mcap").read_bytes()[:5] == b"\x89MCAP"


def test_attention_of_another_grid_is_refused(tmp_path: Path) -> None:
    writer = FoxgloveResults(tmp_path / "out.mcap", GRID)
    wrong = dataclasses.replace(result(7), attention=np.zeros((3, 4, 5), np.float32))
    with pytest.raises(ValueError, match=r"tick 7: expected attention of shape \(3, 12, 12\).*got \(3, 4, 5\)"):
        writer.write(wrong)
    writer.abort()


def test_a_missing_library_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foxglove.messages", None)
    with pytest.raises(MissingLogLibraryError, match=r"foxglove-sdk.*robustbev\[replay\]"):
        FoxgloveResults(tmp_path / "out.mcap", GRID)
    assert not list(tmp_path.iterdir())
