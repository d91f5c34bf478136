"""Folders of ROS 2 bags: what metadata.yaml says of thousands of files is used where it can be right, and checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sensors.logs import bag
from sensors.logs.bag import open_bag
from sensors.logs.log import LogError
from tests.sensors.logs.split_bag import (
    Opened,
    metadata,
    name_of,
    one_after_another,
    write_metadata,
    write_parts,
)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    opened = Opened()
    monkeypatch.setattr(bag, "_STORAGES", {"mcap": opened})
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
