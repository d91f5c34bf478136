"""Memory does not grow with a log's length: ten times as many messages, read in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mcap.writer import CompressionType, IndexType, Writer

MOST_GROWTH_KB = (
    1_500  # an index of 650 bytes for each of 600 chunks and what the allocator does; the messages are 8,000 KB
)

_READ = """
import sys
from pathlib import Path
from sensors.logs.open import open_log

def peak_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

for path in sys.argv[1:]:
    log = open_log(Path(path))
    print(sum(1 for _ in log.messages()), peak_kb())
"""


def write(file: Path, seconds: int, start_s: int = 0, **options: Any) -> None:
    """12 topics of 100 bytes at 20 Hz."""
    with file.open("wb") as stream:
        writer: Any = Writer(stream, compression=CompressionType.LZ4, chunk_size=16_384, **options)
        writer.start("", "")
        schema = writer.register_schema("test.Bytes", "none", b"")
        channels = [writer.register_channel(f"/topic_{number}", "raw", schema) for number in range(12)]
        for tick in range(20 * seconds):
            for number, channel in enumerate(channels):
                time_ns = start_s * 10**9 + tick * 50_000_000 + number
                writer.add_message(channel, time_ns, bytes(100), time_ns)
        writer.finish()


def write_split(folder: Path, seconds: int) -> None:
    folder.mkdir()
    names = [f"bag_{number}.mcap" for number in range(seconds // 5)]
    for number, name in enumerate(names):
        write(folder / name, 5, start_s=5 * number)
    content = {"rosbag2_bagfile_information": {"storage_identifier": "mcap", "relative_file_paths": names}}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(content))


NO_SUMMARY: dict[str, Any] = {
    "repeat_channels": False, "repeat_schemas": False, "use_statistics": False, "use_summary_offsets": False,
    "index_types": IndexType.MESSAGE,
}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("layout", ["chunks", "without-summary", "without-chunks", "split"])
def test_memory_does_not_grow_with_length(tmp_path: Path, layout: str) -> None:
    paths = [tmp_path / "short", tmp_path / "long"]
    for path, seconds in zip(paths, (30, 300), strict=True):
        match layout:
            case "chunks":
                write(path, seconds)
            case "without-summary":
                write(path, seconds, **NO_SUMMARY)
            case "without-chunks":
                write(path, seconds, use_chunking=False)
            case _:
                write_split(path, seconds)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _READ, *map(str, paths)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    (short, short_kb), (long, long_kb) = ([int(word) for word in line.split()] for line in done.stdout.splitlines())
    assert (short, long) == (12 * 20 * 30, 12 * 20 * 300)
    assert long_kb - short_kb < MOST_GROWTH_KB
