"""The points of LiDARs and radars made ready for the network, and which of these sensors count as absent.

A sensor is judged by all its sweeps together: it is present if at least one of its points can reach the network. Where none can,
what the network would see is an empty world, which nobody measured; so the sensor counts as absent, with the reason.

Letters: L LiDARs, R radars, P points, S azimuth sectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bev.grid import BEVGrid
from sensors.calibration import apply
from sensors.frames import NOT_GIVEN, Absence, Lack, LidarSweep, SensorFrame, azimuth_sector

NEAREST_M = 0.1  # nearer than any sensor sees lie only the zeros of a buffer that was not written
Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class DroppedPoints:
    """Points that the network cannot use, and why."""

    lidar_not_finite: int = 0  # NaN or infinite in the file
    lidar_near: int = 0  # within `lidar_min_range_m` of the LiDAR: the vehicle itself
    lidar_outside: int = 0  # outside the grid or its height range; they travel along where `Preparation.keep_outside`
    radar_not_finite: int = 0
    radar_outside: int = 0
    radar_near: int = 0  # at the radar itself
    lidar_dead_sector: int = 0  # in a sector that `SensorFrame.lidar_sectors` says delivers nothing

    def __add__(self, other: DroppedPoints) -> DroppedPoints:
        return DroppedPoints(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))

    def __str__(self) -> str:
        counts = [(getattr(self, f.name), f.name.partition("_")[2]) for f in fields(self)]
        return ", ".join(f"{count} {_WORDS[why]}" for count, why in counts if count)


_WORDS = {
    "not_finite": "not finite", "near": "on the vehicle itself", "outside": "outside the grid or its heights",
    "dead_sector": "in dead sectors",
}  # fmt: skip


@dataclass(frozen=True)
class SensorUse:
    """What became of one sensor in a frame."""

    absence: Absence | None  # None: it was used
    age_us: int | None = None  # of its newest reading at the frame's time; None: there is none that could be used
    points: int = 0  # that its sweeps hold; a camera has none
    dropped: DroppedPoints = DroppedPoints()
    coverage: float = 0.0  # share of the grid that it covers, 0..1

    @property
    def kept(self) -> int:
        """Points that reached the network."""
        return self.points - self.dropped.total


@dataclass(frozen=True)
class Cloud:
    """The points of one LiDAR sweep as columns: they are worked on one coordinate at a time."""

    sweep: LidarSweep
    xyz_m: Float32  # [3, P] sensor frame
    usable: Mask  # [P]
    dropped: DroppedPoints


@dataclass(frozen=True)
class SweepPoints:
    """The points of one sweep as the network wants them, [P, columns], out of so many delivered."""

    channel: str
    points: Float32
    delivered: int
    dropped: DroppedPoints
    age_us: int


@dataclass(frozen=True)
class Merged:
    """What the LiDARs, or the radars, of the rig deliver in one frame."""

    points: dict[str, Float32]  # channel -> [P, columns] of all its sweeps; of the sensors that are present
    present: Mask  # [L] or [R]
    sensors: dict[str, SensorUse]  # channel -> of each, absent ones too

    def together(self) -> Float32 | None:
        """[P, columns] of all sensors; None where none is present."""
        return _stacked(list(self.points.values())) if self.points else None


def _stacked(parts: list[Float32]) -> Float32:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def merge(channels: Sequence[str], sweeps: Iterable[SweepPoints]) -> Merged:
    """By sensor; one of which no point can be used counts as absent."""
    of_channel: dict[str, list[SweepPoints]] = {channel: [] for channel in channels}
    for sweep in sweeps:
        of_channel[sweep.channel].append(sweep)
    sensors = {channel: _use(mine) for channel, mine in of_channel.items()}
    points = {
        channel: _stacked([sweep.points for sweep in mine])
        for channel, mine in of_channel.items()
        if sensors[channel].absence is None
    }
    return Merged(points, np.array([channel in points for channel in channels], bool), sensors)


def _use(sweeps: Sequence[SweepPoints]) -> SensorUse:
    dropped = sum((sweep.dropped for sweep in sweeps), DroppedPoints())
    delivered = sum(sweep.delivered for sweep in sweeps)
    age_us = min((sweep.age_us for sweep in sweeps), default=None)
    return SensorUse(_absence(len(sweeps), delivered, dropped), age_us, delivered, dropped)


def _absence(sweeps: int, delivered: int, dropped: DroppedPoints) -> Absence | None:
    """None where at least one point can be used."""
    if delivered > dropped.total:
        return None
    if sweeps == 0:
        return NOT_GIVEN
    of = f"{sweeps} sweep{'s' if sweeps > 1 else ''}"
    if delivered == 0:
        return Absence(Lack.RETURN, f"no return in {of}: a dead sensor looks like an empty world")
    return Absence(Lack.USABLE, f"none of {delivered} point{'s' if delivered > 1 else ''} in {of} is usable: {dropped}")


def lidar_clouds(frame: SensorFrame, min_range_m: float) -> list[Cloud]:
    """Every LiDAR sweep; not usable is what is not finite, what is the vehicle itself and what lies in a dead sector."""
    return [_cloud(sweep, min_range_m, frame.lidar_sectors) for sweep in frame.lidar or ()]


def _cloud(sweep: LidarSweep, min_range_m: float, sectors: Mask | None) -> Cloud:
    xyz = np.ascontiguousarray(sweep.points[:, :3].T)
    with np.errstate(invalid="ignore", over="ignore"):
        # A sum finds NaN and infinity in any of them.
        finite = np.isfinite(xyz[0] + xyz[1] + xyz[2] + sweep.points[:, 3])
        usable = finite & (xyz[0] ** 2 + xyz[1] ** 2 >= max(min_range_m, NEAREST_M) ** 2)
    bad, left = len(finite) - np.count_nonzero(finite), np.count_nonzero(usable)
    dropped = DroppedPoints(lidar_not_finite=bad, lidar_near=len(finite) - bad - left)
    if sectors is not None and not sectors.all():
        keep = np.flatnonzero(usable)
        x_m, y_m, _ = apply(sweep.reference_T_lidar, np.ascontiguousarray(xyz[:, keep].T)).T
        usable[keep] = sectors[azimuth_sector(x_m, y_m)]
        dropped = dropped + DroppedPoints(lidar_dead_sector=left - np.count_nonzero(usable))
    return Cloud(sweep, xyz, usable, dropped)


def inside(xyz_m: NDArray[Any], grid: BEVGrid, z_range_m: tuple[float, float]) -> Mask:
    """[3, P] metres -> [P], which lie in the grid and between the heights."""
    x, y, z = xyz_m
    within: Mask = (x >= grid.x_min_m) & (x < grid.x_max_m) & (y >= grid.y_min_m) & (y < grid.y_max_m)
    return within & (z >= z_range_m[0]) & (z < z_range_m[1])


def pad(clouds: Sequence[Float32 | None], columns: int, round_up: int) -> tuple[Tensor, Tensor]:
    """[B, P, columns] with zeros behind, and [B] counts. P is at least `round_up`, so that no axis is ever empty."""
    counts = [0 if cloud is None else len(cloud) for cloud in clouds]
    longest = max(1, -(-max(counts) // round_up)) * round_up
    points = np.zeros((len(clouds), longest, columns), np.float32)
    for b, cloud in enumerate(clouds):
        if cloud is not None:
            points[b, : len(cloud)] = cloud
    return torch.from_numpy(points), torch.tensor(counts, dtype=torch.long)
