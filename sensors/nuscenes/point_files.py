"""nuScenes' LiDAR (.pcd.bin) and radar (.pcd) files, read with every length checked.

The devkit's readers take truncated files without a word; these do not. Letters: P points.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.errors import sensor_fault
from sensors.files import COPY_AGAIN, read_bytes
from sensors.nuscenes.config import LIDAR_COLUMNS, RadarFilter

_NOT_KNOWN = {"intensity": 0.0, "ring": -1.0}  # of a file that does not hold it
_LOOKED_AT = 500  # points of a file: enough to tell a layout
_MISREAD = 0.1  # the share of them that cannot be points; single ones may be damaged
_LEAST = np.array([-2000, -2000, -2000, 0, -1], np.float32)
_MOST = np.array([2000, 2000, 2000, 255.5, 1023], np.float32)
_RADAR_FIELDS = ("x", "y", "z", "rcs", "vx_comp", "vy_comp")
_RADAR_STATES = ("invalid_state", "dyn_prop", "ambig_state")
_HEADER_LIMIT = 4096
_NUMPY_TYPE = {"F": "f", "I": "i", "U": "u"}
CONVERT = (
    "Convert it to nuScenes' format (docs/rigs.md), leave the channel out of the configuration, "
    "or set on_bad_file: absent to count it as a missing sensor"
)
_SAY_COLUMNS = (
    "Where a point has other columns, name them in data.nuscenes.lidar_columns, in the order of the file, such as "
    "[x, y, z, intensity]; a column of a name that is none of x, y, z, intensity, ring is skipped"
)
_PCD_BEGINS = (b"# .PCD", b"VERSION", b"FIELDS")


def read_lidar_file(
    path: Path, *, sensor: str, token: str, columns: tuple[str, ...] = LIDAR_COLUMNS
) -> NDArray[np.float32]:
    """[P, 5] float32: x_m, y_m, z_m (sensor frame), intensity (0..255; 0: not known), ring (-1: not known).

    `columns` names the float32 that a point has in the file; those of other names are skipped. Single points may hold NaN.

    Raises:
        SensorDataError: missing, empty or truncated file, not one finite point in it, points of another layout, or a PCD file
            with a header.
    """
    data, size = read_bytes(path, sensor=sensor, token=token), 4 * len(columns)
    fault = partial(sensor_fault, sensor=sensor, file=path, token=token)
    if data.startswith(_PCD_BEGINS):
        raise fault(
            action=CONVERT,
            expected="nuScenes' LiDAR points, five float32 each without a header",
            got="a PCD file with a header",
        )
    if len(data) % size:
        raise fault(
            action=f"{COPY_AGAIN}. {_SAY_COLUMNS}",
            expected=f"whole points of {size} bytes",
            got=f"{len(data)} bytes, which is {len(data) // size} points and {len(data) % size} bytes",
        )
    # A copy, because what lies over `bytes` cannot be written to.
    points = np.frombuffer(data, "<f4").reshape(-1, len(columns)).astype(np.float32)
    if columns != LIDAR_COLUMNS:
        points = np.stack(
            [
                points[:, columns.index(name)]
                if name in columns
                else np.full(len(points), _NOT_KNOWN[name], np.float32)
                for name in LIDAR_COLUMNS
            ],
            axis=1,
        )
    if not np.isfinite(points[0, :3]).all() and not np.isfinite(points[:, :3]).all(axis=1).any():
        raise fault(
            action=COPY_AGAIN, expected="finite points", got=f"{len(points)} points, all of them NaN or infinite"
        )
    if got := _layout_fault(points):
        raise fault(
            action=_SAY_COLUMNS,
            got=got,
            expected=f"{len(columns)} float32 a point ({', '.join(columns)}), metres, intensity 0..255, whole rings or -1",
        )
    return points


def _layout_fault(points: NDArray[np.float32]) -> str | None:
    """What cannot be in points [P, 5] that were read with another layout than they were written; None where all can."""
    some = points[
        :: (len(points) // _LOOKED_AT) | 1
    ]  # an odd step: layouts of 4 and 6 repeat after an even number of rows
    some = some[np.isfinite(some).all(axis=1)]
    wrong = (some < _LEAST) | (some > _MOST)
    wrong[:, 4] |= some[:, 4] != np.rint(some[:, 4])
    if np.count_nonzero(wrong.any(axis=1)) <= _MISREAD * len(some):
        return None
    column = int(wrong.sum(axis=0).argmax())
    row = ", ".join(f"{value:.6g}" for value in some[wrong[:, column].argmax()])
    return f"{wrong[:, column].mean():.0%} of the points with {LIDAR_COLUMNS[column]} that cannot be ({row}, say)"


def read_radar_file(path: Path, *, sensor: str, token: str, keep: RadarFilter | None = None) -> NDArray[np.float32]:
    """[P, 6] float32 in the sensor frame: x_m, y_m, z_m, rcs_dbsm, vx_mps, vy_mps (ego motion compensated).

    The header tells how many points there are: real files carry thousands of bytes after the last one. nuScenes writes a
    radar that saw nothing as one point of NaN; such points are left to the caller.

    Raises:
        SensorDataError: missing, empty or truncated file, or a header that is not nuScenes' own.
    """
    records = read_radar_records(path, sensor=sensor, token=token)
    keep = keep or RadarFilter()
    chosen = np.ones(len(records), bool)
    for field, states in zip(_RADAR_STATES, (keep.invalid_states, keep.dynprop_states, keep.ambig_states), strict=True):
        if states is not None:
            chosen &= np.isin(records[field], states)
    records = records[chosen]
    return np.stack([records[field].astype(np.float32) for field in _RADAR_FIELDS], axis=1)


def read_radar_records(path: Path, *, sensor: str, token: str) -> NDArray[Any]:
    """Every field of a radar file as a structured array [P], names as in its header; errors as `read_radar_file`."""
    data = read_bytes(path, sensor=sensor, token=token)
    fault = partial(sensor_fault, sensor=sensor, file=path, token=token)
    end = data.find(b"\nDATA ", 0, _HEADER_LIMIT)
    start = data.find(b"\n", end + 1) + 1
    try:
        if end < 0 or start == 0:
            raise ValueError(f"{len(data)} bytes without a line 'DATA binary'")
        record, count = _radar_layout(data[:start])
    except _OtherFormatError as error:
        raise fault(action=CONVERT, expected=f"nuScenes' radar file: {error.expected}", got=str(error)) from error
    except ValueError as error:
        raise fault(
            action=COPY_AGAIN, expected="a binary PCD header with nuScenes' radar fields", got=str(error)
        ) from error
    if len(data) - start < count * record.itemsize:
        raise fault(
            action=COPY_AGAIN,
            got=f"{len(data) - start} bytes",
            expected=f"{count} points of {record.itemsize} bytes after the header ({count * record.itemsize} bytes)",
        )
    return np.frombuffer(data, record, count=count, offset=start)


@lru_cache(maxsize=1024)
def _radar_layout(header: bytes) -> tuple[np.dtype[Any], int]:
    """Type of a point and number of points; ValueError says what is wrong. A drive has few different headers."""
    words = {
        line.split()[0]: line.split()[1:] for line in header.decode("ascii", "replace").splitlines() if line.strip()
    }
    missing = [key for key in ("FIELDS", "SIZE", "TYPE", "COUNT", "POINTS", "DATA") if key not in words]
    if missing:
        raise ValueError(f"a header without {missing[0]}")
    if words["DATA"] != ["binary"] or set(words["COUNT"]) != {"1"}:
        raise _OtherFormatError(
            "DATA binary, COUNT 1", f"DATA {' '.join(words['DATA'])}, COUNT {' '.join(words['COUNT'])}"
        )
    try:
        count = int(words["POINTS"][0])
        columns = zip(words["FIELDS"], words["TYPE"], words["SIZE"], strict=True)
        record = np.dtype([(name, f"<{_NUMPY_TYPE[kind]}{int(size)}") for name, kind, size in columns])
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ValueError(
            f"FIELDS, TYPE, SIZE and POINTS that make no sense ({type(error).__name__}: {error})"
        ) from error
    absent = [field for field in (*_RADAR_FIELDS, *_RADAR_STATES) if field not in (record.names or ())]
    if absent:
        raise _OtherFormatError(f"fields {', '.join((*_RADAR_FIELDS, *_RADAR_STATES))}", f"no field {absent[0]}")
    if count < 0:
        raise ValueError(f"POINTS {count}")
    return record, count


class _OtherFormatError(ValueError):
    """A whole PCD file, but not as nuScenes writes its radars' files."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(got)
        self.expected = expected
