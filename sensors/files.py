"""Files of a data set, read whole; a missing or unreadable one is told with what to do. And folders, written whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sensors.errors import sensor_fault

COPY_AGAIN = "Copy the file again from the nuScenes archive, or set on_bad_file: absent to count it as a missing sensor"


UNPACK = (
    "Unpack the nuScenes archives (keyframes: samples/, the rest: sweeps/) into the data root, "
    "or set on_bad_file: absent to count it as a missing sensor"
)


def read_bytes(path: Path, *, sensor: str, token: str) -> bytes:
    """The file's bytes; SensorDataError where it is missing, cannot be read or is empty."""
    fault = partial(sensor_fault, sensor=sensor, file=path, token=token)
    try:
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
