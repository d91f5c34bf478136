"""One instant as the sensors saw it, in numpy: what a data set, a log or a robot hands over; and why a sensor is absent in it.

Motion is in it: `reference_T_sensor` maps sensor points, at the sensor's own time, to the ego frame at the frame's time. So it
holds where the sensor is mounted and how the vehicle has moved between the two times; a mount alone is right while nothing moves.
`sensors.readings.frame_at` makes a frame of mounts, poses of the vehicle and times.

Frames: `sensor` is a sensor's own frame (camera: x right, y down, z forward). `reference` is the ego frame at the frame's time
(of a data set: the keyframe's LiDAR time), x forward, y left, z up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import CalibrationError
from sensors.errors import SensorDataError

FloatArray = NDArray[np.floating[Any]]

KINDS = ("camera", "lidar", "radar")  # of sensors; a model may have several modalities of one kind
SECTORS = 36  # S, azimuth sectors of the LiDARs; sector s starts at -pi + s * 2 pi / S in the reference frame


@dataclass(frozen=True)
class CameraImage:
    """One picture as a pinhole shows it; what another lens shows is rectified first (`sensors.camera.rectification`).

    Pixel (u, v) has its centre at (u, v) + 0: nuScenes intrinsics as they are.
    """

    channel: str
    image: NDArray[np.uint8]  # [H, W, 3] RGB, perhaps decoded at a reduced scale
    intrinsics: FloatArray  # [3, 3] px, at the size of `image`
    reference_T_camera: FloatArray  # [4, 4], motion included
    time_us: int  # when it was measured


@dataclass(frozen=True)
class LidarSweep:
    """One sweep: points [P, 5] float32 in the sensor frame: x_m, y_m, z_m, intensity (0..255), ring (-1 unknown)."""

    channel: str
    points: NDArray[np.float32]
    reference_T_lidar: FloatArray  # [4, 4], motion included
    time_us: int  # when it was measured


@dataclass(frozen=True)
class RadarSweep:
    """One sweep: points [P, 6] float32 in the sensor frame: x_m, y_m, z_m, rcs_dbsm, vx_mps, vy_mps.

    The velocity is the radial one over ground (ego motion compensated), as a vector in the sensor frame.
    """

    channel: str
    points: NDArray[np.float32]
    reference_T_radar: FloatArray  # [4, 4], motion included
    time_us: int  # when it was measured


class Lack(StrEnum):
    """What a frame lacks of a sensor."""

    READING = "no reading"  # the frame holds no picture or sweep of it
    RETURN = "no return"  # its sweeps hold no point: one frame cannot tell a dead sensor from an empty world
    STALE = "stale"  # what it gave is older than may be, or newer
    UNPLACED = "no ego pose"  # the vehicle's motion since its time is not known
    USABLE = "no usable point"  # its sweeps hold points, and none of them can reach the network
    MALFORMED = "malformed"  # what it gave cannot be read: shapes, types, times, more than the rig says
    UNCALIBRATED = "uncalibrated"  # its calibration cannot be one
    SICK = "sick"  # the health monitor says that what it gives is wrong, and acts


@dataclass(frozen=True)
class Absence:
    """One sensor that counts as absent: what is lacking, and the reason for a person, with counts."""

    lack: Lack
    reason: str

    @classmethod
    def of(cls, error: SensorDataError) -> Absence:
        """Of a sensor whose reading or calibration is none."""
        return cls(Lack.UNCALIBRATED if isinstance(error, CalibrationError) else Lack.MALFORMED, str(error))


NOT_GIVEN = Absence(Lack.READING, "the frame holds nothing of it")


@dataclass(frozen=True)
class SensorFrame:
    """Everything known at one instant, in the ego frame of that instant: the poses of its readings hold the motion since each was
    measured (`sensors.readings.frame_at` sees to it). None is an absent modality, and so is one without pictures or sweeps.

    A LiDAR or radar of which no point can be used is absent too (`sensors.points`): an empty sweep is that of a
    dead sensor, for all that one frame can tell.

    `cameras` keeps the order of the configured channels, None where that camera is absent. `lidar` and `radar` hold sweeps of
    any channels, newest first within a channel.
    """

    token: str
    time_us: int
    cameras: tuple[CameraImage | None, ...] | None
    lidar: tuple[LidarSweep, ...] | None
    radar: tuple[RadarSweep, ...] | None
    global_T_reference: FloatArray  # [4, 4]
    lidar_sectors: NDArray[np.bool_] | None = None  # [S] azimuth sectors that any LiDAR delivers; None: all
    absent: Mapping[str, Absence] = field(default_factory=dict)
    """By channel, why whoever made the frame left a sensor out; of others of which it holds nothing it is not known why."""

    @property
    def by_kind(self) -> dict[str, tuple[CameraImage | LidarSweep | RadarSweep, ...]]:
        """Kind of sensors -> its pictures or sweeps that are there."""
        cameras = tuple(camera for camera in self.cameras or () if camera is not None)
        return dict(zip(KINDS, (cameras, self.lidar or (), self.radar or ()), strict=True))


# history(n): n keyframes earlier in the same scene, None before its start.
History = Callable[[int], SensorFrame | None]


def azimuth_sector(x_m: FloatArray, y_m: FloatArray) -> NDArray[np.int64]:
    """The LiDAR sector (0..S - 1) of points [P] of the reference frame, as seen from its origin; 0 for NaN."""
    turn = np.arctan2(y_m, x_m) / (2 * np.pi) + 0.5
    return np.clip(np.nan_to_num(turn * SECTORS, nan=0.0).astype(np.int64), 0, SECTORS - 1)
