"""Results as a ROS 2 bag: an MCAP file that `ros2 bag play` and RViz read, written without ROS.

| topic | type | content |
|---|---|---|
| /tf | tf2_msgs/msg/TFMessage | map -> base_link, where ego motion is known; with `inputs` base_link -> given/CHANNEL |
| /detections | vision_msgs/msg/Detection3DArray | boxes in base_link; no velocity, for which the type has no place |
| /attention/MODALITY | nav_msgs/msg/OccupancyGrid | share of the attention, 0..100 |
| /diagnostics | diagnostic_msgs/msg/DiagnosticArray | the perception (none is an error), then one status a sensor |
| /given/... | pictures, calibrations, PointCloud2 | with `inputs`: what the model was given, at the tick's time |
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bev.grid import BEVGrid
from sensors.logs.messages import LogMessage, Other, Payload
from sensors.logs.ros2_types import typestore
from sensors.logs.targets import Ros2McapTarget
from sensors.replay.content import FoundBox, diagnoses, found_boxes, sensor_poses
from sensors.replay.given import FrameNames, given_messages, transforms
from sensors.replay.grids import check_grid, rows_along_y
from sensors.replay.results import TickResult

_NAMES = FrameNames()


class Ros2Results:
    """Writes results as ROS 2 bag; see the module.

    Args:
        path: the file; it appears there on `close`.
        grid: of the model's attention.
        min_score: boxes scored lower are left out.
        inputs: whether the pictures and points that the model was given go along, as /given/...
        names: of the frames, as in the log.

    Raises:
        LogError: the file exists and `overwrite` is not set, or its folder cannot be written to.
        MissingLogLibraryError: rosbags or mcap is not installed.
    """

    def __init__(
        self,
        path: Path,
        grid: BEVGrid,
        *,
        min_score: float = 0.0,
        inputs: bool = False,
        names: FrameNames = _NAMES,
        overwrite: bool = False,
    ):
        self._grid, self._min_score, self._inputs, self._names = grid, min_score, inputs, names
        self._bag = Ros2McapTarget(path, overwrite=overwrite)
        self._store = typestore()

    def write(self, result: TickResult) -> None:
        check_grid(result, self._grid)
        poses = sensor_poses(result.tick.frame) if self._inputs else {}
        if poses or result.tick.ego_pose_known:
            self._add(result, "/tf", transforms(result, poses, self._names))
        detections = [self._detection(result, box) for box in found_boxes(result, self._min_score)]
        array = self._make("vision_msgs/msg/Detection3DArray", header=self._header(result), detections=detections)
        self._add(result, "/detections", self._encoded(array))
        for name, share in zip(result.modalities, result.attention, strict=True):
            self._add(result, f"/attention/{name}", self._encoded(self._occupancy(result, share)))
        self._add(result, "/diagnostics", self._encoded(self._diagnostics(result)))
        if self._inputs:
            for topic, payload in given_messages(result.tick.frame, result.tick.time_us, self._names.ego):
                self._add(result, topic, payload)

    def close(self) -> None:
        self._bag.close()

    def abort(self) -> None:
        self._bag.abort()

    def _make(self, type_name: str, /, **fields: Any) -> Any:
        return self._store.types[type_name](**fields)

    def _encoded(self, message: Any) -> Other:
        kind = message.__msgtype__
        return Other(kind, bytes(self._store.serialize_cdr(message, kind)))

    def _add(self, result: TickResult, topic: str, payload: Payload) -> None:
        tick = result.tick
        self._bag.write(LogMessage(topic, tick.time_us * 1000, tick.ready_us * 1000, payload))

    def _header(self, result: TickResult) -> Any:
        seconds, microseconds = divmod(result.tick.time_us, 1_000_000)
        stamp = self._make("builtin_interfaces/msg/Time", sec=seconds, nanosec=microseconds * 1000)
        return self._make("std_msgs/msg/Header", stamp=stamp, frame_id=self._names.ego)

    def _detection(self, result: TickResult, box: FoundBox) -> Any:
        """Size x, y, z is length, width, height: the box's own axes, x along the heading."""
        pose = self._pose(box.center_m, box.rotation_xyzw)
        unknown = np.zeros(36)
        hypothesis = self._make(
            "vision_msgs/msg/ObjectHypothesisWithPose",
            hypothesis=self._make("vision_msgs/msg/ObjectHypothesis", class_id=box.class_name, score=box.score),
            pose=self._make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=unknown),
        )
        size = self._vector(box.length_m, box.width_m, box.height_m)
        return self._make(
            "vision_msgs/msg/Detection3D",
            header=self._header(result),
            results=[hypothesis],
            bbox=self._make("vision_msgs/msg/BoundingBox3D", center=pose, size=size),
            id=box.id,
        )

    def _occupancy(self, result: TickResult, share: Any) -> Any:
        """[X, Y] as rows along y: `width` counts our X (forward), `height` our Y (to the left)."""
        grid, header = self._grid, self._header(result)
        info = self._make(
            "nav_msgs/msg/MapMetaData", map_load_time=header.stamp, resolution=grid.cell_m, width=grid.shape[0],
            height=grid.shape[1], origin=self._pose((grid.x_min_m, grid.y_min_m, 0.0), (0.0, 0.0, 0.0, 1.0)),
        )  # fmt: skip
        percent = np.clip(np.rint(100 * rows_along_y(share)), 0, 100).astype(np.int8)
        return self._make("nav_msgs/msg/OccupancyGrid", header=header, info=info, data=percent.ravel())

    def _diagnostics(self, result: TickResult) -> Any:
        status = [
            self._make(
                "diagnostic_msgs/msg/DiagnosticStatus", level=int(one.level), name=one.name, message=one.message,
                hardware_id=one.hardware_id,
                values=[self._make("diagnostic_msgs/msg/KeyValue", key=key, value=value) for key, value in one.values],
            )
            for one in diagnoses(result)
        ]  # fmt: skip
        return self._make("diagnostic_msgs/msg/DiagnosticArray", header=self._header(result), status=status)

    def _vector(self, x: float, y: float, z: float) -> Any:
        return self._make("geometry_msgs/msg/Vector3", x=x, y=y, z=z)

    def _quaternion(self, x: float, y: float, z: float, w: float) -> Any:
        return self._make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)

    def _pose(self, at_m: tuple[float, float, float], xyzw: tuple[float, float, float, float]) -> Any:
        x, y, z = at_m
        return self._make(
            "geometry_msgs/msg/Pose",
            position=self._make("geometry_msgs/msg/Point", x=x, y=y, z=z),
            orientation=self._quaternion(*xyzw),
        )
