"""Folders of ROS 2 bags: what metadata.yaml says of thousands of files is used where it can be right, and checked."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sensors.logs import bag
from sensors.logs.bag import open_bag
from sensors.logs.log import LogError, LogWarning
from sensors.logs.messages import Other
from tests.sensors.logs.split_bag import (
    Opened,
    metadata,
    name_of,
    one_after_another,
    write_metadata,
    write_parts,
)
from tests.sensors.logs.test_sqlite_log import killed


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    opened = Opened()
    monkeypatch.setattr(bag, "_STORAGES", {"mcap": lambda: opened})
    return opened


def times(folder: Path) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [message.log_time_ns for message in open_bag(folder).messages()]


def test_two_thousand_files_are_opened_by_their_metadata(tmp_path: Path, opened: Opened) -> None:
    parts = one_after_another(2_000, each=2)
    for number in range(len(parts)):
        (tmp_path / name_of(number)).touch()
    checked = [*range(0, 2_000, 250), 1_999]
    for number in checked:
        (tmp_path / name_of(number)).write_bytes(write_one(tmp_path, parts[number]))
    write_metadata(tmp_path, metadata(parts))
    log = open_bag(tmp_path)
    assert sorted(opened.names) == sorted(name_of(number) for number in checked)
    assert log.span_ns() == (parts[0][0].log_ns, parts[-1][-1].log_ns)
    assert [(topic.name, topic.type, topic.encoding, topic.count) for topic in log.topics()] == [
        ("/topic_0", "test.Bytes", "raw", 1_334),
        ("/topic_1", "test.Bytes", "raw", 1_333),
        ("/topic_2", "test.Bytes", "raw", 1_333),
    ]


def write_one(folder: Path, part: list[Any]) -> bytes:
    (file,) = write_parts(folder / "one", [part])
    return file.read_bytes()


def _zeros(content: dict[str, Any]) -> None:
    for file in content["files"]:
        file.update(starting_time={"nanoseconds_since_epoch": 0}, duration={"nanoseconds": 0}, message_count=0)


def _late(content: dict[str, Any]) -> None:
    for part in (content, *content["files"]):
        part["starting_time"]["nanoseconds_since_epoch"] += 1_000


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("files"),
        lambda content: content.update(files=None),
        lambda content: content["files"].pop(),
        lambda content: content["files"].reverse(),
        lambda content: content["files"][3].pop("starting_time"),
        lambda content: content["files"][3].update(duration="long"),
        lambda content: content["files"][3].update(duration={"nanoseconds": True}),
        lambda content: content["files"][3].update(duration={"nanoseconds": -5}),
        lambda content: content["files"][3].update(duration={"nanoseconds": 10**9}),
        lambda content: content["files"][3].update(message_count=6),
        lambda content: content["files"][3].update(path=7),
        lambda content: content["topics_with_message_count"].pop(),
        lambda content: content["topics_with_message_count"][0].update(topic_metadata=[]),
        lambda content: content["topics_with_message_count"][0]["topic_metadata"].update(type=None),
        lambda content: content.pop("message_count"),
        lambda content: content.update(starting_time={"nanoseconds_since_epoch": 1_100}),
        lambda content: content["files"][3]["starting_time"].update(nanoseconds_since_epoch=1_600),
        _zeros,
        _late,
    ],
)
def test_metadata_that_cannot_be_right_are_not_believed(
    tmp_path: Path, opened: Opened, change: Callable[[dict[str, Any]], Any]
) -> None:
    parts = one_after_another(20)
    write_parts(tmp_path, parts)
    content = metadata(parts)
    change(content)
    write_metadata(tmp_path, content)
    log = open_bag(tmp_path)
    assert set(opened.names) == {name_of(number) for number in range(20)}
    assert log.span_ns() == (1_000, 1_990)
    assert [topic.count for topic in log.topics()] == [34, 33, 33]
    assert times(tmp_path) == list(range(1_000, 2_000, 10))


def test_an_empty_last_file_is_no_fault(tmp_path: Path, opened: Opened) -> None:
    """A recorder that is stopped right after a split leaves one, with the largest number for a beginning."""
    parts = [*one_after_another(20), []]
    write_parts(tmp_path, parts)
    content = metadata(parts)
    content["starting_time"], content["duration"] = {"nanoseconds_since_epoch": 1_000}, {"nanoseconds": 990}
    write_metadata(tmp_path, content)
    assert times(tmp_path) == list(range(1_000, 2_000, 10))


def test_metadata_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bag, "_MOST_VALUES", 30_000)
    parts = one_after_another(2_000, each=1)
    write_metadata(tmp_path, metadata(parts))
    with pytest.raises(LogError, match="expected at most 30000 keys and values, got more"):
        open_bag(tmp_path)


def _twice(content: dict[str, Any]) -> None:
    content["relative_file_paths"].append(name_of(2))
    content["files"].append(content["files"][2])


def _elsewhere(content: dict[str, Any]) -> None:
    content["relative_file_paths"].append(f"elsewhere/{name_of(2)}")


@pytest.mark.parametrize("change", [_twice, _elsewhere])
def test_a_file_that_is_listed_twice_is_read_once(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    parts = one_after_another(5)
    write_parts(tmp_path, parts)
    content = metadata(parts)
    change(content)
    write_metadata(tmp_path, content)
    with pytest.warns(LogWarning, match=r"metadata\.yaml: .* more than once: bag_2\.mcap\. Each is read once") as told:
        log = open_bag(tmp_path)
    assert len(told) == 1
    assert [message.log_time_ns for message in log.messages()] == list(range(1_000, 1_250, 10))
    assert sum(topic.count or 0 for topic in log.topics()) == 25


def test_files_that_are_not_listed_are_told_and_not_read(tmp_path: Path) -> None:
    parts = one_after_another(5)
    write_parts(tmp_path, parts)
    for other in ("._bag_0.mcap", "notes.txt", "other.db3"):
        (tmp_path / other).write_bytes(b"no part of it")
    write_metadata(tmp_path, metadata(parts[:3]))
    with pytest.warns(
        LogWarning, match=r"2 files are not read, .*: bag_3\.mcap, bag_4\.mcap\. .*ros2 bag reindex"
    ) as told:
        log = open_bag(tmp_path)
    assert len(told) == 1
    assert [message.log_time_ns for message in log.messages()] == list(range(1_000, 1_150, 10))


def test_a_file_that_is_missing_is_left_out_and_counted(tmp_path: Path) -> None:
    parts = one_after_another(30)
    files = write_parts(tmp_path, parts)
    write_metadata(tmp_path, metadata(parts))
    files[7].unlink()  # none of those that are checked
    with pytest.warns(LogWarning, match=r"bag_7\.mcap: expected an MCAP file, got nothing there\. .* is left out"):
        log = open_bag(tmp_path)
    assert log.damage.bad_files == 1
    assert sum(topic.count or 0 for topic in log.topics()) == 145
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert len(list(log.messages())) == 145
            assert log.damage.bad_files == 1
    for file in files:
        file.unlink(missing_ok=True)
    with pytest.warns(LogWarning), pytest.raises(LogError, match=r"bag_0\.mcap: .*got nothing there"):
        open_bag(tmp_path)


def test_a_folder_without_metadata_is_read_by_its_files_own_times(tmp_path: Path) -> None:
    at_one_time = [[replace(message, log_ns=1_000) for message in part] for part in one_after_another(12)]
    write_parts(tmp_path, at_one_time)
    with pytest.warns(
        LogWarning, match=r"expected metadata\.yaml, got none, .*bag_1\.mcap, bag_2.*ros2 bag reindex"
    ) as told:
        log = open_bag(tmp_path)
    assert len(told) == 1
    data = [message.payload.data for message in log.messages() if isinstance(message.payload, Other)]
    assert data == [n.to_bytes(4, "little") for n in range(60)]  # equal times in the order of the files' numbers
    assert [topic.count for topic in log.topics()] == [20, 20, 20]


def test_a_folder_without_metadata_and_with_files_of_two_kinds_is_refused(tmp_path: Path) -> None:
    write_parts(tmp_path, one_after_another(2))
    (tmp_path / "bag_0.db3").touch()
    with pytest.raises(LogError, match=r"got both kinds\. Name one file: bag_0\.db3, bag_0\.mcap"):
        open_bag(tmp_path)


def test_a_killed_file_of_a_bag_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = killed(tmp_path / "bag", "WAL").parent
    write_metadata(folder, {"storage_identifier": "sqlite3", "relative_file_paths": ["none.db3", "bag.db3"]})
    copied: list[str] = []
    copy = shutil.copyfile

    def counted(source: Path, target: Path) -> Path:
        copied.append(source.name)
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", counted)
    with pytest.warns(LogWarning):
        log = open_bag(folder)
    for asked in ({}, {"start_ns": 500}, {"order": "publish"}):
        assert list(log.messages(**asked))[-1].log_time_ns == 1_900
    assert copied == ["bag.db3", "bag.db3-wal"]
