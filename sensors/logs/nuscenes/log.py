"""A scene of a nuScenes-format data set as a drive log, with all sweeps, named as foxglove/nuscenes2mcap names them.

Topics: /cam_front/image_rect_compressed and /cam_front/camera_info, /lidar_top, /radar_front ... for each channel of the tables,
/tf (map -> base_link), /tf_static (base_link -> channel) and /markers/annotations. Frame ids of sensors are the channels' names.
Pictures of a camera with distortion are not rectified, and come on /cam_front/image_compressed.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensors.logs.log import Damage, LogError, TopicInfo
from sensors.logs.mapping.mapping import CameraTopics, LidarTopics, LogMapping, RadarTopics
from sensors.logs.messages import LogMessage, Malformed, Payload
from sensors.logs.nuscenes.messages import (
    EGO_FRAME,
    GLOBAL_FRAME,
    camera_info,
    ego_pose,
    reading,
    scene_boxes,
    sensor_poses,
)
from sensors.nuscenes.channels import check_modalities
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import NuScenesIndex, open_index

INFO = "/camera_info"
POSES = "/tf"
CALIBRATIONS = "/tf_static"
ANNOTATIONS = "/markers/annotations"
_SOME = 8  # scenes that an error names


def scene_names(config: NuScenesConfig) -> tuple[str, ...]:
    """The scenes of the tables, in their order; errors as `open_index`."""
    return open_index(config).meta.scenes


def mapping_of_nuscenes(config: NuScenesConfig) -> LogMapping:
    """The configured channels that the data set has, and the topics that a `NuScenesLog` gives them.

    Raises:
        LogError: it has none of them.
        DataRootError: one of them is of another modality there.
    """
    index = open_index(config)
    check_modalities(config, index)
    meta = index.meta
    present = {modality: [c for c in names if c in meta.channels] for modality, names in config.channels().items()}
    if not any(present.values()):
        configured = [channel for names in config.channels().values() for channel in names]
        raise LogError(
            f"{config.root} {config.version}: expected one of the channels {', '.join(configured)}, "
            f"got {', '.join(meta.channels) or 'none'}. Correct the channels of the configuration"
        )
    return LogMapping(
        cameras={c: CameraTopics(image=image_topic(index, c), info=info_topic(c)) for c in present["camera"]},
        lidars={c: LidarTopics(points=points_topic(c)) for c in present["lidar"]},
        radars={c: RadarTopics(points=points_topic(c)) for c in present["radar"]},
        ego_frame=EGO_FRAME,
        global_frame=GLOBAL_FRAME,
        truth=ANNOTATIONS if len(index.arrays.box_token) else None,
    )


def image_topic(index: NuScenesIndex, channel: str) -> str:
    """Where a camera's pictures are."""
    return f"/{channel.lower()}/image{'' if channel in index.distorted_channels else '_rect'}_compressed"


def info_topic(channel: str) -> str:
    """Where a camera's calibration is."""
    return f"/{channel.lower()}{INFO}"


def points_topic(channel: str) -> str:
    """Where the points of a LiDAR or a radar are."""
    return f"/{channel.lower()}"


@dataclass(frozen=True)
class _Planned:
    """A message that is not read yet."""

    topic: str
    time_us: int
    row: int  # of sample_data; of sample for boxes


class NuScenesLog:
    """One scene. Times of recording and of publishing are those of the measurements; files are read as messages are asked for.

    A file that is missing or damaged is a `Malformed` message with the reason.

    Raises:
        LogError: no scene of this name.
        DataRootError, SensorDataError: as `open_index`.
    """

    def __init__(self, config: NuScenesConfig, scene: str) -> None:
        self._index: NuScenesIndex = open_index(config)
        scenes = self._index.meta.scenes
        if scene not in scenes:
            more = f" and {len(scenes) - _SOME} more" if len(scenes) > _SOME else ""
            raise LogError(
                f"{config.root} {config.version}: no scene {scene!r}. There are {', '.join(scenes[:_SOME]) or 'none'}{more}"
            )
        self.scene = scene
        self._root, self._lidar_columns = config.root.expanduser(), config.lidar_columns
        self._path = self._root / config.version
        self._damage = Damage()
        number = scenes.index(scene)
        self._rows: NDArray[np.int32] = self._index.data_of_scene(number)
        # Tables without any annotation, as those of a test split, say nothing; a sample without boxes says "nothing there".
        annotated = len(self._index.arrays.box_token) > 0
        samples = np.flatnonzero((self._index.arrays.sample_scene == number) & annotated)
        self._samples = samples[np.argsort(self._index.arrays.sample_time_us[samples], kind="stable")]

    @property
    def path(self) -> Path:
        """The folder of tables."""
        return self._path

    @property
    def damage(self) -> Damage:
        return self._damage

    def topics(self) -> tuple[TopicInfo, ...]:
        """Every channel of the data set has its topics, with a count of 0 where this scene has none of its readings."""
        arrays, meta = self._index.arrays, self._index.meta
        readings = np.bincount(arrays.data_channel[self._rows], minlength=len(meta.channels)).tolist()
        rows = []
        for channel, modality, count in zip(meta.channels, meta.modalities, readings, strict=True):
            if modality == "camera":
                image = image_topic(self._index, channel)
                rows += [(image, "EncodedImage", count), (info_topic(channel), "CameraInfo", count)]
            else:
                rows.append((points_topic(channel), "PointCloud", count))
        poses = len(np.unique(arrays.data_time_us[self._rows]))
        rows += [(POSES, "FrameTransforms", poses), (CALIBRATIONS, "FrameTransforms", len(self._calibrated()))]
        rows.append((ANNOTATIONS, "SceneBoxes", len(self._samples)))
        return tuple(TopicInfo(name, kind, "nuscenes", count) for name, kind, count in rows)

    def span_ns(self) -> tuple[int, int] | None:
        times = [
            *self._index.arrays.data_time_us[self._rows[[0, -1]] if len(self._rows) else []].tolist(),
            *self._index.arrays.sample_time_us[self._samples[[0, -1]] if len(self._samples) else []].tolist(),
        ]
        return (min(times) * 1000, max(times) * 1000) if times else None

    def messages(
        self,
        *,
        topics: Collection[str] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
    ) -> Iterator[LogMessage]:
        """As `Log.messages`; the times of recording and publishing are one here.

        At equal times: calibrations, ego pose, readings by channel (a camera's calibration before its picture), boxes.
        """
        self._damage = damage = Damage()
        selected = None if topics is None else frozenset(topics)
        for planned in self._between(start_ns, end_ns):
            if selected is None or planned.topic in selected:
                payload = self._payload(planned)
                if isinstance(payload, Malformed):
                    damage.malformed[planned.topic] = damage.malformed.get(planned.topic, 0) + 1
                yield LogMessage(planned.topic, planned.time_us * 1000, planned.time_us * 1000, payload)

    def _between(self, start_ns: int | None, end_ns: int | None) -> Iterator[_Planned]:
        """The part of the scene that was asked for, what was latched before it first."""
        start, end = (bound if ns is None else ns for bound, ns in ((-math.inf, start_ns), (math.inf, end_ns)))
        before = list(itertools.takewhile(lambda planned: planned.time_us * 1000 < start, self._plan()))
        yield from (planned for planned in before if planned.topic == CALIBRATIONS)
        infos = {planned.topic: planned for planned in before if planned.topic.endswith(INFO)}
        yield from sorted(infos.values(), key=lambda planned: planned.time_us)
        yield from (planned for planned in self._plan() if start <= planned.time_us * 1000 < end)

    def _plan(self) -> Iterator[_Planned]:
        """The whole scene in order; nothing is read for it but the index."""
        arrays = self._index.arrays
        boxes = (_Planned(ANNOTATIONS, int(arrays.sample_time_us[sample]), int(sample)) for sample in self._samples)
        return heapq.merge(self._plan_readings(), boxes, key=lambda planned: planned.time_us)

    def _plan_readings(self) -> Iterator[_Planned]:
        arrays, meta = self._index.arrays, self._index.meta
        calibrated = set(self._calibrated())
        pose_time_us = -1
        for row in self._rows.tolist():
            time_us, channel = int(arrays.data_time_us[row]), int(arrays.data_channel[row])
            if row in calibrated:
                yield _Planned(CALIBRATIONS, time_us, row)
            if time_us != pose_time_us:  # one pose a time: a tree of transforms holds no two
                pose_time_us = time_us
                yield _Planned(POSES, time_us, row)
            if meta.modalities[channel] == "camera":
                yield _Planned(info_topic(meta.channels[channel]), time_us, row)
                yield _Planned(image_topic(self._index, meta.channels[channel]), time_us, row)
            else:
                yield _Planned(points_topic(meta.channels[channel]), time_us, row)

    def _calibrated(self) -> list[int]:
        """Rows of readings at which a calibration is told: the scene's first, for all sensors, and each that changes one."""
        arrays = self._index.arrays
        rows = [int(row) for row in self._rows[:1]]
        channels, calibrations = arrays.data_channel[self._rows], arrays.data_calibration[self._rows]
        for channel in np.unique(channels):
            mine = np.flatnonzero(channels == channel)
            changed = mine[1:][np.diff(calibrations[mine]) != 0]
            rows += [int(row) for row in self._rows[changed]]
        return rows

    def _first_rows(self) -> list[int]:
        """The first reading of each channel in this scene."""
        _, first = np.unique(self._index.arrays.data_channel[self._rows], return_index=True)
        return [int(row) for row in self._rows[first]]

    def _payload(self, planned: _Planned) -> Payload:
        index, time_us, row = self._index, planned.time_us, planned.row
        if planned.topic == ANNOTATIONS:
            return scene_boxes(index, row)
        if planned.topic == POSES:
            return ego_pose(index, row)
        if planned.topic == CALIBRATIONS:
            first = row == int(self._rows[0])
            return sensor_poses(index, time_us, self._first_rows() if first else [row])
        if planned.topic.endswith(INFO):
            return camera_info(index, row)
        return reading(index, self._root, row, self._lidar_columns)
