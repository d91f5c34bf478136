"""Regression by replay: what a replay gave is stored, and a later one is held against it.

    golden.json   format, version, classes, attributes, modalities, numbers of ticks and boxes, `meta`, SHA-256 of the other two
    ticks.jsonl   a line a tick: times, whether anything was perceived, each sensor's state and age, attention, number of boxes
    boxes.bin     boxes as `box_fields` of golden.json lays them out, tick after tick, in the order in which they were found

Equal results give equal bytes, on every machine. Nothing here depends on how fast a replay ran. Letters: T boxes of a tick.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbev.results.golden_compare import BOX, Difference, TickRecord, Tolerance, compare_tick, record
from robustbev.results.result import TickResult
from sensors.documents import parse_json, read_json

FORMAT, VERSION = "robustbev golden", 1
_HEAD, _TICKS, _BOXES = "golden.json", "ticks.jsonl", "boxes.bin"


class GoldenError(ValueError):
    """A folder that holds no golden outputs, or damaged ones, or cannot be written."""


class GoldenWriter:
    """Stores results in a folder, which appears whole at `close`.

    Args:
        folder: must not exist yet, be empty, or, with `replace`, hold golden outputs, which are replaced at `close`.
        meta: of the replay, kept as it is: anything that is JSON.
        replace: whether golden outputs may be replaced.

    Raises:
        GoldenError: the folder holds something already.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any] | None = None, *, replace: bool = False) -> None:
        self._folder = folder
        self._meta = dict(meta or {})
        self._replace = replace
        self._check_folder()
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            self._ticks = (self._building / _TICKS).open("w", encoding="utf-8", newline="\n")
            self._boxes = (self._building / _BOXES).open("wb")
        except BaseException:
            shutil.rmtree(self._building, ignore_errors=True)
            raise
        self._head: dict[str, Any] | None = None
        self._counts = [0, 0]

    def write(self, result: TickResult) -> None:
        tick, boxes = record(result)
        self._head = self._head or names(result)
        self._ticks.write(json.dumps(tick.as_json(), separators=(",", ":")) + "\n")
        self._boxes.write(boxes.tobytes())
        self._counts[0] += 1
        self._counts[1] += len(boxes)

    def close(self) -> None:
        """Put everything in its place; GoldenError where there was no tick."""
        try:
            if self._head is None:
                raise GoldenError(
                    f"{self._folder}: expected at least one tick to store, got none: the replay gave nothing"
                )
            self._finish(self._head)
            self._building.chmod(0o755)
            self._put_in_place()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        self._ticks.close()
        self._boxes.close()
        shutil.rmtree(self._building, ignore_errors=True)

    def _finish(self, head: dict[str, Any]) -> None:
        self._ticks.close()
        self._boxes.close()
        content = {
            "format": FORMAT, "version": VERSION, **head, "ticks": self._counts[0], "boxes": self._counts[1],
            "box_fields": [[name, BOX[name].base.str, list(BOX[name].shape)] for name in BOX.names or ()],
            "sha256": {name: _sha256(self._building / name) for name in (_TICKS, _BOXES)}, "meta": self._meta,
        }  # fmt: skip
        (self._building / _HEAD).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _put_in_place(self) -> None:
        self._check_folder()
        if not self._folder.exists():
            self._building.rename(self._folder)
            return
        old = self._building.with_name(self._building.name + ".old")
        self._folder.rename(old)
        try:
            self._building.rename(self._folder)
        except BaseException:
            old.rename(self._folder)
            raise
        shutil.rmtree(old)

    def _check_folder(self) -> None:
        if not self._folder.exists() or (self._folder.is_dir() and not any(self._folder.iterdir())):
            return
        if not (self._folder / _HEAD).is_file():
            raise GoldenError(
                f"{self._folder}: expected a new folder for golden outputs, got one that holds something else"
            )
        if not self._replace:
            raise GoldenError(
                f"{self._folder}: golden outputs are there already; remove them, or choose another folder"
            )


def write_golden(
    results: Iterable[TickResult], folder: Path, meta: Mapping[str, Any] | None = None, *, replace: bool = False
) -> None:
    """Store results in a folder, whole or not at all; arguments and errors as `GoldenWriter`."""
    writer = GoldenWriter(folder, meta, replace=replace)
    try:
        for result in results:
            writer.write(result)
    except BaseException:
        writer.abort()
        raise
    writer.close()


@dataclass(frozen=True)
class Golden:
    """Stored outputs, open for reading and found sound."""

    folder: Path
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    modalities: tuple[str, ...]
    ticks: int
    meta: Mapping[str, Any]

    def records(self) -> Iterator[tuple[TickRecord, NDArray[Any]]]:
        """Tick after tick, with its T boxes as records of `BOX`; GoldenError for a line that is no tick."""
        left = (self.folder / _BOXES).stat().st_size // BOX.itemsize
        with (self.folder / _TICKS).open("rb") as lines, (self.folder / _BOXES).open("rb") as boxes:
            for number, line in enumerate(lines, 1):
                try:
                    tick = TickRecord.from_json(parse_json(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise _damaged(self.folder / _TICKS, f"a tick in line {number}", str(error)) from error
                if not 0 <= tick.boxes <= left:
                    expected = f"at most the {left} boxes that are left, in line {number}"
                    raise _damaged(self.folder / _TICKS, expected, str(tick.boxes))
                left -= tick.boxes
                yield tick, np.frombuffer(boxes.read(tick.boxes * BOX.itemsize), BOX)


def open_golden(folder: Path) -> Golden:
    """Golden outputs, checked against their checksums.

    Raises:
        GoldenError: not there, not golden outputs, of another version, or damaged.
    """
    path = folder / _HEAD
    try:
        head = read_json(path)
    except FileNotFoundError:
        raise GoldenError(
            f"{folder}: expected golden outputs of a replay, got no {_HEAD} there; write them with --write-golden"
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(path, "JSON", str(error)) from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise GoldenError(
            f"{path}: expected the format {FORMAT!r}, got another file; name the folder of golden outputs"
        )
    if head.get("version") != VERSION:
        raise GoldenError(
            f"{path}: expected version {VERSION} of the format, got {head.get('version')!r:.40}; write the outputs anew"
        )
    try:
        classes, attributes, modalities = (
            tuple(map(str, head[key])) for key in ("classes", "attributes", "modalities")
        )
        golden = Golden(folder, classes, attributes, modalities, int(head["ticks"]), head["meta"])
        sums, boxes = dict(head["sha256"]), int(head["boxes"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, "classes, modalities, ticks, boxes and sha256", str(error)) from error
    for name in (_TICKS, _BOXES):
        got = _sha256(folder / name) if (folder / name).is_file() else "no file"
        if got != sums.get(name):
            raise _damaged(folder / name, f"SHA-256 {sums.get(name)}", got)
    if (folder / _BOXES).stat().st_size != boxes * BOX.itemsize:
        raise _damaged(folder / _BOXES, f"{boxes} boxes of {BOX.itemsize} bytes", "another length")
    return golden


class GoldenComparison:
    """Holds results against stored ones, as a `ResultWriter` that writes nothing. The first difference is kept.

    Raises:
        GoldenError: `folder` holds no sound golden outputs.
    """

    def __init__(self, folder: Path, tolerance: Tolerance | None = None) -> None:
        self.golden = open_golden(folder)
        self.difference: Difference | None = None  # final after `close`
        self._tolerance = tolerance
        self._records = self.golden.records()
        self._first_us: int | None = None
        self._count = 0

    def write(self, result: TickResult) -> None:
        self._count += 1
        if self.difference is not None:
            return
        tick, boxes = record(result)
        mine, stored = names(result), next(self._records, None)
        for key, got in mine.items():
            expected = list(getattr(self.golden, key))
            if got != expected:
                self.difference = Difference(tick.index, tick.time_us, None, key, ", ".join(expected), ", ".join(got))
                return
        if stored is None:
            expected_ticks = f"{self.golden.ticks} ticks"
            self.difference = Difference(tick.index, tick.time_us, None, "tick", expected_ticks, "one more")
            return
        self.difference = compare_tick(*stored, tick, boxes, result.classes, self.golden.modalities, self._tolerance)

    def close(self) -> None:
        missing = next(self._records, None) if self.difference is None else None
        if missing is not None:
            tick, _ = missing
            got = f"the end after {self._count}"
            self.difference = Difference(tick.index, tick.time_us, None, "tick", f"{self.golden.ticks} ticks", got)
        self.abort()

    def abort(self) -> None:
        self._records = iter(())


def compare_golden(
    folder: Path, results: Iterable[TickResult], *, tolerance: Tolerance | None = None
) -> Difference | None:
    """The first difference between stored results and these; None where there is none.

    Args:
        folder: what `write_golden` wrote.
        results: read up to the first difference.
        tolerance: what may differ by how much; None: nothing, bit for bit.

    Raises:
        GoldenError: `folder` holds no sound golden outputs.
    """
    comparison = GoldenComparison(folder, tolerance)
    for result in results:
        comparison.write(result)
        if comparison.difference is not None:
            break
    comparison.close()
    return comparison.difference


def names(result: TickResult) -> dict[str, list[str]]:
    """What a result's numbers stand for."""
    return {
        "classes": list(result.classes),
        "attributes": list(result.attributes),
        "modalities": list(result.modalities),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, expected: str, got: str) -> GoldenError:
    return GoldenError(f"{path}: expected {expected}, got {got}. The golden outputs are damaged: write them anew")
