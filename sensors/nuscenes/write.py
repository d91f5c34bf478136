"""A data set of one's own, in nuScenes' format: frames and boxes in, tables and files out.

Letters: P points, T boxes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sensors.calibration import Float64, FloatArray, apply, inverse_rigid
from sensors.checks.frame import check_frame, check_mounts, pose_of, readings_of
from sensors.errors import SensorDataError, naming
from sensors.extras import require
from sensors.files import whole_folder
from sensors.frames import CameraImage, LidarSweep, RadarSweep, SensorFrame
from sensors.motion.poses import pose, pose_row
from sensors.motion.trajectory import Trajectory
from sensors.nuscenes.rows import OFFICIAL_SPLITS, PointCounter, Rows, SceneRows, token
from sensors.nuscenes.sensor_files import RADAR_POINT, write_image, write_lidar, write_mask, write_radar
from sensors.readings import Reading, frame_at

_SEED = 0  # of the tokens
_MAP = "maps/none.png"  # the devkit wants one
_MAX_AGE_S = 1.0
_KIND = {CameraImage: ("camera", "jpg"), LidarSweep: ("lidar", "pcd.bin"), RadarSweep: ("radar", "pcd")}
_Placed = CameraImage | LidarSweep | RadarSweep


@dataclass(frozen=True)
class Annotation:
    """A true object at a keyframe, in the ego frame at its time, as `Detections` has what is found."""

    track: str  # the same object over time, within its scene
    category: str  # any name; `class_map` leads it to a class
    center_m: Sequence[float]  # x, y, z of its middle
    size_m: Sequence[float]  # width, length, height; length lies along the heading
    yaw_rad: float  # from x (ahead) towards y (left)
    attribute: str = ""  # none


@contextmanager
def write_nuscenes(
    root: str | os.PathLike[str],
    ego_T_sensor: Mapping[str, FloatArray],
    splits: Mapping[str, Sequence[str]],
    *,
    version: str = "v1.0-own",
    jpeg_quality: int = 95,
) -> Iterator[NuScenesWriter]:
    """A data set, whole or not at all: it is at `root` when the `with` block ends without an error.

        with write_nuscenes("data/mine", mounts, {"own_train": ["yard"], "own_val": ["street"]}) as writer:
            writer.keyframe("yard", time_us, readings, boxes, trajectory)

    Args:
        root: a folder that is not there, or empty.
        ego_T_sensor: [4, 4] by channel, where each sensor is mounted: its points to the ego frame.
        splits: name -> its scenes. Names of nuScenes' own splits (train, val ...) stand for nuScenes' scenes and are refused.
        version: of the folder of tables.
        jpeg_quality: of the pictures, 1 to 100.

    Raises:
        FileExistsError: `root` holds something.
        ValueError: a split has a name of nuScenes' own, or at the end a scene that was not written.
        MissingExtraError: OpenCV and simplejpeg are not installed.
    """
    require("write_nuscenes", "data", "cv2", "simplejpeg")
    out = Path(root).resolve()
    if taken := sorted(OFFICIAL_SPLITS & splits.keys()):
        raise ValueError(f"splits: expected names of your own, got {taken[0]!r}, which stands for nuScenes' scenes")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(f"{out} holds something; name another folder, or empty this one")
    with whole_folder(out) as folder:
        writer = NuScenesWriter(folder, ego_T_sensor, jpeg_quality)
        yield writer
        writer.finish(version, splits)


class NuScenesWriter:
    """Takes keyframes, scene by scene, and writes their files; see `write_nuscenes`, which makes it."""

    def __init__(self, folder: Path, ego_T_sensor: Mapping[str, FloatArray], jpeg_quality: int) -> None:
        self._folder, self._mounts, self._quality = folder, dict(ego_T_sensor), jpeg_quality
        self._scenes: dict[str, SceneRows] = {}
        self._written: set[tuple[str, str, int]] = set()  # scene, channel, time
        self._sensors: dict[str, str] = {}  # channel -> kind
        self._calibrations: set[str] = set()
        self._categories: dict[tuple[str, str], str] = {}  # scene, track -> category
        self._attributes: dict[str, None] = {}
        self._rows = Rows()

    def keyframe(
        self,
        scene: str,
        time_us: int,
        readings: Iterable[Reading],
        boxes: Iterable[Annotation],
        trajectory: Trajectory | None,
    ) -> None:
        """One annotated instant; within a scene in order of time.

        Of each sensor the newest reading is the keyframe's, and older ones are sweeps. What was written before is not written
        again, so that whoever keeps the last readings of each sensor may hand all of them over. A LiDAR whose points have times
        is brought to one time. A sensor that gave nothing is left out: here it is absent.

        Args:
            scene: its name, as the splits name it.
            time_us: whole microseconds of the clock that all times are of: best that of the LiDAR sweep whose channel will be
                `reference_channel`.
            readings: as `sensors.readings.frame_at` takes them.
            boxes: what is there, in the ego frame at `time_us`. Points in them are counted.
            trajectory: where the vehicle was; None: it stands still.

        Raises:
            SensorDataError: a reading that cannot be used, with its `channel`: it is more than a second off, nothing is known of
                the vehicle's motion, or it holds no point or no picture.
            ValueError: a box that cannot be, one track of two categories, a time that is not after the one before; see
                `frame_at`.
        """
        frame = frame_at(time_us, readings, self._mounts, trajectory, token=f"{scene} {time_us}", max_age_s=_MAX_AGE_S)
        for channel, absence in frame.absent.items():
            with naming(channel):
                raise SensorDataError(f"{scene}: {absence.reason}. Leave it out where a sensor gave nothing of use")
        self.frame(scene, frame, boxes, self._mounts)

    def frame(
        self, scene: str, frame: SensorFrame, boxes: Iterable[Annotation], ego_T_sensor: Mapping[str, FloatArray]
    ) -> None:
        """As `keyframe`, of a frame that is put together already, as that of a replay's tick.

        Args:
            scene: its name, as the splits name it.
            frame: its poses hold the motion, and its reference frame is the ego frame.
            boxes: what is there, in the ego frame at the frame's time.
            ego_T_sensor: [4, 4] by channel: the mounts of all its sensors, without motion.

        Raises:
            SensorDataError, ValueError: as `keyframe`.
        """
        time_us, boxes = frame.time_us, list(boxes)
        check_frame(frame)
        check_mounts({reading.channel for reading in readings_of(frame)}, ego_T_sensor)
        self._check_boxes(scene, boxes)
        rows = self._scenes.setdefault(scene, SceneRows(scene, _SEED, self._mounts))
        if rows.samples and time_us <= rows.samples[-1]["timestamp"]:
            raise ValueError(f"{scene}: expected times that rise, got {time_us} after {rows.samples[-1]['timestamp']}")
        rows.sample(time_us)
        points: dict[str, list[Float64]] = {"lidar": [], "radar": []}
        newest: set[str] = set()
        for reading in readings_of(frame):  # newest first
            self._check_kind(reading)
            is_key = reading.channel not in newest
            newest.add(reading.channel)
            self._reading(rows, reading, frame, ego_T_sensor[reading.channel], keyframe=is_key)
            if is_key and not isinstance(reading, CameraImage):
                kind = _KIND[type(reading)][0]
                points[kind].append(apply(pose_of(reading), reading.points[:, :3].astype(np.float64)))
        self._annotate(rows, boxes, frame, {kind: np.concatenate(of) for kind, of in points.items() if of})

    def _check_kind(self, reading: _Placed) -> None:
        kind = _KIND[type(reading)][0]
        known = self._sensors.setdefault(reading.channel, kind)
        if known != kind:
            raise ValueError(f"{reading.channel}: expected readings of one kind, got {known} and {kind}")

    def _check_boxes(self, scene: str, boxes: Sequence[Annotation]) -> None:
        for box in boxes:
            numbers = np.array([*box.center_m, *box.size_m, box.yaw_rad], np.float64)
            if len(numbers) != 7 or not np.isfinite(numbers).all() or (numbers[3:6] <= 0).any():
                raise ValueError(
                    f"{scene}: {box.track}: expected a centre and a size above 0 of three numbers each and a yaw, got {box}"
                )
            known = self._categories.setdefault((scene, box.track), box.category)
            if known != box.category:
                raise ValueError(
                    f"{scene}: {box.track}: expected one category of a track, got {known} and {box.category}"
                )

    def _reading(
        self,
        rows: SceneRows,
        reading: _Placed,
        frame: SensorFrame,
        ego_T_sensor: FloatArray,
        *,
        keyframe: bool,
    ) -> None:
        """Its row and its file, where it has none."""
        key = (rows.name, reading.channel, reading.time_us)
        if key in self._written:
            return
        self._written.add(key)
        row7 = pose_row(frame.global_T_reference @ pose_of(reading) @ inverse_rigid(ego_T_sensor)).tolist()
        calibration, suffix = self._calibration(reading, ego_T_sensor), _KIND[type(reading)][1]
        sample = len(rows.samples) - 1
        row = rows.reading(
            reading.channel, int(reading.time_us), (row7[3:], row7[:3]), calibration, suffix, sample, keyframe=keyframe
        )
        path = self._folder / row["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(reading, CameraImage):
            row["height"], row["width"] = reading.image.shape[:2]
            write_image(path, reading.image, quality=self._quality)
            return
        if not np.isfinite(reading.points[:, :3]).all(axis=1).any():
            with naming(reading.channel):
                raise SensorDataError(
                    f"{rows.name}: {reading.channel} at {reading.time_us} us: expected at least one finite point. Leave it out "
                    "where a sensor gave nothing"
                )
        if isinstance(reading, LidarSweep):
            write_lidar(path, reading.points)
            return
        records = np.zeros(len(reading.points), RADAR_POINT)
        for name, column in zip(("x", "y", "z", "rcs", "vx_comp", "vy_comp"), reading.points.T, strict=True):
            records[name] = column
        records["ambig_state"], records["is_quality_valid"] = 3, 1  # unambiguous, valid
        write_radar(path, records)

    def _calibration(self, reading: _Placed, ego_T_sensor: FloatArray) -> str:
        """The token of its row, which is added where there is none yet; and the sensor's."""
        channel = reading.channel
        intrinsics = (
            np.asarray(reading.intrinsics, np.float64) if isinstance(reading, CameraImage) else np.zeros((0, 0))
        )
        numbers = [*pose_row(ego_T_sensor).tolist(), *intrinsics.ravel().tolist()]
        key = token(_SEED, "calibrated_sensor", channel, *numbers)
        if key in self._calibrations:
            return key
        self._calibrations.add(key)
        self._rows.add(
            "calibrated_sensor",
            token=key,
            sensor_token=token(_SEED, "sensor", channel),
            translation=numbers[:3],
            rotation=numbers[3:7],
            camera_intrinsic=intrinsics.tolist(),
        )
        return key

    def _annotate(
        self, rows: SceneRows, boxes: Sequence[Annotation], frame: SensorFrame, points: Mapping[str, Float64]
    ) -> None:
        counters = {kind: PointCounter(of) for kind, of in points.items()}
        missing = 0 if counters else -1  # not counted
        for box in boxes:
            half = box.yaw_rad / 2
            row7 = pose_row(
                frame.global_T_reference @ pose(tuple(box.center_m), wxyz=(np.cos(half), 0, 0, np.sin(half)))
            ).tolist()
            inside = {k: c.inside(box.center_m, box.size_m, box.yaw_rad) for k, c in counters.items()}
            if box.attribute:
                self._attributes[box.attribute] = None
            rows.annotation(
                box.track,
                box.track,
                box.category,
                len(rows.samples) - 1,
                visibility_token="4",
                attribute_tokens=[token(_SEED, "attribute", box.attribute)] if box.attribute else [],
                translation=row7[:3],
                size=[float(side) for side in box.size_m],
                rotation=row7[3:],
                num_lidar_pts=inside.get("lidar", missing),
                num_radar_pts=inside.get("radar", missing),
            )

    def finish(self, version: str, splits: Mapping[str, Sequence[str]]) -> None:
        """Write the tables."""
        absent = [scene for scenes in splits.values() for scene in scenes if scene not in self._scenes]
        if absent or not self._scenes:
            raise ValueError(
                f"splits: expected scenes that were written ({', '.join(self._scenes) or 'none'}), got "
                f"{absent[0] if absent else 'none'}"
            )
        self._rows.add_names(_SEED, dict.fromkeys(self._categories.values()), self._attributes)
        for channel, kind in self._sensors.items():
            self._rows.add("sensor", token=token(_SEED, "sensor", channel), channel=channel, modality=kind)
        for scene in self._scenes.values():
            self._rows.extend(scene.close("", {"vehicle": "", "date_captured": "", "location": ""}, _MAP))
        (self._folder / "maps").mkdir()
        write_mask(self._folder / _MAP, np.zeros((1, 1), np.uint8))
        (self._folder / version).mkdir()
        self._rows.write(self._folder / version, splits)
