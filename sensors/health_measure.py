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

from sensors import health_agreement, health_lidar, health_pictures, health_radar
from sensors.calibration import Float64, FloatArray, apply, inverse_rigid
from sensors.frames import SensorFrame
from sensors.health_grid import Occupancy, margin, mean_at, shift_scores

Measured = Mapping[str, float]


@dataclass(frozen=True)
class Measurements:
    """Name of the sensor ("lidar", "radar", or a camera's channel) -> its measurements; absent sensors are not in it."""

    sensors: Mapping[str, Measured]
    silent: frozenset[str] = frozenset()  # of these, the ones that are present and deliver not one point

    @staticmethod
    def kind(sensor: str) -> str:
        """The kind of a sensor: camera, lidar or radar."""
        return sensor if sensor in ("lidar", "radar") else "camera"


@dataclass(frozen=True)
class _View:
    """A frame's sensors made ready to be measured."""

    pictures: Mapping[str, health_pictures.Picture]
    scan: health_lidar.Scan | None
    echoes: health_radar.Echoes | None


def measure(frame: SensorFrame, previous: SensorFrame | None) -> Measurements:
    """Measure every sensor of a frame; `previous` is the frame delivered before it in the same drive, None at its start."""
    now = _view(frame)
    before = None if previous is None else _past(previous)
    now_T_before = None if previous is None else inverse_rigid(frame.global_T_reference) @ previous.global_T_reference
    ego = _ego(now_T_before)
    sensors: dict[str, dict[str, float]] = {}
    cues = None if now.scan is None else health_agreement.cues(now.scan)
    agreements: dict[str, health_agreement.Agreement] = {}
    for channel, picture in now.pictures.items():
        figures = health_pictures.look(picture) | ego
        if before is not None and channel in before.pictures:
            figures |= health_pictures.compare(picture, before.pictures[channel])
            if cues is not None and now_T_before is not None:
                figures |= health_agreement.flow(picture, before.pictures[channel], cues, now_T_before)
        agreement = None if cues is None else health_agreement.agree(picture, cues, now_T_before)
        if agreement is not None:
            agreements[channel] = agreement
            figures |= health_agreement.describe(agreement.surface)
            figures["late"] = agreement.camera_late
        sensors[channel] = figures
    radar_margin = _radar_margin(now, now_T_before)
    if now.scan is not None:
        sensors["lidar"] = (
            health_lidar.look(now.scan) | ego | _lidar_history(now, before, now_T_before) | _all_cameras(agreements, sensors)
            | {f"radar_{name}": value for name, value in radar_margin.items() if name != "radar_late"}
        )  # fmt: skip
    if now.echoes is not None:
        standing = None if now.scan is None else now.scan.occupancy
        sensors["radar"] = health_radar.look(now.echoes, standing) | ego | radar_margin
        if before is not None and before.echoes is not None and now_T_before is not None:
            sensors["radar"] |= health_radar.compare(now.echoes, before.echoes, now_T_before)
    _beside_the_others(sensors, agreements)
    _ages(frame, sensors)
    silent = frozenset(
        name
        for name, sweeps in (("lidar", frame.lidar), ("radar", frame.radar))
        if sweeps and not any(len(sweep.points) for sweep in sweeps)
    )
    return Measurements({name: {k: v for k, v in row.items() if isfinite(v)} for name, row in sensors.items()}, silent)


def _view(frame: SensorFrame) -> _View:
    pictures = {c.channel: health_pictures.view(c) for c in frame.cameras or () if c is not None}
    scan = health_lidar.view(frame.lidar[0]) if frame.lidar else None
    return _View(pictures, scan, health_radar.view(frame.radar) if frame.radar is not None else None)


@dataclass(frozen=True)
class _Past:
    """What of a previous frame is compared with."""

    pictures: Mapping[str, health_pictures.Picture]
    lidar_points: NDArray[np.float32] | None  # [P, 5] as delivered
    standing: NDArray[np.float32]  # [Q, 2]
    echoes: health_radar.Echoes | None


def _past(frame: SensorFrame) -> _Past:
    return _Past(
        {c.channel: health_pictures.view(c, only_fine=True) for c in frame.cameras or () if c is not None},
        frame.lidar[0].points if frame.lidar else None,
        health_lidar.standing_points(frame.lidar[0]) if frame.lidar else np.zeros((0, 2), np.float32),
        health_radar.view(frame.radar) if frame.radar is not None else None,
    )


def _ego(now_T_before: Float64 | None) -> dict[str, float]:
    """How far the vehicle moved and turned since the previous frame: a standing one sees the same twice."""
    if now_T_before is None:
        return {}
    turned = abs(float(np.arctan2(now_T_before[1, 0], now_T_before[0, 0])))
    moved = float(np.linalg.norm(now_T_before[:3, 3]))
    return {"ego_moved": float(np.log1p(moved)), "ego_turned": float(np.log1p(np.degrees(turned)))}


def _lidar_history(now: _View, before: _Past | None, now_T_before: Float64 | None) -> dict[str, float]:
    """The sweep beside the one delivered before: the same numbers, and whether what stands stayed where it was."""
    if now.scan is None or before is None or before.lidar_points is None or now_T_before is None:
        return {}
    stayed = shift_scores(Occupancy.of(_moved(before.standing, now_T_before)), now.scan.standing)
    peak, gap, length = margin(stayed)
    here, still = float(stayed[len(stayed) // 2]), mean_at(Occupancy.of(before.standing), now.scan.standing)
    return {
        "repeated": health_lidar.is_repeated(now.scan.points, before.lidar_points),
        "on_previous": here,
        "previous_peak": peak,
        "previous_better_by": gap,
        "previous_better_m": length,
        "still_beyond_moved": still - here,
        "count_change": float(abs(np.log((len(now.scan.points) + 1) / (len(before.lidar_points) + 1)))),
    }


def _all_cameras(
    agreements: Mapping[str, health_agreement.Agreement], sensors: Mapping[str, Measured]
) -> dict[str, float]:
    """The LiDAR as all cameras together see it: one that is wrong disagrees with every one of them."""
    if not agreements:
        return {}
    surfaces = np.stack([a.surface for a in agreements.values()])
    each = [sensors[channel] for channel in agreements]
    together = health_agreement.describe(surfaces.mean(axis=0))
    return {f"cameras_{name}": value for name, value in together.items()} | {
        "cameras_median_agreement": median([e["agreement"] for e in each]),
        "cameras_best_agreement": max(e["agreement"] for e in each),
        "cameras_better_across_px": median([e["better_across_px"] for e in each]),
        "cameras_late": float(
            np.mean([a.lidar_late for a in agreements.values() if np.isfinite(a.lidar_late)] or [np.nan])
        ),
    }


def _radar_margin(now: _View, now_T_before: Float64 | None) -> dict[str, float]:
    """How radar echoes and the LiDAR's standing things fit, beside shifts and beside one of them being late."""
    if now.scan is None or now.echoes is None or len(now.echoes.xy_m) == 0:
        return {}
    scores = shift_scores(now.scan.occupancy, now.echoes.xy_m)
    peak, gap, length = margin(scores)
    figures = {"fit": float(scores[len(scores) // 2]), "peak": peak, "better_by": gap, "better_m": length}
    if now_T_before is not None:
        for name, step in (("radar_late", now_T_before), ("lidar_late", inverse_rigid(now_T_before))):
            fits = [mean_at(now.scan.occupancy, _moved(now.echoes.xy_m, s)) for s in (step, step @ step)]
            figures[name] = max(fits) - figures["fit"]
    return figures


def _moved(xy_m: NDArray[np.float32], transform: FloatArray) -> NDArray[np.float32]:
    return apply(transform, np.pad(xy_m, ((0, 0), (0, 1))))[:, :2]


def _beside_the_others(
    sensors: dict[str, dict[str, float]], agreements: Mapping[str, health_agreement.Agreement]
) -> None:
    """For each camera, how it differs from the others; for all, how well the others agree, so that blame falls on one."""
    cameras = [name for name in sensors if Measurements.kind(name) == "camera"]
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
    if "radar" in sensors and agreements:
        sensors["radar"]["cameras_lidar_agreement"] = median([sensors[name]["agreement"] for name in agreements])
    if "radar" in sensors and "lidar" in sensors and "on_previous" in sensors["lidar"]:
        sensors["radar"]["lidar_on_previous"] = sensors["lidar"]["on_previous"]


def _ages(frame: SensorFrame, sensors: dict[str, dict[str, float]]) -> None:
    """How old each sensor says its newest data are, seconds before the keyframe."""
    times = {camera.channel: camera.time_us for camera in frame.cameras or () if camera is not None}
    if frame.lidar:
        times["lidar"] = max(sweep.time_us for sweep in frame.lidar)
    if frame.radar:
        times["radar"] = max(sweep.time_us for sweep in frame.radar)
    for name, time_us in times.items():
        sensors[name]["claimed_age_s"] = (frame.time_us - time_us) * 1e-6
