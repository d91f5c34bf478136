"""Messages of a log in Foxglove's schemas (protobuf), by the classes of foxglove-sdk.

Boxes are drawn as SceneUpdates: a deletion of everything first, or boxes of objects that have gone would stay, then one entity
an object, under its full id, that lasts until it is deleted. Foxglove knows no static transforms; `sensors.logs.write` repeats
them. Quaternions are x, y, z, w there and sizes length, width, height.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sensors.logs.encode import EncodeError, MissingLogLibraryError, packed_points, seconds
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
from sensors.nuscenes.config import DETECTION_CLASS_OF_CATEGORY
from sensors.palette import class_rgb

if TYPE_CHECKING:
    from foxglove import messages as fox

METADATA_KEYS = ("category", "attribute", "velocity_x", "velocity_y", "num_points")
_TRUTH_ALPHA = 0.4  # what is found is drawn opaque over it
# foxglove.PackedElementField.NumericType
_POINT_TYPES = {
    "u1": "Uint8", "i1": "Int8", "u2": "Uint16", "i2": "Int16",
    "u4": "Uint32", "i4": "Int32", "f4": "Float32", "f8": "Float64",
}  # fmt: skip


def foxglove_message(payload: Payload) -> Any:
    """The foxglove-sdk message for a payload; `.encode()` gives its bytes and `.get_schema()` its published schema.

    Raises:
        EncodeError: Foxglove has no message for it, or a number is out of the range of its field.
        MissingLogLibraryError: foxglove-sdk is not installed.
    """
    encoders: Mapping[type, Callable[[Any], Any]] = {
        EncodedImage: _encoded_image,
        RawImage: _raw_image,
        CameraInfo: _camera_calibration,
        PointCloud: _point_cloud,
        FrameTransforms: _transforms,
        SceneBoxes: _scene_update,
    }
    if type(payload) not in encoders:
        raise EncodeError(
            f"expected a message that Foxglove knows, got one of type {getattr(payload, 'type', payload)}"
        )
    try:
        return encoders[type(payload)](payload)
    except (OverflowError, TypeError) as error:
        raise EncodeError(f"expected values that fit {type(payload).__name__} in Foxglove, got: {error}") from error


def foxglove_bytes(payload: Payload) -> tuple[Any, bytes]:
    """The schema (name, encoding, data) and the bytes of a payload. `Other` messages in Foxglove's schemas pass unchanged.

    Raises:
        EncodeError, MissingLogLibraryError: as `foxglove_message`.
    """
    if isinstance(payload, Other):
        known = _library().__dict__.get(payload.type.removeprefix("foxglove."))
        if not payload.type.startswith("foxglove.") or not hasattr(known, "get_schema"):
            raise EncodeError(f"expected a type that foxglove-sdk knows, got {payload.type}")
        return known.get_schema(), payload.data
    message = foxglove_message(payload)
    return message.get_schema(), message.encode()


def _library() -> Any:
    try:
        from foxglove import messages
    except ImportError as error:
        raise MissingLogLibraryError("foxglove-sdk") from error
    return messages


def _timestamp(stamp_ns: int) -> fox.Timestamp:
    return _library().Timestamp(*seconds(stamp_ns))


def _encoded_image(image: EncodedImage) -> fox.CompressedImage:
    return _library().CompressedImage(
        timestamp=_timestamp(image.stamp_ns), frame_id=image.frame_id, data=image.data, format=image.format
    )


def _raw_image(image: RawImage) -> fox.RawImage:
    return _library().RawImage(
        timestamp=_timestamp(image.stamp_ns),
        frame_id=image.frame_id,
        width=image.width_px,
        height=image.height_px,
        encoding=image.encoding,
        step=image.step_bytes,
        data=image.data,
    )


def _camera_calibration(info: CameraInfo) -> fox.CameraCalibration:
    return _library().CameraCalibration(
        timestamp=_timestamp(info.stamp_ns),
        frame_id=info.frame_id,
        width=info.width_px,
        height=info.height_px,
        distortion_model=info.distortion_model,
        D=info.D.ravel().tolist(),
        K=info.K.ravel().tolist(),
        R=info.R.ravel().tolist(),
        P=info.P.ravel().tolist(),
    )


def _point_cloud(cloud: PointCloud) -> fox.PointCloud:
    fox, packed = _library(), packed_points(cloud.points, _POINT_TYPES, arrays=False)
    types = [getattr(fox.PackedElementFieldNumericType, _POINT_TYPES[field.kind]) for field in packed.fields]
    return fox.PointCloud(
        timestamp=_timestamp(cloud.stamp_ns),
        frame_id=cloud.frame_id,
        pose=_pose((0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)),
        point_stride=packed.stride_bytes,
        fields=[
            fox.PackedElementField(name=field.name, offset=field.offset, type=kind)
            for field, kind in zip(packed.fields, types, strict=True)
        ],
        data=packed.data,
    )


def _transforms(sent: FrameTransforms) -> fox.FrameTransforms:
    return _library().FrameTransforms(transforms=[_transform(one) for one in sent.transforms])


def _transform(one: FrameTransform) -> fox.FrameTransform:
    fox = _library()
    return fox.FrameTransform(
        timestamp=_timestamp(one.stamp_ns),
        parent_frame_id=one.parent,
        child_frame_id=one.child,
        translation=_vector(one.translation_m),
        rotation=_quaternion(one.rotation_wxyz),
    )


def _scene_update(boxes: SceneBoxes) -> fox.SceneUpdate:
    fox, timestamp = _library(), _timestamp(boxes.stamp_ns)
    everything = fox.SceneEntityDeletion(timestamp=timestamp, type=fox.SceneEntityDeletionType.All)
    return fox.SceneUpdate(
        deletions=[everything],
        entities=[_entity(box, boxes.frame_id, timestamp) for box in boxes.boxes],
    )


def _entity(box: TruthBox, frame_id: str, timestamp: fox.Timestamp) -> fox.SceneEntity:
    fox = _library()
    width_m, length_m, height_m = box.size_m
    vx, vy = map(repr, box.velocity_mps) if box.velocity_mps is not None else ("", "")
    points = "" if box.num_points is None else str(box.num_points)
    values = zip(METADATA_KEYS, (box.category, box.attribute, vx, vy, points), strict=True)
    cube = fox.CubePrimitive(
        pose=_pose(box.center_m, box.rotation_wxyz),
        size=_vector((length_m, width_m, height_m)),
        color=category_colour(box.category, _TRUTH_ALPHA),
    )
    return fox.SceneEntity(
        timestamp=timestamp,
        frame_id=frame_id,
        id=box.id,
        lifetime=fox.Duration(0),  # until deleted, which the next update does
        metadata=[fox.KeyValuePair(key=key, value=value) for key, value in values],
        cubes=[cube],
    )


def category_colour(category: str, alpha: float) -> fox.Color:
    """The colour of a category's detection class; others have theirs by name, the same each time."""
    name = DETECTION_CLASS_OF_CATEGORY.get(category, category)
    r, g, b = class_rgb(name, zlib.crc32(name.encode()))
    return _library().Color(r=r / 255, g=g / 255, b=b / 255, a=alpha)


def _pose(position_m: tuple[float, float, float], rotation_wxyz: tuple[float, float, float, float]) -> fox.Pose:
    return _library().Pose(position=_vector(position_m), orientation=_quaternion(rotation_wxyz))


def _vector(xyz: tuple[float, float, float]) -> fox.Vector3:
    x, y, z = xyz
    return _library().Vector3(x=x, y=y, z=z)


def _quaternion(wxyz: tuple[float, float, float, float]) -> fox.Quaternion:
    w, x, y, z = wxyz
    return _library().Quaternion(x=x, y=y, z=z, w=w)
