"""What a row of each table must hold, and the one check of it, before anything is computed from a row.

A key that is null counts as absent. Where its absence has a meaning, it gets the value that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

from sensors.documents import short
from sensors.errors import DataRootError, SensorDataError
from sensors.files import is_below

Row = dict[str, Any]
_REQUIRED = object()
_LONGEST = 200  # characters of a value that a message shows


@dataclass(frozen=True)
class Key:
    """One key of a table: what its values are, what its absence means, and whose tokens it holds."""

    said: str
    sound: Callable[[list[Any]], bool]  # of a whole column at once: there are millions of rows
    absent: Any = _REQUIRED
    of: str | None = None  # the table that has a row of this token, or of each of these tokens; "" names none
    ends: bool = False  # one that is not there ends the chain, and is told; else it is a fault


def _texts(column: list[Any]) -> bool:
    if not set(map(type, column)) <= {str}:
        return False
    try:
        return b"\0" not in "".join(column).encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _names(column: list[Any]) -> bool:
    return _texts(column) and all(column)


def _files(column: list[Any]) -> bool:
    return _names(column) and all(map(is_below, column))


def _lists_of_names(column: list[Any]) -> bool:
    return set(map(type, column)) <= {list} and _names(list(chain.from_iterable(column)))


def _wholes(low: int, high: int) -> Callable[[list[Any]], bool]:
    def sound(column: list[Any]) -> bool:
        kinds = set(map(type, column))
        if not kinds <= {int, float} or (
            float in kinds and not all(v.is_integer() for v in column if type(v) is float)
        ):
            return False
        return not column or (low <= min(column) and max(column) <= high)

    return sound


def _numbers(count: int) -> Callable[[list[Any]], bool]:
    def sound(column: list[Any]) -> bool:
        if not set(map(type, column)) <= {list} or not set(map(len, column)) <= {count}:
            return False
        kinds = set(map(type, chain.from_iterable(column)))
        if int in kinds and any(type(v) is int and abs(v) > 10**300 for v in chain.from_iterable(column)):
            return False  # more than a float can hold
        return kinds <= {int, float}

    return sound


def _lists_of_numbers(column: list[Any]) -> bool:
    return set(map(type, column)) <= {list} and all(_numbers(len(value))([value]) for value in column)


def is_matrix(value: list[Any]) -> bool:
    """Are these three rows of three numbers? Of a LiDAR or a radar there are none."""
    return len(value) == 3 and _numbers(3)(value)


def _flags(column: list[Any]) -> bool:
    return set(map(type, column)) <= {bool}


def _token(of: str | None = None, **more: Any) -> Key:
    return Key("a token", _names, of=of, **more)


def _neighbour(of: str, **more: Any) -> Key:
    return Key("a token, or an empty text", _texts, "", of, **more)


_NAME = Key("a name", _names)
_TIME = Key("whole microseconds", _wholes(-(2**63), 2**63 - 1))
_PIXELS = Key("whole pixels", _wholes(0, 2**31 - 1), 0)  # 0: not known, or no picture
_POINTS = Key("a whole number, -1 for not counted", _wholes(-1, 2**31 - 1), -1)
_POSE = {"translation": Key("three numbers", _numbers(3)), "rotation": Key("four numbers", _numbers(4))}

# What is read of each table; other keys, and the tables log and map, are not looked at.
SCHEMA: Mapping[str, Mapping[str, Key]] = {
    "attribute": {"token": _token(), "name": _NAME},
    "visibility": {"token": _token()},
    "category": {"token": _token(), "name": _NAME},
    "sensor": {"token": _token(), "channel": _NAME, "modality": _NAME},
    "scene": {"token": _token(), "name": _NAME},
    "calibrated_sensor": {
        "token": _token(),
        "sensor_token": _token("sensor"),
        **_POSE,
        "camera_intrinsic": Key("a matrix", lambda column: set(map(type, column)) <= {list}, []),
        # Not nuScenes': its pictures are rectified.
        "camera_distortion": Key("a list of numbers", _lists_of_numbers, []),
        "camera_distortion_model": Key("a name, or an empty text", _texts, ""),
    },
    "ego_pose": {"token": _token(), **_POSE},
    "sample": {"token": _token(), "timestamp": _TIME, "scene_token": _token("scene")},
    "sample_data": {
        "token": _token(),
        "sample_token": _token("sample"),
        "ego_pose_token": _token("ego_pose"),
        "calibrated_sensor_token": _token("calibrated_sensor"),
        "timestamp": _TIME,
        "is_key_frame": Key("true or false", _flags),
        "filename": Key("a file's name, below the data root", _files),
        "prev": _neighbour("sample_data", ends=True),
        "next": _neighbour("sample_data", ends=True),
        "height": _PIXELS,
        "width": _PIXELS,
    },
    "instance": {
        "token": _token(),
        "category_token": _token("category"),
        "first_annotation_token": _neighbour("sample_annotation"),
        "last_annotation_token": _neighbour("sample_annotation"),
    },
    "sample_annotation": {
        "token": _token(),
        "sample_token": _token("sample"),
        "instance_token": _token("instance"),
        **_POSE,
        "size": Key("three numbers", _numbers(3)),
        "attribute_tokens": Key("a list of tokens", _lists_of_names, [], "attribute"),
        "num_lidar_pts": _POINTS,
        "num_radar_pts": _POINTS,
        "prev": _neighbour("sample_annotation"),
        "next": _neighbour("sample_annotation"),
    },
}


def row_fault(
    path: Path, row: object, key: str, expected: str, got: str, alike: int = 1, number: int = 0
) -> SensorDataError:
    """The one wording of a fault in a row."""
    token = row.get("token") if isinstance(row, dict) else None
    name = f"row {_shown(token)}" if isinstance(token, str) and token else f"row number {number} (counted from 0)"
    more = f"; {alike} rows are like it" if alike > 1 else ""
    return SensorDataError(
        f"{path}: {name}: {key + ': ' if key else ''}expected {expected}, got {got}{more}. "
        "Correct or restore the row, or remove it with all that names it"
    )


def check_rows(path: Path, rows: Any) -> list[Row]:
    """The rows of one table, with what absent keys mean filled in.

    Raises:
        DataRootError: the table is no list.
        SensorDataError: a row is none, lacks a key or holds a value of another kind, or two have one token.
    """
    if not isinstance(rows, list):
        raise DataRootError(
            f"{path}: expected a list of rows, got {short(rows, _LONGEST)}. Unpack the metadata archive again"
        )
    table = path.stem
    if not set(map(type, rows)) <= {dict}:
        number = next(i for i, row in enumerate(rows) if type(row) is not dict)
        raise row_fault(path, None, "", "an object with keys", short(rows[number], _LONGEST), number=number)
    for name, key in SCHEMA.get(table, {}).items():
        try:
            column = list(map(itemgetter(name), rows))
        except KeyError:
            column = [row.get(name) for row in rows]
        if None in column:
            if key.absent is _REQUIRED:
                bad = [i for i, value in enumerate(column) if value is None]
                got = "null" if name in rows[bad[0]] else "no such key"
                raise row_fault(path, rows[bad[0]], name, key.said, got, len(bad), bad[0])
            meant = _from_neighbours(rows, name) if name in ("prev", "next") else {}
            for i, row in enumerate(rows):
                if column[i] is None:
                    row[name] = column[i] = meant.get(row["token"], key.absent)
        if not key.sound(column):
            bad = [i for i, value in enumerate(column) if not key.sound([value])]
            raise row_fault(path, rows[bad[0]], name, key.said, short(column[bad[0]], _LONGEST), len(bad), bad[0])
        if name == "token" and len(set(column)) != len(column):
            first = {token: i for i, token in reversed(list(enumerate(column)))}
            number = next(i for i, token in enumerate(column) if first[token] != i)
            raise row_fault(path, rows[number], "token", "one row of each token", "a second one")
    return rows


def check_links(folder: Path, tables: Mapping[str, list[Row]]) -> list[str]:
    """That every token that a row names is there; -> one line for each key whose chains end because one is not.

    Raises:
        SensorDataError: one is not.
    """
    notes = []
    known = {table: {row["token"] for row in tables[table]} for table in SCHEMA}
    for table, name, key in _links():
        column, path = list(map(itemgetter(name), tables[table])), folder / f"{table}.json"
        there = known[str(key.of)] | {""}
        if there.issuperset(chain.from_iterable(column) if key.sound is _lists_of_names else column):
            continue
        gone = [[t for t in (value if isinstance(value, list) else [value]) if t not in there] for value in column]
        bad = [i for i, tokens in enumerate(gone) if tokens]
        row, got = tables[table][bad[0]], f"{_shown(gone[bad[0]][0])}, which is not there"
        if not key.ends:
            raise row_fault(path, row, name, f"a token in {key.of}.json", got, len(bad))
        notes.append(
            f"{path}: row {_shown(row['token'])}: {name}: {got}: the history ends there; so in {len(bad)} rows"
        )
    return notes


def _links() -> Iterator[tuple[str, str, Key]]:
    return ((table, name, key) for table, keys in SCHEMA.items() for name, key in keys.items() if key.of is not None)


def _from_neighbours(rows: list[Row], name: str) -> dict[str, str]:
    """Token -> what `name` (prev or next) would be by the rows that name this one as their next or prev."""
    other = "next" if name == "prev" else "prev"
    return {row[other]: row["token"] for row in rows if isinstance(row.get(other), str) and row[other]}


def _shown(token: str) -> str:
    return token if token.isprintable() and len(token) <= _LONGEST else short(token, _LONGEST)
