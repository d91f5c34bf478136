"""One square tile of town: roads, crossings, lots, and the ground raster they are painted on.

World frame: x, y in metres from the tile's lower left corner, z up, ground at z = 0. Traffic keeps right. A road has an
arc length s along its centre line and a lateral offset d, positive to the left of increasing s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import cv2
import numpy as np

from sensors.simulation.shapes.mesh import Array

TILE_M = 200.0
RESOLUTION_M = 0.1
"""The devkit's map masks have 0.1 m pixels; the ground raster shares them."""
TILE_PX = round(TILE_M / RESOLUTION_M)
ROAD_HALF_LENGTH_M = 135.0
STEP_M = 0.5


class Surface(IntEnum):
    """Codes of the ground raster."""

    GRASS = 0
    ROAD = 1
    SIDEWALK = 2
    WHITE_PAINT = 3
    YELLOW_PAINT = 4
    LOT = 5
    DIRT = 6


# LiDAR reflectivity by surface code.
SURFACE_REFLECTIVITY: Array = np.array([0.30, 0.10, 0.18, 0.55, 0.45, 0.09, 0.22], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Road:
    """A road by its centre line.

    centre_m [K, 2] every STEP_M from s = -ROAD_HALF_LENGTH_M; yaw_rad [K]. Parking strips lie between lanes and sidewalk.
    """

    centre_m: Array
    yaw_rad: Array
    lanes_per_direction: int
    lane_width_m: float
    strip_m: float
    sidewalk_m: float

    @property
    def lanes_half_m(self) -> float:
        """From centre line to the outer edge of the lanes."""
        return self.lanes_per_direction * self.lane_width_m

    @property
    def half_width_m(self) -> float:
        """From centre line to kerb."""
        return self.lanes_half_m + self.strip_m

    @property
    def outer_m(self) -> float:
        """From centre line to the outer edge of the sidewalk."""
        return self.half_width_m + self.sidewalk_m

    def at(self, s_m: float, d_m: float) -> tuple[float, float, float]:
        """World x, y and heading of the road at (s, d)."""
        xy, yaw = self._at(np.array([s_m]), d_m)
        return float(xy[0, 0]), float(xy[0, 1]), float(yaw[0])

    def path(self, start_m: float, end_m: float, d_m: float) -> Array:
        """Points [N, 2] from s = start to s = end (either way round) at offset d."""
        n = max(2, int(abs(end_m - start_m) / STEP_M) + 1)
        return self._at(np.linspace(start_m, end_m, n), d_m)[0]

    def nearest_s_m(self, x_m: float, y_m: float) -> float:
        """Arc length of the centre line's point nearest to a place."""
        i = int(np.argmin(np.hypot(self.centre_m[:, 0] - x_m, self.centre_m[:, 1] - y_m)))
        return i * STEP_M - ROAD_HALF_LENGTH_M

    def _at(self, s_m: Array, d_m: float) -> tuple[Array, Array]:
        index = np.clip((s_m + ROAD_HALF_LENGTH_M) / STEP_M, 0, len(self.centre_m) - 1)
        knots = np.arange(len(self.centre_m))
        yaw = np.interp(index, knots, self.yaw_rad)
        x = np.interp(index, knots, self.centre_m[:, 0]) - d_m * np.sin(yaw)
        y = np.interp(index, knots, self.centre_m[:, 1]) + d_m * np.cos(yaw)
        return np.stack([x, y], -1), yaw


@dataclass(frozen=True, slots=True)
class Lot:
    """A paved rectangle beside a road: s from `s_m[0]` to `s_m[1]`, d from `d_m[0]` to `d_m[1]` (d_m[0] nearest the road)."""

    road: int
    s_m: tuple[float, float]
    d_m: tuple[float, float]
    construction: bool


@dataclass(slots=True)
class Layout:
    """roads[0] is the ego vehicle's; `crossing_s_m` is where roads[1], if any, crosses it. surface [TILE_PX, TILE_PX] u8,
    first axis y.
    """

    roads: list[Road]
    crossing_s_m: float | None
    lots: list[Lot] = field(default_factory=list)
    surface: Array = field(default_factory=lambda: np.zeros((TILE_PX, TILE_PX), np.uint8))

    def crossing_radius_m(self) -> float:
        """How far from its middle the lanes of the crossing end."""
        return max(r.half_width_m for r in self.roads) + 4.0

    def drivable_mask(self) -> Array:
        """255 where vehicles may drive, else 0; [TILE_PX, TILE_PX] u8 with y growing downwards, as the devkit's masks."""
        codes = (Surface.ROAD, Surface.WHITE_PAINT, Surface.YELLOW_PAINT, Surface.LOT)
        return np.ascontiguousarray(np.isin(self.surface, codes)[::-1].astype(np.uint8) * 255)


def to_pixels(xy_m: Array) -> Array:
    """World points [N, 2] to cv2's fixed-point pixel coordinates (4 fractional bits); pixel i covers [i, i + 1) / 10 m."""
    return np.round((np.asarray(xy_m) / RESOLUTION_M - 0.5) * 16).astype(np.int32)


def fill(image: Array, polygon_m: Array, value: int) -> None:
    """Paint a convex polygon [N, 2]."""
    cv2.fillConvexPoly(image, to_pixels(polygon_m), value, shift=4)


def fill_band(image: Array, road: Road, s_m: tuple[float, float], d_m: tuple[float, float], value: int) -> None:
    """Paint the part of a road between two arc lengths and two offsets."""
    left, right = road.path(s_m[0], s_m[1], d_m[0]), road.path(s_m[0], s_m[1], d_m[1])
    cv2.fillPoly(image, [to_pixels(np.concatenate([left, right[::-1]]))], value, shift=4)


def make_layout(rng: np.random.Generator) -> Layout:
    """A random tile whose main road passes through its middle."""
    heading = float(rng.uniform(-np.pi, np.pi))
    bend = 0.0 if rng.random() < 0.45 else float(rng.uniform(-1 / 70, 1 / 70))
    main = _road(rng, (TILE_M / 2, TILE_M / 2), heading, bend, lanes=int(rng.choice([1, 2], p=[0.45, 0.55])))
    roads, crossing = [main], None
    if rng.random() < 0.75:
        crossing = float(rng.uniform(-15, 40))
        x, y, yaw = main.at(crossing, 0.0)
        angle = np.radians(rng.uniform(75, 105))
        roads.append(_road(rng, (x, y), yaw + angle, 0.0, lanes=int(rng.choice([1, 2]))))
    layout = Layout(roads, crossing)
    _paint_roads(rng, layout)
    return layout


def _road(rng: np.random.Generator, middle_m: tuple[float, float], heading: float, bend: float, *, lanes: int) -> Road:
    s = np.arange(-ROAD_HALF_LENGTH_M, ROAD_HALF_LENGTH_M + STEP_M, STEP_M)
    curvature = bend * np.sin(s / float(rng.uniform(18, 35)) + float(rng.uniform(0, 6.28)))
    yaw = np.cumsum(curvature) * STEP_M
    zero = len(s) // 2
    yaw += heading - yaw[zero]
    xy = np.cumsum(np.stack([np.cos(yaw), np.sin(yaw)], -1), axis=0) * STEP_M
    xy += np.array(middle_m) - xy[zero]
    return Road(
        xy, yaw, lanes, float(rng.uniform(3.2, 3.7)), float(rng.uniform(2.5, 2.9)), float(rng.uniform(2.4, 4.0))
    )


def _paint_roads(rng: np.random.Generator, layout: Layout) -> None:
    surface = layout.surface
    span = (-ROAD_HALF_LENGTH_M, ROAD_HALF_LENGTH_M)
    for road in layout.roads:
        fill_band(surface, road, span, (-road.outer_m, road.outer_m), Surface.SIDEWALK)
    _add_lots(rng, layout)
    for road in layout.roads:
        fill_band(surface, road, span, (-road.half_width_m, road.half_width_m), Surface.ROAD)
    for index, road in enumerate(layout.roads):
        for part in _between_crossings(layout, index):
            _paint_lines(surface, road, part)
        if layout.crossing_s_m is not None:
            middle = layout.crossing_s_m if index == 0 else 0.0
            _paint_crosswalks(surface, road, middle, layout.crossing_radius_m())


def _between_crossings(layout: Layout, index: int) -> list[tuple[float, float]]:
    if layout.crossing_s_m is None:
        return [(-ROAD_HALF_LENGTH_M, ROAD_HALF_LENGTH_M)]
    middle = layout.crossing_s_m if index == 0 else 0.0
    radius = layout.crossing_radius_m() + 1.5
    return [(-ROAD_HALF_LENGTH_M, middle - radius), (middle + radius, ROAD_HALF_LENGTH_M)]


def _paint_lines(surface: Array, road: Road, part: tuple[float, float]) -> None:
    fill_band(surface, road, part, (0.06, 0.2), Surface.YELLOW_PAINT)
    fill_band(surface, road, part, (-0.2, -0.06), Surface.YELLOW_PAINT)
    for side in (-1, 1):
        edge = side * road.lanes_half_m
        fill_band(surface, road, part, (edge - 0.07, edge + 0.07), Surface.WHITE_PAINT)
        for lane in range(1, road.lanes_per_direction):
            d = side * lane * road.lane_width_m
            for s in np.arange(part[0], part[1] - 3, 7.0):
                fill_band(surface, road, (s, s + 3.0), (d - 0.07, d + 0.07), Surface.WHITE_PAINT)


def _paint_crosswalks(surface: Array, road: Road, middle_m: float, radius_m: float) -> None:
    half = road.half_width_m
    for side in (-1, 1):
        start = middle_m + side * (radius_m - 3.2)
        for d in np.arange(-half + 0.3, half - 0.5, 1.1):
            fill_band(surface, road, (start, start + side * 2.6), (d, d + 0.55), Surface.WHITE_PAINT)
        stop = middle_m + side * (radius_m + 0.8)
        d_range = (-road.lanes_half_m, 0.0) if side < 0 else (0.0, road.lanes_half_m)
        fill_band(surface, road, (stop, stop + side * 0.4), d_range, Surface.WHITE_PAINT)


def _add_lots(rng: np.random.Generator, layout: Layout) -> None:
    road = layout.roads[0]
    for side in (-1, 1):
        s = -75.0 + float(rng.uniform(0, 15))
        while s < 80.0:
            length = float(rng.uniform(18, 34))
            near = road.outer_m + 0.3
            lot = Lot(
                0, (s, s + length), (side * near, side * (near + float(rng.uniform(11, 17)))), bool(rng.random() < 0.4)
            )
            if rng.random() < 0.75 and not _meets_crossing(layout, lot):
                layout.lots.append(lot)
                fill_band(layout.surface, road, lot.s_m, lot.d_m, Surface.DIRT if lot.construction else Surface.LOT)
                drive = s + length / 2
                fill_band(
                    layout.surface,
                    road,
                    (drive - 2.5, drive + 2.5),
                    (side * (road.half_width_m - 0.2), side * (near + 0.2)),
                    Surface.LOT,
                )
            s += length + float(rng.uniform(2, 14))


def _meets_crossing(layout: Layout, lot: Lot) -> bool:
    """Whether a lot comes near a road other than its own."""
    if len(layout.roads) < 2:
        return False
    road, other = layout.roads[lot.road], layout.roads[1]
    edge = np.concatenate([road.path(lot.s_m[0], lot.s_m[1], d) for d in np.linspace(lot.d_m[0], lot.d_m[1], 5)])
    gaps = np.linalg.norm(edge[:, None] - other.centre_m[None], axis=-1)
    return bool(gaps.min() < other.outer_m + 1.0)
