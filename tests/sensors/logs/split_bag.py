"""Bags that are split into files, and a look at how many of them are open."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sensors.logs.mcap.log import McapFile
from sensors.logs.recorded_file import Notices
from tests.sensors.logs.mcap.mcap_files import Written, write_mcap


class Opened:
    """Opens MCAP files and counts them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.most_at_once = 0
        self._alive: weakref.WeakSet[McapFile] = weakref.WeakSet()

    def __call__(self, path: Path, notices: Notices) -> McapFile:
        self.names.append(path.name)
        file = McapFile(path, notices)
        self._alive.add(file)
        self.most_at_once = max(self.most_at_once, len(self._alive))
        return file


def name_of(number: int) -> str:
    return f"bag_{number}.mcap"


def metadata(parts: Sequence[Sequence[Written]]) -> dict[str, Any]:
    """What is read of the metadata.yaml of a bag of MCAP files, one for each part."""
    names = [name_of(number) for number in range(len(parts))]
    return {"storage_identifier": "mcap", "relative_file_paths": names, "compression_mode": ""}


def write_metadata(folder: Path, content: dict[str, Any]) -> None:
    """Writes it as JSON, which is YAML too and a hundred times as fast."""
    (folder / "metadata.yaml").write_text(json.dumps({"rosbag2_bagfile_information": content}, indent=1))


def write_parts(folder: Path, parts: Sequence[Sequence[Written]], **options: Any) -> list[Path]:
    """One MCAP file for each part, with no metadata."""
    folder.mkdir(exist_ok=True)
    files = [folder / name_of(number) for number in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        file.write_bytes(write_mcap(list(part), **options))
    return files


def one_after_another(files: int, each: int = 5) -> list[list[Written]]:
    """Messages whose time is 10 ns after the one before."""
    numbers = range(files * each)
    messages = [Written(f"/topic_{n % 3}", 1_000 + 10 * n, 1_000 + 10 * n, n.to_bytes(4, "little")) for n in numbers]
    return [messages[begin : begin + each] for begin in range(0, len(messages), each)]
