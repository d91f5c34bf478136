"""ROS 2 bags as folders: a metadata.yaml, and the files that it lists."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from sensors.documents import DocumentError, read_yaml, short
from sensors.logs.log import LogError, TopicInfo
from sensors.logs.mcap_log import McapFile
from sensors.logs.recorded import Promise, RecordedLog
from sensors.logs.recorded_file import OpenFile
from sensors.logs.sqlite_log import SqliteFile

_METADATA = "metadata.yaml"
_MOST_VALUES = 4_000_000  # in it: some 17 for each file, so more than 200,000 files
_LONGEST_NAME = 255  # of a file, bytes
_STORAGES: Mapping[str, OpenFile] = {"sqlite3": SqliteFile, "mcap": McapFile}


def open_bag(path: Path) -> RecordedLog:
    """The bag in the folder `path`. Where its metadata.yaml says when each file begins, few of them are opened for it.

    Raises:
        LogError: no metadata.yaml, or none of a bag; files that it lists are missing; another storage, or compressed files.
    """
    file = path / _METADATA
    if not file.is_file():
        inside = sorted(entry.name for entry in path.iterdir())
        logs = [name for name in inside if name.endswith((".mcap", ".db3", ".bag"))]
        advice = f"Name one of its files: {', '.join(logs[:5])}" if logs else "It holds no .mcap or .db3 either"
        raise LogError(f"{path}: expected a ROS 2 bag's folder with {_METADATA}, got a folder without. {advice}")
    bag = _metadata(file)
    storage, names = bag.get("storage_identifier"), bag.get("relative_file_paths")
    compression = bag.get("compression_mode")
    if compression and compression not in ("none", "NONE"):
        raise LogError(
            f"{path}: expected a bag without compression of its own, got {_word(compression)}-wise "
            f"{_word(bag.get('compression_format'))}. Convert it: ros2 bag convert, or rosbags-convert"
        )
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise LogError(f"{file}: expected relative_file_paths with the bag's files, got {short(names)}")
    files = [path / Path(name).name for name in names]  # whatever folders a name has, the file lies in this one
    missing = [entry.name for entry in files if len(entry.name) > _LONGEST_NAME or not entry.is_file()]
    if missing:
        raise LogError(
            f"{path}: expected the files that {_METADATA} lists, got none named {', '.join(missing[:3]):.300}"
        )
    open_file = _STORAGES.get(storage) if isinstance(storage, str) else None
    if open_file is None:
        raise LogError(
            f"{path}: expected a bag of storage sqlite3 or mcap, got {short(storage)}. Convert it: ros2 bag convert"
        )
    return RecordedLog(path, files, open_file, _promise(bag, files))


def _promise(bag: Mapping[str, Any], files: list[Path]) -> Promise | None:
    """When each file begins and ends; None where the metadata do not say (old ones), or contradict themselves."""
    try:
        first_ns, last_ns = _span_ns(bag)
        spans = tuple(_span_ns(file) for file in bag["files"])
        counts = [_whole(file["message_count"]) for file in bag["files"]]
        ordered = [Path(file["path"]).name for file in bag["files"]] == [file.name for file in files]
        topics = {}
        for entry in bag["topics_with_message_count"]:
            about, count = entry["topic_metadata"], _whole(entry["message_count"])
            words = (about["name"], about["type"], about["serialization_format"])
            if not all(isinstance(word, str) for word in words) or words[0] in topics:
                return None
            topics[words[0]] = TopicInfo(*words, count)
        total = _whole(bag["message_count"])
    except (KeyError, TypeError):
        return None
    counted = sum(counts) == total == sum(topic.count or 0 for topic in topics.values()) and min(counts, default=0) > 0
    within = all(first_ns <= start <= end <= last_ns for start, end in spans)
    if not (ordered and counted and within):
        return None
    return Promise(spans, tuple(sorted(topics.values(), key=attrgetter("name"))))


def _span_ns(part: Mapping[str, Any]) -> tuple[int, int]:
    """First and last log time of a bag or one of its files; KeyError or TypeError where it does not say."""
    start = _whole(part["starting_time"]["nanoseconds_since_epoch"])
    return start, start + _whole(part["duration"]["nanoseconds"])


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a whole number, got {short(value)}")
    return value


def _word(value: Any) -> str:
    """A value of the metadata for a message: text as it is."""
    return value[:40] if isinstance(value, str) else short(value)


def _metadata(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(file, _MOST_VALUES)
        bag = content["rosbag2_bagfile_information"]
        if isinstance(bag, dict):
            return bag
        got = type(bag).__name__
    except (OSError, DocumentError, KeyError, TypeError) as error:
        got = short(f"{type(error).__name__}: {error}", 300)
    raise LogError(f"{file}: expected a ROS 2 bag's metadata (rosbag2_bagfile_information), got {got}")
