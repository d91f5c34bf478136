"""Reads keyframes, sweeps and boxes of any nuScenes-format data set.

The reference frame of a sample is the ego frame at the keyframe time of `reference_channel`. Every sensor is brought
there from its own time: reference_T_sensor = inv(global_T_ego at the keyframe) @ global_T_ego at its own time @ ego_T_sensor.

Letters: S samples of the split, N boxes, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from bev.detection.boxes import Boxes
from bev.grid import BEVGrid
from sensors.calibration import CalibrationError, Float64, inverse_rigid, transforms
from sensors.camera.images import DecodeSize, scaled_intrinsics
from sensors.camera.picture_files import read_picture
from sensors.camera.rectification import Lens
from sensors.errors import DataRootError, SensorDataError, SensorDataWarning
from sensors.frames import CameraImage, LidarSweep, RadarSweep, SensorFrame
from sensors.nuscenes.channels import check_channels
from sensors.nuscenes.config import DETECTION_ATTRIBUTES, NuScenesConfig
from sensors.nuscenes.index import NuScenesIndex, open_index
from sensors.nuscenes.point_files import read_lidar_file, read_radar_file

_Reading = TypeVar("_Reading", CameraImage, LidarSweep, RadarSweep)


class Source(TypedDict):
    """Which file, and how a fault in it is named."""

    path: Path
    sensor: str
    token: str


@dataclass(frozen=True)
class Truth:
    """The boxes of a split, and which of them training sees."""

    split: str
    boxes: int  # read
    per_class: dict[str, int]  # that training sees
    left_out: dict[str, int]  # why -> how many of the others

    def __str__(self) -> str:
        seen = ", ".join(f"{name} {count}" for name, count in self.per_class.items() if count)
        lines = [f"{count} {reason}" for reason, count in self.left_out.items()]
        out = f"; left out: {'; '.join(lines)}" if lines else ""
        return (
            f"{sum(self.per_class.values())} of {self.boxes} boxes in {self.split}{f' ({seen})' if seen else ''}{out}"
        )


class NuScenesReader:
    """The samples of one split.

    `classes` and `attributes` give labels their numbers; by default the classes of `config.class_map` in its order and nuScenes'
    eight attributes. `decode` lets JPEGs be decoded at a reduced scale. Pickles as its arguments and opens the index anew.

    Raises:
        DataRootError: the data set, the version, the split or a channel is not there, or the class map names a class not in
            `classes`.
    """

    def __init__(
        self,
        config: NuScenesConfig,
        split: str,
        *,
        classes: tuple[str, ...] | None = None,
        attributes: tuple[str, ...] | None = None,
        decode: DecodeSize | None = None,
    ) -> None:
        self.config = config
        self.split = split
        self.classes = config.classes if classes is None else tuple(classes)
        self.attributes = DETECTION_ATTRIBUTES if attributes is None else tuple(attributes)
        self.decode = decode
        self.index: NuScenesIndex = open_index(config)
        check_channels(config, self.index)
        self.samples = self.index.samples_of_split(split)
        self._root = config.root.expanduser()
        self._columns = {name: i for i, name in enumerate(self.index.meta.channels)}
        self._label_of_category = label_of_category(self.index.meta.categories, config.class_map, self.classes)
        self._attribute_of = _positions(self.index.meta.attributes, self.attributes)
        self._tokens: tuple[str, ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.config, self.split, self.classes, self.attributes, self.decode)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The S sample tokens."""
        if self._tokens is None:
            self._tokens = tuple(t.decode() for t in self.index.arrays.sample_token[self.samples].tolist())
        return self._tokens

    @property
    def root(self) -> Path:
        return self._root

    def index_of(self, token: str) -> int:
        """The position of a sample in this split; ValueError where it is not in it."""
        try:
            return self.tokens.index(token)
        except ValueError:
            raise ValueError(f"sample {token!r} is not in split {self.split!r} of {self.config.version}") from None

    def scene_name(self, i: int) -> str:
        return self.index.meta.scenes[int(self.index.arrays.sample_scene[self.samples[i]])]

    def previous(self, i: int) -> int | None:
        """The position in this split of the sample before `i` in its scene; None where `i` is the first there."""
        arrays, sample = self.index.arrays, self.samples[i]
        earlier = np.flatnonzero(arrays.sample_scene[self.samples] == arrays.sample_scene[sample])
        earlier = earlier[arrays.sample_time_us[self.samples[earlier]] < arrays.sample_time_us[sample]]
        return int(earlier[arrays.sample_time_us[self.samples[earlier]].argmax()]) if len(earlier) else None

    def time_us(self, i: int) -> int:
        return int(self.index.arrays.sample_time_us[self.samples[i]])

    def global_T_reference(self, i: int) -> Float64:  # noqa: N802
        """[4, 4] the ego pose at the keyframe time of the reference channel.

        A sample without that channel takes the pose of the keyframe nearest to the sample's own time.
        """
        return transforms(self.index.arrays.data_ego_pose[self._reference_row(i)])

    def _reference_row(self, i: int) -> int:
        arrays, sample = self.index.arrays, self.samples[i]
        row = self._keyframe(i, self.config.reference_channel)
        if row < 0:
            rows = arrays.keyframe[sample][arrays.keyframe[sample] >= 0]
            if not len(rows):
                raise SensorDataError(
                    f"sample {self.tokens[i]} has no sensor data at all in sample_data.json, and so no ego pose. "
                    "Remove the sample or restore its rows"
                )
            row = int(rows[np.abs(arrays.data_time_us[rows] - arrays.sample_time_us[sample]).argmin()])
        return row

    def frame(self, i: int, *, motion: bool = True) -> SensorFrame:
        """Everything the configured sensors saw at sample `i`. A channel without a keyframe here counts as absent.

        Without `motion` poses are the mounts alone, `ego_T_sensor`, as a calibration is looked at.

        Raises:
            SensorDataError: a file is missing, truncated or damaged, and `on_bad_file` is "error".
        """
        config, global_T_reference = self.config, self.global_T_reference(i)
        chains = {channel: self._chain(i, channel, 1) for channel in config.camera_channels}
        chains |= {channel: self._chain(i, channel, config.lidar_sweeps) for channel in config.lidar_channels}
        chains |= {channel: self._chain(i, channel, config.radar_sweeps) for channel in config.radar_channels}
        rows = [row for rows in chains.values() for row in rows]
        poses = self._reference_T_sensor(rows, global_T_reference if motion else None)
        cameras = tuple(
            next(iter(self._readings(chains[channel], channel, poses, self._camera)), None)
            for channel in config.camera_channels
        )
        lidar = [self._readings(chains[channel], channel, poses, self._lidar) for channel in config.lidar_channels]
        radar = [self._readings(chains[channel], channel, poses, self._radar) for channel in config.radar_channels]
        return SensorFrame(
            token=self.tokens[i],
            time_us=self.time_us(i),
            cameras=cameras if any(camera is not None for camera in cameras) else None,
            lidar=tuple(sweep for sweeps in lidar for sweep in sweeps) if any(lidar) else None,
            radar=tuple(sweep for sweeps in radar for sweep in sweeps) if any(radar) else None,
            global_T_reference=global_T_reference,
        )

    def boxes(self, i: int) -> Boxes:
        """Truth of the classes in the class map, in the reference frame, however few points are in a box.

        Boxes stand upright there, as the network predicts them; `reference_T_box` keeps the tilt of the vehicle.
        """
        rows = self._box_rows(i)
        arrays = self.index.arrays
        reference_T_box = self.reference_T_box(i)
        velocity = np.pad(arrays.box_velocity_mps[rows], ((0, 0), (0, 1)))
        velocity = velocity @ self.global_T_reference(i)[:3, :3]  # R^T v, as rows
        labels, attributes = self._label_of_category[arrays.box_category[rows]], self._attributes(rows)
        return Boxes(
            center_m=torch.from_numpy(reference_T_box[:, :3, 3].astype(np.float32)),
            size_m=torch.from_numpy(arrays.box_size_m[rows].astype(np.float32)),
            yaw_rad=torch.from_numpy(np.arctan2(reference_T_box[:, 1, 0], reference_T_box[:, 0, 0]).astype(np.float32)),
            velocity_mps=torch.from_numpy(velocity[:, :2].astype(np.float32)),
            label=torch.from_numpy(labels.astype(np.int64)),
            attribute=torch.from_numpy(attributes.astype(np.int64)),
            score=torch.ones(len(rows)),
        )

    def reference_T_box(self, i: int) -> Float64:  # noqa: N802
        """[N, 4, 4] the exact poses of `boxes(i)`: x along the length, y along the width, z up, origin in the middle."""
        return inverse_rigid(self.global_T_reference(i)) @ transforms(self.index.arrays.box_pose[self._box_rows(i)])

    def num_points(self, i: int) -> torch.Tensor:
        """[N] int64, LiDAR and radar points in each of `boxes(i)`, as annotated; those that were not counted are none."""
        return torch.from_numpy(self.box_points(self._box_rows(i)))

    def box_points(self, rows: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """`num_points` of rows of the index."""
        arrays = self.index.arrays
        lidar, radar = arrays.box_lidar_points[rows], arrays.box_radar_points[rows]
        return np.maximum(lidar, 0).astype(np.int64) + np.maximum(radar, 0)

    def class_counts(self, min_points: int = 1) -> NDArray[np.int64]:
        """[S, K] boxes with at least so many points, by class: what balanced sampling needs."""
        arrays = self.index.arrays
        label = self._label_of_category[arrays.box_category]
        seen = (label >= 0) & (self.box_points(slice(None)) >= min_points)
        sample = np.repeat(np.arange(len(arrays.box_start) - 1), np.diff(arrays.box_start))
        counts = np.zeros((len(arrays.box_start) - 1, len(self.classes)), np.int64)
        np.add.at(counts, (sample[seen], label[seen]), 1)
        return counts[self.samples]

    def truth(self, min_points: int, grid: BEVGrid) -> Truth:
        """Which boxes of the split training sees, and why it does not see the others."""
        arrays = self.index.arrays
        counts = np.diff(arrays.box_start)[self.samples]
        position = np.repeat(np.arange(len(self.samples)), counts)
        rows = np.arange(counts.sum()) + np.repeat(arrays.box_start[self.samples] - np.cumsum(counts) + counts, counts)
        label, points = self._label_of_category[arrays.box_category[rows]], self.box_points(rows)
        counted = np.maximum(arrays.box_lidar_points[rows], arrays.box_radar_points[rows]) > 0
        counted |= (arrays.box_lidar_points[rows] >= 0) & (arrays.box_radar_points[rows] >= 0)
        reference = [self._reference_row(i) for i in range(len(self.samples))] if len(rows) else []
        pose = transforms(arrays.data_ego_pose[reference])[position]
        xy_m = np.einsum("nji,nj->ni", pose[:, :3, :2], arrays.box_pose[rows, :3] - pose[:, :3, 3])
        inside = (grid.flat_index(torch.from_numpy(xy_m.astype(np.float32))) < grid.num_cells).numpy()
        categories = np.bincount(arrays.box_category[rows][label < 0], minlength=len(self.index.meta.categories))
        reasons = {
            f"of no category that data.nuscenes.class_map names ({_most(self.index.meta.categories, categories)})": label
            < 0,
            f"whose points were not counted, where data.min_points={min_points} asks for some: data.min_points=0 takes "
            "them": ~counted & (points < min_points),
            f"with fewer points than data.min_points={min_points}": points < min_points,
            "outside model.grid": ~inside,
        }
        seen, left_out = np.ones(len(rows), bool), {}
        for reason, out in reasons.items():
            if count := int((seen & out).sum()):
                left_out[reason] = count
            seen &= ~out
        per_class = np.bincount(label[seen], minlength=len(self.classes)).tolist()
        return Truth(self.split, len(rows), dict(zip(self.classes, per_class, strict=True)), left_out)

    def _attributes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of each box the first attribute that is among `attributes`, -1 for none."""
        arrays = self.index.arrays
        known = self._attribute_of[arrays.box_attribute[rows]]  # -1, which is none, is its last
        for column in arrays.box_more_attributes[rows].T:
            known = np.where(known >= 0, known, self._attribute_of[column])
        return known

    def _box_rows(self, i: int) -> NDArray[np.int64]:
        start, end = self.index.arrays.box_start[self.samples[i] : self.samples[i] + 2]
        rows = np.arange(start, end)
        return rows[self._label_of_category[self.index.arrays.box_category[rows]] >= 0]

    def _keyframe(self, i: int, channel: str) -> int:
        """Row of sample_data, -1 where the channel has none."""
        column = self._columns.get(channel)
        return -1 if column is None else int(self.index.arrays.keyframe[self.samples[i], column])

    def _chain(self, i: int, channel: str, sweeps: int) -> list[int]:
        """Rows of sample_data from the keyframe back in time, at most `sweeps`, up to the first gap that is too long."""
        arrays, row = self.index.arrays, self._keyframe(i, channel)
        rows: list[int] = []
        while row >= 0 and len(rows) < sweeps:
            rows.append(row)
            row = int(arrays.data_prev[row])
            if row >= 0 and self._too_old(arrays.data_time_us[rows[-1]] - arrays.data_time_us[row]):
                break
        return rows

    def _too_old(self, gap_us: Any) -> Any:
        limit_s = self.config.max_sweep_gap_s
        return gap_us > (np.inf if limit_s is None else limit_s * 1e6)

    def left_out_sweeps(self) -> list[str]:
        """One line for each modality of whose sweeps some are left out because of their age; none where all are used."""
        lines, config, arrays = [], self.config, self.index.arrays
        for modality, sweeps in (("lidar", config.lidar_sweeps), ("radar", config.radar_sweeps)):
            keyframes, gaps_us = 0, [np.zeros(0)]
            for channel in config.channels()[modality]:
                column = self._columns.get(channel)
                rows = arrays.keyframe[self.samples, column] if column is not None else np.zeros(0, np.int32)
                rows = rows[rows >= 0]
                keyframes += len(rows)
                for _ in range(sweeps - 1):
                    before = arrays.data_prev[rows]
                    rows, before = rows[before >= 0], before[before >= 0]
                    gap_us = arrays.data_time_us[rows] - arrays.data_time_us[before]
                    old = self._too_old(gap_us)
                    gaps_us.append(gap_us[old])
                    rows = before[~old]
            cut_us = np.concatenate(gaps_us)
            if len(cut_us):
                lines.append(
                    f"{modality}_sweeps={sweeps}: at {len(cut_us) / keyframes:.0%} of the keyframes a sweep is "
                    f"{np.median(cut_us) * 1e-6:.2f} s older (median) than the next; it and those before it are left out, as "
                    f"data.nuscenes.max_sweep_gap_s={config.max_sweep_gap_s:g} has it (null takes them)"
                )
        return lines

    def _reference_T_sensor(  # noqa: N802
        self, rows: list[int], global_T_reference: Float64 | None
    ) -> dict[int, Float64]:
        """Row of sample_data -> [4, 4], all at once: a sample has dozens. None: `ego_T_sensor`."""
        arrays = self.index.arrays
        poses = transforms(arrays.calibration_pose[arrays.data_calibration[rows]])
        if global_T_reference is not None:
            poses = inverse_rigid(global_T_reference) @ transforms(arrays.data_ego_pose[rows]) @ poses
        return dict(zip(rows, poses, strict=True))

    def _camera(self, channel: str, row: int, pose: Float64, source: Source) -> CameraImage:
        arrays, calibration = self.index.arrays, int(self.index.arrays.data_calibration[row])
        height, width = arrays.data_size_px[row].tolist()
        intrinsics, time_us = arrays.calibration_intrinsics[calibration], int(arrays.data_time_us[row])
        model, coefficients = self.index.distortion(calibration)
        # A reduced picture does not tell the full one's size, which the lens needs.
        decode = self.decode if min(height, width) > 0 or not model else None
        image, scale = read_picture(**source, size_px=(height, width), decode=decode)
        if not model:
            return CameraImage(channel, image, scaled_intrinsics(intrinsics, scale, scale), pose, time_us)
        if min(height, width) <= 0:
            height, width = image.shape[:2]
        try:
            lens = Lens.of(model, coefficients, intrinsics, (height, width))
            assert lens is not None, "an index gives a model to those that distort"
            return CameraImage(channel, *lens.rectify(image, scale), pose, time_us)
        except CalibrationError as error:
            raise CalibrationError(f"{channel}: {source['path']} (token {source['token']}): {error}") from error

    def _lidar(self, channel: str, row: int, pose: Float64, source: Source) -> LidarSweep:
        points = read_lidar_file(**source, columns=self.config.lidar_columns)
        return LidarSweep(channel, points, pose, int(self.index.arrays.data_time_us[row]))

    def _radar(self, channel: str, row: int, pose: Float64, source: Source) -> RadarSweep:
        points = read_radar_file(**source, keep=self.config.radar_filter)
        return RadarSweep(channel, points, pose, int(self.index.arrays.data_time_us[row]))

    def _readings(
        self,
        rows: list[int],
        channel: str,
        poses: dict[int, Float64],
        read: Callable[[str, int, Float64, Source], _Reading],
    ) -> list[_Reading]:
        """The readings of a chain, up to the first broken file where those count as absent."""
        arrays, readings = self.index.arrays, []
        for row in rows:
            try:
                source = Source(
                    path=self.index.file(row, self._root), sensor=channel, token=arrays.data_token[row].decode()
                )
                readings.append(read(channel, row, poses[row], source))
            except SensorDataError as error:
                if self.config.on_bad_file == "error":
                    raise
                warnings.warn(f"counts as absent: {error}", SensorDataWarning, stacklevel=2)
                break
        return readings


def _reopen(
    config: NuScenesConfig,
    split: str,
    classes: tuple[str, ...],
    attributes: tuple[str, ...],
    decode: DecodeSize | None,
) -> NuScenesReader:
    return NuScenesReader(config, split, classes=classes, attributes=attributes, decode=decode)


def label_of_category(
    categories: tuple[str, ...], class_map: dict[str, str], classes: tuple[str, ...]
) -> NDArray[np.int64]:
    """Class number of each category, -1 for those that are not detected."""
    unknown = sorted(set(class_map.values()) - set(classes))
    if unknown:
        raise DataRootError(
            f"data.nuscenes.class_map: {unknown[0]!r} is none of the model's classes {', '.join(classes)}. "
            "Leave these categories out of the map, or add the class to model.classes"
        )
    return np.array([classes.index(class_map[name]) if name in class_map else -1 for name in categories], np.int64)


def _most(names: tuple[str, ...], counts: NDArray[np.int64], shown: int = 4) -> str:
    """The names that count most."""
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    more = [f"{len(order) - shown} more"] if len(order) > shown else []
    return ", ".join([f"{names[i]} {counts[i]}" for i in order[:shown]] + more)


def _positions(names: tuple[str, ...], wanted: tuple[str, ...]) -> NDArray[np.int64]:
    """Where each name stands in `wanted`, -1 where it does not."""
    return np.array([wanted.index(name) if name in wanted else -1 for name in (*names, "")], np.int64)
