"""All measurements of one frame, sensor by sensor: what each tells alone, since before, and beside the others.

A measurement that cannot be made (no previous frame, no LiDAR to compare with) is missing, not zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from statistics import median

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import Float64, FloatArray, apply, inverse_rigid
from sensors.frames import LidarSweep, RadarSweep, SensorFrame
from sensors.health import agreement as health_agreement
from sensors.health import lidar as health_lidar
from sensors.health import pictures as health_pictures
from sensors.health import radar as health_radar
from sensors.health.grid import Occupancy, margin, mean_at, shift_scores

Measured = Mapping[str, float]


@dataclass(frozen=True)
class Measurements:
    """Of each sensor by its name: the channel of a camera or LiDAR; "radar" is all radars. Absent ones are not in it."""

    sensors: Mapping[str, Measured]
    kinds: Mapping[str, str]  # of each of these: camera, lidar or radar
    silent: frozenset[str] = frozenset()  # of these, the ones that are present and deliver not one point


@dataclass(frozen=True)
class _View:
    """A frame's sensors made ready to be measured."""

    pictures: Mapping[str, health_pictures.Picture]
    scans: Mapping[str, health_lidar.Scan]
    echoes: health_radar.Echoes | None

    @property
    def kinds(self) -> dict[str, str]:
        radar = {} if self.echoes is None else {"radar": "radar"}
        return dict.fromkeys(self.pictures, "camera") | dict.fromkeys(self.scans, "lidar") | radar

    @property
    def standing(self) -> Occupancy | None:
        """Of what stands on the ground, as all LiDARs together see it."""
        scans = list(self.scans.values())
        if len(scans) < 2:
            return scans[0].occupancy if scans else None
        return Occupancy.of(np.concatenate([scan.standing for scan in scans]))


def measure(frame: SensorFrame, previous: SensorFrame | None) -> Measurements:
    """Measure every sensor of a frame; `previous` is the frame delivered before it in the same drive, None at its start."""
    now = _view(frame)
    before = None if previous is None else _past(previous)
    now_T_before = None if previous is None else inverse_rigid(frame.global_T_reference) @ previous.global_T_reference
    sensors, agreements = _cameras(now, before, now_T_before)
    sensors |= _lidars(now, before, now_T_before, agreements)
    if now.echoes is not None:
        standing = now.standing
        sensors["radar"] = health_radar.look(now.echoes, standing) | _radar_margin(standing, now.echoes, now_T_before)
        if before is not None and before.echoes is not None and now_T_before is not None:
            sensors["radar"] |= health_radar.compare(now.echoes, before.echoes, now_T_before)
    ego, kinds = _ego(now_T_before), now.kinds
    sensors = {name: row | ego for name, row in sensors.items()}
    _beside_the_others(sensors, kinds, {camera for seen in agreements.values() for camera in seen})
    _ages(frame, sensors)
    known = {name: {k: v for k, v in row.items() if isfinite(v)} for name, row in sensors.items()}
    return Measurements(known, kinds, _silent(frame))


def _cameras(
    now: _View, before: _Past | None, now_T_before: Float64 | None
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, health_agreement.Agreement]]]:
    """Measurements of each camera, and its agreement with each LiDAR: LiDAR -> camera -> agreement.

    Of several LiDARs the first that has enough points in sight speaks for the picture.
    """
    cues = {channel: health_agreement.cues(scan) for channel, scan in now.scans.items()}
    sensors: dict[str, dict[str, float]] = {}
    agreements: dict[str, dict[str, health_agreement.Agreement]] = {channel: {} for channel in cues}
    for channel, picture in now.pictures.items():
        figures = health_pictures.look(picture)
        if before is not None and channel in before.pictures:
            figures |= health_pictures.compare(picture, before.pictures[channel])
            if now_T_before is not None:
                figures |= _flow(picture, before.pictures[channel], cues, now_T_before)
        for lidar, its_cues in cues.items():
            agreement = health_agreement.agree(picture, its_cues, now_T_before)
            if agreement is not None:
                agreements[lidar][channel] = agreement
                if "late" not in figures:
                    figures |= {**health_agreement.describe(agreement.surface), "late": agreement.camera_late}
        sensors[channel] = figures
    return sensors, agreements


def _lidars(
    now: _View,
    before: _Past | None,
    now_T_before: Float64 | None,
    agreements: Mapping[str, Mapping[str, health_agreement.Agreement]],
) -> dict[str, dict[str, float]]:
    """Measurements of each LiDAR."""
    sensors = {}
    for channel, scan in now.scans.items():
        margins = _radar_margin(scan.occupancy, now.echoes, now_T_before)
        sensors[channel] = (
            health_lidar.look(scan)
            | _lidar_history(channel, scan, before, now_T_before)
            | _all_cameras(agreements[channel])
            | {f"radar_{name}": value for name, value in margins.items() if name != "radar_late"}
        )
    return sensors


def _flow(
    picture: health_pictures.Picture,
    before: health_pictures.Picture,
    cues: Mapping[str, health_agreement.Cues],
    now_T_before: Float64,
) -> dict[str, float]:
    """By the first LiDAR that has enough points in sight."""
    for its_cues in cues.values():
        if figures := health_agreement.flow(picture, before, its_cues, now_T_before):
            return figures
    return {}


def _silent(frame: SensorFrame) -> frozenset[str]:
    points: dict[str, int] = {}
    sweeps: list[LidarSweep | RadarSweep] = [*(frame.lidar or ()), *(frame.radar or ())]
    for sweep in sweeps:
        name = sweep.channel if isinstance(sweep, LidarSweep) else "radar"
        points[name] = points.get(name, 0) + len(sweep.points)
    return frozenset(name for name, count in points.items() if count == 0)


def _newest(sweeps: tuple[LidarSweep, ...] | None) -> dict[str, LidarSweep]:
    """Channel -> its newest sweep, which comes first."""
    newest: dict[str, LidarSweep] = {}
    for sweep in sweeps or ():
        newest.setdefault(sweep.channel, sweep)
    return newest


def _view(frame: SensorFrame) -> _View:
    pictures = {c.channel: health_pictures.view(c) for c in frame.cameras or () if c is not None}
    scans = {channel: health_lidar.view(sweep) for channel, sweep in _newest(frame.lidar).items()}
    return _View(pictures, scans, health_radar.view(frame.radar) if frame.radar is not None else None)


@dataclass(frozen=True)
class _PastScan:
    points: NDArray[np.float32]  # [P, 5] as delivered
    standing: NDArray[np.float32]  # [Q, 2]


@dataclass(frozen=True)
class _Past:
    """What of a previous frame is compared with."""

    pictures: Mapping[str, health_pictures.Picture]
    scans: Mapping[str, _PastScan]
    echoes: health_radar.Echoes | None


def _past(frame: SensorFrame) -> _Past:
    newest = _newest(frame.lidar)
    return _Past(
        {c.channel: health_pictures.view(c, only_fine=True) for c in frame.cameras or () if c is not None},
        {name: _PastScan(sweep.points, health_lidar.standing_points(sweep)) for name, sweep in newest.items()},
        health_radar.view(frame.radar) if frame.radar is not None else None,
    )


def _ego(now_T_before: Float64 | None) -> dict[str, float]:
    """How far the vehicle moved and turned since the previous frame: a standing one sees the same twice."""
    if now_T_before is None:
        return {}
    turned = abs(float(np.arctan2(now_T_before[1, 0], now_T_before[0, 0])))
    moved = float(np.linalg.norm(now_T_before[:3, 3]))
    return {"ego_moved": float(np.log1p(moved)), "ego_turned": float(np.log1p(np.degrees(turned)))}


def _lidar_history(
    channel: str, scan: health_lidar.Scan, before: _Past | None, now_T_before: Float64 | None
) -> dict[str, float]:
    """The sweep beside the one delivered before: the same numbers, and whether what stands stayed where it was."""
    past = None if before is None else before.scans.get(channel)
    if past is None or now_T_before is None:
        return {}
    stayed = shift_scores(Occupancy.of(_moved(past.standing, now_T_before)), scan.standing)
    peak, gap, length = margin(stayed)
    here, still = float(stayed[len(stayed) // 2]), mean_at(Occupancy.of(past.standing), scan.standing)
    return {
        "repeated": health_lidar.is_repeated(scan.points, past.points),
        "on_previous": here,
        "previous_peak": peak,
        "previous_better_by": gap,
        "previous_better_m": length,
        "still_beyond_moved": still - here,
        "count_change": float(abs(np.log((len(scan.points) + 1) / (len(past.points) + 1)))),
    }


def _all_cameras(agreements: Mapping[str, health_agreement.Agreement]) -> dict[str, float]:
    """A LiDAR as all cameras together see it: one that is wrong disagrees with every one of them."""
    if not agreements:
        return {}
    surfaces = [a.surface for a in agreements.values()]
    each = [health_agreement.describe(surface) for surface in surfaces]
    together = health_agreement.describe(np.stack(surfaces).mean(axis=0))
    return {f"cameras_{name}": value for name, value in together.items()} | {
        "cameras_median_agreement": median([e["agreement"] for e in each]),
        "cameras_best_agreement": max(e["agreement"] for e in each),
        "cameras_better_across_px": median([e["better_across_px"] for e in each]),
        "cameras_late": float(
            np.mean([a.lidar_late for a in agreements.values() if np.isfinite(a.lidar_late)] or [np.nan])
        ),
    }


def _radar_margin(
    standing: Occupancy | None, echoes: health_radar.Echoes | None, now_T_before: Float64 | None
) -> dict[str, float]:
    """How radar echoes and LiDARs' standing things fit, beside shifts and beside one of them being late."""
    if standing is None or echoes is None or len(echoes.xy_m) == 0:
        return {}
    scores = shift_scores(standing, echoes.xy_m)
    peak, gap, length = margin(scores)
    figures = {"fit": float(scores[len(scores) // 2]), "peak": peak, "better_by": gap, "better_m": length}
    if now_T_before is not None:
        for name, step in (("radar_late", now_T_before), ("lidar_late", inverse_rigid(now_T_before))):
            fits = [mean_at(standing, _moved(echoes.xy_m, s)) for s in (step, step @ step)]
            figures[name] = max(fits) - figures["fit"]
    return figures


def _moved(xy_m: NDArray[np.float32], transform: FloatArray) -> NDArray[np.float32]:
    return apply(transform, np.pad(xy_m, ((0, 0), (0, 1))))[:, :2]


def _beside_the_others(sensors: dict[str, dict[str, float]], kinds: Mapping[str, str], agreed: set[str]) -> None:
    """For each camera, how it differs from the others; for all, how well the others agree, so that blame falls on one.

    `agreed`: cameras that were held against a LiDAR.
    """
    cameras = [name for name in sensors if kinds[name] == "camera"]
    for name in cameras:
        others = [other for other in cameras if other != name]
        for key in ("brightness", "sharpness", "strongest_edge", "noise", "contrast", "colourfulness"):
            if others:
                sensors[name][f"{key}_beside"] = sensors[name][key] - float(
                    np.median([sensors[o][key] for o in others])
                )
        for key in ("agreement", "moved_as_expected", "late"):
            known = [sensors[o][key] for o in others if key in sensors[o] and isfinite(sensors[o][key])]
            if known:
                sensors[name][f"others_{key}"] = median(known)
    if "radar" not in sensors:
        return
    if agreed:
        sensors["radar"]["cameras_lidar_agreement"] = median([sensors[name]["agreement"] for name in agreed])
    stayed = [row["on_previous"] for name, row in sensors.items() if kinds[name] == "lidar" and "on_previous" in row]
    if stayed:
        sensors["radar"]["lidar_on_previous"] = median(stayed)


def _ages(frame: SensorFrame, sensors: dict[str, dict[str, float]]) -> None:
    """How old each sensor says its newest data are, seconds before the keyframe."""
    times = {camera.channel: camera.time_us for camera in frame.cameras or () if camera is not None}
    times |= {channel: sweep.time_us for channel, sweep in _newest(frame.lidar).items()}
    if frame.radar:
        times["radar"] = max(sweep.time_us for sweep in frame.radar)
    for name, time_us in times.items():
        sensors[name]["claimed_age_s"] = (frame.time_us - time_us) * 1e-6
