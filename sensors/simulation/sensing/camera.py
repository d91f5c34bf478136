"""Six cameras, one ray a pixel: flat shading, painted ground, windows, shadows, sky, fog, night, rain and sensor noise.

Legend: H, W image; N = H * W rays.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from sensors.simulation.sensing.casting import Hits, RayBundle, rotate
from sensors.simulation.sensing.ground import Ground
from sensors.simulation.sensing.rig import Mount
from sensors.simulation.sensing.world import Pose, World
from sensors.simulation.shapes.mesh import Array, Material

HEADLIGHT_REACH_M = 14.0
# One bank of noise serves all images of a scene, each from another place in it.
NOISE_OFFSETS = 1 << 16
_ENCODE = np.round(255 * np.linspace(0, 1, 4096) ** (1 / 2.2)).astype(np.int16)
# Light of lamps themselves, added to what falls on them, by day and by night.
_GLOW = {Material.HEADLIGHT: (0.15, 1.6), Material.TAILLIGHT: (0.1, 0.9), Material.STREETLIGHT: (0.0, 1.8)}


@dataclass(frozen=True, slots=True)
class Picture:
    """image [H, W, 3] u8 RGB; objects [H, W] i32: index of the agent seen, -1 for anything else."""

    image: Array
    objects: Array


class CameraRenderer:
    """Renders a world; holds what all images of a scene share."""

    def __init__(self, world: World, rng: np.random.Generator, *, width_px: int, height_px: int) -> None:
        self.world, self.width_px, self.height_px = world, width_px, height_px
        self.ground = Ground(world, rng)
        self.exposure = float(rng.uniform(0.85, 1.15))
        self._noise = rng.normal(0, 1, width_px * height_px * 3 + NOISE_OFFSETS).astype(np.float32)
        self._albedo = world.colors
        glow = np.zeros(len(world.materials), np.float32)
        for material, (day, night) in _GLOW.items():
            glow[world.materials == material] = night if world.weather.night else day
        self._glow = world.colors * glow[:, None]

    def render(self, mount: Mount, pose: Pose, ego: Array, time_s: float, rng: np.random.Generator) -> Picture:
        """One image from `pose` at a time; ego is x, y, yaw [3], whose headlights shine at night."""
        rays = pixel_rays(mount, self.width_px, self.height_px)
        hits = self.world.cast(pose.translation_m, rays, float(ego[2]), time_s)
        forward = pose.rotation[:, 2]
        sector = (float(np.arctan2(forward[1], forward[0])), float(np.arctan(0.54 * 1600 / mount.focal_px)))
        with self.ground.moving_shadows(time_s, pose.translation_m, sector):
            light = self._shade(hits, pose, ego, time_s)
        image = self._develop(light, rng)
        objects = np.where(hits.hit, self.world.objects[hits.face], -1)
        shape = (self.height_px, self.width_px)
        return Picture(image, objects.reshape(shape))

    def _shade(self, hits: Hits, pose: Pose, ego: Array, time_s: float) -> Array:
        """Linear light [N, 3] f32."""
        weather, world = self.world.weather, self.world
        seen, open_sky = np.flatnonzero(hits.hit), np.flatnonzero(~hits.hit)
        face, distance = hits.face[seen], hits.distance_m[seen]
        points = pose.translation_m.astype(np.float32) + hits.directions[seen] * distance[:, None]
        normals = world.face_normals(time_s)
        per_face = weather.ambient * (0.72 + 0.28 * normals[:, 2]) + weather.sun * np.maximum(
            np.einsum("ni,i->n", normals, weather.sun_direction), 0
        )
        color, lit = self._albedo[face], per_face[face].astype(np.float32)
        material = world.materials[face]
        self._paint_ground(color, lit, points, distance, material)
        _paint_facades(color, points, normals[face], material, night=weather.night)
        _paint_rough(color, points, material)
        if weather.night:
            lit += self.ground.lamp_light(points) + _headlights(points, ego) * np.where(
                material == Material.REFLECTOR, 2.0, 1.0
            )
        light = color * lit[:, None] + self._glow[face]
        through = np.exp(-weather.extinction_per_m * distance)[:, None]
        out = np.empty((len(hits.face), 3), np.float32)
        out[open_sky] = _sky(weather.sky_zenith, weather.haze, hits.directions[open_sky, 2], foggy=weather.fog)
        out[seen] = light * through + weather.haze * (1 - through)
        return out

    def _paint_ground(self, color: Array, lit: Array, points: Array, distance: Array, material: Array) -> None:
        at = np.flatnonzero(material == Material.GROUND)
        places = points[at, :2]
        color[at] = self.ground.colors(places, distance[at])
        lit[at] *= self.ground.light(places)

    def _develop(self, light: Array, rng: np.random.Generator) -> Array:
        weather = self.world.weather
        if weather.rain:
            grey = light.mean(axis=1, keepdims=True)
            light = 0.6 * light + 0.4 * grey
        gain = self.exposure * (3.2 if weather.night else 1.0)
        code = np.clip(light * (gain * 4095.0), 0, 4095).astype(np.int16)
        pixels = _ENCODE[code].reshape(-1)
        start = int(rng.integers(NOISE_OFFSETS))
        strength = 7.0 if weather.night else 4.5 if weather.rain else 2.2
        pixels = pixels + self._noise[start : start + len(pixels)] * strength
        image = np.clip(pixels, 0, 255).astype(np.uint8).reshape(self.height_px, self.width_px, 3)
        return _lens_drops(image, rng) if weather.rain else image


@functools.lru_cache(maxsize=16)
def pixel_rays(mount: Mount, width_px: int, height_px: int) -> RayBundle:
    """One ray [H * W] through each pixel centre, in the ego frame."""
    k = mount.intrinsic(width_px, height_px)
    u, v = np.meshgrid(np.arange(width_px), np.arange(height_px))
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u, float)], -1).reshape(-1, 3)
    return RayBundle.of(rotate(rays / np.linalg.norm(rays, axis=1, keepdims=True), mount.rotation()))


def _sky(zenith: Array, haze: Array, up: Array, *, foggy: bool) -> Array:
    blend = np.clip(up * 3.0, 0, 1)[:, None] * (0.1 if foggy else 1.0)
    return (haze + (zenith - haze) * blend).astype(np.float32)


def _headlights(points: Array, ego: Array) -> Array:
    """Light [N] of the ego vehicle's headlights."""
    c, s = np.float32(np.cos(ego[2])), np.float32(np.sin(ego[2]))
    dx, dy = points[:, 0] - np.float32(ego[0]), points[:, 1] - np.float32(ego[1])
    ahead, beside = c * dx + s * dy - 3.5, -s * dx + c * dy
    reach = np.maximum(ahead, 0.1)
    cone = np.exp(-((beside / (1.5 + 0.45 * reach)) ** 2)) * (ahead > 0)
    return cone * 0.55 / (1 + (reach / HEADLIGHT_REACH_M) ** 2)


def _hash(a: Array, b: Array, c: Array | int = 0) -> Array:
    """A random-looking number in 0..1 for each cell of whole numbers."""
    mixed = (a * 73856093) ^ (b * 19349663) ^ (c * 83492791)
    mixed = (mixed ^ (mixed >> 7)) * 1274126177
    return ((mixed >> 9) & 1023).astype(np.float32) / 1023


def _paint_facades(color: Array, points: Array, normals: Array, material: Array, *, night: bool) -> None:
    at = np.flatnonzero((material == Material.FACADE) & (np.abs(normals[:, 2]) < 0.5))
    if len(at) == 0:
        return
    p, n = points[at], normals[at]
    along = (p[:, 1] * n[:, 0] - p[:, 0] * n[:, 1]) / 2.4
    up = p[:, 2] / 3.0
    column, storey = np.floor(along).astype(np.int32), np.floor(up).astype(np.int32)
    fx, fz = along - column, up - storey
    shop = storey == 0
    window = np.where(
        shop, (fx > 0.12) & (fx < 0.88) & (fz > 0.15) & (fz < 0.8), (fx > 0.28) & (fx < 0.74) & (fz > 0.3) & (fz < 0.8)
    )
    brick = 0.9 + 0.2 * _hash(np.floor(p[:, 2] * 6).astype(np.int32), np.floor(along * 7).astype(np.int32))
    color[at] *= brick[:, None]
    kind = _hash(column, storey, 5)
    pane = at[window]
    color[pane] = np.array([0.05, 0.07, 0.09], np.float32) * (0.6 + 1.5 * kind[window])[:, None]
    if night:
        color[pane] += (np.array([4.0, 2.8, 1.4], np.float32) * (kind[window] > 0.7)[:, None]).astype(np.float32)


def _paint_rough(color: Array, points: Array, material: Array) -> None:
    """Leaves, bark, concrete and tarpaulin are not of one colour."""
    rough = (material == Material.FOLIAGE) | (material == Material.BARK) | (material == Material.CONCRETE)
    at = np.flatnonzero(rough)
    cell = np.floor(points[at] * 5).astype(np.int32)
    spread = np.where(material[at] == Material.FOLIAGE, 0.9, 0.3).astype(np.float32)
    color[at] *= (1 + spread * (_hash(cell[:, 0], cell[:, 1], cell[:, 2]) - 0.5))[:, None]


def _lens_drops(image: Array, rng: np.random.Generator) -> Array:
    """A few drops on the lens blur what is behind them."""
    height, width = image.shape[:2]
    blurred = cv2.blur(image, (max(3, width // 25),) * 2)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(int(rng.integers(2, 7))):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(mask, centre, int(rng.integers(width // 80 + 1, width // 30 + 2)), 255, -1)
    return np.where(mask[..., None] > 0, blurred, image)
