"""Colours and shadows of the ground, as rasters that a camera pixel looks up.

Shadows of what stands still are cast once a scene, those of what moves are painted and taken away for each image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from sensors.simulation.sensing.world import World
from sensors.simulation.shapes.mesh import Array, Material
from sensors.simulation.world.layout import TILE_M, TILE_PX
from sensors.simulation.world.scenery import rectangle

SHADE_PX = TILE_PX // 2
FINE_REACH_M = 18.0
CONTACT_SHADE = 110
GRAINS = 16
LAMP_PX = 400


class Ground:
    """Rasters over the tile, first axis y.

    codes [TILE_PX, TILE_PX] u8 index palette [112, 3] f32 (linear albedo by surface and grain);
    coarse [TILE_PX / 4, TILE_PX / 4, 3] f32 is the same averaged;
    shade [SHADE_PX, SHADE_PX] u8 (255: full light); lamps [LAMP_PX, LAMP_PX] f32 (light of street lamps).
    """

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self.world = world
        self.codes, self.palette = _painted(world, rng)
        self.coarse = cv2.resize(self.palette[self.codes[::2, ::2]], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        self.shade = _static_shade(world)
        self.lamps = _lamp_light(world)

    def colors(self, points_m: Array, distance_m: Array) -> Array:
        """Albedo [N, 3] f32 at ground points [N, 2].

        The coarse raster stands in beyond FINE_REACH_M, so that lines do not flicker.
        """
        color = np.empty((len(points_m), 3), np.float32)
        near = distance_m < FINE_REACH_M
        color[near] = self.palette[_lookup(self.codes, points_m[near])]
        size = len(self.coarse)
        cell = np.clip((points_m[~near] * np.float32(size / TILE_M)).astype(np.int32), 0, size - 1)
        color[~near] = self.coarse.reshape(-1, 3)[cell[:, 1] * size + cell[:, 0]]
        return color

    def light(self, points_m: Array) -> Array:
        """Share [N] f32 of the light that reaches ground points [N, 2]."""
        return _lookup(self.shade, points_m).astype(np.float32) / np.float32(255)

    def lamp_light(self, points_m: Array) -> Array:
        """Light [N] f32 of the street lamps at places [N, 2]."""
        return _lookup(self.lamps, points_m)

    @contextmanager
    def moving_shadows(self, time_s: float, eye_m: Array, sector: tuple[float, float]) -> Iterator[None]:
        """Inside, `light` knows the shadows of the moving agents at this time, as far as a camera can see them.

        eye_m [2] is where it stands; sector is the azimuth it looks along and its half angle of view.
        """
        undo: list[tuple[slice, slice, Array]] = []
        poses = self.world.poses(time_s)
        for agent, (x, y, yaw) in zip(self.world.agents, poses, strict=True):
            if not agent.track.moves or not _may_be_seen(x - eye_m[0], y - eye_m[1], sector):
                continue
            width, length, height = agent.shape.size_wlh_m
            foot = rectangle(x, y, yaw, length, width)
            polygons = [(foot, CONTACT_SHADE)]
            if self.world.weather.sun > 0.3:
                polygons.insert(
                    0,
                    (_cast_outline(foot * 0.9 + np.array([x, y]) * 0.1, height, self.world.weather.sun_direction), 150),
                )
            for polygon, value in polygons:
                pixels = polygon * (SHADE_PX / TILE_M)
                low = np.clip(np.floor(pixels.min(0)).astype(int) - 2, 0, SHADE_PX)
                high = np.clip(np.ceil(pixels.max(0)).astype(int) + 3, 0, SHADE_PX)
                rows, columns = slice(low[1], high[1]), slice(low[0], high[0])
                undo.append((rows, columns, self.shade[rows, columns].copy()))
                _darken(self.shade, rows, columns, polygon, value)
        try:
            yield
        finally:
            for rows, columns, before in reversed(undo):
                self.shade[rows, columns] = before


def _may_be_seen(dx_m: float, dy_m: float, sector: tuple[float, float]) -> bool:
    distance = float(np.hypot(dx_m, dy_m))
    beside = abs((float(np.arctan2(dy_m, dx_m)) - sector[0] + np.pi) % (2 * np.pi) - np.pi)
    return distance < 12.0 or (distance < 50.0 and beside < sector[1] + 8.0 / distance)


def _lookup(raster: Array, points_m: Array) -> Array:
    size = raster.shape[0]
    ix = np.clip((points_m[:, 0] * (size / TILE_M)).astype(np.int32), 0, size - 1)
    iy = np.clip((points_m[:, 1] * (size / TILE_M)).astype(np.int32), 0, size - 1)
    return raster.reshape(-1)[iy * size + ix]


def _painted(world: World, rng: np.random.Generator) -> tuple[Array, Array]:
    """Ground codes and the palette that they index."""
    asphalt = rng.uniform(65, 105)
    palette = np.array(
        [
            np.array([88, 112, 62]) * rng.uniform(0.75, 1.15) + rng.normal(0, 6, 3), np.full(3, asphalt) + rng.normal(0, 3, 3),
            np.array([150, 146, 138]) * rng.uniform(0.8, 1.1), [225, 225, 222], [215, 175, 60],
            np.full(3, asphalt + rng.uniform(-10, 15)), np.array([142, 116, 86]) * rng.uniform(0.85, 1.1),
        ]
    )  # fmt: skip
    # Grain and blotches as one of GRAINS levels of brightness: a table look-up is far faster than arithmetic on 12 M floats.
    blotches = cv2.resize(
        rng.normal(0, 1.6, (40, 40)).astype(np.float32), (TILE_PX, TILE_PX), interpolation=cv2.INTER_LINEAR
    )
    grain = np.tile(rng.normal(GRAINS / 2, 1.6, (250, 250)).astype(np.float32), (TILE_PX // 250, TILE_PX // 250))
    level = cv2.convertScaleAbs(cv2.max(cv2.add(blotches, grain), 0.0))
    np.minimum(level, GRAINS - 1, out=level)
    brightness = 1 + (np.arange(GRAINS) - GRAINS / 2) * 0.035
    linear = (np.clip(palette[:, None] * brightness[None, :, None], 0, 255) / 255.0) ** 2.2
    level += world.layout.surface * np.uint8(GRAINS)
    return np.asarray(level), linear.reshape(-1, 3).astype(np.float32)


def _static_shade(world: World) -> Array:
    shade = np.full((SHADE_PX, SHADE_PX), 255, np.uint8)
    if world.weather.sun > 0.3:
        sun = world.weather.sun_direction
        # Only faces turned to the sun: together they have the whole shadow's outline.
        lit = (world.static.face_normals() @ sun > 0) & (world.static.materials != Material.GROUND)
        v = world.static.vertices_m
        flat = (v[:, :2] - v[:, 2:] * (sun[:2] / sun[2])).astype(np.float64)
        triangles = np.round((flat * (SHADE_PX / TILE_M) - 0.5) * 16).astype(np.int32)[world.static.faces[lit]]
        for triangle in triangles:
            cv2.fillConvexPoly(shade, triangle, 150, shift=4)
    for agent in world.agents:
        if not agent.track.moves:
            x, y, yaw = agent.track.poses[0]
            width, length, _ = agent.shape.size_wlh_m
            _darken(shade, slice(None), slice(None), rectangle(x, y, yaw, length, width), CONTACT_SHADE)
    return cv2.GaussianBlur(shade, (5, 5), 0.9)


def _cast_outline(foot_m: Array, height_m: float, sun: Array) -> Array:
    """The shadow [N, 2] of an upright box with this footprint."""
    away = -sun[:2] / sun[2] * height_m
    both = np.concatenate([foot_m, foot_m + away]).astype(np.float32)
    return cv2.convexHull(both)[:, 0].astype(np.float64)


def _darken(shade: Array, rows: slice, columns: slice, polygon_m: Array, value: int) -> None:
    pixels = np.round((polygon_m * (SHADE_PX / TILE_M) - 0.5) * 16).astype(np.int32)
    row, column = rows.start or 0, columns.start or 0
    view = np.ascontiguousarray(shade[rows, columns])
    cv2.fillConvexPoly(view, pixels - np.array([column * 16, row * 16], np.int32), value, shift=4)
    np.minimum(shade[rows, columns], view, out=shade[rows, columns])


def _lamp_light(world: World) -> Array:
    lamps = np.zeros((LAMP_PX, LAMP_PX), np.float32)
    if not world.weather.night:
        return lamps
    centres = (np.arange(LAMP_PX, dtype=np.float32) + 0.5) * np.float32(TILE_M / LAMP_PX)
    for x, y in world.lamps_m:
        gx, gy = np.exp(-(((centres - x) / 7.0) ** 2)), np.exp(-(((centres - y) / 7.0) ** 2))
        lamps += 0.22 * np.outer(gy, gx)
    return lamps
