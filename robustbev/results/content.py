"""What a tick says, put in the words and numbers that every kind of file shares: boxes with ids, diagnostics, sensor poses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbev.results.result import TickResult
from sensors.frames import CameraImage, LidarSweep, RadarSweep, SensorFrame
from sensors.points import SensorUse
from sensors.replay.tick import SensorState, SensorStatus, Tick

METADATA = "robustbev"  # name of the record in an MCAP file that says what its results came of
ALARM_TEXT = "NO PERCEPTION"  # in a scene, where a longer text is cut off
NO_PERCEPTION = f"{ALARM_TEXT}: no sensor covers any cell. No boxes does not mean that nothing is there"
STATE_NUMBERS = {state: number for number, state in enumerate(SensorState)}  # for panels that colour by number

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


class Level(IntEnum):
    """Severity, with the numbers of ROS' DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class FoundBox:
    """A found object in the reference (ego) frame."""

    id: str  # class, tick and place in the order of scores: "car-000012-03"
    label: int
    class_name: str
    score: float
    attribute: str  # "" for none
    center_m: Vector
    length_m: float  # along the heading
    width_m: float
    height_m: float
    yaw_rad: float
    velocity_mps: tuple[float, float] | None  # x, y of the reference frame; None: not known

    @property
    def rotation_xyzw(self) -> Quaternion:
        return (0.0, 0.0, math.sin(self.yaw_rad / 2), math.cos(self.yaw_rad / 2))

    @property
    def speed_mps(self) -> float:
        """0 where the velocity is not known."""
        return math.hypot(*self.velocity_mps) if self.velocity_mps is not None else 0.0


@dataclass(frozen=True)
class Diagnosis:
    """One line of the diagnostics of a tick."""

    level: Level
    name: str
    message: str
    hardware_id: str
    values: tuple[tuple[str, str], ...]


def found_boxes(result: TickResult, min_score: float = 0.0) -> list[FoundBox]:
    """The boxes of a result scored at least `min_score`, best first."""
    boxes = result.boxes
    rows = zip(
        boxes.label.tolist(),
        boxes.score.tolist(),
        boxes.attribute.tolist(),
        boxes.center_m.tolist(),
        boxes.size_m.tolist(),
        boxes.yaw_rad.tolist(),
        boxes.velocity_mps.tolist(),
        strict=True,
    )
    found = []
    for rank, (label, score, attribute, center, (width, length, height), yaw, velocity) in enumerate(rows):
        if score < min_score:
            continue
        name = result.classes[label]
        found.append(
            FoundBox(
                id=f"{name}-{result.tick.index:06d}-{rank:02d}",
                label=label,
                class_name=name,
                score=score,
                attribute=result.attributes[attribute] if attribute >= 0 else "",
                center_m=(center[0], center[1], center[2]),
                length_m=length,
                width_m=width,
                height_m=height,
                yaw_rad=yaw,
                velocity_mps=(velocity[0], velocity[1]) if all(map(math.isfinite, velocity)) else None,
            )
        )
    return found


def sensor_level(status: SensorStatus) -> Level:
    """OK; WARN for what is given with a doubt; ERROR for what counts as absent."""
    if status.state is SensorState.OK:
        return Level.OK
    return Level.WARN if status.given else Level.ERROR


def diagnoses(result: TickResult) -> list[Diagnosis]:
    """The perception as a whole, then every configured sensor."""
    delivering = sum(status.given for status in result.tick.sensors.values())
    message = f"{len(result.boxes)} boxes from {delivering} of {len(result.tick.sensors)} sensors"
    whole = [("tick", str(result.tick.index)), ("perceived", str(result.perceived).lower())]
    whole += [("ego pose known", str(result.tick.ego_pose_known).lower())]
    whole += [("clock jumped before", "true")] if result.tick.reset else []
    whole += [(f"attention to {name}", f"{share:.4f}") for name, share in result.trust.items()]
    whole += [("attention to nulls", f"{result.null_share:.4f}")]
    level = Level.OK if result.perceived else Level.ERROR
    return [
        Diagnosis(level, "perception", message if result.perceived else NO_PERCEPTION, "model", tuple(whole)),
        *sensor_diagnoses(result.tick, result.sensors),
    ]


def sensor_diagnoses(tick: Tick, sensors: Mapping[str, SensorUse] | None = None) -> list[Diagnosis]:
    """Every configured sensor as it stands at a tick; and what became of those of `sensors` in its frame."""
    diagnoses = []
    for status in tick.sensors.values():
        values = [("state", str(status.state)), ("modality", status.modality), ("given", str(status.given).lower())]
        values += [("age (ms)", f"{status.age_us / 1000:.3f}")] if status.age_us is not None else []
        use = (sensors or {}).get(status.channel)
        if use is not None and use.points:
            values.append(
                ("points used", f"{use.kept} of {use.points}" + (f": {use.dropped}" if use.dropped.total else ""))
            )
        values += [("sees of the grid", f"{use.coverage:.3f}")] if use is not None and use.absence is None else []
        message = f"{status.state}: {status.detail}" if status.detail else str(status.state)
        name = f"sensors/{status.channel}"
        diagnoses.append(Diagnosis(sensor_level(status), name, message, status.channel, tuple(values)))
    return diagnoses


@dataclass
class ChangeLog:
    """What changed from tick to tick, in sentences."""

    _states: Mapping[str, SensorStatus] = field(default_factory=dict)  # by channel, of the tick before
    _perceived: bool = True

    def lines(self, tick: Tick, *, perceived: bool, problem: str = NO_PERCEPTION) -> list[tuple[Level, str]]:
        """In this order: a jump of the clock, sensors whose state is not what it was or not OK at first, perception gone or back.

        Args:
            problem: what is said where perception has gone.
        """
        lines = [(Level.WARN, "the clock jumped: all state is reset")] if tick.reset else []
        for channel, status in tick.sensors.items():
            old = self._states[channel].state if channel in self._states else SensorState.OK
            if status.state is not old:
                detail = f" ({status.detail})" if status.detail else ""
                lines.append((sensor_level(status), f"{channel}: {old} -> {status.state}{detail}"))
        if perceived is not self._perceived:
            lines.append((Level.OK, "perception is back") if perceived else (Level.ERROR, problem))
        self._states, self._perceived = dict(tick.sensors), perceived
        return lines


def newest(sweeps: tuple[LidarSweep, ...] | tuple[RadarSweep, ...] | None) -> dict[str, LidarSweep | RadarSweep]:
    """Channel -> its newest sweep."""
    sweep_of: dict[str, LidarSweep | RadarSweep] = {}
    for sweep in sweeps or ():
        if sweep.channel not in sweep_of or sweep.time_us > sweep_of[sweep.channel].time_us:
            sweep_of[sweep.channel] = sweep
    return sweep_of


def sensor_poses(frame: SensorFrame) -> dict[str, NDArray[Any]]:
    """Channel -> [4, 4] reference_T_sensor of what the model was given, ego motion up to the tick included."""
    poses: dict[str, NDArray[Any]] = {c.channel: c.reference_T_camera for c in frame.cameras or () if c is not None}
    for channel, sweep in {**newest(frame.lidar), **newest(frame.radar)}.items():
        poses[channel] = sweep.reference_T_lidar if isinstance(sweep, LidarSweep) else sweep.reference_T_radar
    return poses


def points_in_reference(sweep: LidarSweep | RadarSweep, time_us: int) -> NDArray[np.float32]:
    """The sweep's points in the reference frame, with their age in seconds as a last column.

    LiDAR [P, 6]: x, y, z, intensity, ring, age. Radar [P, 7]: x, y, z, rcs, vx, vy, age.
    """
    pose = np.asarray(sweep.reference_T_lidar if isinstance(sweep, LidarSweep) else sweep.reference_T_radar, np.float64)
    points = np.empty((len(sweep.points), sweep.points.shape[1] + 1), np.float32)
    points[:, :3] = sweep.points[:, :3].astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
    points[:, 3:-1] = sweep.points[:, 3:]
    if isinstance(sweep, RadarSweep):
        points[:, 4:6] = sweep.points[:, 4:6].astype(np.float64) @ pose[:2, :2].T
    points[:, -1] = (time_us - sweep.time_us) / 1e6
    return points


def camera_images(frame: SensorFrame) -> list[CameraImage]:
    """The cameras that are there."""
    return [camera for camera in frame.cameras or () if camera is not None]


def quaternion_xyzw(rotation: NDArray[Any]) -> Quaternion:
    """A rotation matrix [3, 3] as unit quaternion with w >= 0."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(np.asarray(rotation, np.float64)[:3, :3]).as_quat(canonical=True).tolist()
    return (x, y, z, w)
