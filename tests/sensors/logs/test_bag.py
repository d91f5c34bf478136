"""Folders of ROS 2 bags: the files that metadata.yaml lists, or those that are there."""

from __future__ import annotations

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
from tests.sensors.logs.split_bag import metadata, name_of, one_after_another, write_metadata, write_parts


def test_an_empty_last_file_is_no_fault(tmp_path: Path) -> None:
    """A recorder that is stopped right after a split leaves one."""
    parts = [*one_after_another(20), []]
    write_parts(tmp_path, parts)
    write_metadata(tmp_path, metadata(parts))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log = open_bag(tmp_path)
        assert [message.log_time_ns for message in log.messages()] == list(range(1_000, 2_000, 10))
    assert log.span_ns() == (1_000, 1_990)


def test_metadata_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bag, "_MOST_VALUES", 1_000)
    parts = one_after_another(2_000, each=1)
    write_metadata(tmp_path, metadata(parts))
    with pytest.raises(LogError, match="expected at most 1000 keys and values, got more"):
        open_bag(tmp_path)


def _twice(content: dict[str, Any]) -> None:
    content["relative_file_paths"].append(name_of(2))


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
    assert sum(topic.count for topic in log.topics()) == 25


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
    files[7].unlink()
    with pytest.warns(LogWarning, match=r"bag_7\.mcap: expected an MCAP file, got nothing there\. .* is left out"):
        log = open_bag(tmp_path)
    assert log.damage.bad_files == 1
    assert sum(topic.count for topic in log.topics()) == 145
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
