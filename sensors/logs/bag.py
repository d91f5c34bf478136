"""ROS 2 bags as folders: a metadata.yaml, and the files that it lists; without it, the files that are there."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sensors.documents import DocumentError, read_yaml, short
from sensors.logs.log import LogError, LogWarning
from sensors.logs.mcap.log import McapFile
from sensors.logs.recorded import RecordedLog
from sensors.logs.recorded_file import OpenFile
from sensors.logs.sqlite_log import SqliteFile

_METADATA = "metadata.yaml"
_MOST_VALUES = 4_000_000  # in it: some 17 for each file, so more than 200,000 files
_LONGEST_NAME = 255  # of a file
_STORAGES: Mapping[str, OpenFile] = {"sqlite3": SqliteFile, "mcap": McapFile}
_SUFFIXES = {"sqlite3": ".db3", "mcap": ".mcap"}


def open_bag(path: Path) -> RecordedLog:
    """The bag in the folder `path`: the files that its metadata.yaml lists.

    Without metadata.yaml (a killed recorder writes none) all files of the folder are read, where they are of one storage. That,
    files that are listed twice and files of the bag's storage that are not listed, and so not read, are told as LogWarnings.

    Raises:
        LogError: metadata of no bag, or none, and files of both storages or of neither; another storage, or compressed files;
            not one of the files can be opened.
    """
    file = path / _METADATA
    try:
        present = {entry.name for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")}
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror}") from error
    bag = _metadata(file) if _METADATA in present else _without_metadata(path, present)
    storage, listed = bag.get("storage_identifier"), bag.get("relative_file_paths")
    compression = bag.get("compression_mode")
    if compression and compression not in ("none", "NONE"):
        raise LogError(
            f"{path}: expected a bag without compression of its own, got {_word(compression)}-wise "
            f"{_word(bag.get('compression_format'))}. Convert it: ros2 bag convert, or rosbags-convert"
        )
    if not isinstance(listed, list) or not listed or not all(map(_names_a_file, listed)):
        raise LogError(f"{file}: expected relative_file_paths with the bag's files, got {short(listed)}")
    if not isinstance(storage, str) or storage not in _STORAGES:
        raise LogError(
            f"{path}: expected a bag of storage sqlite3 or mcap, got {short(storage)}. Convert it: ros2 bag convert"
        )
    names = Counter(Path(name).name for name in listed)  # whatever folders a name has, the file lies in this one
    if twice := [name for name, times in names.items() if times > 1]:
        _warn(f"{file}: expected each file once, got more than once: {_some(twice)}. Each is read once")
    if unlisted := sorted(_with_suffix(present, storage) - names.keys()):
        _warn(
            f"{path}: {len(unlisted)} files are not read, because {_METADATA} does not list them: {_some(unlisted)}. "
            "Where they belong to the bag, have it written anew: ros2 bag reindex"
        )
    return RecordedLog(path, [path / name for name in names], _STORAGES[storage])


def _without_metadata(path: Path, present: set[str]) -> dict[str, Any]:
    """What metadata would say of the folder's files."""
    logs = {storage: found for storage in _STORAGES if (found := _with_suffix(present, storage))}
    if len(logs) != 1:
        raise LogError(
            f"{path}: expected a ROS 2 bag's folder, with {_METADATA} or with files of one kind, .mcap or .db3, got "
            f"{'both kinds. Name one file' if logs else 'neither'}: {_some(sorted(present)) or 'no files'}"
        )
    ((storage, found),) = logs.items()
    _warn(
        f"{path}: expected {_METADATA}, got none, as a killed recorder leaves it; what lies there is read by the files' own "
        f"times: {_some(_natural(found))}. Have it written: ros2 bag reindex"
    )
    return {"storage_identifier": storage, "relative_file_paths": _natural(found)}


def _with_suffix(names: Iterable[str], storage: str) -> set[str]:
    return {name for name in names if name.endswith(_SUFFIXES[storage])}


def _natural(names: Iterable[str]) -> list[str]:
    """In the order of their numbers: bag_9 before bag_10."""

    def key(name: str) -> list[int | str]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]

    return sorted(names, key=key)


def _names_a_file(name: object) -> bool:
    return isinstance(name, str) and 0 < len(Path(name).name) <= _LONGEST_NAME


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _warn(text: str) -> None:
    warnings.warn(text, LogWarning, stacklevel=3)


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
    raise LogError(
        f"{file}: expected a ROS 2 bag's metadata (rosbag2_bagfile_information), got {got}. "
        "Have it written anew: ros2 bag reindex"
    )
