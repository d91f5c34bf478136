"""Results as a ROS 2 bag: an MCAP file that `ros2 bag play` and RViz read, written without ROS.

| topic | type | content |
|---|---|---|
| /tf | tf2_msgs/msg/TFMessage | map -> base_link, where ego motion is known; with `inputs` base_link -> given/CHANNEL |
| /detections | vision_msgs/msg/Detection3DArray | boxes in base_link; no velocity, for which the type has no place |
| /markers | visualization_msgs/msg/MarkerArray | boxes, names and motions as RViz draws them, or NO PERCEPTION |
| /log | rcl_interfaces/msg/Log | perception that goes and comes, sensors that change state, jumps of the clock |
| /attention/MODALITY | nav_msgs/msg/OccupancyGrid | share of the attention, 0..100 |
| /tasks/TASK/FIELD | nav_msgs/msg/OccupancyGrid | a map of another task, 0..100 of its range; -1 where nothing is known |
| /diagnostics | diagnostic_msgs/msg/DiagnosticArray | the perception (none is an error), then one status a sensor |
| /given/... | pictures, calibrations, PointCloud2 | with `inputs`: what the model was given; dark or empty where it was not |
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bev.grid import BEVGrid
from robustbev.results.content import METADATA, ChangeLog, diagnoses, sensor_poses
from robustbev.results.given import FrameNames, given_messages, transforms
from robustbev.results.grids import check_grid
from robustbev.results.result import TickResult
from robustbev.results.ros2.messages import (
    detection_array,
    diagnostic_array,
    log_messages,
    marker_array,
    occupancy_grid,
)
from sensors.logs.mapping.targets import Ros2McapTarget
from sensors.logs.messages import LogMessage, Other, Payload
from sensors.logs.ros2.types import make_message, typestore

_NAMES = FrameNames()


class Ros2Results:
    """Writes results as ROS 2 bag; see the module.

    Args:
        path: the file; it appears there on `close`.
        grid: of the model's attention.
        min_score: boxes scored lower are left out.
        lifetime_s: markers vanish this long after their tick; more than the time between two ticks.
        inputs: whether the pictures and points that the model was given go along, as /given/...
        names: of the frames, as in the log.
        metadata: what the results came of, for the file's metadata record.

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
        lifetime_s: float = 1.0,
        names: FrameNames = _NAMES,
        metadata: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ):
        self._grid, self._min_score, self._inputs, self._names = grid, min_score, inputs, names
        self._lifetime_s, self._changes = lifetime_s, ChangeLog()
        self._bag = Ros2McapTarget(path, overwrite=overwrite)
        if metadata is not None:
            self._bag.add_metadata(METADATA, metadata)
        self._store = typestore()

    def write(self, result: TickResult) -> None:
        check_grid(result, self._grid)
        poses = sensor_poses(result.tick.frame) if self._inputs else {}
        if poses or result.tick.ego_pose_known:
            self._add(result, "/tf", transforms(result, poses, self._names))
        time_us, ego = result.tick.time_us, self._names.ego
        self._add(result, "/detections", self._encoded(detection_array(self._make, result, ego, self._min_score)))
        markers = marker_array(
            self._make, result, time_us=time_us, frame_id=ego, lifetime_s=self._lifetime_s, min_score=self._min_score
        )
        self._add(result, "/markers", self._encoded(markers))
        lines = self._changes.lines(result.tick, perceived=result.perceived)
        for message in log_messages(self._make, lines, time_us, "replay"):
            self._add(result, "/log", self._encoded(message))
        grids = {f"/attention/{name}": share for name, share in zip(result.modalities, result.attention, strict=True)}
        grids |= {f"/tasks/{name}": task_map.shares for name, task_map in result.maps.items()}
        for topic, shares in grids.items():
            self._add(result, topic, self._encoded(occupancy_grid(self._make, shares, self._grid, time_us, ego)))
        array = diagnostic_array(self._make, diagnoses(result), time_us, ego)
        self._add(result, "/diagnostics", self._encoded(array))
        if self._inputs:
            for topic, payload in given_messages(result.tick, self._names.ego):
                self._add(result, topic, payload)

    def close(self) -> None:
        self._bag.close()

    def abort(self) -> None:
        self._bag.abort()

    def _make(self, type_name: str, /, **fields: Any) -> Any:
        return make_message(self._store, type_name, **fields)

    def _encoded(self, message: Any) -> Other:
        kind = message.__msgtype__
        return Other(kind, bytes(self._store.serialize_cdr(message, kind)))

    def _add(self, result: TickResult, topic: str, payload: Payload) -> None:
        tick = result.tick
        self._bag.write(LogMessage(topic, tick.time_us * 1000, tick.ready_us * 1000, payload))
