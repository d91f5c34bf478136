"""How things move: paths, speed profiles, tracks, and a register that keeps them from driving through each other.

Legend: T time steps, N points.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from sensors.simulation.shapes.mesh import Array
from sensors.simulation.world.layout import RESOLUTION_M, TILE_PX, Layout, Road, to_pixels

TRACK_STEP_S = 0.02
PATH_STEP_M = 0.25


@dataclass(frozen=True, slots=True)
class Track:
    """Poses over time: times_s [T]; poses [T, 3] of x, y (m), yaw (rad, continuous). One row means: never moves."""

    times_s: Array
    poses: Array

    @property
    def moves(self) -> bool:
        """Whether it changes place at all."""
        return len(self.poses) > 1

    def pose(self, time_s: float) -> Array:
        """x, y, yaw at a time [3]."""
        if not self.moves:
            return self.poses[0]
        return np.array([np.interp(time_s, self.times_s, self.poses[:, i]) for i in range(3)])

    def poses_at(self, times_s: Array) -> Array:
        """x, y, yaw at several times [T, 3]."""
        if not self.moves:
            return np.repeat(self.poses, len(times_s), axis=0)
        return np.stack([np.interp(times_s, self.times_s, self.poses[:, i]) for i in range(3)], -1)

    def velocity(self, time_s: float) -> Array:
        """World velocity in m/s [2], by central difference over 40 ms."""
        if not self.moves:
            return np.zeros(2)
        before, after = self.pose(time_s - 0.02), self.pose(time_s + 0.02)
        return (after[:2] - before[:2]) / 0.04


def parked(x_m: float, y_m: float, yaw_rad: float) -> Track:
    """Something that stays where it is."""
    return Track(np.zeros(1), np.array([[x_m, y_m, yaw_rad]]))


def resample(path_m: Array) -> Array:
    """The same polyline [N, 2] with points every PATH_STEP_M."""
    steps = np.hypot(*np.diff(path_m, axis=0).T)
    s = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.arange(0.0, s[-1], PATH_STEP_M)
    return np.stack([np.interp(at, s, path_m[:, i]) for i in range(2)], -1)


def along(path_m: Array, start_m: float, times_s: Array, speeds_mps: Array) -> Track | None:
    """Drive a path (points every PATH_STEP_M) from arc length `start_m` at t = 0; None if the path is too short.

    speeds_mps [T] at times_s [T]. Heading is the chord over one metre, so that bends are smooth.
    """
    s = start_m + np.concatenate([[0.0], np.cumsum(speeds_mps[1:] * np.diff(times_s))])
    s += start_m - float(np.interp(0.0, times_s, s))
    limit = (len(path_m) - 1) * PATH_STEP_M
    if s[0] < 0.6 or s[-1] > limit - 0.6:
        return None
    knots = np.arange(len(path_m)) * PATH_STEP_M

    def at(arc: Array) -> Array:
        return np.stack([np.interp(arc, knots, path_m[:, i]) for i in range(2)], -1)

    ahead, behind = at(s + 0.5), at(s - 0.5)
    yaw = np.unwrap(np.arctan2(*(ahead - behind).T[::-1]))
    return Track(times_s, np.column_stack([at(s), yaw]))


def speed_profile(rng: np.random.Generator, times_s: Array, cruise_mps: float) -> Array:
    """Cruising, braking to a stop, starting off, or waiting: speeds [T]."""
    kind = rng.choice(["cruise", "brake", "start", "wait"], p=[0.6, 0.15, 0.15, 0.1])
    if kind == "cruise":
        return np.maximum(cruise_mps + float(rng.uniform(-0.6, 0.6)) * (times_s - times_s.mean()), 0.5)
    if kind == "wait":
        return np.zeros_like(times_s)
    change = float(rng.uniform(times_s[0], times_s[-1]))
    slope = -float(rng.uniform(2, 3.5)) if kind == "brake" else float(rng.uniform(1.2, 2.5))
    start = cruise_mps if kind == "brake" else 0.0
    return np.clip(start + slope * np.maximum(times_s - change, 0.0), 0.0, cruise_mps)


def lane_path(layout: Layout, road: int, lane: int, forward: bool) -> Array:
    """The whole of a lane, in driving direction."""
    r = layout.roads[road]
    d = (lane + 0.5) * r.lane_width_m
    return resample(r.path(-130, 130, -d) if forward else r.path(130, -130, d))


def turn_path(layout: Layout, start: tuple[int, int, bool], end: tuple[int, int, bool]) -> Array | None:
    """From one lane into another over the crossing; each is (road, lane, forward). None where there is no crossing."""
    if layout.crossing_s_m is None:
        return None
    radius = layout.crossing_radius_m()
    (r0, lane0, f0), (r1, lane1, f1) = start, end

    def half(index: int, lane: int, forward: bool, *, entering: bool) -> Array:
        road: Road = layout.roads[index]
        middle = layout.crossing_s_m if index == 0 and layout.crossing_s_m is not None else 0.0
        sign = 1 if forward else -1
        d = -sign * (lane + 0.5) * road.lane_width_m
        far, near = (-sign * 125, middle - sign * radius) if entering else (sign * 125, middle + sign * radius)
        return road.path(far, near, d) if entering else road.path(near, far, d)

    approach, leave = half(r0, lane0, f0, entering=True), half(r1, lane1, f1, entering=False)
    if len(approach) < 4 or len(leave) < 4:
        return None
    p0, p3 = approach[-1], leave[0]
    t0, t3 = approach[-1] - approach[-2], leave[1] - leave[0]
    reach = float(np.linalg.norm(p3 - p0)) * 0.42
    p1, p2 = p0 + t0 / np.linalg.norm(t0) * reach, p3 - t3 / np.linalg.norm(t3) * reach
    u = np.linspace(0, 1, 40)[1:-1, None]
    curve = (1 - u) ** 3 * p0 + 3 * (1 - u) ** 2 * u * p1 + 3 * (1 - u) * u**2 * p2 + u**3 * p3
    return resample(np.concatenate([approach, curve, leave]))


@dataclass(slots=True)
class Register:
    """Who is where when. Footprints are rows of discs; two things clash if any of their discs touch at any checked time.

    blocked [TILE_PX / 2, ...] marks buildings, trees and poles at twice RESOLUTION_M.
    """

    check_times_s: Array
    blocked: Array = field(default_factory=lambda: np.zeros((TILE_PX // 2, TILE_PX // 2), np.uint8))
    _discs: list[Array] = field(default_factory=list)
    _radii: list[float] = field(default_factory=list)
    _swept: list[tuple[Array, Array]] = field(default_factory=list)

    def block(self, polygon_m: Array) -> None:
        """Close a convex area for everybody."""
        cv2.fillConvexPoly(self.blocked, to_pixels(np.asarray(polygon_m) / 2), 1, shift=4)

    def is_blocked(self, polygon_m: Array) -> bool:
        """Whether any part of a convex area is closed."""
        pixels = to_pixels(np.asarray(polygon_m) / 2)
        low = np.clip(pixels.min(axis=0) // 16 - 1, 0, self.blocked.shape[0])
        high = np.clip(pixels.max(axis=0) // 16 + 2, 0, self.blocked.shape[0])
        around = self.blocked[low[1] : high[1], low[0] : high[0]]
        if not around.any():
            return False
        scratch = np.zeros_like(around)
        cv2.fillConvexPoly(scratch, pixels - low * 16, 1, shift=4)
        return bool((scratch & around).any())

    def try_add(self, track: Track, size_wlh_m: tuple[float, float, float], *, gap_m: float = 0.25) -> bool:
        """Take the place if it is free over all times; says whether it was."""
        return self.try_add_all([(track, size_wlh_m)], gap_m=gap_m)

    def try_add_all(self, bodies: list[tuple[Track, tuple[float, float, float]]], *, gap_m: float) -> bool:
        """The same for several that may touch each other."""
        footprints = [self._footprint(track, size, gap_m) for track, size in bodies]
        if any(self._hits_blocked(discs) or self._hits_others(discs, radius) for discs, radius in footprints):
            return False
        for discs, radius in footprints:
            self._discs.append(discs)
            self._radii.append(radius)
            self._swept.append((discs.min(axis=(0, 1)) - radius, discs.max(axis=(0, 1)) + radius))
        return True

    def _footprint(self, track: Track, size_wlh_m: tuple[float, float, float], gap_m: float) -> tuple[Array, float]:
        width, length, _ = size_wlh_m
        short, long_axis = min(width, length), max(width, length)
        count = int(np.ceil(long_axis / max(short, 0.3)))
        offsets = (np.arange(count) - (count - 1) / 2) * (long_axis / count)
        poses = track.poses_at(self.check_times_s)
        yaw = poses[:, 2] + (np.pi / 2 if width > length else 0.0)
        axis = np.stack([np.cos(yaw), np.sin(yaw)], -1)
        discs = poses[:, None, :2] + offsets[None, :, None] * axis[:, None]
        half_step = long_axis / count / 2
        return discs, float(np.hypot(short / 2, half_step) * 0.95 + gap_m / 2)

    def _hits_blocked(self, discs: Array) -> bool:
        index = np.floor(discs.reshape(-1, 2) / (2 * RESOLUTION_M)).astype(int)
        inside = (index >= 0).all(1) & (index < self.blocked.shape[0]).all(1)
        index = index[inside]
        return bool(self.blocked[index[:, 1], index[:, 0]].any())

    def _hits_others(self, discs: Array, radius: float) -> bool:
        if not self._discs:
            return False
        # Most are far away at all times: compare the areas they sweep before comparing discs.
        low, high = discs.min(axis=(0, 1)) - radius, discs.max(axis=(0, 1)) + radius
        swept: Array = np.asarray(self._swept)
        apart = (swept[:, 0] > high).any(axis=1) | (swept[:, 1] < low).any(axis=1)
        for i in np.flatnonzero(~apart):
            others = self._discs[i]
            gap = others[:, None] - discs[:, :, None]
            if ((gap * gap).sum(-1) < (radius + self._radii[i]) ** 2).any():
                return True
        return False
