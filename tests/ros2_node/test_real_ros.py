"""The ROS 2 node with rclpy itself, over DDS on this machine. Skipped where rclpy is not installed.

PyPI has it for Python 3.11: docs/ros2/README.md says which packages. They have no tf2_msgs and no vision_msgs. Messages of these
types go over DDS as bytes under the name of another type, which neither the node nor DDS looks into.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rosbags.highlevel import AnyReader

from robustbev import save
from robustbev.results.ros2.topics import Kind
from sensors.logs.mapping.file import dump_mapping
from sensors.logs.ros2.types import make_message, typestore
from sensors.logs.write import write_log
from tests.sensors.replay.drive import MAPPING, MS, START_NS, TOPIC, MemoryLog, drive
from tests.tiny_model import tiny_model

rclpy: Any = pytest.importorskip("rclpy", reason="rclpy is not installed; see docs/ros2/README.md")
PACKAGE = Path(__file__).resolve().parents[2] / "docs" / "ros2" / "robustbev_ros"
_TICKS = 10
NO_WHEEL = {"tf2_msgs": ["TFMessage"], "vision_msgs": ["Detection3DArray"]}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other ROS on this machine or its network is spoken to."""
    monkeypatch.setenv("ROS_DOMAIN_ID", str(os.getpid() % 100 + 1))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.syspath_prepend(str(PACKAGE))


@pytest.fixture
def node_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The node's module, on which the types without a wheel are there under another's name."""
    other = import_module("std_msgs.msg").ByteMultiArray
    for package, names in NO_WHEEL.items():
        module = ModuleType(f"{package}.msg")
        module.__dict__.update(dict.fromkeys(names, other))
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
        monkeypatch.setitem(sys.modules, f"{package}.msg", module)
    node, store = import_module("robustbev_ros.node"), typestore()
    make = node.make_message

    def made(type_name: str, /, **fields: Any) -> Any:
        without = type_name.partition("/")[0] in NO_WHEEL
        return make_message(store, type_name, **fields) if without else make(type_name, **fields)

    def send(self: Any, output: str, message: Any) -> None:
        if output == "~/detections":
            message = bytes(store.serialize_cdr(message, message.__msgtype__))
        self._senders[output].publish(message)

    monkeypatch.setattr(node, "make_message", made)
    monkeypatch.setattr(node.PerceptionNode, "_send", send)
    yield node
    for name in [name for name in sys.modules if name.startswith("robustbev_ros")]:
        del sys.modules[name]


def test_a_topic_that_dies_is_told_and_the_rest_goes_on(node_module: ModuleType, tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "model")
    (tmp_path / "mapping.yaml").write_text(dump_mapping(MAPPING))
    write_log(MemoryLog(drive(1.0)), tmp_path / "drive.mcap", "ros2")
    parameters = {
        "use_sim_time": "true", "checkpoint": tmp_path / "model", "mapping": tmp_path / "mapping.yaml", "max_age_s": 1000.0,
        "queue_messages": 10000, "image_type": "compressed", "lidar_sweeps": 3, "radar_sweeps": 2,
    }  # fmt: skip
    rclpy.init(
        args=["--ros-args", *(word for name, value in parameters.items() for word in ("-p", f"{name}:={value}"))]
    )
    try:
        heard = drive_past(node_module, tmp_path / "drive.mcap")
    finally:
        rclpy.try_shutdown()
    states = [{s.name.removeprefix("robustbev: "): s.message for s in array.status} for array in heard["/diagnostics"]]
    times_us = [a.header.stamp.sec * 1_000_000 + a.header.stamp.nanosec // 1000 for a in heard["/diagnostics"]]
    assert times_us == [START_NS // 1000 + n * 100_000 for n in range(len(times_us))]
    assert len(states) >= _TICKS
    assert all(
        markers.markers[0].action == 3 for markers in heard["/robustbev/markers"]
    )  # what stood there before goes
    assert all(one["sensors/CAM_FRONT"].startswith("ok") for one in states[1:9])
    assert states[2]["sensors/LIDAR_TOP"].startswith("ok")
    assert states[8]["sensors/LIDAR_TOP"].startswith("stale")
    assert sum(line.msg.startswith("LIDAR_TOP: ok -> stale") for line in heard["/robustbev/log"]) == 1
    assert heard["/robustbev/detections"]


def drive_past(node_module: ModuleType, bag: Path) -> dict[str, list[Any]]:
    """What another node hears while a recorded drive is played, its LiDAR until the middle; the clock is the drive's."""
    car, node = rclpy.create_node("car"), node_module.PerceptionNode()
    executor = import_module("rclpy.executors").SingleThreadedExecutor()
    for one in (car, node):
        executor.add_node(one)
    clock = car.create_publisher(import_module("rosgraph_msgs.msg").Clock, "/clock", 10)
    heard: dict[str, list[Any]] = {}
    for name, kind in node_module.OUTPUTS.items():
        topic, raw = name.replace("~", "/robustbev"), kind.partition("/")[0] in NO_WHEEL
        hear = heard.setdefault(topic, []).append
        car.create_subscription(node_module.message_class(kind), topic, hear, 100, raw=raw)
    with AnyReader([bag]) as reader:
        messages = [(connection, time_ns, bytes(data)) for connection, time_ns, data in reader.messages()]
    senders = {
        c.topic: car.create_publisher(node_module.message_class(c.msgtype), c.topic, node_module.qos(kind_of(c.topic)))
        for c, _, _ in messages
    }
    everybody = [clock, *senders.values()]
    spin(executor, lambda: all(sender.get_subscription_count() for sender in everybody))

    def time_is(time_ns: int) -> None:
        message = import_module("rosgraph_msgs.msg").Clock()
        message.clock.sec, message.clock.nanosec = divmod(time_ns, 1_000_000_000)
        clock.publish(message)
        for _ in range(4):
            executor.spin_once(timeout_sec=0.005)

    now_ns = messages[0][1]
    for connection, time_ns, data in messages:
        while now_ns + 10 * MS < time_ns:
            now_ns += 10 * MS
            time_is(now_ns)
        if connection.topic != TOPIC["LIDAR_TOP"] or time_ns < START_NS + 450 * MS:
            senders[connection.topic].publish(data)
    for _ in range(30):
        now_ns += 10 * MS
        time_is(now_ns)
    spin(executor, lambda: all(len(heard[topic]) >= _TICKS for topic in ("/robustbev/markers", "/diagnostics")))
    node.destroy_node()
    return heard


def kind_of(topic: str) -> Kind:
    return {"/tf": Kind.TRANSFORMS, "/tf_static": Kind.STATIC_TRANSFORMS}.get(topic, Kind.SENSOR)


def spin(executor: Any, until: Any) -> None:
    for _ in range(6000):
        if until():
            return
        executor.spin_once(timeout_sec=0.02)
    pytest.fail("it did not come within two minutes")


def test_faulty_parameters_end_it_with_one_line_and_exit_2() -> None:
    program = "import sys; from robustbev_ros.node import main; sys.exit(main(sys.argv))"
    words = ["--ros-args", "-p", "checkpoint:=/nowhere", "-p", "mapping:=/nowhere.yaml"]
    path = os.pathsep.join([str(PACKAGE), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.stderr.splitlines() == [
        "error: /nowhere.yaml: expected a mapping of topics, got none: No such file or directory"
    ]
    assert done.returncode == 2
