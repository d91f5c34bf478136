"""The roof LiDAR: 32 beams cast ray by ray, with range noise, drop-out, intensity by material, rain and fog.

The turn of the mirror takes 50 ms in the real sensor; here all beams of a sweep fire at its one timestamp.
"""

from __future__ import annotations

import functools

import numpy as np

from sensors.simulation.sensing import rig
from sensors.simulation.sensing.casting import RayBundle, rotate
from sensors.simulation.sensing.world import Pose, World
from sensors.simulation.shapes.mesh import LIDAR_REFLECTIVITY, Array, Material
from sensors.simulation.world.layout import SURFACE_REFLECTIVITY, TILE_M, TILE_PX

RANGE_NOISE_M = 0.015
# Return strength (reflectivity x cosine x (RANGE / r)^2) at which half of the pulses are seen sets the scale of drop-out.
STRENGTH_RANGE_M = 75.0


@functools.lru_cache(maxsize=4)
def beam_directions(azimuth_steps: int) -> Array:
    """Unit vectors [azimuth_steps * 32, 3] in the sensor frame (x right, y forward, z up), rings fastest as in nuScenes."""
    azimuth = -np.linspace(0, 2 * np.pi, azimuth_steps, endpoint=False) + np.pi
    elevation = rig.LIDAR_ELEVATIONS_RAD
    az, el = np.meshgrid(azimuth, elevation, indexing="ij")
    return np.stack([np.cos(el) * np.cos(az), np.cos(el) * np.sin(az), np.sin(el)], -1).reshape(-1, 3)


@functools.lru_cache(maxsize=4)
def _beams(azimuth_steps: int) -> RayBundle:
    """The beams in the ego frame."""
    return RayBundle.of(rotate(beam_directions(azimuth_steps), rig.LIDAR.rotation()))


def scan(world: World, time_s: float, rng: np.random.Generator, *, azimuth_steps: int, range_m: float) -> Array:
    """One sweep: points [N, 5] f32 of x, y, z (m, sensor frame), intensity 0..255, ring 0..31."""
    local = beam_directions(azimuth_steps)
    ego = world.ego.pose(time_s)
    pose = Pose.of_sensor(ego, rig.LIDAR)
    hits = world.cast(pose.translation_m, _beams(azimuth_steps), float(ego[2]), time_s, reach_m=range_m)
    directions = hits.directions
    hit = hits.hit
    distance = np.where(hit, hits.distance_m, 1.0).astype(np.float64)
    normals = world.face_normals(time_s)[hits.face]
    cosine = np.abs((normals * directions).sum(axis=1))
    reflectivity = LIDAR_REFLECTIVITY[world.materials[hits.face]].copy()
    ground = world.materials[hits.face] == Material.GROUND
    reflectivity[ground] = ground_reflectivity(world, pose.translation_m + directions[ground] * distance[ground, None])
    # Glass and film send light on or straight back; all else is roughly Lambertian.
    retro = world.materials[hits.face] == Material.REFLECTOR
    shine = np.where(retro, 1.0, 0.25 + 0.75 * cosine)
    through_air = np.exp(-2 * world.weather.extinction_per_m * distance)
    strength = (
        reflectivity * np.where(retro, 1.0, np.maximum(cosine, 0.05)) * through_air * (STRENGTH_RANGE_M / distance) ** 2
    )
    seen = hit & (rng.random(len(hit)) < 1.0 - np.exp(-4.0 * strength - 0.05))
    glass = world.materials[hits.face] == Material.GLASS
    seen &= ~(glass & (rng.random(len(hit)) < 0.45))
    seen &= rng.random(len(hit)) < (0.90 if world.weather.rain else 0.985)
    distance = distance + rng.normal(0, RANGE_NOISE_M, len(hit)) + rng.normal(0, 1, len(hit)) * distance * 2e-4
    intensity = 255 * reflectivity * shine * through_air * rng.uniform(0.8, 1.2, len(hit))
    distance, intensity, seen = _airborne(world, rng, distance, intensity, seen)
    ring = np.tile(np.arange(32), azimuth_steps)
    points = np.column_stack([local * distance[:, None], np.clip(np.round(intensity), 0, 255), ring])
    return np.ascontiguousarray(points[seen], dtype=np.float32)


def ground_reflectivity(world: World, points_m: Array) -> Array:
    """Reflectivity [N] of ground points [N, 3] from the painted raster."""
    index = np.clip(np.floor(points_m[:, :2] * (TILE_PX / TILE_M)).astype(int), 0, TILE_PX - 1)
    return SURFACE_REFLECTIVITY[world.layout.surface[index[:, 1], index[:, 0]]]


def _airborne(
    world: World, rng: np.random.Generator, distance: Array, intensity: Array, seen: Array
) -> tuple[Array, Array, Array]:
    """Droplets: some pulses come back early, from rain or fog near the sensor."""
    share = 0.012 * world.weather.rain + 0.03 * world.weather.fog
    early = 1.2 + rng.exponential(3.5, len(distance))
    drop = (rng.random(len(distance)) < share) & (early < np.where(seen, distance, 1e6))
    return np.where(drop, early, distance), np.where(drop, rng.uniform(0, 4, len(distance)), intensity), seen | drop
