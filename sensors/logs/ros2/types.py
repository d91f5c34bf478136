"""ROS 2 message definitions for reading and writing bags without ROS."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sensors.logs.encode import MissingLogLibraryError

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore

# vision_msgs 4 (Humble and later), which rosbags does not bring. Comments of the published files are left out.
VISION_MSGS = {
    "vision_msgs/msg/ObjectHypothesis": "string class_id\nfloat64 score\n",
    "vision_msgs/msg/ObjectHypothesisWithPose": (
        "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n"
    ),
    "vision_msgs/msg/BoundingBox3D": "geometry_msgs/Pose center\ngeometry_msgs/Vector3 size\n",
    "vision_msgs/msg/Detection3D": (
        "std_msgs/Header header\n"
        "vision_msgs/ObjectHypothesisWithPose[] results\n"
        "vision_msgs/BoundingBox3D bbox\n"
        "string id\n"
    ),
    "vision_msgs/msg/Detection3DArray": "std_msgs/Header header\nvision_msgs/Detection3D[] detections\n",
}


@cache
def typestore() -> Typestore:
    """The types of ROS 2 Jazzy and vision_msgs; shared, so register further types in a store of your own.

    Raises:
        MissingLogLibraryError: rosbags is not installed.
    """
    try:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ImportError as error:
        raise MissingLogLibraryError("rosbags") from error
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, text in VISION_MSGS.items():
        store.register(get_types_from_msg(text, name))
    return store


def make_message(store: Typestore, type_name: str, /, **fields: Any) -> Any:
    """A message of a type of the store; fields that are not named have ROS' defaults, which rosbags' own classes have not.

    Messages share what is theirs by default, so they are to be written, not changed.
    """
    return store.types[type_name](**{**_defaults(store, type_name), **fields})


@cache
def _defaults(store: Typestore, type_name: str) -> dict[str, Any]:
    _, layout = store.fielddefs[type_name]
    return {name: _default(store, kind) for name, kind in layout}


def _default(store: Typestore, kind: Any) -> Any:
    from rosbags.interfaces import Nodetype

    node, what = kind
    match node:
        case Nodetype.BASE:
            return {"string": "", "wstring": "", "bool": False, "float32": 0.0, "float64": 0.0}.get(what[0], 0)
        case Nodetype.NAME:
            return make_message(store, what)
        case Nodetype.ARRAY:
            inner, count = what
            return np.zeros(count, inner[1][0]) if inner[0] is Nodetype.BASE else [_default(store, inner)] * count
        case _:
            inner, _ = what
            numbers = inner[0] is Nodetype.BASE and inner[1][0] != "string"
            return np.zeros(0, inner[1][0]) if numbers else []
