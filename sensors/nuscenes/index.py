"""The tables of a nuScenes-format data set as columns on disk, memory-mapped.

The devkit reads the JSON tables once (40 s and 10 GB for trainval); this index opens in milliseconds and is shared by every
worker. It depends on the tables alone, so that no change of configuration rebuilds it.

Letters: S samples, D rows of sample_data (keyframes and sweeps of every channel), C channels, K calibrations, N boxes,
I instances, Q scenes.
A pose row is (x, y, z, qw, qx, qy, qz).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensors.camera.rectification import trimmed
from sensors.documents import read_json
from sensors.errors import DataRootError, sensor_fault
from sensors.files import is_below, no_links
from sensors.nuscenes.arrays import OPTIONAL_TABLES, TABLES, IndexArrays, IndexMeta, check_root
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.tables import columns

FORMAT = 5
# With the format: two versions of this library that share a data set must not remove each other's index in turns.
_PREFIX = f".robustbev-index-{FORMAT}-"
_BUILDING_SECONDS = 900.0  # the longest that another process is waited for; nuScenes trainval takes about 40 s
# A data set keeps its id when the index learns to list it in another way: results measured on it are known by the id.
_NOT_IN_ID = frozenset({"data_channel", "scene_start", "scene_data", "instance_token"})
_IN_ID_IF_ANY = frozenset({"box_more_attributes", "calibration_distortion", "calibration_distortion_model"})


@dataclass(frozen=True)
class NuScenesIndex:
    """An opened index. The arrays are read-only views of files."""

    path: Path
    arrays: IndexArrays
    meta: IndexMeta

    def samples_of_split(self, split: str) -> NDArray[np.int64]:
        """Rows of the samples of a split, in the order of the tables; DataRootError for a split that has none."""
        if split not in self.meta.splits:
            known = ", ".join(f"{name} ({len(scenes)} scenes)" for name, scenes in sorted(self.meta.splits.items()))
            raise DataRootError(
                f"split {split!r}: no scene of it is in {self.meta.version}. Splits with scenes there: {known or 'none'}. "
                'Own splits go into splits.json beside the tables: {"name": ["scene name", ...]}'
            )
        rows = np.flatnonzero(np.isin(self.arrays.sample_scene, self.meta.splits[split]))
        if not len(rows):
            raise DataRootError(f"split {split!r}: its scenes hold no sample in {self.meta.version}")
        return rows

    def data_of_scene(self, scene: int) -> NDArray[np.int32]:
        """Rows of sample_data of a scene, every channel's keyframes and sweeps, in the order of time."""
        start, end = self.arrays.scene_start[scene : scene + 2]
        return self.arrays.scene_data[start:end]

    def distortion(self, calibration: int) -> tuple[str, NDArray[np.float64]]:
        """The distortion model and coefficients of a calibration; ("", [0]) where its pictures are rectified."""
        coefficients = self.arrays.calibration_distortion[calibration]
        if not coefficients.any():
            return "", np.zeros(0)
        model = self.arrays.calibration_distortion_model[calibration].decode()
        return model, trimmed(model, coefficients)

    def file(self, row: int, root: Path) -> Path:
        """Where the file of a row of sample_data lies; SensorDataError where that is not below the data root.

        An index that was copied with a data set may say other than the tables.
        """
        name = self.arrays.data_file[row].decode()
        if not is_below(name):
            channel = self.meta.channels[int(self.arrays.data_channel[row])]
            token, action = (
                self.arrays.data_token[row].decode(),
                f"Remove {self.path}, to have it made anew of the tables",
            )
            raise sensor_fault(
                sensor=channel,
                file=name,
                token=token,
                expected=f"a file below {root}",
                got="one elsewhere",
                action=action,
            )
        return root / name

    @cached_property
    def distorted_channels(self) -> frozenset[str]:
        """Cameras of which some pictures are not rectified."""
        distorted = self.arrays.calibration_distortion.any(axis=1)
        channels = np.unique(self.arrays.data_channel[distorted[self.arrays.data_calibration]])
        return frozenset(self.meta.channels[channel] for channel in channels)


def open_index(config: NuScenesConfig) -> NuScenesIndex:
    """The index of the tables as they are now, built first where there is none."""
    path = build_index(config)
    arrays = IndexArrays(
        **{f.name: np.asarray(np.load(path / f"{f.name}.npy", mmap_mode="r")) for f in fields(IndexArrays)}
    )
    meta = read_json(path / "meta.json")
    del meta["arrays"]
    tuples = {name: tuple(value) for name, value in meta.items() if isinstance(value, list)}
    return NuScenesIndex(path, arrays, IndexMeta(**{**meta, **tuples}))


def build_index(config: NuScenesConfig) -> Path:
    """The directory of the index, built by the devkit where it is missing or the tables have changed.

    Written whole or not at all; of several processes one builds and the others wait. Call it once before workers start.

    Raises:
        DataRootError: no data root, no such version, a table is missing or unreadable.
        SensorDataError: a row of the tables lacks a key, names a row that is not there, or holds what cannot be: a time, a pose,
            an intrinsic matrix, a lens, a box.
        MissingExtraError: a camera has a lens, and OpenCV is not installed.
    """
    existing = find_index(config)
    if existing is not None:
        return existing
    tables = check_root(config)
    name, places = _PREFIX + _fingerprint(tables), _places(config, tables)
    place = next((p for p in places if _writable(p)), places[-1])
    place.mkdir(parents=True, exist_ok=True)
    with _lock(place / ".robustbev-index.lock"):
        if not _is_whole(place / name):
            shutil.rmtree(place / name, ignore_errors=True)
            _write(config, place, name)
    return place / name


def find_index(config: NuScenesConfig) -> Path | None:
    """The directory of the index of the tables as they are now, None where it is not built yet; DataRootError without tables."""
    tables = check_root(config)
    name = _PREFIX + _fingerprint(tables)
    return next((p / name for p in _places(config, tables) if _is_whole(p / name)), None)


def data_id(config: NuScenesConfig) -> str | None:
    """The id of the data set as far as it can be known without building its index; None where it cannot."""
    try:
        path = find_index(config)
    except DataRootError:
        return None
    return None if path is None else str(read_json(path / "meta.json")["data_id"])


def _is_whole(index: Path) -> bool:
    """Whether an index is there, with every array as it was written: its data_id would not tell of one that was changed since."""
    try:
        return bool(read_json(index / "meta.json")["arrays"] == _stamps(index))
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _stamps(index: Path) -> dict[str, list[int]]:
    """Array -> size and time of its file; both stay when a data set is copied with its index, or the index is made anew."""
    stats = {f.name: (index / f"{f.name}.npy").stat() for f in fields(IndexArrays)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _fingerprint(tables: Path) -> str:
    """A name that changes with the size or the time of any table."""
    digest = hashlib.sha256(f"format {FORMAT}".encode())
    for name in (*sorted((*TABLES, *OPTIONAL_TABLES)), "splits"):
        path = tables / f"{name}.json"
        if path.exists():
            status = path.stat()
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _places(config: NuScenesConfig, tables: Path) -> list[Path]:
    """Where an index may lie, best first."""
    if config.index_dir is not None:
        return [config.index_dir.expanduser()]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    whose = hashlib.sha256(str(tables.resolve()).encode()).hexdigest()[:16]
    return [tables, cache / "robustbev" / whose]


def _writable(place: Path) -> bool:
    """May we write here? Root may write anywhere; a folder without write bits is left alone all the same."""
    return place.is_dir() and os.access(place, os.W_OK) and bool(place.stat().st_mode & 0o222)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w", opener=no_links) as file:
        until = time.monotonic() + _BUILDING_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise DataRootError(
                        f"{path}: another process has been building the index of this data set for {_BUILDING_SECONDS:g} s; "
                        "wait for it or end it, then run this again"
                    ) from None
            time.sleep(0.1)
        yield


def _write(config: NuScenesConfig, place: Path, name: str) -> None:

    arrays, meta = columns(config)
    building = Path(tempfile.mkdtemp(prefix=".robustbev-building-", dir=place))
    try:
        digest = hashlib.sha256()
        for f in fields(IndexArrays):
            array = np.ascontiguousarray(getattr(arrays, f.name))
            np.save(building / f"{f.name}.npy", array)
            if f.name not in _NOT_IN_ID and (f.name not in _IN_ID_IF_ANY or array.size):
                digest.update(f"{f.name} {array.dtype} {array.shape}".encode())
                digest.update(array.tobytes())
        # The last file written marks a whole index.
        (building / "meta.json").write_text(
            json.dumps({**meta, "data_id": digest.hexdigest(), "arrays": _stamps(building)}), "utf-8"
        )
        building.chmod(0o755)
        building.rename(place / name)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    for stale in place.glob(f"{_PREFIX}*"):
        if stale.name != name and config.index_dir is None:  # a folder of the user's choice may serve several data sets
            shutil.rmtree(stale, ignore_errors=True)
