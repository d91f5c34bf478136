"""Tables and JSON messages that are small and hold much, or are none: one line, at the cost of their bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sensors.errors import DataRootError, SensorDataError
from sensors.logs.decode import ChannelInfo
from sensors.logs.decoder import Decoder
from sensors.logs.messages import Malformed
from sensors.nuscenes.index import build_index
from tests.hostile.files import MAX_MIB, MAX_SECONDS, deep, measured
from tests.small_nuscenes import VERSION, SmallNuScenes

LISTS = b"[" + b"[]," * (16 * 2**20) + b"[]]"  # 48 MiB, which take 1.3 GiB
OBJECTS = b"[" + b'{"a":1},' * (6 * 2**20) + b"{}]"


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def zeros(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


CONTENTS: dict[str, bytes | Callable[[Path], None]] = {
    "16 million empty lists": LISTS, "6 million objects": OBJECTS, "brackets in brackets": deep().encode(),
    "a number of 100,000 digits": b"[" + b"9" * 100_000 + b"]", "bytes": bytes(range(256)), "a number": b"5",
    "an object": b"{}", "rows that are numbers": b"[1, 2]", "rows that are lists": b"[[], []]", "nothing": b"",
    "a pipe": pipe, "zeros without end": zeros,
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("table", ["sample", "sample_data", "splits"])
def test_a_table_that_is_none_is_one_line_at_once(
    small_nuscenes: SmallNuScenes, tmp_path: Path, table: str, name: str
) -> None:
    shutil.copytree(small_nuscenes.root / VERSION, tmp_path / VERSION, ignore=shutil.ignore_patterns(".robustbev*"))
    path, content = tmp_path / VERSION / f"{table}.json", CONTENTS[name]
    path.touch()
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    if table == "splits" and name == "an object":
        return  # which names no split
    config = small_nuscenes.config.model_copy(update={"root": tmp_path})
    with measured() as cost, pytest.raises((DataRootError, SensorDataError), match=rf"{table}\.json") as caught:
        build_index(config)
    assert len(str(caught.value)) < 1000
    assert cost.seconds < MAX_SECONDS
    assert cost.mib < MAX_MIB


@pytest.mark.parametrize("data", [LISTS, OBJECTS], ids=["lists", "objects"])
def test_a_message_that_is_small_and_holds_much_is_malformed(data: bytes) -> None:
    decoder = Decoder({5: ChannelInfo("/points", "foxglove.PointCloud", "json", b"")})
    with measured() as cost:
        message = decoder.decode(5, data, 1)
    assert isinstance(message, Malformed)
    assert "MiB in memory" in message.reason
    assert cost.mib < MAX_MIB
