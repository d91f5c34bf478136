"""Logs are opened by their content; ROS 2 bags of either storage give the same messages; seeks bring what was latched."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from sensors.logs.log import Log, LogError, LogWarning
from sensors.logs.mcap.log import McapLog
from sensors.logs.messages import CameraInfo, FrameTransforms, LogMessage
from sensors.logs.open import open_log
from sensors.logs.sqlite_log import SqliteLog
from tests.sensors.logs.mcap.mcap_files import some_messages, write_mcap

STORE = get_typestore(Stores.ROS2_HUMBLE)
T = STORE.types
SECOND = 1_000_000_000


def header(frame: str, time_ns: int) -> Any:
    stamp = T["builtin_interfaces/msg/Time"](sec=time_ns // SECOND, nanosec=time_ns % SECOND)
    return T["std_msgs/msg/Header"](stamp=stamp, frame_id=frame)


def transforms(time_ns: int, *pairs: tuple[str, str, float]) -> Any:
    vector, quaternion = T["geometry_msgs/msg/Vector3"], T["geometry_msgs/msg/Quaternion"]
    stamped = [
        T["geometry_msgs/msg/TransformStamped"](
            header(parent, time_ns), child,
            T["geometry_msgs/msg/Transform"](vector(x, 0.0, 0.0), quaternion(0.0, 0.0, 0.0, 1.0)),
        )
        for parent, child, x in pairs
    ]  # fmt: skip
    return T["tf2_msgs/msg/TFMessage"](stamped)


def calibration(time_ns: int, focal_px: float) -> Any:
    roi = T["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, do_rectify=False)
    return T["sensor_msgs/msg/CameraInfo"](
        header("cam", time_ns), 4, 6, "plumb_bob", np.zeros(5), np.diag([focal_px, focal_px, 1.0]).ravel(),
        np.eye(3).ravel(), np.zeros(12), 0, 0, roi,
    )  # fmt: skip


def drive() -> list[tuple[str, int, Any]]:
    """Ten seconds: mounts told once on /tf_static and on /tf, ego poses each second, calibrations at 0, 3 and 8 s."""
    messages = [("/tf_static", 0, transforms(0, ("base_link", "lidar", 1.0), ("base_link", "cam", 2.0)))]
    messages.append(("/tf", 0, transforms(0, ("base_link", "radar", 3.0))))
    messages += [("/tf", n * SECOND, transforms(n * SECOND, ("map", "base_link", float(n)))) for n in range(10)]
    messages += [("/cam/camera_info", n * SECOND, calibration(n * SECOND, 10.0 + n)) for n in (0, 3, 8)]
    return sorted(messages, key=lambda message: message[1])


def write_bag(folder: Path, plugin: StoragePlugin) -> Path:
    with Writer(folder, version=9, storage_plugin=plugin) as writer:
        connections: dict[str, Any] = {}
        for topic, time_ns, message in drive():
            name = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, name, typestore=STORE)
            writer.write(connections[topic], time_ns, STORE.serialize_cdr(message, name))
    return folder


@pytest.fixture(params=[StoragePlugin.SQLITE3, StoragePlugin.MCAP], ids=["sqlite", "mcap"])
def bag(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_bag(tmp_path / "bag", request.param)


def told(messages: list[LogMessage]) -> list[Any]:
    """What messages say, in numbers."""
    out: list[Any] = []
    for message in messages:
        if isinstance(message.payload, FrameTransforms):
            moved = [(one.child, one.translation_m[0]) for one in message.payload.transforms]
            out.append((message.topic, message.log_time_ns // SECOND, moved))
        else:
            assert isinstance(message.payload, CameraInfo)
            out.append((message.topic, message.log_time_ns // SECOND, float(message.payload.K[0, 0])))
    return out


def test_a_bags_folder_and_its_file_give_every_message(bag: Path) -> None:
    (file,) = (entry for entry in bag.iterdir() if entry.suffix in (".db3", ".mcap"))
    renamed = file.rename(file.with_name("without-a-suffix"))
    by_file = list(open_log(renamed).messages())
    renamed.rename(file)
    log = open_log(bag)
    messages = list(log.messages())
    assert told(messages) == told(by_file)
    assert [(m.topic, m.log_time_ns) for m in messages] == [(topic, time_ns) for topic, time_ns, _ in drive()]
    assert log.span_ns() == (0, 9 * SECOND)
    assert {(topic.name, topic.encoding, topic.count) for topic in log.topics()} == {
        ("/tf_static", "cdr", 1), ("/tf", "cdr", 11), ("/cam/camera_info", "cdr", 3)
    }  # fmt: skip
    assert not log.damage


def test_a_seek_brings_what_was_latched_with_its_own_time(bag: Path) -> None:
    got = told(list(open_log(bag).messages(start_ns=5 * SECOND, end_ns=7 * SECOND)))
    assert got == [
        ("/tf_static", 0, [("lidar", 1.0), ("cam", 2.0)]),
        ("/tf", 0, [("radar", 3.0)]),
        ("/cam/camera_info", 3, 13.0),
        ("/tf", 4, [("base_link", 4.0)]),
        ("/tf", 5, [("base_link", 5.0)]),
        ("/tf", 6, [("base_link", 6.0)]),
    ]
    chosen = told(list(open_log(bag).messages(topics=["/cam/camera_info"], start_ns=5 * SECOND)))
    assert chosen == [("/cam/camera_info", 3, 13.0), ("/cam/camera_info", 8, 18.0)]


def test_nothing_is_written_beside_a_bag(bag: Path) -> None:
    before = {entry.name: entry.read_bytes() for entry in bag.iterdir()}
    list(open_log(bag).messages())
    assert {entry.name: entry.read_bytes() for entry in bag.iterdir()} == before


def test_a_bag_in_several_files_is_one_log(tmp_path: Path) -> None:
    folder = write_bag(tmp_path / "bag", StoragePlugin.SQLITE3)
    whole = told(list(open_log(folder).messages()))
    first, second = folder / "bag.db3", folder / "second.db3"
    second.write_bytes(first.read_bytes())
    for file, kept in ((first, "<"), (second, ">=")):
        with sqlite3.connect(file) as database:
            database.execute(f"DELETE FROM messages WHERE NOT timestamp {kept} {4 * SECOND}")
        database.close()
    metadata = folder / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("- bag.db3", "- bag.db3\n  - second.db3", 1))
    log = open_log(folder)
    assert told(list(log.messages())) == whole
    assert sum(topic.count for topic in log.topics()) == len(whole)
    latched = told(list(log.messages(start_ns=6 * SECOND)))
    assert latched[0] == ("/tf_static", 0, [("lidar", 1.0), ("cam", 2.0)])


def test_a_torn_sqlite_bag_is_refused_with_the_command_that_recovers_it(tmp_path: Path) -> None:
    folder, count = tmp_path / "bag", 40
    with Writer(folder, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection("/words", "std_msgs/msg/String", typestore=STORE)
        for number in range(count):
            text = T["std_msgs/msg/String"](f"{number}:" + "x" * 9000)
            writer.write(connection, number, STORE.serialize_cdr(text, "std_msgs/msg/String"))
    file = folder / "bag.db3"
    data = file.read_bytes()
    assert len(list(SqliteLog(file).messages())) == count
    for length in (len(data) // 2 + 5, len(data) // 8192 * 4096, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(LogError, match=r"bag\.db3: .*SQLite cannot read: .*Copy the file again"):
            SqliteLog(file)  # SQLite would fill messages with zeros
    page = int.from_bytes(data[16:18], "big")
    lost = bytearray(data)
    at = len(data) // page // 2 * page  # a page in the middle
    lost[at : at + page] = bytes(page)
    file.write_bytes(lost)
    with pytest.raises(LogError, match=r"bag\.db3: .*SQLite cannot read: .*\.recover"):
        SqliteLog(file)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "drive.mcap").write_bytes(b"x")


def _bag_of(**changed: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.mkdir()
        (path / "a.db3").touch()
        keys = {"storage_identifier": "sqlite3", "relative_file_paths": ["a.db3"], "compression_mode": ""} | changed
        lines = [f"  {key}: {value}" for key, value in keys.items()]
        (path / "metadata.yaml").write_text("\n".join(["rosbag2_bagfile_information:", *lines]))

    return write


def _database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE birds (name TEXT)")
    database.close()


@pytest.mark.filterwarnings("ignore::sensors.logs.log.LogWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "nothing there"),
        (lambda path: path.touch(), "an empty file"),
        (lambda path: path.write_text("some words, no log"), "18 bytes that begin with"),
        (lambda path: path.write_bytes(b"#ROSBAG V2.0\n"), "ROS 1 bag. Convert it to ROS 2: rosbags-convert"),
        (lambda path: path.write_bytes(b"\x28\xb5\x2f\xfd123"), "zstd -d"),
        (_folder, "drive.mcap: expected an MCAP file"),
        (lambda path: path.mkdir(), "got neither: no files"),
        (_database, "tables birds"),
        (lambda path: path.write_bytes(b"SQLite format 3\x00" + bytes(100)), "SQLite cannot read"),
        (_bag_of(storage_identifier="rocks"), "got 'rocks'"),
        (_bag_of(relative_file_paths=["b.db3"]), "b.db3: expected a SQLite file, got nothing there"),
        (_bag_of(relative_file_paths=[]), "relative_file_paths"),
        (_bag_of(compression_mode="FILE", compression_format="zstd"), "FILE-wise zstd"),
    ],
)
def test_what_is_no_log_is_refused_in_one_line(tmp_path: Path, make: Callable[[Path], Any], words: str) -> None:
    path = tmp_path / "given"
    make(path)
    with pytest.raises(LogError, match=r"^\S+: ") as caught:
        open_log(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_mcap_whose_beginning_is_damaged_is_still_known_as_one(tmp_path: Path) -> None:
    messages = some_messages(30)
    file = tmp_path / "drive"
    data = bytearray(write_mcap(messages))
    data[2] ^= 4
    file.write_bytes(data)
    with pytest.warns(LogWarning):
        log: Log = open_log(file)
    assert isinstance(log, McapLog)
    assert len(list(log.messages())) == len(messages)
    assert log.damage.bad_records == 1
