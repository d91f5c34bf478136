"""What the encodings of messages share: times, points as packed bytes, and the one error for what a format cannot say."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.errors import MissingExtraError

NANOSECONDS = 1_000_000_000


class EncodeError(ValueError):
    """A message that the target format has no words for."""


class MissingLogLibraryError(MissingExtraError):
    """A library that reading or writing logs needs is not installed."""

    def __init__(self, library: str) -> None:
        super().__init__(f"logs need {library}, which is not installed: pip install 'robustbev[replay]'")


@dataclass(frozen=True)
class PackedField:
    """One field of a packed point; `kind` is numpy's letter and the size in bytes: "f4", "u1"."""

    name: str
    offset: int
    kind: str
    count: int  # more than 1 for an array in a point


@dataclass(frozen=True)
class PackedPoints:
    """Points as Foxglove and ROS carry them."""

    fields: tuple[PackedField, ...]
    stride_bytes: int
    data: bytes


def seconds(stamp_ns: int) -> tuple[int, int]:
    """Whole seconds (rounded down) and the nanoseconds above them."""
    return divmod(stamp_ns, NANOSECONDS)


def packed_points(points: NDArray[Any], kinds: Collection[str], *, arrays: bool) -> PackedPoints:
    """A structured array [P] as little-endian bytes with its own offsets and stride, gaps between fields included.

    `kinds` are those that the format knows; `arrays`: it knows fields of several values.

    Raises:
        EncodeError: not a structured array [P], or a field of a type that the format does not have.
    """
    layout = points.dtype
    if points.ndim != 1 or not layout.names or layout.fields is None:
        raise EncodeError(f"expected points as a structured array [P], got {layout} of shape {points.shape}")
    fields = []
    for name in layout.names:
        item, offset = layout.fields[name][:2]
        kind = f"{item.base.kind}{item.base.itemsize}"
        if kind not in kinds or (item.shape and not arrays) or len(item.shape) > 1:
            raise EncodeError(
                f"expected point fields of the types {', '.join(kinds)}{' or one-dimensional arrays of them' * arrays}, "
                f"got {name!r} of type {item}"
            )
        fields.append(PackedField(name, offset, kind, int(np.prod(item.shape, dtype=int))))
    little = layout.newbyteorder("<")
    if little != layout or not points.flags.c_contiguous:
        # Filled, and not cast: a cast leaves the gaps between fields as the memory was.
        packed = np.zeros(len(points), little)
        for name in layout.names:
            packed[name] = points[name]
        points = packed
    return PackedPoints(tuple(fields), layout.itemsize, points.tobytes())
