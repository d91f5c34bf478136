"""Opens a drive log by what is in it, whatever its name."""

from __future__ import annotations

from pathlib import Path

from sensors.logs.bag import open_bag
from sensors.logs.log import Log, LogError
from sensors.logs.mcap.log import McapLog, looks_like_mcap
from sensors.logs.sqlite_log import MAGIC as SQLITE_MAGIC
from sensors.logs.sqlite_log import SqliteLog

_ROS1_MAGIC = b"#ROSBAG V"
_ROS1_ADVICE = "a ROS 1 bag. Convert it to ROS 2: rosbags-convert --src IN.bag --dst OUT"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def open_log(path: Path) -> Log:
    """The log at `path`: an MCAP file, a ROS 2 bag's .db3, or a ROS 2 bag's folder.

    Raises:
        LogError: missing, empty, or nothing of these; a ROS 1 bag; a bag of another storage.
    """
    if path.is_dir():
        return open_bag(path)
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
