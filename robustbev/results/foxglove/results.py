"""Results as an MCAP file with Foxglove's schemas: it opens in Foxglove beside the log that was replayed, or alone.

| topic | type | content |
|---|---|---|
| /tf | foxglove.FrameTransforms | map -> base_link where that is known; base_link -> given/CHANNEL of every sensor given so far |
| /detections | foxglove.SceneUpdate | boxes in base_link, with words where there is room; each tick deletes those before it |
| /truth | foxglove.SceneUpdate | where the log has them, the annotated boxes, outlined |
| /perceived | foxglove.SceneUpdate | a text above the vehicle at ticks without perception |
| /log | foxglove.Log | perception that goes and comes, sensors that change state, jumps of the clock |
| /attention/MODALITY, /bev/score | foxglove.Grid | share of the attention; score of the box on a cell |
| /tasks/TASK/FIELD | foxglove.Grid | a map that another task than detection gives; NaN where nothing is known |
| /diagnostics | diagnostic_msgs/DiagnosticArray, JSON | the perception, then one status a sensor |
| /replay/tick | robustbev.Tick, JSON | tick, boxes, shares of those that see, of nulls, states and their numbers: for plots |
| /given/... | pictures, calibrations, point clouds | with `inputs`: what the model was given; dark or empty where it was not |

Messages carry the tick's time as log time and the time at which it was complete as publish time. Poses of sensors already hold
the ego motion from their measurement to the tick, so their frames have names of their own and do not disturb the log's.
A metadata record, "robustbev", says what the results came of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bev.grid import BEVGrid
from robustbev.results.content import (
    ALARM_TEXT,
    METADATA,
    STATE_NUMBERS,
    ChangeLog,
    FoundBox,
    Level,
    diagnoses,
    found_boxes,
    sensor_poses,
)
from robustbev.results.given import FrameNames, given_messages, transforms
from robustbev.results.grids import check_grid, rows_along_y, score_map
from robustbev.results.palette import ALARM
from robustbev.results.result import TickResult, TruthAt
from sensors.logs.encode import MissingLogLibraryError
from sensors.logs.foxglove.encode import foxglove_bytes
from sensors.logs.mcap.out import AtomicMcapWriter
from sensors.logs.messages import Payload
from sensors.palette import RGB, class_rgb

if TYPE_CHECKING:
    from foxglove import Schema
    from foxglove.messages import Color, Grid, Pose, SceneEntity

_NAMES = FrameNames()
MOVING_MPS = 0.5  # slower velocities get no arrow
_WORDS_APART_M = (
    6.0  # of boxes nearer to each other the best has its class and score written; a click tells the others'
)
_TRUTH: RGB = (255, 255, 255)
# Ends [13, 2, 3] of the lines that a box is outlined with, in halves of its sides: its edges, and where it heads.
_CORNERS = [np.array(corner) for corner in product((-1.0, 1.0), repeat=3)]
_EDGES = np.array(
    [(a, b) for a, b in combinations(_CORNERS, 2) if np.count_nonzero(a != b) == 1]
    + [(np.zeros(3), np.array([1.0, 0, 0]))]
)

_STAMP = {"type": "object", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
_PAIR = {"type": "object", "properties": {"key": {"type": "string"}, "value": {"type": "string"}}}
_STATUS = {
    "type": "object",
    "properties": {
        "level": {"type": "integer"}, "name": {"type": "string"}, "message": {"type": "string"},
        "hardware_id": {"type": "string"}, "values": {"type": "array", "items": _PAIR},
    },
}  # fmt: skip
DIAGNOSTICS_SCHEMA = {
    "type": "object",
    "properties": {
        "header": {"type": "object", "properties": {"stamp": _STAMP, "frame_id": {"type": "string"}}},
        "status": {"type": "array", "items": _STATUS},
    },
}
TICK_SCHEMA = {
    "type": "object",
    "properties": {
        "stamp": _STAMP, "index": {"type": "integer"}, "wait_ms": {"type": "number"},
        "perceived": {"type": "boolean"}, "reset": {"type": "boolean"}, "ego_pose_known": {"type": "boolean"},
        "boxes": {"type": "integer"},
        "shares": {"type": "object", "additionalProperties": {"type": "number"}},
        "shares_null": {"type": "number"},
        "states": {"type": "object", "additionalProperties": {"type": "string"}},
        "state_numbers": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
}  # fmt: skip


class FoxgloveResults:
    """Writes results as MCAP for Foxglove; see the module.

    Args:
        path: the file; it appears there on `close`.
        grid: of the model's attention.
        min_score: boxes scored lower are left out.
        inputs: whether the pictures and points that the model was given go along, so that the file stands alone.
        lifetime_s: boxes and texts vanish this long after their tick, so that none outlives a gap; more than the time
            between two ticks.
        names: of the frames, as in the log.
        truth_at: what was really there.
        metadata: what the results came of, for the file's metadata record.

    Raises:
        LogError: the file exists and `overwrite` is not set, or its folder cannot be written to.
        MissingLogLibraryError: foxglove-sdk or mcap is not installed.
    """

    def __init__(
        self,
        path: Path,
        grid: BEVGrid,
        *,
        min_score: float = 0.3,
        inputs: bool = False,
        lifetime_s: float = 1.0,
        names: FrameNames = _NAMES,
        truth_at: TruthAt | None = None,
        metadata: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ):
        if not lifetime_s > 0:
            raise ValueError(f"lifetime_s: expected more than 0 seconds, got {lifetime_s}")
        try:
            import foxglove.messages
        except ImportError as error:
            raise MissingLogLibraryError("foxglove-sdk") from error
        self._types = foxglove.messages
        self._grid, self._min_score, self._inputs, self._lifetime_s = grid, min_score, inputs, lifetime_s
        self._names, self._truth_at = names, truth_at
        self._poses: dict[str, NDArray[Any]] = {}  # channel -> the last known reference_T_sensor
        self._changes = ChangeLog()
        self._channels: dict[str, int] = {}
        self._file = AtomicMcapWriter(path, overwrite=overwrite)
        if metadata is not None:
            self._file.add_metadata(METADATA, metadata)

    def write(self, result: TickResult) -> None:
        check_grid(result, self._grid)
        if result.tick.reset:
            self._poses.clear()
        self._write_transforms(result)
        self._write_detections(result)
        self._write_grids(result)
        self._write_log(result)
        self._write_json(result)
        if self._inputs:
            for topic, payload in given_messages(result.tick, self._names.ego):
                self._add_payload(result, topic, payload)

    def close(self) -> None:
        self._file.close()

    def abort(self) -> None:
        self._file.abort()

    def _add(self, result: TickResult, topic: str, message: Any) -> None:
        """A message of one of Foxglove's types."""
        self._add_encoded(result, topic, type(message).get_schema(), message.encode())

    def _add_payload(self, result: TickResult, topic: str, payload: Payload) -> None:
        self._add_encoded(result, topic, *foxglove_bytes(payload))

    def _add_encoded(self, result: TickResult, topic: str, schema: Schema, data: bytes) -> None:
        self._add_bytes(result, topic, data, "protobuf", schema.name, schema.encoding, schema.data)

    def _add_json(self, result: TickResult, topic: str, schema_name: str, schema: dict[str, Any], content: Any) -> None:
        data = json.dumps(content, separators=(",", ":")).encode()
        self._add_bytes(result, topic, data, "json", schema_name, "jsonschema", json.dumps(schema).encode())

    def _add_bytes(self, result: TickResult, topic: str, data: bytes, encoding: str, *schema: Any) -> None:
        """`schema`: its name, its encoding, its bytes."""
        if topic not in self._channels:
            name, schema_encoding, content = schema
            self._channels[topic] = self._file.add_channel(
                topic, encoding=encoding, schema_name=name, schema_encoding=schema_encoding, schema=content
            )
        tick = result.tick
        self._file.write(self._channels[topic], tick.time_us * 1000, data, publish_time_ns=tick.ready_us * 1000)

    def _stamp(self, result: TickResult) -> Any:
        return self._types.Timestamp(**_stamp(result))

    def _write_transforms(self, result: TickResult) -> None:
        self._poses.update(sensor_poses(result.tick.frame))
        self._add_payload(result, "/tf", transforms(result, self._poses, self._names))

    def _write_detections(self, result: TickResult) -> None:
        t = self._types
        everything = t.SceneEntityDeletion(timestamp=self._stamp(result), type=t.SceneEntityDeletionType.All)
        found = found_boxes(result, self._min_score)
        with_words = _apart(found)
        boxes = [self._entity(result, box, words=box in with_words) for box in found]
        self._add(result, "/detections", t.SceneUpdate(deletions=[everything], entities=boxes))
        alarms = [] if result.perceived else [self._no_perception(result)]
        self._add(result, "/perceived", t.SceneUpdate(deletions=[everything], entities=alarms))
        if self._truth_at is not None:
            truth = self._truth_at(result)
            there = [] if truth is None else found_boxes(replace(result, boxes=truth))
            outlines = [self._outline(result, box) for box in there]
            self._add(result, "/truth", t.SceneUpdate(deletions=[everything], entities=outlines))

    def _entity(self, result: TickResult, box: FoundBox, *, words: bool) -> SceneEntity:
        t, colour = self._types, class_rgb(box.class_name, box.label)
        x, y, z = box.center_m
        top = self._pose((x, y, z + box.height_m / 2 + 0.5), (0.0, 0.0, 0.0, 1.0))
        label = t.TextPrimitive(
            pose=top,
            billboard=True,
            font_size=12,
            scale_invariant=True,
            color=self._colour(colour, 1.0),
            text=f"{box.class_name} {box.score:.2f}",
        )
        size = t.Vector3(x=box.length_m, y=box.width_m, z=box.height_m)
        cube = t.CubePrimitive(
            pose=self._pose(box.center_m, box.rotation_xyzw), size=size, color=self._colour(colour, 0.45)
        )
        velocity = f"{box.velocity_mps[0]:.2f}, {box.velocity_mps[1]:.2f}" if box.velocity_mps else "unknown"
        metadata = {
            "class": box.class_name, "score": f"{box.score:.4f}", "attribute": box.attribute or "none",
            "velocity (m/s)": velocity,
        }  # fmt: skip
        return t.SceneEntity(
            timestamp=self._stamp(result),
            frame_id=self._names.ego,
            id=box.id,
            lifetime=self._lifetime(),
            cubes=[cube],
            texts=[label] if words else [],
            arrows=self._arrows(box, self._colour(colour, 1.0)),
            metadata=[t.KeyValuePair(key=key, value=value) for key, value in metadata.items()],
        )

    def _outline(self, result: TickResult, box: FoundBox) -> SceneEntity:
        """The twelve edges of a box, and a thirteenth from its centre to its front."""
        t, half_m = self._types, np.array([box.length_m, box.width_m, box.height_m]) / 2
        ends = [t.Point3(x=float(x), y=float(y), z=float(z)) for x, y, z in (half_m * _EDGES).reshape(-1, 3)]
        lines = t.LinePrimitive(
            type=t.LinePrimitiveLineType.LineList,
            pose=self._pose(box.center_m, box.rotation_xyzw),
            thickness=2.0,  # pixels
            scale_invariant=True,
            points=ends,
            color=self._colour(_TRUTH, 1.0),
        )
        return t.SceneEntity(
            timestamp=self._stamp(result),
            frame_id=self._names.ego,
            id=box.id,
            lifetime=self._lifetime(),
            lines=[lines],
            metadata=[t.KeyValuePair(key="class", value=box.class_name)],
        )

    def _arrows(self, box: FoundBox, colour: Color) -> list[Any]:
        """An arrow from the box's centre along its velocity, as long as the way in a second."""
        if box.velocity_mps is None or box.speed_mps < MOVING_MPS:
            return []
        half = np.arctan2(box.velocity_mps[1], box.velocity_mps[0]) / 2
        pose = self._pose(box.center_m, (0.0, 0.0, float(np.sin(half)), float(np.cos(half))))
        head_m = min(0.6, 0.4 * box.speed_mps)
        return [
            self._types.ArrowPrimitive(
                pose=pose,
                shaft_length=box.speed_mps - head_m,
                shaft_diameter=0.15,
                head_length=head_m,
                head_diameter=0.4,
                color=colour,
            )
        ]

    def _no_perception(self, result: TickResult) -> SceneEntity:
        t = self._types
        text = t.TextPrimitive(
            pose=self._pose((0.0, 0.0, 4.0), (0.0, 0.0, 0.0, 1.0)),
            billboard=True,
            font_size=28,
            scale_invariant=True,
            color=self._colour(ALARM, 1.0),
            text=ALARM_TEXT,
        )
        return t.SceneEntity(
            timestamp=self._stamp(result),
            frame_id=self._names.ego,
            id="no-perception",
            lifetime=self._lifetime(),
            texts=[text],
        )

    def _write_grids(self, result: TickResult) -> None:
        for name, share in zip(result.modalities, result.attention, strict=True):
            self._add(result, f"/attention/{name}", self._cells(result, "share", share))
        self._add(result, "/bev/score", self._cells(result, "score", score_map(result.boxes, self._grid)))
        for name, task_map in result.maps.items():
            self._add(result, f"/tasks/{name}", self._cells(result, name.rpartition("/")[2], task_map.values))

    def _cells(self, result: TickResult, field: str, values: NDArray[np.float32]) -> Grid:
        """[X, Y] as a Grid: its columns are our X (forward), its rows our Y (to the left)."""
        t, grid = self._types, self._grid
        return t.Grid(
            timestamp=self._stamp(result),
            frame_id=self._names.ego,
            column_count=grid.shape[0],
            pose=self._pose((grid.x_min_m, grid.y_min_m, 0.0), (0.0, 0.0, 0.0, 1.0)),
            cell_size=t.Vector2(x=grid.cell_m, y=grid.cell_m),
            cell_stride=4,
            row_stride=4 * grid.shape[0],
            fields=[t.PackedElementField(name=field, offset=0, type=t.PackedElementFieldNumericType.Float32)],
            data=rows_along_y(values).astype("<f4").tobytes(),
        )

    def _write_log(self, result: TickResult) -> None:
        levels = self._types.LogLevel
        names = {Level.OK: levels.Info, Level.WARN: levels.Warning, Level.ERROR: levels.Error}
        for level, message in self._changes.lines(result.tick, perceived=result.perceived):
            text = f"tick {result.tick.index}: {message}"
            log = self._types.Log(timestamp=self._stamp(result), level=names[level], message=text, name="replay")
            self._add(result, "/log", log)

    def _write_json(self, result: TickResult) -> None:
        status = [
            {
                "level": int(one.level),
                "name": one.name,
                "message": one.message,
                "hardware_id": one.hardware_id,
                "values": [{"key": key, "value": value} for key, value in one.values],
            }
            for one in diagnoses(result)
        ]
        array = {"header": {"stamp": _stamp(result), "frame_id": self._names.ego}, "status": status}
        self._add_json(result, "/diagnostics", "diagnostic_msgs/DiagnosticArray", DIAGNOSTICS_SCHEMA, array)
        tick = result.tick
        content = {
            "stamp": _stamp(result),
            "index": tick.index,
            "wait_ms": (tick.ready_us - tick.time_us) / 1000,
            "perceived": result.perceived,
            "reset": tick.reset,
            "ego_pose_known": tick.ego_pose_known,
            "boxes": len(found_boxes(result, self._min_score)),
            "shares": {name: share for name, share in result.trust.items() if share > 0},  # a curve without sensor ends
            "shares_null": result.null_share,
            "states": {name: str(sensor.state) for name, sensor in tick.sensors.items()},
            "state_numbers": {name: STATE_NUMBERS[sensor.state] for name, sensor in tick.sensors.items()},
        }
        self._add_json(result, "/replay/tick", "robustbev.Tick", TICK_SCHEMA, content)

    def _pose(self, at_m: tuple[float, float, float], xyzw: tuple[float, float, float, float]) -> Pose:
        t, (x, y, z), (qx, qy, qz, qw) = self._types, at_m, xyzw
        return t.Pose(position=t.Vector3(x=x, y=y, z=z), orientation=t.Quaternion(x=qx, y=qy, z=qz, w=qw))

    def _colour(self, rgb: RGB, alpha: float) -> Color:
        red, green, blue = rgb
        return self._types.Color(r=red / 255, g=green / 255, b=blue / 255, a=alpha)

    def _lifetime(self) -> Any:
        seconds, nanoseconds = divmod(round(self._lifetime_s * 1e9), 1_000_000_000)
        return self._types.Duration(sec=seconds, nsec=nanoseconds)


def _apart(boxes: Sequence[FoundBox]) -> list[FoundBox]:
    """The best of them, and each that is `_WORDS_APART_M` or more from those before it: words do not lie on words."""
    kept: list[FoundBox] = []
    for box in boxes:
        if all(math.dist(box.center_m[:2], other.center_m[:2]) >= _WORDS_APART_M for other in kept):
            kept.append(box)
    return kept


def _stamp(result: TickResult) -> dict[str, int]:
    seconds, microseconds = divmod(result.tick.time_us, 1_000_000)
    return {"sec": seconds, "nsec": microseconds * 1000}
