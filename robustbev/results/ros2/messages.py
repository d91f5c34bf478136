"""Results as ROS 2 messages, with the message classes that the caller has: those of rosbags for a file, rclpy's on a robot.

Every function takes `make`, which gives a message of a type with some of its fields: make("std_msgs/msg/Header", frame_id="map").
Fields are Python floats, ints, strings and lists; those that are not named have ROS' defaults.

Letters: X and Y cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bev.grid import BEVGrid
from robustbev.results.content import ALARM_TEXT, Diagnosis, FoundBox, Level, found_boxes
from robustbev.results.grids import rows_along_y
from robustbev.results.palette import ALARM
from robustbev.results.result import TickResult
from sensors.palette import RGB, class_rgb

Make: TypeAlias = Callable[..., Any]

# visualization_msgs/Marker's constants
_ARROW, _CUBE, _TEXT, _ADD, _DELETE_ALL = 0, 1, 9, 0, 3
_MOVING_MPS = 0.5  # slower boxes get no arrow
_LOG_LEVELS = {Level.OK: 20, Level.WARN: 30, Level.ERROR: 40}  # of rcl_interfaces/Log: INFO, WARN, ERROR
_TEXT_HEIGHT_M, _ALARM_HEIGHT_M = 0.8, 2.5


def header(make: Make, time_us: int, frame_id: str) -> Any:
    """A std_msgs/Header of a tick's time."""
    seconds, microseconds = divmod(time_us, 1_000_000)
    stamp = make("builtin_interfaces/msg/Time", sec=seconds, nanosec=microseconds * 1000)
    return make("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def detection_array(make: Make, result: TickResult, frame_id: str, min_score: float = 0.0) -> Any:
    """Boxes scored at least `min_score` as vision_msgs/Detection3DArray in the ego frame. It has no place for velocities."""
    head = header(make, result.tick.time_us, frame_id)
    detections = [_detection(make, box, head) for box in found_boxes(result, min_score)]
    return make("vision_msgs/msg/Detection3DArray", header=head, detections=detections)


def diagnostic_array(make: Make, diagnoses: Sequence[Diagnosis], time_us: int, frame_id: str, prefix: str = "") -> Any:
    """A diagnostic_msgs/DiagnosticArray; `prefix` goes before every name, as "node: " does by ROS' habit."""
    status = [
        make(
            "diagnostic_msgs/msg/DiagnosticStatus",
            level=int(one.level),
            name=prefix + one.name,
            message=one.message,
            hardware_id=one.hardware_id,
            values=[make("diagnostic_msgs/msg/KeyValue", key=key, value=value) for key, value in one.values],
        )
        for one in diagnoses
    ]
    return make("diagnostic_msgs/msg/DiagnosticArray", header=header(make, time_us, frame_id), status=status)


def log_messages(make: Make, lines: Sequence[tuple[Level, str]], time_us: int, name: str) -> list[Any]:
    """Lines of a `ChangeLog` as rcl_interfaces/Log, as nodes send them on /rosout."""
    stamp = header(make, time_us, "").stamp
    return [
        make("rcl_interfaces/msg/Log", stamp=stamp, level=_LOG_LEVELS[level], name=name, msg=text)
        for level, text in lines
    ]


def occupancy_grid(make: Make, share: NDArray[Any], grid: BEVGrid, time_us: int, frame_id: str) -> Any:
    """Shares [X, Y] of 0..1 as nav_msgs/OccupancyGrid, 0..100, NaN as -1, unknown.

    `width` counts our X (forward), `height` our Y (to the left).
    """
    head = header(make, time_us, frame_id)
    info = make(
        "nav_msgs/msg/MapMetaData",
        map_load_time=head.stamp,
        resolution=grid.cell_m,
        width=grid.shape[0],
        height=grid.shape[1],
        origin=_pose(make, (grid.x_min_m, grid.y_min_m, 0.0), (0.0, 0.0, 0.0, 1.0)),
    )
    percent = np.clip(np.nan_to_num(np.rint(100 * rows_along_y(share)), nan=-1), -1, 100).astype(np.int8)
    return make("nav_msgs/msg/OccupancyGrid", header=head, info=info, data=percent.ravel())


def marker_array(
    make: Make, result: TickResult | None, *, time_us: int, frame_id: str, lifetime_s: float, min_score: float = 0.0
) -> Any:
    """Boxes, names and motions as visualization_msgs/MarkerArray, for RViz; without perception the text of an alarm.

    The first marker deletes those of the tick before. All of them vanish after `lifetime_s`, so that what a node that died saw
    last does not stay on the screen.

    Args:
        result: None, or one that perceived nothing, gives the alarm.
    """
    seconds, rest_s = divmod(lifetime_s, 1.0)
    lifetime = make("builtin_interfaces/msg/Duration", sec=int(seconds), nanosec=int(rest_s * 1e9))
    common = {"header": header(make, time_us, frame_id), "lifetime": lifetime}

    def marker(**fields: Any) -> Any:
        return make("visualization_msgs/msg/Marker", **common, **fields)

    markers = [marker(action=_DELETE_ALL)]
    if result is None or not result.perceived:
        pose, scale = _pose(make, (0.0, 0.0, 3.0), (0.0, 0.0, 0.0, 1.0)), _vector(make, 0.0, 0.0, _ALARM_HEIGHT_M)
        markers.append(
            marker(
                ns="alarm",
                id=0,
                type=_TEXT,
                action=_ADD,
                pose=pose,
                scale=scale,
                color=_colour(make, ALARM, 1.0),
                text=ALARM_TEXT,
            )
        )
    else:
        for number, box in enumerate(found_boxes(result, min_score)):
            markers += _of_box(make, marker, number, box)
    return make("visualization_msgs/msg/MarkerArray", markers=markers)


def _of_box(make: Make, marker: Callable[..., Any], number: int, box: FoundBox) -> list[Any]:
    rgb = class_rgb(box.class_name, box.label)
    x, y, z = box.center_m
    above = _pose(make, (x, y, z + box.height_m / 2 + _TEXT_HEIGHT_M), (0.0, 0.0, 0.0, 1.0))
    out = [
        marker(
            ns="boxes",
            id=number,
            type=_CUBE,
            action=_ADD,
            pose=_pose(make, box.center_m, box.rotation_xyzw),
            scale=_vector(make, box.length_m, box.width_m, box.height_m),
            color=_colour(make, rgb, 0.5),
        ),
        marker(
            ns="names",
            id=number,
            type=_TEXT,
            action=_ADD,
            pose=above,
            scale=_vector(make, 0.0, 0.0, _TEXT_HEIGHT_M),
            color=_colour(make, rgb, 1.0),
            text=f"{box.class_name} {box.score:.2f}",
        ),
    ]
    if box.velocity_mps is not None and box.speed_mps >= _MOVING_MPS:
        half_rad = math.atan2(box.velocity_mps[1], box.velocity_mps[0]) / 2
        ahead = _pose(make, box.center_m, (0.0, 0.0, math.sin(half_rad), math.cos(half_rad)))
        scale = _vector(make, box.speed_mps, 0.2, 0.2)  # as long as the way in a second
        out.append(
            marker(
                ns="velocities",
                id=number,
                type=_ARROW,
                action=_ADD,
                pose=ahead,
                scale=scale,
                color=_colour(make, rgb, 1.0),
            )
        )
    return out


def _detection(make: Make, box: FoundBox, head: Any) -> Any:
    """Size x, y, z is length, width, height: the box's own axes, x along the heading."""
    pose = _pose(make, box.center_m, box.rotation_xyzw)
    hypothesis = make(
        "vision_msgs/msg/ObjectHypothesisWithPose",
        hypothesis=make("vision_msgs/msg/ObjectHypothesis", class_id=box.class_name, score=box.score),
        pose=make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=np.zeros(36)),
    )
    size = _vector(make, box.length_m, box.width_m, box.height_m)
    return make(
        "vision_msgs/msg/Detection3D",
        header=head,
        results=[hypothesis],
        bbox=make("vision_msgs/msg/BoundingBox3D", center=pose, size=size),
        id=box.id,
    )


def _vector(make: Make, x: float, y: float, z: float) -> Any:
    return make("geometry_msgs/msg/Vector3", x=x, y=y, z=z)


def _pose(make: Make, at_m: tuple[float, float, float], xyzw: tuple[float, float, float, float]) -> Any:
    x, y, z = at_m
    qx, qy, qz, qw = xyzw
    return make(
        "geometry_msgs/msg/Pose",
        position=make("geometry_msgs/msg/Point", x=x, y=y, z=z),
        orientation=make("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
    )


def _colour(make: Make, rgb: RGB, alpha: float) -> Any:
    red, green, blue = (part / 255 for part in rgb)
    return make("std_msgs/msg/ColorRGBA", r=red, g=green, b=blue, a=alpha)
