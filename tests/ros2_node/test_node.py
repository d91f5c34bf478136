"""The ROS 2 node of docs/ros2, driven by recorded messages through a fake rclpy: ROS itself is not here."""

from __future__ import annotations

import os
import sys
import threading
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from robustbev import PerceptionModel, save
from robustbev.results.content import found_boxes
from robustbev.results.result import TickResult
from sensors.camera.images import DecodeSize
from sensors.logs.mapping.file import dump_mapping, load_mapping
from sensors.logs.open import open_log
from sensors.logs.write import write_log
from sensors.replay.channels import Channels
from sensors.replay.ticks import ticks
from tests.ros2_node.fake_ros import ExternalShutdown, FakeRos, message_class
from tests.sensors.replay.drive import CHANNELS, CONFIG, INFO, MAPPING, MS, START_NS, TOPIC, MemoryLog, drive
from tests.tiny_model import tiny_model
from training.data.dataset import DataConfig, preparation
from training.replay.play import Perceiver, replay

PACKAGE = Path(__file__).resolve().parents[2] / "docs" / "ros2" / "robustbev_ros"
README = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
DETECTIONS, MARKERS, LOG, DIAGNOSTICS = "~/detections", "~/markers", "~/log", "/diagnostics"
SENSORS = tuple(CHANNELS.modalities())
# Everything waits and nothing is too old: what comes out does not depend on how fast this machine is.
PATIENT = {"max_age_s": 1000.0, "queue_messages": 10000, "lidar_sweeps": 3, "radar_sweeps": 2, "min_score": 0.0}


@pytest.fixture(scope="module")
def model() -> PerceptionModel:
    return tiny_model()


@pytest.fixture(scope="module")
def files(model: PerceptionModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The two parameters that must be given."""
    folder = tmp_path_factory.mktemp("node")
    save(model, folder / "model")
    (folder / "mapping.yaml").write_text(dump_mapping(MAPPING))
    return {"checkpoint": str(folder / "model"), "mapping": str(folder / "mapping.yaml")}


@dataclass
class Rig:
    """The node's modules beside a fake ROS."""

    ros: FakeRos
    node: ModuleType
    settings: ModuleType
    perception: ModuleType

    def start(self, **overrides: Any) -> Any:
        self.ros.overrides = {"image_type": "compressed", **overrides}
        return self.node.PerceptionNode()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    ros = FakeRos()
    ros.install(monkeypatch)
    monkeypatch.syspath_prepend(str(PACKAGE))
    names = ("node", "settings", "perception")
    yield Rig(ros, *(import_module(f"robustbev_ros.{name}") for name in names))
    for node in ros.nodes:
        if hasattr(node, "_live") and not node.destroyed:
            node.destroy_node()
    for name in [name for name in sys.modules if name.startswith("robustbev_ros")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drive of a second as a ROS 2 bag."""
    path = tmp_path_factory.mktemp("bag") / "drive.mcap"
    write_log(MemoryLog(drive(1.0)), path, "ros2")
    return path


def recorded(bag: Path) -> list[tuple[str, int, bytes]]:
    """(topic, log time, serialised message), as a raw subscription would get them."""
    from rosbags.highlevel import AnyReader

    with AnyReader([bag]) as reader:
        return [(connection.topic, time_ns, bytes(data)) for connection, time_ns, data in reader.messages()]


def play(rig: Rig, node: Any, messages: list[tuple[str, int, bytes]], *, more_s: float = 0.3) -> None:
    """Messages at their times, the timer 100 times a second, and on for a while when they are over."""
    (_, timer), end_ns = node.timers_made[0], max(time_ns for _, time_ns, _ in messages)
    rig.ros.now_ns = messages[0][1]
    for topic, time_ns, data in messages:
        while rig.ros.now_ns + 10 * MS < time_ns:
            rig.ros.now_ns += 10 * MS
            timer()
        rig.ros.now_ns = max(time_ns, rig.ros.now_ns)
        if topic in node.subscriptions_made:
            node.subscriptions_made[topic].callback(data)
    while rig.ros.now_ns < end_ns + more_s * 1e9:
        rig.ros.now_ns += 10 * MS
        timer()


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.005)


def status_of(array: Any) -> dict[str, Any]:
    """Name -> DiagnosticStatus."""
    return {status.name.removeprefix("robustbev: "): status for status in array.status}


def stamp_us(message: Any) -> int:
    stamp = message.header.stamp
    return stamp.sec * 1_000_000 + stamp.nanosec // 1000


# --- what comes out ---------------------------------------------------------------------------------------------


def replayed(model: PerceptionModel, bag: Path, mapping: Any = MAPPING, channels: Channels = CHANNELS) -> Any:
    data = DataConfig.model_validate({
        "nuscenes": {
            "camera_channels": channels.cameras, "lidar_channels": channels.lidars, "radar_channels": channels.radars,
        }
    })  # fmt: skip
    found = ticks(open_log(bag), mapping, channels, CONFIG, decode=DecodeSize(32, 64))
    perceiver = Perceiver(model, preparation(data, model.config))
    return list(replay(found, perceiver))


def boxes_of(result: TickResult) -> list[tuple[Any, ...]]:
    return [(box.id, box.score, box.center_m, box.length_m, box.rotation_xyzw) for box in found_boxes(result)]


def boxes_in(array: Any) -> list[tuple[Any, ...]]:
    return [
        (
            one.id, one.results[0].hypothesis.score,
            (one.bbox.center.position.x, one.bbox.center.position.y, one.bbox.center.position.z), one.bbox.size.x,
            tuple(getattr(one.bbox.center.orientation, axis) for axis in "xyzw"),
        )
        for one in array.detections
    ]  # fmt: skip


def test_a_recorded_drive_gives_the_boxes_of_its_replay(
    rig: Rig, files: dict[str, str], bag: Path, model: PerceptionModel
) -> None:
    node = rig.start(**files, **PATIENT)
    play(rig, node, recorded(bag))
    wait_for(lambda: len(node.published[MARKERS]) >= 12)
    node.destroy_node()
    expected = replayed(model, bag)
    arrays = {stamp_us(array): array for array in node.published[DETECTIONS]}
    assert len(expected) == 11
    assert sum(len(boxes_of(result)) for result in expected) > 50
    for result in expected[:10]:  # at the last one the recorder had stopped before the radar came
        array = arrays[result.tick.time_us]
        assert array.header.frame_id == "base_link"
        assert boxes_in(array) == boxes_of(result)


def test_a_real_drive_goes_through_the_node(rig: Rig, files: dict[str, str], tmp_path: Path) -> None:
    """Bytes as a recorder took them from ROS: the camera and the LiDAR are used, no radar is there."""
    default = Path(__file__).resolve().parents[3] / "shared" / "real" / "kitti-drive.mcap"
    path = Path(os.environ.get("ROBUSTBEV_REAL_DRIVE") or default)
    if not path.is_file():
        pytest.skip(f"no real drive: expected it at {path}")
    text = """
        cameras: {CAM_FRONT: {image: /cam_front/image_rect_compressed, info: /cam_front/camera_info}}
        lidars: {LIDAR_TOP: {points: /lidar_top, intensity_scale: 255}}
        radars: {RADAR_FRONT: {points: /radar_front}}
        global_frame: null
    """
    (tmp_path / "kitti.yaml").write_text(text)
    node = rig.start(checkpoint=files["checkpoint"], mapping=str(tmp_path / "kitti.yaml"), **PATIENT)
    play(rig, node, recorded(path))
    wait_for(lambda: len(node.published[MARKERS]) >= 10)
    states = [status_of(array) for array in node.published[DIAGNOSTICS][:10]]
    for name in ("CAM_FRONT", "LIDAR_TOP"):
        assert all(one[f"sensors/{name}"].message.startswith("ok") for one in states[1:])
    assert all(one["sensors/RADAR_FRONT"].level == b"\x02" for one in states)
    assert all(one["perception"].level == b"\x00" for one in states)


def test_each_lost_topic_leaves_one_report_a_tick(rig: Rig, files: dict[str, str], bag: Path) -> None:
    """From the middle on the LiDAR dies, one camera sends garbage and the radar comes half a second late."""
    middle_ns, messages = START_NS + 450 * MS, []
    for topic, time_ns, data in recorded(bag):
        if time_ns > middle_ns and topic == TOPIC["LIDAR_TOP"]:
            continue
        broken = time_ns > middle_ns and topic == TOPIC["CAM_BACK"]
        late_ns = 500 * MS if time_ns > middle_ns and topic == TOPIC["RADAR_FRONT"] else 0
        messages.append((topic, time_ns + late_ns, data[:40] if broken else data))
    node = rig.start(**files, **PATIENT)
    play(rig, node, sorted(messages, key=lambda message: message[1]))
    wait_for(lambda: len(node.published[MARKERS]) >= 11)
    node.destroy_node()
    arrays = node.published[DIAGNOSTICS]
    times_us = [stamp_us(array) for array in arrays]
    assert times_us == [START_NS // 1000 + n * 100_000 for n in range(len(times_us))]
    assert len(node.published[MARKERS]) == len(arrays)
    early, late = status_of(arrays[2]), status_of(arrays[9])
    assert {early[f"sensors/{channel}"].level for channel in SENSORS} == {b"\x00"}
    assert late["sensors/LIDAR_TOP"].message.startswith("stale")
    assert late["sensors/CAM_BACK"].message.startswith("malformed")
    assert late["sensors/RADAR_FRONT"].message.split(":")[0] in ("late", "stale")
    assert late["sensors/CAM_FRONT"].message.startswith("ok")
    assert late["perception"].level == b"\x00"  # one camera is left, and says what it sees
    said = [(message.level, message.msg) for message in node.published[LOG]]
    assert [level for level, text in said if text.startswith("LIDAR_TOP: ok -> stale")] == [40]  # once, as an error
    assert any(text.startswith("CAM_BACK: ok -> malformed") for _, text in said)


def test_without_sensors_it_says_no_perception_and_sends_no_boxes(rig: Rig, files: dict[str, str]) -> None:
    node = rig.start(**files, **PATIENT)
    rig.ros.now_ns = START_NS
    _, timer = node.timers_made[0]
    for _ in range(250):
        rig.ros.now_ns += 10 * MS
        timer()
    wait_for(lambda: len(node.published[MARKERS]) >= 20)
    for array in node.published[DIAGNOSTICS]:
        perception = status_of(array)["perception"]
        assert perception.level == b"\x02"
        assert perception.message.startswith("NO PERCEPTION")
    assert node.published[DETECTIONS] == []  # an empty array would read as "nothing there"
    clearing, alarm = node.published[MARKERS][-1].markers
    assert (clearing.action, alarm.text) == (3, "NO PERCEPTION")
    (line,) = [message for message in node.published[LOG] if "PERCEPTION" in message.msg]
    assert (line.level, line.name) == (40, "robustbev")


def test_markers_show_what_the_detections_say(rig: Rig, files: dict[str, str], bag: Path) -> None:
    node = rig.start(**files, **(PATIENT | {"marker_score": 0.0}))
    play(rig, node, recorded(bag))
    wait_for(lambda: len(node.published[MARKERS]) >= 10)
    array, detections = node.published[MARKERS][4], node.published[DETECTIONS][4]
    assert array.markers[0].action == 3
    cubes = [marker for marker in array.markers if marker.ns == "boxes"]
    assert [cube.pose.position.x for cube in cubes] == [one.bbox.center.position.x for one in detections.detections]
    assert [cube.scale.x for cube in cubes] == [one.bbox.size.x for one in detections.detections]
    assert len({(marker.ns, marker.id) for marker in array.markers[1:]}) == len(array.markers) - 1
    assert all(marker.lifetime.nanosec == 300_000_000 for marker in array.markers)


# --- how it stands in ROS ---------------------------------------------------------------------------------------


def test_it_listens_as_ros_habits_have_it(rig: Rig, files: dict[str, str]) -> None:
    node = rig.start(**files)
    made = node.subscriptions_made
    assert set(made) == {*TOPIC.values(), *INFO.values(), "/tf", "/tf_static"}
    assert made[TOPIC["LIDAR_TOP"]].kind is message_class("sensor_msgs/msg/PointCloud2")
    assert made[TOPIC["CAM_FRONT"]].kind is message_class("sensor_msgs/msg/CompressedImage")
    assert all(subscription.raw for subscription in made.values())
    wanted = {name: (one.qos.reliability, one.qos.durability) for name, one in made.items()}
    assert wanted.pop("/tf_static") == ("reliable", "transient local")
    assert wanted.pop("/tf") == ("reliable", "volatile")
    assert set(wanted.values()) == {("best effort", "volatile")}
    assert set(node.published) == {DETECTIONS, MARKERS, LOG, DIAGNOSTICS}
    assert node.timers_made[0][0] == pytest.approx(0.01)


def test_callbacks_return_while_the_model_is_busy(
    rig: Rig, files: dict[str, str], bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, goes_on = threading.Event(), threading.Event()
    perceive = rig.perception.perceive_frame

    def slow(*arguments: Any) -> Any:
        busy.set()
        assert goes_on.wait(600)
        return perceive(*arguments)

    monkeypatch.setattr(rig.perception, "perceive_frame", slow)
    node = rig.start(**files, **(PATIENT | {"queue_messages": 3}))
    play(rig, node, recorded(bag))
    assert busy.wait(120)
    assert not node.published[DIAGNOSTICS]
    goes_on.set()
    wait_for(lambda: len(node.published[DIAGNOSTICS]) >= 3)
    live = status_of(node.published[DIAGNOSTICS][-1])["live"]
    values = {pair.key: pair.value for pair in live.values}
    assert int(values["messages dropped"]) > 0
    assert f"messages dropped of {TOPIC['LIDAR_TOP']}" in values


def test_it_ends_when_told_to(rig: Rig, files: dict[str, str], bag: Path) -> None:
    def until_told(node: Any) -> None:
        play(rig, node, recorded(bag))
        raise ExternalShutdown

    before = threading.active_count()
    rig.ros.overrides, rig.ros.spin = {"image_type": "compressed", **files}, until_told
    assert rig.node.main() == 0
    assert rig.ros.nodes[0].destroyed
    assert rig.ros.shut_down == 1
    assert threading.active_count() == before


def test_it_ends_with_an_error_when_its_worker_did(
    rig: Rig, files: dict[str, str], bag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def until_it_fails(node: Any) -> None:
        node._live.publish = None  # as if the publishers were gone
        play(rig, node, recorded(bag))
        wait_for(lambda: node._live.failure is not None)
        node.timers_made[0][1]()

    rig.ros.overrides, rig.ros.spin = {"image_type": "compressed", **files}, until_it_fails
    assert rig.node.main() == 1
    assert "error: the worker ended: " in capsys.readouterr().err
    assert rig.ros.nodes[0].destroyed


# --- parameters -------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"time_out_s": 0.1}, "parameter time_out_s: unknown. Did you mean timeout_s?"),
    "nested": ({"tolerance_s.lidarr": 0.1}, "parameter tolerance_s.lidarr: unknown. Did you mean tolerance_s.lidar?"),
    "missing": ({"checkpoint": ""}, "parameter checkpoint: expected a path, got none."),
    "negative": ({"timeout_s": -1.0}, "parameter timeout_s: input should be greater than or equal to 0, got -1.0"),
    "text": ({"tick_hz": "fast"}, "parameter tick_hz: "),
    "choice": ({"image_type": "jpg"}, "parameter image_type: input should be 'auto', 'compressed' or 'raw', got 'jpg'"),
    "together": ({"timeout_s": 0.5}, "max_age_s: expected more than timeout_s"),
    "device": ({"device": "toaster"}, "parameter device: expected one of this machine, got 'toaster'"),
    "no checkpoint": ({"checkpoint": "/nowhere"}, "expected a directory with model.safetensors and config.json"),
    "no mapping": ({"mapping": "/nowhere.yaml"}, "/nowhere.yaml: expected a mapping of topics, got none"),
    "channel": ({"tolerance_of_channel_s.CAM_X": 0.1}, "tolerance_of_channel_s: CAM_X is none of the model's channels"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_parameters_end_it_with_one_clear_line(
    rig: Rig, files: dict[str, str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, said = FAULTS[name]
    rig.ros.overrides = {**files, **changes}
    assert rig.node.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert rig.ros.shut_down == 1
    assert rig.ros.nodes[0].destroyed


def test_a_tolerance_may_be_set_for_one_channel(rig: Rig, files: dict[str, str]) -> None:
    settings = rig.settings.settings_from({**files, "tolerance_of_channel_s.CAM_BACK": 0.3, "timeout_s": 0})
    assert (settings.tolerance_of_channel_s, settings.timeout_s) == ({"CAM_BACK": 0.3}, 0)
    assert settings.mapping == files["mapping"]


def test_parameter_file_and_readme_tell_the_defaults(rig: Rig) -> None:
    known = rig.settings.parameters()
    text = yaml.safe_load((PACKAGE / "config" / "robustbev.yaml").read_text())
    given: dict[str, Any] = {}
    for name, value in text["robustbev"]["ros__parameters"].items():
        given |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    assert {name: known[name] for name in given} == given
    for name, default in known.items():
        shown = "must be given" if default == "" else f"`{default}`"
        assert f"| `{name}` | {shown} |" in README, f"{name} {shown}"
    for topic in (DETECTIONS, MARKERS, LOG, DIAGNOSTICS, "/tf", "/tf_static"):
        assert f"`{topic}`" in README


def test_the_model_decides_which_sensors_count(rig: Rig) -> None:
    config = tiny_model(radar=None).config
    channels = rig.perception.channels_of(MAPPING, config)
    assert (channels.lidars, channels.radars) == (("LIDAR_TOP",), ())
    only = MAPPING.model_copy(update={"cameras": {}, "lidars": {}})
    with pytest.raises(ValueError, match="expected a sensor of the model's modalities camera, lidar, got none"):
        rig.perception.channels_of(only, config)
    roof = MAPPING.model_copy(update={"lidars": {"LIDAR_ROOF": MAPPING.lidars["LIDAR_TOP"]}})
    assert rig.perception.channels_of(roof, config).reference == "LIDAR_ROOF"


# --- the package ------------------------------------------------------------------------------------------------


def test_the_package_declares_what_it_uses(rig: Rig) -> None:
    root = ElementTree.parse(PACKAGE / "package.xml").getroot()
    depends = {element.text for element in root.iter("exec_depend")}
    types = {*rig.perception.OUTPUTS.values(), "sensor_msgs/msg/Image", "tf2_msgs/msg/TFMessage"}
    assert {name.partition("/")[0] for name in types} <= depends
    assert root.findtext("name") == "robustbev_ros"
    project = tomllib.loads((PACKAGE.parents[2] / "pyproject.toml").read_text())["project"]
    assert root.findtext("version") == project["version"]
    assert load_mapping(PACKAGE / "config" / "mapping.yaml").lidars


def test_setup_installs_files_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **fields: called.update(fields))
    exec(compile((PACKAGE / "setup.py").read_text(), "setup.py", "exec"), {"__name__": "__main__"})
    files = [file for _, group in called["data_files"] for file in group]
    assert all((PACKAGE / file).is_file() for file in files)
    installed = {Path(file).name for file in files}
    assert {path.name for path in [*PACKAGE.glob("config/*"), *PACKAGE.glob("launch/*.py")]} <= installed
    assert called["entry_points"]["console_scripts"] == ["robustbev_node = robustbev_ros.node:main"]


def test_only_the_node_file_needs_ros() -> None:
    for file in (PACKAGE / "robustbev_ros").glob("*.py"):
        text = file.read_text()
        assert ("import rclpy" in text) == (file.name == "node.py"), file.name
        assert "training" not in text, file.name
    lines = (PACKAGE / "robustbev_ros" / "node.py").read_text().splitlines()
    assert len(lines) < 160


def test_the_fake_refuses_what_ros_refuses() -> None:
    """The message classes of the tests are as strict as rosidl's, or what passes here would fail on the robot."""
    status = message_class("diagnostic_msgs/msg/DiagnosticStatus")
    for fields in ({"level": 1}, {"name": b"x"}, {"values": ["x"]}, {"colour": 1}):
        with pytest.raises(AssertionError):
            status(**fields)
    with pytest.raises(AssertionError):
        message_class("geometry_msgs/msg/Point")(x=1)
    with pytest.raises(AssertionError):
        message_class("geometry_msgs/msg/PoseWithCovariance")(covariance=np.zeros(35))
