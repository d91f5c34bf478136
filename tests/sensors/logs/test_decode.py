"""What messages of Foxglove (protobuf, JSON) and ROS 2 say, and what becomes of those that make no sense."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from foxglove import messages as fox
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from rosbags.typesys import Stores, get_typestore

from sensors.logs.decode import ChannelInfo
from sensors.logs.decoder import Decoder
from sensors.logs.messages import (
    CameraInfo,
    EncodedImage,
    FrameTransforms,
    Malformed,
    Other,
    Payload,
    PointCloud,
    RawImage,
    SceneBoxes,
    TruthBox,
)
from sensors.logs.ros2.types import typestore

STORE = get_typestore(Stores.ROS2_HUMBLE)
TIME = fox.Timestamp(12, 345)
TIME_NS = 12_000_000_345
F32 = fox.PackedElementFieldNumericType.Float32


def from_foxglove(message: Any, topic: str = "/topic", log_ns: int = 1) -> Payload:
    schema = message.get_schema()
    return decode(schema.name, "protobuf", message.encode(), topic, schema.data, log_ns)


def decode(
    type_: str, encoding: str, data: bytes, topic: str = "/topic", schema: bytes = b"", log_ns: int = 1
) -> Payload:
    return Decoder({5: ChannelInfo(topic, type_, encoding, schema)}).decode(5, data, log_ns)


def from_ros(name: str, topic: str = "/topic", **fields: Any) -> Payload:
    message = STORE.types[name](**fields)
    return decode(name, "cdr", bytes(STORE.serialize_cdr(message, name)), topic)


def header(frame: str = "cam") -> Any:
    types = STORE.types
    return types["std_msgs/msg/Header"](stamp=types["builtin_interfaces/msg/Time"](sec=12, nanosec=345), frame_id=frame)


def xyzi() -> list[Any]:
    return [fox.PackedElementField(name=name, offset=4 * n, type=F32) for n, name in enumerate(("x", "y", "z", "i"))]


def test_compressed_pictures_of_either_world_are_alike() -> None:
    expected = EncodedImage(TIME_NS, "cam", "jpeg", b"\xff\xd8picture")
    image = fox.CompressedImage(timestamp=TIME, frame_id="cam", data=b"\xff\xd8picture", format="JPEG")
    assert from_foxglove(image) == expected
    data = np.frombuffer(b"\xff\xd8picture", np.uint8)
    assert from_ros("sensor_msgs/msg/CompressedImage", header=header(), format="jpeg", data=data) == expected
    text = {
        "timestamp": {"sec": 12, "nsec": 345}, "frame_id": "cam", "format": "jpeg",
        "data": base64.b64encode(b"\xff\xd8picture").decode(),
    }  # fmt: skip
    assert decode("foxglove.CompressedImage", "json", json.dumps(text).encode()) == expected


def test_raw_pictures_hold_whole_rows() -> None:
    expected = RawImage(TIME_NS, "cam", "rgb8", 2, 1, 4, b"abc-abc-")
    image = fox.RawImage(timestamp=TIME, frame_id="cam", width=1, height=2, encoding="rgb8", step=4, data=b"abc-abc-")
    assert from_foxglove(image) == expected
    fields = {"header": header(), "height": 2, "width": 1, "encoding": "rgb8", "is_bigendian": 0, "step": 4}
    data = np.frombuffer(b"abc-abc-", np.uint8)
    assert from_ros("sensor_msgs/msg/Image", **fields, data=data) == expected
    cut = from_ros("sensor_msgs/msg/Image", **fields, data=data[:-1])
    assert cut == Malformed("sensor_msgs/msg/Image", "expected 2 rows of 4 bytes (8), got 7")


def test_raw_pictures_of_two_bytes_are_in_little_endian_and_colours_may_lie_below() -> None:
    fields = {"header": header(), "height": 2, "width": 2, "is_bigendian": 1, "step": 5}
    data = np.frombuffer(b"\x12\x34\x56\x78-\x9a\xbc\xde\xf0-", np.uint8)
    assert from_ros("sensor_msgs/msg/Image", **fields, encoding="mono16", data=data) == RawImage(
        TIME_NS, "cam", "mono16", 2, 2, 5, b"\x34\x12\x78\x56-\xbc\x9a\xf0\xde-"
    )
    image = fox.RawImage(timestamp=TIME, frame_id="cam", width=2, height=2, encoding="nv12", step=2, data=b"yyyyuv")
    assert from_foxglove(image) == RawImage(TIME_NS, "cam", "nv12", 2, 2, 2, b"yyyyuv")
    odd = from_ros("sensor_msgs/msg/Image", **(fields | {"height": 3}), encoding="nv12", data=data)
    assert odd == Malformed("sensor_msgs/msg/Image", "expected an even height and width for nv12, got 2 x 3")
    depth = from_ros("sensor_msgs/msg/Image", **(fields | {"step": 8}), encoding="32FC1", data=np.zeros(16, np.uint8))
    assert isinstance(depth, RawImage)  # no picture for a camera, and nothing is wrong with it in a log


def test_calibrations_of_either_world_are_alike() -> None:
    K, R, P = np.arange(9.0), np.eye(3).ravel(), np.arange(12.0)
    calibration = fox.CameraCalibration(
        timestamp=TIME, frame_id="cam", width=640, height=480, distortion_model="plumb_bob", D=[0.1], K=K.tolist(),
        R=R.tolist(), P=P.tolist(),
    )  # fmt: skip
    roi = STORE.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, do_rectify=False)
    by_ros = from_ros(
        "sensor_msgs/msg/CameraInfo", header=header(), height=480, width=640, distortion_model="plumb_bob",
        d=np.array([0.1]), k=K, r=R, p=P, binning_x=0, binning_y=0, roi=roi,
    )  # fmt: skip
    for info in (from_foxglove(calibration), by_ros):
        assert isinstance(info, CameraInfo)
        assert (info.stamp_ns, info.frame_id, info.width_px, info.height_px) == (TIME_NS, "cam", 640, 480)
        assert_array_equal(info.K, K.reshape(3, 3))
        assert_array_equal(info.R, np.eye(3))
        assert_array_equal(info.P, P.reshape(3, 4))
        assert_array_equal(info.D, [0.1])


def calibrated(
    binning: tuple[int, int], roi: tuple[int, int, int, int], do_rectify: bool = False
) -> CameraInfo | Malformed:
    """A CameraInfo of 640 x 480 px with a baseline in P; `roi` is x, y, width, height."""
    x, y, width, height = roi
    region = STORE.types["sensor_msgs/msg/RegionOfInterest"](x, y, height, width, do_rectify=do_rectify)
    message = from_ros(
        "sensor_msgs/msg/CameraInfo", header=header(), height=480, width=640, distortion_model="plumb_bob",
        d=np.array([0.1, 0, 0, 0, 0]), k=np.array([400.0, 0, 320, 0, 410, 240, 0, 0, 1]), r=np.eye(3).ravel(),
        p=np.array([380.0, 0, 322, -40, 0, 390, 242, 0, 0, 0, 1, 0]), binning_x=binning[0], binning_y=binning[1], roi=region,
    )  # fmt: skip
    assert isinstance(message, CameraInfo | Malformed)
    return message


@given(
    binning=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    corner=st.tuples(st.integers(0, 500), st.integers(0, 400)),
    size=st.tuples(st.integers(1, 140), st.integers(1, 80)),
    do_rectify=st.booleans(),
)
def test_a_cameras_roi_and_binning_are_in_its_matrices_and_size(
    binning: tuple[int, int], corner: tuple[int, int], size: tuple[int, int], do_rectify: bool
) -> None:
    info, full = calibrated(binning, (*corner, *size), do_rectify), calibrated((0, 0), (0, 0, 0, 0))
    across, down = max(binning[0], 1), max(binning[1], 1)
    if size[0] < across or size[1] < down:
        assert isinstance(info, Malformed)
        assert f"leaves a pixel of {size[0]} x {size[1]} px, got binning_x {across} and binning_y {down}" in info.reason
        return
    assert isinstance(info, CameraInfo)
    assert isinstance(full, CameraInfo)
    assert (info.width_px, info.height_px) == (size[0] // across, size[1] // down)
    X = np.array([0.3, -0.2, 2.0, 1.0])
    for ours, theirs in ((info.K @ X[:3], full.K @ X[:3]), (info.P @ X, full.P @ X)):
        # As image_geometry's PinholeCameraModel::toReducedResolution: offset first, then divided by the binning.
        expected = (theirs[:2] / theirs[2] - corner) / [across, down]
        np.testing.assert_allclose(ours[:2] / ours[2], expected, atol=1e-9)
    assert_array_equal(info.D, full.D)


def test_binning_alone_holds_of_the_whole_picture_and_0_and_1_are_none() -> None:
    info = calibrated((2, 4), (0, 0, 0, 0))
    assert isinstance(info, CameraInfo)
    assert (info.width_px, info.height_px) == (320, 120)
    assert_array_equal(info.K, np.array([[200.0, 0, 160], [0, 102.5, 60], [0, 0, 1]]))
    assert_array_equal(info.P, np.array([[190.0, 0, 161, -20], [0, 97.5, 60.5, 0], [0, 0, 1, 0]]))
    full = calibrated((0, 0), (0, 0, 0, 0))
    assert isinstance(full, CameraInfo)
    for same in (calibrated((1, 1), (0, 0, 0, 0)), calibrated((0, 1), (0, 0, 640, 480))):
        assert isinstance(same, CameraInfo)
        assert (same.width_px, same.height_px) == (640, 480)
        assert_array_equal(same.K, full.K)
        assert_array_equal(same.P, full.P)


@pytest.mark.parametrize("roi", [(1, 0, 640, 480), (0, 0, 640, 481), (10, 10, 0, 0), (700, 0, 10, 10), (0, 0, 5, 0)])
def test_a_roi_that_is_not_in_the_picture_is_refused(roi: tuple[int, int, int, int]) -> None:
    x, y, width, height = roi
    reason = f"expected a roi within width x height of 640 x 480 px, got {width} x {height} px at ({x}, {y})"
    assert calibrated((0, 0), roi) == Malformed("sensor_msgs/msg/CameraInfo", reason)


def test_calibrations_may_leave_out_r_and_p_but_not_k() -> None:
    info = from_foxglove(fox.CameraCalibration(timestamp=TIME, K=[1.0] * 9))
    assert isinstance(info, CameraInfo)
    assert_array_equal(info.R, np.eye(3))
    assert_array_equal(info.P, np.zeros((3, 4)))
    without = from_foxglove(fox.CameraCalibration(timestamp=TIME, width=3))
    assert without == Malformed("foxglove.CameraCalibration", "expected 9 numbers in K, got 0")


@pytest.mark.parametrize(("topic", "static"), [("/tf", False), ("/tf_static", True), ("/car/tf_static", True)])
def test_transforms_are_static_by_their_topic_alone(topic: str, static: bool) -> None:
    one = fox.FrameTransform(
        timestamp=TIME, parent_frame_id="base_link", child_frame_id="LIDAR_TOP",
        translation=fox.Vector3(x=1.0, y=2.0, z=3.0), rotation=fox.Quaternion(x=0.0, y=0.0, z=1.0, w=0.5),
    )  # fmt: skip
    alone, several = from_foxglove(one, topic), from_foxglove(fox.FrameTransforms(transforms=[one]), topic)
    assert isinstance(alone, FrameTransforms)
    assert alone == several
    assert alone.static is static
    types = STORE.types
    stamped = types["geometry_msgs/msg/TransformStamped"](
        header=header("base_link"), child_frame_id="LIDAR_TOP",
        transform=types["geometry_msgs/msg/Transform"](
            translation=types["geometry_msgs/msg/Vector3"](1.0, 2.0, 3.0),
            rotation=types["geometry_msgs/msg/Quaternion"](0.0, 0.0, 1.0, 0.5),
        ),
    )  # fmt: skip
    assert from_ros("tf2_msgs/msg/TFMessage", topic, transforms=[stamped]) == alone
    (transform,) = alone.transforms
    assert (transform.parent, transform.child, transform.stamp_ns) == ("base_link", "LIDAR_TOP", TIME_NS)
    assert (transform.translation_m, transform.rotation_wxyz) == ((1.0, 2.0, 3.0), (0.5, 0.0, 0.0, 1.0))


def test_a_cloud_with_a_pose_comes_in_its_frames_axes() -> None:
    points = np.array([[1, 0, 0, 9], [0, 1, 0, 8]], np.float32)
    half = np.sqrt(0.5)
    pose = fox.Pose(
        position=fox.Vector3(x=10.0, y=0.0, z=0.5), orientation=fox.Quaternion(x=0.0, y=0.0, z=half, w=half)
    )
    cloud = from_foxglove(
        fox.PointCloud(
            timestamp=TIME, frame_id="lidar", pose=pose, point_stride=16, fields=xyzi(), data=points.tobytes()
        )
    )
    assert isinstance(cloud, PointCloud)
    xyz = np.stack([cloud.points[name] for name in "xyz"], axis=1)
    assert_allclose(xyz, [[10, 1, 0.5], [9, 0, 0.5]], atol=1e-6)
    assert_array_equal(cloud.points["i"], [9, 8])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": b"1234567"}, "expected whole points of point_stride 16, got 7 bytes"),
        ({"point_stride": 0}, "expected whole points of point_stride 0, got 32 bytes"),
        ({"point_stride": 8}, "expected the field z within a point of 8 bytes, got bytes 8 to 12"),
        ({"fields": []}, "expected points with fields, got none"),
        ({"fields": [fox.PackedElementField(name="x", offset=0, type=F32)]}, "expected points with x, y, z, got x"),
    ],
)
def test_clouds_that_do_not_add_up_are_malformed(change: dict[str, Any], reason: str) -> None:
    sound: dict[str, Any] = {
        "timestamp": TIME,
        "frame_id": "lidar",
        "point_stride": 16,
        "fields": xyzi(),
        "data": bytes(32),
    }
    cloud = from_foxglove(fox.PointCloud(**(sound | change)))
    assert cloud == Malformed("foxglove.PointCloud", reason)


def test_boxes_keep_what_the_writer_said_of_them() -> None:
    notes = {
        "category": "vehicle.car", "attribute": "vehicle.moving", "velocity_x": "1.5", "velocity_y": "-2",
        "num_points": "7",
    }  # fmt: skip
    cube = fox.CubePrimitive(
        pose=fox.Pose(
            position=fox.Vector3(x=1.0, y=2.0, z=3.0), orientation=fox.Quaternion(x=0.0, y=0.0, z=0.0, w=1.0)
        ),
        size=fox.Vector3(x=4.0, y=2.0, z=1.5),
    )
    entities = [
        fox.SceneEntity(
            timestamp=TIME, frame_id="map", id="one", cubes=[cube],
            metadata=[fox.KeyValuePair(key=key, value=value) for key, value in notes.items()],
        ),
        fox.SceneEntity(timestamp=TIME, frame_id="map", id="vehicle.truck-12", cubes=[cube]),
        fox.SceneEntity(timestamp=TIME, frame_id="map", id="c1cd", cubes=[cube]),
        fox.SceneEntity(timestamp=TIME, frame_id="base_link", id="a model of the car"),
    ]  # fmt: skip
    scene = from_foxglove(fox.SceneUpdate(entities=entities))
    assert isinstance(scene, SceneBoxes)
    assert (scene.stamp_ns, scene.frame_id) == (TIME_NS, "map")
    pose: dict[str, Any] = {
        "center_m": (1.0, 2.0, 3.0),
        "size_m": (2.0, 4.0, 1.5),
        "rotation_wxyz": (1.0, 0.0, 0.0, 0.0),
    }
    assert scene.boxes == (
        TruthBox("one", "vehicle.car", **pose, velocity_mps=(1.5, -2.0), attribute="vehicle.moving", num_points=7),
        TruthBox("vehicle.truck-12", "vehicle.truck", **pose),
        TruthBox("c1cd", "", **pose),
    )
    assert from_foxglove(fox.SceneUpdate(), log_ns=99) == SceneBoxes(99, "", ())
    mixed = [entities[0], fox.SceneEntity(timestamp=TIME, frame_id="base_link", id="b", cubes=[cube])]
    assert isinstance(from_foxglove(fox.SceneUpdate(entities=mixed)), Malformed)


def test_types_that_nothing_reads_keep_their_bytes() -> None:
    assert decode("nav_msgs/msg/Odometry", "cdr", b"12") == Other("nav_msgs/msg/Odometry", b"12")
    assert decode("foxglove.LocationFix", "protobuf", b"12") == Other("foxglove.LocationFix", b"12")
    assert decode("sensor_msgs/String", "ros1", b"12") == Other("sensor_msgs/String", b"12")


@pytest.mark.parametrize(
    ("type_", "encoding", "reason"),
    [
        (
            "foxglove.PointCloud",
            "flatbuffer",
            "expected foxglove.PointCloud in protobuf or json, got the encoding 'flatbuffer'",
        ),
        ("sensor_msgs/msg/Image", "json", "expected sensor_msgs/msg/Image in cdr, got the encoding 'json'"),
        (
            "sensor_msgs/Image",
            "ros1",
            "got ROS 1 messages (encoding ros1). Convert the bag that they come from: rosbags-convert",
        ),
        ("tf2_msgs/TFMessage", "ros1", "got ROS 1 messages"),
        ("foxglove.CompressedVideo", "protobuf", "got parts of a film (foxglove.CompressedVideo)"),
        ("foxglove_msgs/msg/CompressedVideo", "cdr", "got parts of a film (foxglove_msgs/msg/CompressedVideo)"),
    ],
)
def test_known_types_in_what_we_do_not_speak_say_so(type_: str, encoding: str, reason: str) -> None:
    payload = decode(type_, encoding, b"12")
    assert isinstance(payload, Malformed)
    assert reason in payload.reason


@pytest.mark.parametrize("package", ["{p}/msg/{t}", "{p}/{t}", "{p}::msg::dds_::{t}_", "{p}::msg::{t}"])
@pytest.mark.parametrize("type_", ["sensor_msgs/msg/CompressedImage", "vision_msgs/msg/Detection3DArray"])
def test_a_ros_type_is_read_however_it_is_spelt(package: str, type_: str) -> None:
    spelt = package.format(p=type_.split("/")[0], t=type_.split("/")[-1])
    info = ChannelInfo("/t", spelt, "cdr", b"module sensor_msgs {", "omgidl")
    assert info.type == type_
    store = typestore()
    fields: dict[str, Any] = (
        {"header": header(), "detections": []}
        if "vision" in type_
        else {"header": header(), "format": "jpeg", "data": np.frombuffer(b"\xff\xd8", np.uint8)}
    )
    payload = Decoder({5: info}).decode(5, bytes(store.serialize_cdr(store.types[type_](**fields), type_)), 1)
    said = SceneBoxes(TIME_NS, "cam", ()) if "vision" in type_ else EncodedImage(TIME_NS, "cam", "jpeg", b"\xff\xd8")
    assert payload == said


def test_types_that_are_not_known_keep_their_own_spelling() -> None:
    assert ChannelInfo("/t", "my_msgs/Thing", "cdr").type == "my_msgs/Thing"
    assert ChannelInfo("/t", "foxglove.PointCloud", "protobuf").type == "foxglove.PointCloud"


def stamped_in_json(time: Any) -> Payload:
    text = {"timestamp": time, "frame_id": "cam", "format": "jpeg", "data": base64.b64encode(b"\xff\xd8").decode()}
    return decode("foxglove.CompressedImage", "json", json.dumps(text).encode())


@pytest.mark.parametrize(
    ("time", "stamp_ns"),
    [
        ("2024-01-01T00:00:00Z", 1_704_067_200_000_000_000),  # date -d 2024-01-01T00:00:00Z +%s
        ("2024-01-01T00:00:00.5Z", 1_704_067_200_500_000_000),
        ("2024-01-01T01:30:00.123456789+01:30", 1_704_067_200_123_456_789),
    ],
)
def test_times_in_json_may_be_text_as_of_rfc_3339(time: str, stamp_ns: int) -> None:
    payload = stamped_in_json(time)
    assert isinstance(payload, EncodedImage)
    assert payload.stamp_ns == stamp_ns


@pytest.mark.parametrize(
    ("type_", "encoding"),
    [
        ("sensor_msgs/msg/PointCloud2", "cdr"),
        ("tf2_msgs/msg/TFMessage", "cdr"),
        ("sensor_msgs/msg/CameraInfo", "cdr"),
        ("foxglove.PointCloud", "protobuf"),
        ("foxglove.SceneUpdate", "json"),
        ("foxglove.CameraCalibration", "json"),
    ],
)
@given(data=st.binary(max_size=200))
def test_noise_never_raises(type_: str, encoding: str, data: bytes) -> None:
    payload = decode(type_, encoding, data, schema=fox.PointCloud().get_schema().data)
    assert not isinstance(payload, Malformed) or payload.reason.startswith("expected ")


def calibration_in_json(**changes: Any) -> Payload:
    members = {"timestamp": {"sec": 12, "nsec": 345}, "frame_id": "cam", "width": 4, "height": 2, "distortion_model": "plumb_bob",
               "D": [], "K": [1.0, 0, 2, 0, 1, 1, 0, 0, 1]}  # fmt: skip
    return decode("foxglove.CameraCalibration", "json", json.dumps(members | changes).encode())


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("frame_id", 3.5),
        ("width", 3.7),
        ("width", True),
        ("height", "two"),
        ("K", "123456789"),
        ("D", {"k1": 0.5}),
        ("D", [0, 0, 0, None]),
        ("timestamp", "2024-01-01"),
        ("timestamp", "2024-02-30T00:00:00Z"),
        ("timestamp", 17.5),
    ],
)
def test_a_member_in_json_of_another_type_is_malformed_by_name(member: str, value: Any) -> None:
    payload = calibration_in_json(**{member: value})
    assert isinstance(payload, Malformed)
    assert "expected a json message, got" in payload.reason
    assert f"Failed to parse {member} field" in payload.reason


def test_numbers_in_json_may_be_written_as_protobuf_writes_them() -> None:
    payload = calibration_in_json(width="4", height=2.0, D=["NaN", 1, 0.5, 0])
    assert isinstance(payload, CameraInfo)
    assert (payload.width_px, payload.height_px) == (4, 2)
    assert_array_equal(payload.D, [np.nan, 1, 0.5, 0])
