"""What the encodings promise: everything that a message says comes back, to the bit, through readers that are not ours too."""

from __future__ import annotations

from dataclasses import astuple, fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcap.records import Schema
from mcap_protobuf.decoder import DecoderFactory
from numpy.typing import NDArray

from sensors.logs.decode import ChannelInfo
from sensors.logs.decoder import Decoder
from sensors.logs.encode import EncodeError
from sensors.logs.foxglove.encode import METADATA_KEYS, foxglove_bytes
from sensors.logs.messages import EncodedImage, Malformed, Other, Payload, PointCloud, SceneBoxes
from sensors.logs.ros2.encode import ros2_bytes
from sensors.logs.ros2.types import typestore
from tests.sensors.logs.made_log import T0_NS, one_of_each, some_points

EACH = one_of_each()
# Type hashes (REP 2016) as ROS 2 Jazzy's own packages have them.
PUBLISHED_HASHES = {
    "sensor_msgs/msg/PointCloud2": "RIHS01_9198cabf7da3796ae6fe19c4cb3bdd3525492988c70522628af5daa124bae2b5",
    "vision_msgs/msg/Detection3DArray": "RIHS01_793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018",
}


def foxglove_again(payload: Payload, topic: str = "/a") -> Payload:
    schema, data = foxglove_bytes(payload)
    return Decoder({1: ChannelInfo(topic, schema.name, "protobuf", schema.data, schema.encoding)}).decode(1, data, 0)


def ros2_again(payload: Payload, topic: str = "/a") -> Payload:
    kind, data = ros2_bytes(payload)
    text, _ = typestore().generate_msgdef(kind, ros_version=2)
    return Decoder({1: ChannelInfo(topic, kind, "cdr", text.encode(), "ros2msg")}).decode(1, data, 0)


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, arrays and their types too."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return bool(a == b)


def foxglove_message(payload: Payload) -> Any:
    schema, data = foxglove_bytes(payload)
    parse = DecoderFactory().decoder_for("protobuf", Schema(1, schema.data, "protobuf", schema.name))
    assert parse is not None
    return parse(data)


@pytest.mark.parametrize("topic", EACH)
def test_foxglove_gives_back_what_was_said(topic: str) -> None:
    assert same(foxglove_again(EACH[topic]), EACH[topic])


@pytest.mark.parametrize("topic", [topic for topic in EACH if topic != "/markers/annotations"])
def test_ros2_gives_back_what_was_said(topic: str) -> None:
    assert same(ros2_again(EACH[topic]), EACH[topic])


def test_ros2_boxes_keep_all_that_vision_msgs_has_a_place_for() -> None:
    boxes, again = EACH["/markers/annotations"], ros2_again(EACH["/markers/annotations"])
    assert isinstance(boxes, SceneBoxes)
    assert isinstance(again, SceneBoxes)
    assert (again.stamp_ns, again.frame_id) == (boxes.stamp_ns, "map")
    for box, other in zip(boxes.boxes, again.boxes, strict=True):
        assert astuple(box)[:5] == astuple(other)[:5]  # id, category, centre, size, rotation


def test_ros2_types_are_the_published_ones() -> None:
    for name, expected in PUBLISHED_HASHES.items():
        assert typestore().hash_rihs01(name) == expected


def test_foxglove_schemas_are_the_published_ones() -> None:
    expected = {
        "foxglove.CompressedImage", "foxglove.RawImage", "foxglove.CameraCalibration", "foxglove.PointCloud",
        "foxglove.FrameTransforms", "foxglove.SceneUpdate",
    }  # fmt: skip
    schemas = [foxglove_bytes(payload)[0] for payload in EACH.values()]
    assert {schema.name for schema in schemas} == expected
    assert {schema.encoding for schema in schemas} == {"protobuf"}


def test_each_update_first_deletes_every_box_and_then_draws_them_as_foxglove_expects() -> None:
    update = foxglove_message(EACH["/markers/annotations"])
    assert [(d.type, d.timestamp.ToNanoseconds()) for d in update.deletions] == [(1, T0_NS)]  # 1: ALL
    car = update.entities[0]
    assert (car.id, car.frame_id, car.timestamp.ToNanoseconds()) == ("instance-7f", "map", T0_NS)
    assert (car.lifetime.seconds, car.lifetime.nanos) == (0, 0)  # lasts until deleted
    (cube,) = car.cubes
    assert (cube.size.x, cube.size.y, cube.size.z) == (4.6, 1.9, 1.7)  # length, width, height
    q = cube.pose.orientation
    assert (q.x, q.y, q.z, q.w) == (0, 0, 0.6, 0.8)
    assert 0 < cube.color.a <= 1
    assert {pair.key: pair.value for pair in car.metadata} == {
        "category": "vehicle.car", "attribute": "vehicle.moving", "velocity_x": "2.1", "velocity_y": "-0.3",
        "num_points": "22",
    }  # fmt: skip
    assert tuple(pair.key for pair in update.entities[1].metadata) == METADATA_KEYS
    assert not car.texts


def test_a_sample_without_boxes_still_deletes_those_before_it() -> None:
    update = foxglove_message(SceneBoxes(T0_NS, "map", ()))
    assert len(update.deletions) == 1
    assert not update.entities


@pytest.mark.parametrize("encode", [foxglove_bytes, ros2_bytes])
def test_the_same_message_has_the_same_bytes(encode: Any) -> None:
    for payload in EACH.values():
        assert encode(payload)[1] == encode(payload)[1]


KINDS = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")


@st.composite
def layouts(draw: st.DrawFn) -> np.dtype[Any]:
    """Fields in any order of offsets, with gaps before, between and after them; x, y and z are among them."""
    more = draw(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6), max_size=4)
    )
    names = draw(st.permutations(list(dict.fromkeys(["x", "y", "z", *more]))))
    kinds = [draw(st.sampled_from(KINDS)) for _ in names]
    offsets, end = {}, draw(st.integers(0, 3))
    for i in draw(st.permutations(range(len(names)))):
        offsets[i] = end
        end += np.dtype(kinds[i]).itemsize + draw(st.integers(0, 5))
    return np.dtype({
        "names": names, "formats": [f"<{k}" for k in kinds], "offsets": [offsets[i] for i in range(len(names))], "itemsize": end
    })  # fmt: skip


@st.composite
def clouds(draw: st.DrawFn) -> NDArray[Any]:
    layout, count = draw(layouts()), draw(st.integers(0, 6))
    data = draw(st.binary(min_size=layout.itemsize * count, max_size=layout.itemsize * count))
    return np.frombuffer(data, layout)


@given(clouds(), st.integers(0, 2**32 * 10**9 - 1))
def test_point_clouds_of_any_layout_come_back_to_the_bit(points: NDArray[Any], stamp_ns: int) -> None:
    """Gaps, NaNs with a payload, fields out of order, no points at all."""
    cloud = PointCloud(stamp_ns, "lidar", points)
    again = foxglove_again(cloud)
    assert same(again, cloud), again
    if stamp_ns < 2**31 * 10**9:
        again = ros2_again(cloud)
        assert same(again, cloud), again


def test_points_that_lie_apart_or_in_another_byte_order_are_packed_and_gaps_are_zero() -> None:
    layout = np.dtype(
        {"names": ["x", "y", "z"], "formats": [">f4", "<f4", ">f8"], "offsets": [4, 0, 16], "itemsize": 32}
    )
    points = np.frombuffer(np.random.default_rng(0).bytes(32 * 10), layout)[::2]
    cloud = foxglove_again(PointCloud(T0_NS, "lidar", points))
    assert isinstance(cloud, PointCloud)
    for name in "xyz":
        np.testing.assert_array_equal(cloud.points[name], points[name])
    message = foxglove_message(PointCloud(T0_NS, "lidar", points))
    raw = np.frombuffer(message.data, np.uint8).reshape(5, 32)
    assert not raw[:, 8:16].any()
    assert not raw[:, 24:].any()


def test_a_field_of_several_values_is_for_ros2_alone() -> None:
    layout = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("covariance", "<f4", (3,))])
    cloud = PointCloud(T0_NS, "lidar", np.frombuffer(np.random.default_rng(0).bytes(24 * 4), layout))
    assert same(ros2_again(cloud), cloud)
    with pytest.raises(EncodeError, match="'covariance'"):
        foxglove_bytes(cloud)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (Malformed("x", "broken"), "of type x"),
        (PointCloud(T0_NS, "l", np.zeros(3, np.dtype([("x", "<f4"), ("t", "<u8")]))), "'t' of type uint64"),
        (PointCloud(T0_NS, "l", np.zeros((3, 4), np.float32)), r"structured array.*\(3, 4\)"),
        (Other("made/msg/Up", b""), "made/msg/Up"),
    ],
)
@pytest.mark.parametrize("encode", [foxglove_bytes, ros2_bytes])
def test_what_a_format_cannot_say_is_named(encode: Any, payload: Payload, words: str) -> None:
    with pytest.raises(EncodeError, match=words):
        encode(payload)


def test_times_that_a_format_cannot_hold_are_refused() -> None:
    image = EncodedImage(-1, "c", "jpeg", b"x")
    with pytest.raises(EncodeError, match="fit"):
        foxglove_bytes(image)
    with pytest.raises(EncodeError, match="fit"):
        ros2_bytes(EncodedImage(2**31 * 10**9, "c", "jpeg", b"x"))
    assert same(ros2_again(image), image)  # ROS 2 has negative seconds


def test_messages_that_nothing_here_reads_pass_unchanged_where_the_format_knows_their_type() -> None:
    from foxglove.messages import Log

    assert foxglove_bytes(Other("foxglove.Log", b"abc"))[1] == b"abc"
    assert foxglove_bytes(Other("foxglove.Log", b"abc"))[0].data == Log.get_schema().data
    assert ros2_bytes(Other("sensor_msgs/msg/Imu", b"abc")) == ("sensor_msgs/msg/Imu", b"abc")


def test_is_dense_tells_whether_a_point_is_not_finite() -> None:
    cloud = some_points()
    points = cloud.points.copy()
    points["y"][3] = np.nan
    for given_points, expected in ((cloud.points, True), (points, False)):
        kind, data = ros2_bytes(PointCloud(T0_NS, "l", given_points))
        assert typestore().deserialize_cdr(data, kind).is_dense is expected  # type: ignore[attr-defined]
