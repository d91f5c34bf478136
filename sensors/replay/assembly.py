"""Puts together what the model is given at a tick, and says of every sensor how it stands.

Frames: the reference is the ego frame at the tick. Every measurement is brought there from its own time by ego motion; where the
log says nothing of ego motion, the newest measurements are given as they are and older sweeps are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sensors.calibration import CalibrationError, Float64
from sensors.camera.images import DecodeSize, scaled_intrinsics
from sensors.errors import SensorDataError
from sensors.frames import CameraImage, LidarSweep, RadarSweep, SensorFrame
from sensors.logs.messages import EncodedImage, Malformed, PointCloud, RawImage
from sensors.motion.trajectory import EgoMotion, deskewed
from sensors.replay.channels import Channels, Source
from sensors.replay.readings import (
    Picture,
    decode_picture,
    lidar_points,
    picture_size_px,
    point_offsets_us,
    radar_points,
)
from sensors.replay.rig import Mounting, Rig
from sensors.replay.synchroniser import Reading, SensorQueue
from sensors.replay.tick import SensorState, SensorStatus, Tick

_NO_MOTION = "no ego pose at its time: not brought to the tick"
_NO_MOTION_WITHIN = "no ego pose at the times of its points: not brought to its stamp"


@dataclass(frozen=True)
class _Taken:
    """A measurement that may be given, and what stands behind it."""

    source: Source
    reading: Reading
    mounting: Mounting


@dataclass
class Assembler:
    """Makes ticks from the queues of all sensors that the log has."""

    channels: Channels
    rig: Rig
    decode: DecodeSize | None = None
    endured: type[Exception] = SensorDataError  # what costs a sensor its place in a tick, and does not end the ticks

    def tick(self, queues: Mapping[str, SensorQueue], *, index: int, tick_ns: int, ready_ns: int, reset: bool) -> Tick:
        """The tick as it is known at `ready_ns`."""
        motion = EgoMotion(self.rig.ego_pose, tick_ns)
        slow = {channel: queue.rate_doubt(tick_ns) for channel, queue in queues.items()}
        statuses: dict[str, SensorStatus] = {}
        taken: dict[str, _Taken] = {}
        for channel, modality in self.channels.modalities().items():
            got = self._take(channel, modality, queues.get(channel), tick_ns, ready_ns)
            if isinstance(got, SensorStatus):
                statuses[channel] = got
            else:
                taken[channel] = got
        measured: list[CameraImage | LidarSweep | RadarSweep] = []
        for channel, item in taken.items():
            doubts = list(item.mounting.flagged)
            try:
                measured += self._measured(item, queues[channel], motion, doubts)
            except self.endured as error:
                statuses[channel] = _status(item.source, SensorState.MALFORMED, tick_ns, item.reading, _reason(error))
            else:
                statuses[channel] = self._given(item, tick_ns, doubts, slow[channel])
        cameras = {one.channel: one for one in measured if isinstance(one, CameraImage)}
        images = tuple(cameras.get(channel) for channel in self.channels.cameras)
        frame = SensorFrame(
            token=f"tick-{index:06d}",
            time_us=tick_ns // 1000,
            cameras=images if cameras else None,
            lidar=tuple(one for one in measured if isinstance(one, LidarSweep)) or None,
            radar=tuple(one for one in measured if isinstance(one, RadarSweep)) or None,
            global_T_reference=np.eye(4) if motion.global_T_reference is None else motion.global_T_reference,
        )
        return Tick(
            index=index,
            time_us=frame.time_us,
            ready_us=max(ready_ns // 1000, frame.time_us),
            frame=frame,
            sensors={channel: statuses[channel] for channel in self.channels.modalities()},
            ego_pose_known=motion.global_T_reference is not None,
            reset=reset,
            ego_T_sensor={c: item.mounting.ego_T_sensor for c, item in taken.items() if statuses[c].given},
        )

    def _take(
        self, channel: str, modality: str, queue: SensorQueue | None, tick_ns: int, ready_ns: int
    ) -> _Taken | SensorStatus:
        """The measurement of a sensor for a tick, with a calibration that can be; else why there is none."""
        if queue is None:
            return SensorStatus(channel, modality, SensorState.MISSING, None, "not in this log")
        reading, source = queue.nearest(tick_ns), queue.source
        if reading is None or not queue.usable(reading, tick_ns):
            state, age_ns, why = queue.state_without(tick_ns, ready_ns)
            return SensorStatus(channel, modality, state, None if age_ns is None else _us(age_ns), why)
        payload = reading.payload
        if isinstance(payload, Malformed):
            return _status(source, SensorState.MALFORMED, tick_ns, reading, f"{source.topic}: {payload.reason}")
        try:
            size_px = None if isinstance(payload, PointCloud) else picture_size_px(payload)
            return _Taken(source, reading, self.rig.mounting(source, payload.frame_id, reading.stamp_ns, size_px))
        except CalibrationError as error:
            return _status(source, SensorState.UNCALIBRATED, tick_ns, reading, str(error))
        except self.endured as error:
            return _status(source, SensorState.MALFORMED, tick_ns, reading, f"{source.topic}: {_reason(error)}")

    def _given(self, item: _Taken, tick_ns: int, doubts: Sequence[str], slow: str) -> SensorStatus:
        reasons = [*item.reading.doubts, *doubts, *self.rig.alike(item.source.channel)]
        state = SensorState.FLAGGED if reasons else SensorState.RATE_LOW if slow else SensorState.OK
        detail = "; ".join(filter(None, [*reasons, slow, item.mounting.note]))
        return _status(item.source, state, tick_ns, item.reading, detail)

    def _measured(
        self, item: _Taken, queue: SensorQueue, motion: EgoMotion, doubts: list[str]
    ) -> Sequence[CameraImage | LidarSweep | RadarSweep]:
        """Its picture, or its sweeps, newest first, brought to the tick; adds to the doubts."""
        if item.source.modality == "camera":
            return [self._camera(item, motion, doubts)]
        sweep = LidarSweep if item.source.modality == "lidar" else RadarSweep
        return [sweep(*one) for one in self._sweeps(item, queue, motion, doubts)]

    def _camera(self, item: _Taken, motion: EgoMotion, doubts: list[str]) -> CameraImage:
        picture, intrinsics = self._picture(item), item.mounting.intrinsics
        assert intrinsics is not None, "a camera's mounting has intrinsics"
        return CameraImage(
            channel=item.source.channel,
            image=picture.image,
            intrinsics=scaled_intrinsics(intrinsics, picture.scale, picture.scale),
            reference_T_camera=_placed(item, motion, doubts),
            time_us=_us(item.reading.stamp_ns),
        )

    def _picture(self, item: _Taken) -> Picture:
        reading, lens = item.reading, item.mounting.lens
        if reading.decoded is None or reading.decoded.lens != lens:  # the calibration may change between two ticks
            assert isinstance(reading.payload, EncodedImage | RawImage)
            try:
                decoded = decode_picture(reading.payload, self.decode)
            except SensorDataError as error:
                raise SensorDataError(f"{item.source.topic}: {error}") from error
            if lens is not None:
                decoded = Picture(lens.rectify(decoded.image, decoded.scale)[0], decoded.scale, lens)
            reading.decoded = decoded
        picture: Picture = reading.decoded
        return picture

    def _sweeps(
        self, item: _Taken, queue: SensorQueue, motion: EgoMotion, doubts: list[str]
    ) -> list[tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]], Float64, int]]:
        """Channel, points, reference_T_sensor and time of the measurement and of the usable sweeps before it."""
        source, channel = item.source, item.source.channel
        points, notes = _points(source, item.reading)
        doubts += notes
        pose = _placed(item, motion, doubts)
        moved = _at_its_stamp(source, item.reading, item.mounting, motion)
        if moved is None:
            doubts.append(_NO_MOTION_WITHIN)
        out = [(channel, points if moved is None else moved, pose, _us(item.reading.stamp_ns))]
        for reading in queue.older(item.reading):
            assert isinstance(reading.payload, PointCloud)
            try:
                mounting = self.rig.mounting(source, reading.payload.frame_id, reading.stamp_ns, None)
                moved = _at_its_stamp(source, reading, mounting, motion)
            except SensorDataError:  # it was this sensor's state at its own tick; here it is one sweep less
                continue
            older = motion.reference_T_sensor(mounting.ego_T_sensor, reading.stamp_ns)
            if older is None or moved is None:
                break
            out.append((channel, moved, older, _us(reading.stamp_ns)))
        return out


def _at_its_stamp(
    source: Source, reading: Reading, mounting: Mounting, motion: EgoMotion
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """The points of a sweep, those with times brought to its stamp; None where the motion within the sweep is not known."""
    points, _ = _points(source, reading)
    if source.time_field is None or motion.global_T_reference is None:
        return points
    assert isinstance(reading.payload, PointCloud)
    try:
        offsets_us = point_offsets_us(reading.payload, source.time_field, source.time_scale_s)
    except SensorDataError as error:
        raise SensorDataError(f"{source.topic}: {error}") from error
    stamp_us = _us(reading.stamp_ns)
    return deskewed(points, stamp_us + offsets_us, stamp_us, mounting.ego_T_sensor, motion)


def _points(
    source: Source, reading: Reading
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], tuple[str, ...]]:
    if reading.decoded is None:
        assert isinstance(reading.payload, PointCloud)
        try:
            if source.modality == "lidar":
                reading.decoded = lidar_points(reading.payload, source.fields, source.intensity_scale)
            else:
                reading.decoded = radar_points(reading.payload, source.fields), ()
        except SensorDataError as error:
            raise SensorDataError(f"{source.topic}: {error}") from error
    points, notes = reading.decoded
    return points, notes


def _placed(item: _Taken, motion: EgoMotion, doubts: list[str]) -> Float64:
    """[4, 4] reference_T_sensor; without ego motion where none is known."""
    pose = motion.reference_T_sensor(item.mounting.ego_T_sensor, item.reading.stamp_ns)
    if pose is None:
        if motion.global_T_reference is not None:
            doubts.append(_NO_MOTION)
        return item.mounting.ego_T_sensor
    return pose


def _status(source: Source, state: SensorState, tick_ns: int, reading: Reading, detail: str) -> SensorStatus:
    return SensorStatus(source.channel, source.modality, state, _us(tick_ns - reading.stamp_ns), detail)


def _reason(error: Exception) -> str:
    """Our own words, or those of what nobody expected."""
    own = isinstance(error, SensorDataError)
    return str(error) if own else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _us(time_ns: int) -> int:
    return time_ns // 1000
