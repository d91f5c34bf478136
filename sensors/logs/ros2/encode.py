"""Messages of a log in ROS 2's types (CDR), without ROS.

Boxes become vision_msgs/Detection3DArray: the category is results[0].hypothesis.class_id with score 1, x is along the length,
the id is that of the object. That message has no place for velocity, attribute and number of points.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sensors.logs.encode import EncodeError, packed_points, seconds
from sensors.logs.messages import (
    CameraInfo,
    EncodedImage,
    FrameTransform,
    FrameTransforms,
    Other,
    Payload,
    PointCloud,
    RawImage,
    SceneBoxes,
    TruthBox,
)
from sensors.logs.ros2.types import typestore

_POINT_TYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}  # sensor_msgs/PointField


def ros2_message(payload: Payload) -> Any:
    """The rosbags message for a payload; `__msgtype__` names its type.

    Raises:
        EncodeError: no ROS 2 type here says it, or a shape or number is not that of its field.
        MissingLogLibraryError: rosbags is not installed.
    """
    encoders: Mapping[type, Callable[[Any], Any]] = {
        EncodedImage: _compressed_image,
        RawImage: _image,
        CameraInfo: _camera_info,
        PointCloud: _point_cloud,
        FrameTransforms: _transforms,
        SceneBoxes: _detections,
    }
    if type(payload) not in encoders:
        raise EncodeError(f"expected a message that ROS 2 knows, got one of type {getattr(payload, 'type', payload)}")
    return encoders[type(payload)](payload)


def ros2_bytes(payload: Payload) -> tuple[str, bytes]:
    """The type ("sensor_msgs/msg/PointCloud2") and the CDR bytes of a payload. `Other` messages of ROS types pass unchanged.

    Raises:
        EncodeError, MissingLogLibraryError: as `ros2_message`.
    """
    if isinstance(payload, Other):
        if payload.type not in typestore().fielddefs:
            raise EncodeError(f"expected a type of ROS 2, got {payload.type}")
        return payload.type, payload.data
    message = ros2_message(payload)
    try:
        return message.__msgtype__, bytes(typestore().serialize_cdr(message, message.__msgtype__))
    except (struct.error, ValueError, OverflowError) as error:
        raise EncodeError(f"expected values that fit {message.__msgtype__}, got: {error}") from error


def _type(name: str) -> Any:
    return typestore().types[name]


def _header(stamp_ns: int, frame_id: str) -> Any:
    sec, nanosec = seconds(stamp_ns)
    return _type("std_msgs/msg/Header")(
        stamp=_type("builtin_interfaces/msg/Time")(sec=sec, nanosec=nanosec), frame_id=frame_id
    )


def _bytes(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(data, np.uint8)


def _compressed_image(image: EncodedImage) -> Any:
    return _type("sensor_msgs/msg/CompressedImage")(
        header=_header(image.stamp_ns, image.frame_id), format=image.format, data=_bytes(image.data)
    )


def _image(image: RawImage) -> Any:
    return _type("sensor_msgs/msg/Image")(
        header=_header(image.stamp_ns, image.frame_id),
        height=image.height_px,
        width=image.width_px,
        encoding=image.encoding,
        is_bigendian=0,
        step=image.step_bytes,
        data=_bytes(image.data),
    )


def _camera_info(info: CameraInfo) -> Any:
    for name, size in (("K", 9), ("R", 9), ("P", 12)):
        if getattr(info, name).size != size:
            raise EncodeError(f"expected {size} numbers in {name} of a CameraInfo, got {getattr(info, name).size}")
    region = _type("sensor_msgs/msg/RegionOfInterest")(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    d, k, r, p = (np.ascontiguousarray(m, np.float64).ravel() for m in (info.D, info.K, info.R, info.P))
    return _type("sensor_msgs/msg/CameraInfo")(
        header=_header(info.stamp_ns, info.frame_id),
        height=info.height_px,
        width=info.width_px,
        distortion_model=info.distortion_model,
        d=d,
        k=k,
        r=r,
        p=p,
        binning_x=0,
        binning_y=0,
        roi=region,
    )


def _point_cloud(cloud: PointCloud) -> Any:
    packed = packed_points(cloud.points, _POINT_TYPES, arrays=True)
    field = _type("sensor_msgs/msg/PointField")
    fields = [field(name=f.name, offset=f.offset, datatype=_POINT_TYPES[f.kind], count=f.count) for f in packed.fields]
    floats = [f.name for f in packed.fields if f.kind.startswith("f")]
    return _type("sensor_msgs/msg/PointCloud2")(
        header=_header(cloud.stamp_ns, cloud.frame_id),
        height=1,
        width=len(cloud.points),
        fields=fields,
        is_bigendian=False,
        point_step=packed.stride_bytes,
        row_step=packed.stride_bytes * len(cloud.points),
        data=_bytes(packed.data),
        is_dense=all(bool(np.isfinite(cloud.points[name]).all()) for name in floats),
    )


def _transforms(sent: FrameTransforms) -> Any:
    return _type("tf2_msgs/msg/TFMessage")(transforms=[_transform(one) for one in sent.transforms])


def _transform(one: FrameTransform) -> Any:
    return _type("geometry_msgs/msg/TransformStamped")(
        header=_header(one.stamp_ns, one.parent),
        child_frame_id=one.child,
        transform=_type("geometry_msgs/msg/Transform")(
            translation=_vector(one.translation_m), rotation=_quaternion(one.rotation_wxyz)
        ),
    )


def _detections(boxes: SceneBoxes) -> Any:
    header = _header(boxes.stamp_ns, boxes.frame_id)
    return _type("vision_msgs/msg/Detection3DArray")(
        header=header, detections=[_detection(box, header) for box in boxes.boxes]
    )


def _detection(box: TruthBox, header: Any) -> Any:
    width_m, length_m, height_m = box.size_m
    x, y, z = box.center_m
    pose = _type("geometry_msgs/msg/Pose")(
        position=_type("geometry_msgs/msg/Point")(x=x, y=y, z=z), orientation=_quaternion(box.rotation_wxyz)
    )
    hypothesis = _type("vision_msgs/msg/ObjectHypothesisWithPose")(
        hypothesis=_type("vision_msgs/msg/ObjectHypothesis")(class_id=box.category, score=1.0),
        pose=_type("geometry_msgs/msg/PoseWithCovariance")(pose=pose, covariance=np.zeros(36)),
    )
    size = _vector((length_m, width_m, height_m))
    return _type("vision_msgs/msg/Detection3D")(
        header=header,
        results=[hypothesis],
        bbox=_type("vision_msgs/msg/BoundingBox3D")(center=pose, size=size),
        id=box.id,
    )


def _vector(xyz: tuple[float, float, float]) -> Any:
    x, y, z = xyz
    return _type("geometry_msgs/msg/Vector3")(x=x, y=y, z=z)


def _quaternion(wxyz: tuple[float, float, float, float]) -> Any:
    w, x, y, z = wxyz
    return _type("geometry_msgs/msg/Quaternion")(x=x, y=y, z=z, w=w)
