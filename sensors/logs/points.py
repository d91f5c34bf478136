"""A message's bytes as points. What ROS' PointCloud2 and Foxglove's PointCloud allow is read, and so is what drivers get wrong
where only one reading of it is left; all else is a `DecodeError`.

Letters: P points.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.logs.decode import DecodeError
from sensors.logs.messages import PointCloud

_NUMPY_KIND = {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
               "float32": "f4", "float64": "f8"}  # fmt: skip


@dataclass(frozen=True)
class PointField:
    """A field of a point as a message describes it."""

    name: str
    kind: str  # "uint8", "float32", ...
    offset: int
    count: int = 1


def points_of(
    data: bytes, fields: Iterable[PointField], step: int, height: int, width: int, row_step: int, big_endian: bool
) -> NDArray[Any]:
    """[P] structured array of packed points, P = height x width.

    - A `row_step` that cannot be (0, a row's points, the whole cloud) counts as that of rows without padding where `data` is
      exactly as long as these are. What follows the last row is left out.
    - A height or a width of 0 beside points that fill `data` is a single row of them.
    - A field's count of 0, or of all points where the point has no room for so many, is 1.
    - A field that is described twice alike counts once. X, Y and Z are x, y and z where there are no such.

    Raises:
        DecodeError: sizes and fields that do not fit, or that can be read in two ways.
    """
    height, width, row_step = _rows(len(data), step, height, width, row_step)
    fields = _sound_fields(tuple(fields), step, height * width)
    record = _record(fields, step, ">" if big_endian else "<")
    if not height * width:
        return np.empty(0, _record(fields, step, "="))
    points: NDArray[Any] = np.ndarray((height, width), record, data, strides=(row_step, step)).reshape(-1)
    if not big_endian:
        return points
    native = np.empty(len(points), _record(fields, step, "="))
    for name in record.names or ():  # numpy's own change of byte order passes over arrays within a field
        native[name] = points[name]
    return native


def check_cloud(cloud: PointCloud) -> PointCloud:
    """The cloud, where it has places; DecodeError where it lacks x, y or z, or has several numbers in one."""
    names = cloud.points.dtype.names or ()
    if any(name not in names for name in "xyz"):
        raise DecodeError(f"expected points with x, y, z, got {', '.join(names)}")
    for name in "xyz":
        if cloud.points.dtype[name].shape:
            raise DecodeError(f"expected one number in the field {name}, got {cloud.points.dtype[name].shape[0]}")
    return cloud


def _rows(size: int, step: int, height: int, width: int, row_step: int) -> tuple[int, int, int]:
    """(height, width, row_step) of the points in `size` bytes; see `points_of`."""
    row, across = width * step, max(height, width)
    if not height * width:
        if size and size == across * step:
            return 1, across, size
        if size in (0, height * row_step):
            return height, width, row_step
    elif height == 1:  # no matter what drivers write as row_step
        if row <= size:
            return 1, width, row
    elif row_step >= row and (height - 1) * row_step + row <= size:  # the last row's padding may lack
        return height, width, row_step
    elif size == height * row:
        return height, width, row
    raise DecodeError(
        f"expected {height * max(row, row_step if height > 1 and width else 0)} bytes ({height} x {width} points of {step}, "
        f"row_step {row_step}), got {size}"
    )


def _sound_fields(fields: tuple[PointField, ...], step: int, points: int) -> tuple[PointField, ...]:
    """The fields that count; see `points_of`."""
    named = [field for field in fields if field.name]  # a driver's padding has no name
    ends = sorted({*(field.offset for field in named), step})
    sound: dict[PointField, None] = {}
    for field in named:
        kind = _NUMPY_KIND.get(field.kind)
        room = next((end for end in ends if end > field.offset), step) - field.offset
        if field.count == 0 or (kind and field.count == points and field.count * int(kind[1]) > room):
            field = replace(field, count=1)
        sound[field] = None
    names = {field.name for field in sound}
    return tuple(
        replace(field, name=field.name.lower())
        if field.name in ("X", "Y", "Z") and field.name.lower() not in names
        else field
        for field in sound
    )


@lru_cache(maxsize=256)
def _record(fields: tuple[PointField, ...], step: int, order: str) -> np.dtype[Any]:
    names = [field.name for field in fields]
    if not fields:
        raise DecodeError("expected points with fields, got none")
    if len(set(names)) < len(names):
        raise DecodeError(f"expected fields of different names, got {', '.join(names)}")
    formats: list[Any] = []
    for field in fields:
        if field.kind not in _NUMPY_KIND:
            raise DecodeError(f"expected a number type for the field {field.name}, got {field.kind}")
        kind = np.dtype(order + _NUMPY_KIND[field.kind])
        end = field.offset + kind.itemsize * field.count
        if field.offset < 0 or field.count < 1 or end > step:
            raise DecodeError(
                f"expected the field {field.name} within a point of {step} bytes, got bytes {field.offset} to {end}"
            )
        formats.append(kind if field.count == 1 else (kind, (field.count,)))
    offsets = [field.offset for field in fields]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": step})
