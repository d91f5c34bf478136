"""Opens a drive log by what is in it, whatever its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sensors.documents import DocumentError, read_yaml, short
from sensors.logs.log import Log, LogError
from sensors.logs.mcap_log import McapFile, McapLog, looks_like_mcap
from sensors.logs.recorded import RecordedLog
from sensors.logs.sqlite_log import MAGIC as SQLITE_MAGIC
from sensors.logs.sqlite_log import SqliteFile, SqliteLog

_ROS1_MAGIC = b"#ROSBAG V"
_ROS1_ADVICE = "a ROS 1 bag. Convert it to ROS 2: rosbags-convert --src IN.bag --dst OUT"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_METADATA = "metadata.yaml"
_LONGEST_NAME = 255  # of a file, bytes


def open_log(path: Path) -> Log:
    """The log at `path`: an MCAP file, a ROS 2 bag's .db3, or a ROS 2 bag's folder with its metadata.yaml.

    Raises:
        LogError: missing, empty, or nothing of these; a ROS 1 bag; a bag of another storage.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise LogError(f"{path}: expected a drive log, got nothing there")
    if not path.is_file():
        raise LogError(f"{path}: expected a drive log, got what is neither a file nor a folder")
    try:
        with path.open("rb") as file:
            begins = file.read(16)
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror}") from error
    if not begins:
        raise LogError(f"{path}: expected a drive log, got an empty file")
    if begins.startswith(_ROS1_MAGIC):
        raise LogError(f"{path}: expected MCAP or a ROS 2 bag, got {_ROS1_ADVICE}")
    if begins == SQLITE_MAGIC:
        return SqliteLog(path)
    if looks_like_mcap(path):
        return McapLog(path)
    if begins.startswith(_ZSTD_MAGIC):
        raise LogError(f"{path}: expected a drive log, got one compressed as a whole. Unpack it: zstd -d {path.name}")
    raise LogError(
        f"{path}: expected a drive log (MCAP, or a ROS 2 bag), got {path.stat().st_size} bytes that begin with {begins[:8]!r}"
    )


def _open_folder(path: Path) -> Log:
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
    if storage == "sqlite3":
        return RecordedLog(path, [SqliteFile(entry) for entry in files])
    if storage == "mcap":
        return RecordedLog(path, [McapFile(entry) for entry in files])
    raise LogError(
        f"{path}: expected a bag of storage sqlite3 or mcap, got {short(storage)}. Convert it: ros2 bag convert"
    )


def _word(value: Any) -> str:
    """A value of the metadata for a message: text as it is."""
    return value[:40] if isinstance(value, str) else short(value)


def _metadata(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(file)
        bag = content["rosbag2_bagfile_information"]
        if isinstance(bag, dict):
            return bag
        got = type(bag).__name__
    except (OSError, DocumentError, KeyError, TypeError) as error:
        got = short(f"{type(error).__name__}: {error}", 300)
    raise LogError(f"{file}: expected a ROS 2 bag's metadata (rosbag2_bagfile_information), got {got}")
