"""Points of a message's bytes: as packed, as drivers get it wrong where one reading is left, and refused where none is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from sensors.logs.decode import DecodeError
from sensors.logs.messages import PointCloud
from sensors.logs.points import PointField, check_cloud, points_of

X = PointField("x", "float32", 0)
XY = (X, PointField("y", "float32", 4))
KINDS = {
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}


@settings(max_examples=50)
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=6
    ),
    height=st.integers(1, 3),
    width=st.integers(0, 4),
    padding=st.integers(0, 5),
    tail=st.integers(0, 4),
    big_endian=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_points_come_as_they_were_packed(
    kinds: list[tuple[str, int, int]],
    height: int,
    width: int,
    padding: int,
    tail: int,
    big_endian: bool,
    seed: int,
) -> None:
    fields, step = [], 0
    for place, (kind, gap, count) in enumerate(kinds):
        fields.append(PointField(f"f{place}", kind, step + gap, count))
        step += gap + count * int(KINDS[kind][1])
    step += tail
    rng = np.random.default_rng(seed)
    row_step = width * step + (padding if height > 1 else 0)
    data = rng.bytes(height * row_step)
    points = points_of(data, fields, step, height, width, row_step, big_endian)
    assert points.shape == (height * width,)
    assert points.dtype.isnative
    for field in fields:
        number = np.dtype((">" if big_endian else "<") + KINDS[field.kind])
        for place in range(height * width):
            begin = place // width * row_step + place % width * step + field.offset
            expected = np.frombuffer(data, number, field.count, begin).astype(number.newbyteorder("="))
            assert np.atleast_1d(points[field.name][place]).tobytes() == expected.tobytes()


@settings(max_examples=100)
@given(
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    gap=st.integers(0, 3),
    padding=st.integers(1, 5),
    written=st.sampled_from(["right", "0", "width", "whole", "last row cut", "bytes behind"]),
    tail=st.binary(min_size=1, max_size=9),
    seed=st.integers(0, 1000),
)
def test_a_row_step_that_cannot_be_is_that_of_packed_rows(
    height: int, width: int, gap: int, padding: int, written: str, tail: bytes, seed: int
) -> None:
    step = 8 + gap
    rows = [np.random.default_rng(seed + n).bytes(width * step) for n in range(height)]
    packed, padded = b"".join(rows), b"".join(row + bytes(padding) for row in rows)
    data, row_step = {
        "right": (padded, width * step + padding),
        "0": (packed, 0),
        "width": (packed, width),
        "whole": (packed, len(packed)),
        "last row cut": (padded[:-padding], width * step + padding),
        "bytes behind": (padded + tail, width * step + padding),
    }[written]
    points = points_of(data, XY, step, height, width, row_step, big_endian=False)
    expected = [row[n * step : n * step + 8] for row in rows for n in range(width)]
    assert [point["x"].tobytes() + point["y"].tobytes() for point in points] == expected


@given(height=st.integers(1, 3), width=st.integers(1, 5), big_endian=st.booleans())
def test_a_count_of_0_or_of_all_points_is_1(height: int, width: int, big_endian: bool) -> None:
    numbers = np.arange(height * width * 2, dtype=">f4" if big_endian else "<f4")
    plain = points_of(numbers.tobytes(), XY, 8, height, width, 8 * width, big_endian)
    assert_array_equal(plain["y"], numbers[1::2])
    for count in (0, height * width):
        fields = [PointField(field.name, field.kind, field.offset, count) for field in XY]
        assert_array_equal(points_of(numbers.tobytes(), fields, 8, height, width, 8 * width, big_endian), plain)


def test_a_count_for_which_there_is_room_is_an_array() -> None:
    points = points_of(np.arange(6, dtype="<f4").tobytes(), [X, PointField("n", "float32", 4, 2)], 12, 1, 2, 24, False)
    assert_array_equal(points["n"], [[1, 2], [4, 5]])


def test_a_field_described_twice_alike_counts_once() -> None:
    data = np.arange(4, dtype="<f4").tobytes()
    points = points_of(data, [*XY, PointField("y", "float32", 4, 0)], 8, 1, 2, 16, False)
    assert points.dtype.names == ("x", "y")
    assert_array_equal(points["y"], [1, 3])


@pytest.mark.parametrize(("height", "width"), [(0, 2), (2, 0)])
def test_a_height_or_width_of_0_beside_points_is_a_row(height: int, width: int) -> None:
    assert_array_equal(points_of(np.arange(4, dtype="<f4").tobytes(), XY, 8, height, width, 0, False)["x"], [0, 2])
    assert points_of(b"", XY, 8, height, width, 16, False).shape == (0,)


def test_upper_case_places_are_places_and_other_names_stay() -> None:
    fields = [PointField(name, "float32", 4 * n) for n, name in enumerate(("X", "Y", "Z", "Intensity"))]
    points = points_of(np.arange(4, dtype="<f4").tobytes(), fields, 16, 1, 1, 16, False)
    assert points.dtype.names == ("x", "y", "z", "Intensity")
    both = points_of(np.arange(2, dtype="<f4").tobytes(), [X, PointField("X", "float32", 4)], 8, 1, 1, 8, False)
    assert both.dtype.names == ("x", "X")
    assert check_cloud(PointCloud(0, "lidar", points)).points["z"][0] == 2


def test_a_place_is_one_number() -> None:
    points = np.zeros(3, np.dtype([("x", "f4", (2,)), ("y", "f4"), ("z", "f4")]))
    with pytest.raises(DecodeError, match="expected one number in the field x, got 2"):
        check_cloud(PointCloud(0, "lidar", points))


@pytest.mark.parametrize(
    ("fields", "sizes", "reason"),
    [
        ([X], (4, 1, 2, 8, 7), "got 7"),
        ([X], (4, 2, 2, 7, 14), "row_step 7"),
        ([PointField("x", "float32", 1)], (4, 1, 1, 4, 4), "bytes 1 to 5"),
        ([X], (0, 1, 1, 0, 0), "a point of 0 bytes"),
        ([PointField("x", "type 9", 0)], (4, 1, 1, 4, 4), "got type 9"),
        ([X, PointField("x", "float32", 4)], (8, 1, 1, 8, 8), "got x, x"),
        ([X, PointField("x", "uint32", 0)], (8, 1, 1, 8, 8), "got x, x"),
        ([PointField("x", "float32", 0, 2)], (4, 1, 1, 4, 4), "bytes 0 to 8"),
        ([PointField("x", "float32", 0, 2**32 - 1)], (4, 1, 9, 36, 36), "got bytes 0 to 17179869180"),
        ([X], (4, 2, 2, 12, 16 + 3), "2 x 2 points of 4, row_step 12.*got 19"),
        ([X], (4, 2, 2, 0, 17), "row_step 0.*got 17"),  # rows without padding and a byte after them, or padding within
        ([X], (4, 0, 2, 8, 12), "expected 0 bytes .0 x 2 points of 4, row_step 8., got 12"),
        ([X], (4, 2**32 - 1, 2**32 - 1, 0, 8), "got 8"),
    ],
)
def test_points_that_do_not_fit_are_refused(
    fields: list[PointField], sizes: tuple[int, int, int, int, int], reason: str
) -> None:
    step, height, width, row_step, length = sizes
    with pytest.raises(DecodeError, match=reason):
        points_of(bytes(length), fields, step, height, width, row_step, big_endian=False)
