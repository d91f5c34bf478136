"""Who is in a scene: the ego vehicle's drive and the agents of all ten classes around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from sensors.simulation.shapes import shapes, small_shapes
from sensors.simulation.shapes.mesh import Array
from sensors.simulation.shapes.shapes import Shape
from sensors.simulation.world.layout import TILE_M, Layout, Lot, Surface
from sensors.simulation.world.scenery import surface_at
from sensors.simulation.world.traffic import (
    PATH_STEP_M,
    TRACK_STEP_S,
    Register,
    Track,
    along,
    lane_path,
    parked,
    resample,
    speed_profile,
    turn_path,
)

EGO_SIZE_WLH_M = (1.9, 4.3, 1.7)
# The ego frame's origin is the rear axle; its body's middle is ahead of it.
EGO_CENTRE_AHEAD_M = 1.4

# How many of each are tried per scene, in lanes and standing around. Chosen so that a keyframe holds a few of each class
# within 25 m (see `tests/sensors/simulation`); construction zones bring more cones, barriers, workers and machines.
MOVING = {"car": 13, "truck": 2, "bus": 4, "motorcycle": 4, "bicycle": 4}
STANDING = {"car": 12, "truck": 4, "trailer": 3, "bus": 3, "construction_vehicle": 3, "motorcycle": 4, "bicycle": 5}
SEMIS, PEDESTRIANS, CONE_GROUPS, BARRIER_GROUPS = 2, 20, 5, 5

_VEHICLES = {
    "car": shapes.car,
    "truck": shapes.truck,
    "bus": shapes.bus,
    "trailer": shapes.trailer,
    "construction_vehicle": shapes.construction_vehicle,
}
_TWO_WHEELERS = {"motorcycle": small_shapes.motorcycle, "bicycle": small_shapes.bicycle}


@dataclass(frozen=True, slots=True)
class Agent:
    """One annotated thing. `attribute` is nuScenes' name for something that never moves; '' asks the motion."""

    name: str
    shape: Shape
    track: Track
    attribute: str = ""

    def attribute_at(self, time_s: float) -> str:
        """The nuScenes attribute at a time, '' for cones and barriers."""
        kind = self.shape.category.split(".")
        if self.attribute or kind[0] == "movable_object":
            return self.attribute
        moving = float(np.hypot(*self.track.velocity(time_s))) > 0.3
        if kind[0] == "human":
            return "pedestrian.moving" if moving else "pedestrian.standing"
        return "vehicle.moving" if moving else "vehicle.stopped"


class Population:
    """Fills a layout. Order matters: what comes first takes the place, so rare and large classes come first."""

    def __init__(
        self, rng: np.random.Generator, layout: Layout, register: Register, *, duration_s: float, density: float
    ) -> None:
        self.rng, self.layout, self.register, self.density = rng, layout, register, density
        self.times_s: Array = np.arange(-0.4, duration_s + 0.4, TRACK_STEP_S)
        self.agents: list[Agent] = []
        self.ego = self._ego()
        self._ego_xy = self.ego.poses[:: max(1, len(self.times_s) // 12), :2]

    def fill(self) -> None:
        """Place everybody."""
        self._work_zones()
        for _ in self._wanted(SEMIS):
            self._semi()
        for kind in ("bus", "truck"):
            self._drive(kind)
        for kind in ("trailer", "construction_vehicle", "bus", "truck"):
            self._park(kind)
        for kind in ("motorcycle", "bicycle", "car"):
            self._drive(kind)
            self._park(kind)
        for _ in self._wanted(CONE_GROUPS):
            self._try(self._cone_row)
        for _ in self._wanted(BARRIER_GROUPS):
            self._try(self._barrier_row)
        for _ in self._wanted(PEDESTRIANS):
            self._pedestrian()

    def _wanted(self, count: int) -> range:
        expected = count * self.density * float(self.rng.uniform(0.7, 1.3))
        return range(int(expected) + int(self.rng.random() < expected % 1))

    def _try(self, attempt: Callable[[], bool], *, tries: int = 10) -> bool:
        return any(attempt() for _ in range(tries))

    def _add(self, shape: Shape, track: Track | None, attribute: str = "", *, gap_m: float = 0.25) -> bool:
        if track is None or not self.register.try_add(track, shape.size_wlh_m, gap_m=gap_m):
            return False
        self._append(shape, track, attribute)
        return True

    def _append(self, shape: Shape, track: Track, attribute: str = "") -> None:
        self.agents.append(Agent(f"agent-{len(self.agents):03d}", shape, track, attribute))

    # The ego vehicle

    def _ego(self) -> Track:
        main = self.layout.roads[0]
        cruise = float(self.rng.uniform(3.5, 9.0))
        speeds = speed_profile(self.rng, self.times_s, cruise)
        lane = int(self.rng.integers(main.lanes_per_direction))
        path = lane_path(self.layout, 0, lane, True)
        if self.layout.crossing_s_m is not None and self.rng.random() < 0.45:
            forward = bool(self.rng.random() < 0.5)
            turned = turn_path(self.layout, (0, lane, True), (1, 0, forward))
            if turned is not None:
                path, speeds = turned, speeds * 0.7
        # Half-way through the scene the ego vehicle passes nearest to the middle of the tile.
        middle = float(np.hypot(*(path - TILE_M / 2).T).argmin()) * PATH_STEP_M
        start = middle - float(speeds.sum() * TRACK_STEP_S) / 2
        track = along(path, start, self.times_s, speeds)
        assert track is not None, "the ego path is long enough by construction"
        yaw = track.poses[:, 2]
        ahead = EGO_CENTRE_AHEAD_M * np.column_stack([np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)])
        body = Track(track.times_s, track.poses + ahead)
        self.register.try_add(body, EGO_SIZE_WLH_M, gap_m=1.0)
        return track

    def _place_s_m(self, spread_m: float = 16.0) -> float:
        """An arc length on the main road near somewhere the ego vehicle passes."""
        x, y = self._ego_xy[int(self.rng.integers(len(self._ego_xy)))]
        return self.layout.roads[0].nearest_s_m(x, y) + float(self.rng.normal(0, spread_m))

    # Traffic

    def _drive(self, kind: str) -> None:
        """Vehicles of a kind in the lanes."""
        for _ in self._wanted(MOVING[kind]):
            shape = self._shape(kind, rider=True)
            attribute = "cycle.with_rider" if kind in _TWO_WHEELERS else ""

            def attempt(shape: Shape = shape, attribute: str = attribute) -> bool:
                drive = self._random_drive(kind)
                return drive is not None and self._add(
                    shape, along(drive[0], drive[1], self.times_s, drive[2]), attribute, gap_m=0.8
                )

            self._try(attempt)

    def _random_drive(self, kind: str) -> tuple[Array, float, Array] | None:
        """A path, where on it to be at t = 0, and speeds, so that the way leads near the ego vehicle's."""
        rng = self.rng
        path = self._random_path(bicycle=kind == "bicycle")
        if path is None:
            return None
        gap = np.linalg.norm(path[::8, None] - self._ego_xy[None], axis=-1).min(axis=1)
        near = np.flatnonzero(gap < 32.0) * 8
        if len(near) == 0:
            return None
        cruise = float(rng.uniform(2.5, 5.0)) if kind == "bicycle" else float(rng.uniform(3.5, 10.0))
        speeds = speed_profile(rng, self.times_s, cruise)
        return path, float(rng.choice(near)) * PATH_STEP_M - float(speeds.sum() * TRACK_STEP_S) / 2, speeds

    def _semi(self) -> bool:
        """A tractor with its trailer coupled."""
        front, rear = shapes.tractor(self.rng), shapes.trailer(self.rng)
        lag = front.size_wlh_m[1] / 2 + rear.size_wlh_m[1] / 2 - 0.2

        def attempt() -> bool:
            drive = self._random_drive("semi")
            if drive is None:
                return False
            path, start, speeds = drive
            head, tail = along(path, start, self.times_s, speeds), along(path, start - lag, self.times_s, speeds)
            # The two nearly touch each other, so they take their places together or not at all.
            if (
                head is None
                or tail is None
                or not self.register.try_add_all([(head, front.size_wlh_m), (tail, rear.size_wlh_m)], gap_m=0.6)
            ):
                return False
            self._append(front, head)
            self._append(rear, tail)
            return True

        return self._try(attempt)

    def _random_path(self, *, bicycle: bool) -> Array | None:
        rng, layout = self.rng, self.layout
        road = 0 if len(layout.roads) == 1 or rng.random() < 0.65 else 1
        r = layout.roads[road]
        forward = bool(rng.random() < 0.5)
        if bicycle and rng.random() < 0.7:
            d = r.lanes_half_m - 0.6 + float(rng.uniform(-0.3, 0.3))
            return resample(r.path(-130, 130, -d) if forward else r.path(130, -130, d))
        lane = int(rng.integers(r.lanes_per_direction))
        if len(layout.roads) == 2 and rng.random() < 0.3:
            return turn_path(layout, (road, lane, forward), (1 - road, 0, bool(rng.random() < 0.5)))
        return lane_path(layout, road, lane, forward)

    def _shape(self, kind: str, *, rider: bool = False) -> Shape:
        return _TWO_WHEELERS[kind](self.rng, rider=rider) if kind in _TWO_WHEELERS else _VEHICLES[kind](self.rng)

    # Standing

    def _park(self, kind: str) -> None:
        """Vehicles of a kind at kerbs, on lots and sidewalks."""
        for _ in self._wanted(STANDING[kind]):
            shape = self._shape(kind)
            self._try(partial(self._park_one, kind, shape))

    def _park_one(self, kind: str, shape: Shape) -> bool:
        rng = self.rng
        two_wheeler = kind in _TWO_WHEELERS
        attribute = "cycle.without_rider" if two_wheeler else "vehicle.parked"
        lots = [lot for lot in self.layout.lots if abs(sum(lot.s_m) / 2 - self._place_s_m(10)) < 30]
        if lots and not two_wheeler and rng.random() < (0.35 if kind == "car" else 0.65):
            x, y, yaw = self._in_lot(lots[int(rng.integers(len(lots)))], shape)
            return self._add(shape, parked(x, y, yaw), attribute, gap_m=0.5)
        road = self.layout.roads[0]
        side = float(rng.choice([-1, 1]))
        s = self._place_s_m()
        if two_wheeler and rng.random() < 0.7:
            d = road.half_width_m + float(rng.uniform(0.5, max(0.6, road.sidewalk_m - 0.6)))
            turn = float(rng.choice([0.0, np.pi / 2])) + float(rng.normal(0, 0.3))
            allowed = (Surface.SIDEWALK,)
        else:
            d = road.lanes_half_m + road.strip_m / 2 + 0.1
            turn, allowed = float(rng.normal(0, 0.03)), (Surface.ROAD,)
        x, y, yaw = road.at(s, side * d)
        yaw += turn + (np.pi if side > 0 else 0.0)
        if surface_at(self.layout, x, y) not in allowed or self._in_crossing(s, shape.size_wlh_m[1]):
            return False
        return self._add(shape, parked(x, y, yaw), attribute)

    def _in_crossing(self, s_m: float, length_m: float) -> bool:
        middle = self.layout.crossing_s_m
        return middle is not None and abs(s_m - middle) < self.layout.crossing_radius_m() + length_m / 2 + 1.0

    def _in_lot(self, lot: Lot, shape: Shape) -> tuple[float, float, float]:
        """Somewhere in a lot, in line with it or across it."""
        rng = self.rng
        width, length, _ = shape.size_wlh_m
        depth = abs(lot.d_m[1] - lot.d_m[0])
        across = length + 0.6 < depth and rng.random() < 0.55
        along_s, along_d = (width, length) if across else (length, width)
        s = float(rng.uniform(lot.s_m[0] + along_s / 2, max(lot.s_m[0] + along_s / 2 + 0.1, lot.s_m[1] - along_s / 2)))
        inward = float(rng.uniform(along_d / 2 + 0.2, max(along_d / 2 + 0.3, depth - along_d / 2)))
        x, y, yaw = self.layout.roads[lot.road].at(s, lot.d_m[0] + np.sign(lot.d_m[0]) * inward)
        return x, y, yaw + (np.pi / 2 if across else 0.0) + float(rng.choice([0.0, np.pi])) + float(rng.normal(0, 0.06))

    # Works

    def _work_zones(self) -> None:
        for lot in self.layout.lots:
            if not lot.construction:
                continue
            for _ in range(int(self.rng.integers(1, 3))):
                shape = shapes.construction_vehicle(self.rng)
                x, y, yaw = self._in_lot(lot, shape)
                self._add(shape, parked(x, y, yaw + float(self.rng.normal(0, 0.5))), "vehicle.parked", gap_m=0.6)
            side = np.sign(lot.d_m[0])
            for s in np.arange(lot.s_m[0] + 1.5, lot.s_m[1] - 1.5, 2.9):
                if self.rng.random() < 0.3:
                    x, y, yaw = self.layout.roads[lot.road].at(float(s), lot.d_m[0] + side * 0.7)
                    self._add(small_shapes.barrier(self.rng), parked(x, y, yaw + np.pi / 2), gap_m=0.05)
            for _ in range(int(self.rng.integers(1, 3))):
                self._worker(lot)

    def _cone_row(self) -> bool:
        """Cones along a kerb, around a taper or loose."""
        rng, road = self.rng, self.layout.roads[0]
        s, side = self._place_s_m(), float(rng.choice([-1, 1]))
        d = (
            float(rng.uniform(road.lanes_half_m + 0.3, road.outer_m))
            if rng.random() < 0.8
            else float(rng.uniform(0, road.lanes_half_m))
        )
        slope, spacing = float(rng.normal(0, 0.12)), float(rng.uniform(1.4, 3.0))
        added = False
        for k in range(int(rng.integers(2, 6))):
            if self._in_crossing(s + k * spacing, 0.0):
                continue
            x, y, yaw = road.at(s + k * spacing, side * (d + slope * k * spacing))
            added |= self._add(small_shapes.traffic_cone(rng), parked(x, y, yaw + float(rng.uniform(-3, 3))), gap_m=0.1)
        return added

    def _barrier_row(self) -> bool:
        """Barriers end to end along the road or across a strip."""
        rng, road = self.rng, self.layout.roads[0]
        s, side = self._place_s_m(), float(rng.choice([-1, 1]))
        kind = int(rng.integers(3))
        d = float(rng.uniform(road.lanes_half_m + 0.4, road.outer_m - 0.3))
        turn = np.pi / 2 if rng.random() < 0.75 else 0.0
        added = False
        for k in range(int(rng.integers(2, 5))):
            if self._in_crossing(s + k * 2.75, 1.0):
                continue
            shape = small_shapes.barrier(rng, kind=kind)
            x, y, yaw = road.at(s + k * 2.75, side * d)
            added |= self._add(shape, parked(x, y, yaw + turn + float(rng.normal(0, 0.05))), gap_m=0.05)
        return added

    # People

    def _pedestrian(self) -> bool:
        """Somebody on a sidewalk, or crossing."""
        rng = self.rng
        crossing = bool(rng.random() < 0.18)
        walking = crossing or bool(rng.random() < 0.7)
        shape = small_shapes.pedestrian(rng, walking=walking)

        def attempt() -> bool:
            road = self.layout.roads[0] if len(self.layout.roads) == 1 or rng.random() < 0.75 else self.layout.roads[1]
            side = float(rng.choice([-1, 1]))
            x0, y0 = self._ego_xy[int(rng.integers(len(self._ego_xy)))]
            s = road.nearest_s_m(x0, y0) + float(rng.normal(0, 16))
            x, y, yaw = road.at(s, side * float(rng.uniform(road.half_width_m + 0.3, road.outer_m - 0.2)))
            if surface_at(self.layout, x, y) != Surface.SIDEWALK:
                return False
            yaw += -side * np.pi / 2 if crossing else float(rng.choice([0.0, np.pi]))
            return self._stand_or_walk(shape, x, y, yaw, walking=walking)

        return self._try(attempt)

    def _worker(self, lot: Lot) -> bool:
        walking = bool(self.rng.random() < 0.3)
        shape = small_shapes.pedestrian(self.rng, worker=True, walking=walking)
        return self._try(lambda: self._stand_or_walk(shape, *self._in_lot(lot, shape), walking=walking), tries=4)

    def _stand_or_walk(self, shape: Shape, x_m: float, y_m: float, yaw_rad: float, *, walking: bool) -> bool:
        rng = self.rng
        if not walking:
            return self._add(
                shape, parked(x_m, y_m, yaw_rad + float(rng.uniform(-3.1, 3.1))), "pedestrian.standing", gap_m=0.15
            )
        speed = float(rng.uniform(0.7, 1.7))
        # People do not walk on a ruler: a slow drift of the heading.
        yaw = yaw_rad + float(rng.normal(0, 0.08)) + float(rng.normal(0, 0.05)) * self.times_s
        steps = speed * TRACK_STEP_S * np.stack([np.cos(yaw), np.sin(yaw)], -1)
        xy = np.array([x_m, y_m]) + np.cumsum(steps, axis=0) - steps.sum(axis=0) * 0.3
        return self._add(shape, Track(self.times_s, np.column_stack([xy, yaw])), gap_m=0.15)
