"""Files from outside: where they may lie, what they may be, and those of a data set read whole, with what to do about a fault.

And folders, written whole.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sensors.errors import sensor_fault

MOST_BYTES = 128 * 2**20  # of a sensor's file: a hundred times those of a car

COPY_AGAIN = "Copy the file again from the nuScenes archive, or set on_bad_file: absent to count it as a missing sensor"


UNPACK = (
    "Unpack the nuScenes archives (keyframes: samples/, the rest: sweeps/) into the data root, "
    "or set on_bad_file: absent to count it as a missing sensor"
)


def is_below(name: str) -> bool:
    """Whether a path leads nowhere but down from wherever it begins. Symbolic links on the way are the user's own."""
    return not name.startswith("/") and "\0" not in name and (".." not in name or ".." not in name.split("/"))


def no_links(path: str, flags: int) -> int:
    """`open(opener=no_links)`: a symbolic link in the file's place, as a foreign folder may have one, is an OSError."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(error.errno, "expected a file, got a symbolic link, which is not followed", path) from None


def read_bytes(path: Path, *, sensor: str, token: str) -> bytes:
    """The file's bytes; SensorDataError where it is missing, no file, empty, more than `MOST_BYTES`, or cannot be read."""
    fault = partial(sensor_fault, sensor=sensor, file=path, token=token)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            got = f"{status.st_size} bytes" if stat.S_ISREG(status.st_mode) else "a folder, a pipe or a device"
            raise fault(expected=f"a readable file of at most {MOST_BYTES} bytes", got=got, action=COPY_AGAIN)
        data = path.read_bytes()
    except FileNotFoundError:
        raise fault(expected="a file", got="none there", action=UNPACK) from None
    except OSError as error:
        raise fault(expected="a readable file", got=str(error), action=COPY_AGAIN) from error
    if not data:
        raise fault(expected="data", got="0 bytes", action=COPY_AGAIN)
    return data


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, which takes its place when all is done and is gone when an error leaves it.

    `out` is not there, or is an empty folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        unfinished.chmod(0o755)
        yield unfinished
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
