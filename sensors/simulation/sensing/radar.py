"""Five radars: a fan of rays finds what can echo, then cross-section, range and chance decide what does.

Radar waves pass below car bodies, so one of the two fans runs close above the road. Heights are not measured: z is 0 in the
radar frame, as in nuScenes.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from sensors.nuscenes.sensor_files import RADAR_POINT
from sensors.simulation.sensing.casting import RayBundle
from sensors.simulation.sensing.rig import Mount
from sensors.simulation.sensing.world import Pose, World
from sensors.simulation.shapes.mesh import Array, Material

NEAR_FOV_RAD, NEAR_RANGE_M = np.radians(60.0), 70.0
FAR_FOV_RAD, FAR_RANGE_M = np.radians(10.0), 150.0
RANGE_NOISE_M, AZIMUTH_NOISE_RAD, SPEED_NOISE_MPS = 0.15, float(np.radians(0.8)), 0.1
QUANTUM_M, QUANTUM_MPS = 0.2, 0.25


@dataclass(frozen=True, slots=True)
class _Echoes:
    """Candidates in the radar frame: range_m, azimuth_rad, rcs_dbsm [N]; velocity_mps [N, 2] over ground; stopped [N] bool."""

    range_m: Array
    azimuth_rad: Array
    rcs_dbsm: Array
    velocity_mps: Array
    stopped: Array


def sense(world: World, mount: Mount, time_s: float, rng: np.random.Generator) -> Array:
    """One cycle of a radar: points [N] of RADAR_POINT, never empty.

    `vx_comp, vy_comp` is the radial velocity over ground as a vector along the line of sight; `vx, vy` is the same less the
    radar's own velocity, so that its part along the line of sight is the measured Doppler: the real files are made so.
    """
    ego = world.ego.pose(time_s)
    heading = _heading(Pose.of_sensor(ego, mount).rotation)
    fans = _fans(world, mount, ego, time_s)
    echoes = _merge([_from_agents(world, fans, heading, time_s, rng), _from_town(world, fans, time_s, rng)])
    echoes = _merge([echoes, _ghosts(echoes, rng), _noise(rng)])
    own = rotate_2d(mount_velocity(world, mount, time_s)[None], -heading)[0]
    velocity = rotate_2d(echoes.velocity_mps, -heading)
    measured_range = np.maximum(echoes.range_m + rng.normal(0, RANGE_NOISE_M, len(velocity)), 0.4)
    azimuth = echoes.azimuth_rad + rng.normal(0, AZIMUTH_NOISE_RAD, len(velocity))
    sight = np.stack([np.cos(azimuth), np.sin(azimuth)], -1)
    radial = (velocity * sight).sum(1) + rng.normal(0, SPEED_NOISE_MPS, len(velocity))
    points = np.zeros(len(velocity), RADAR_POINT)
    points["x"], points["y"] = (np.round(measured_range[:, None] * sight / QUANTUM_M) * QUANTUM_M).T
    points["vx_comp"], points["vy_comp"] = (radial[:, None] * sight).T
    points["vx"], points["vy"] = (np.round((radial[:, None] * sight - own) / QUANTUM_MPS) * QUANTUM_MPS).T
    points["rcs"] = np.round(echoes.rcs_dbsm * 2) / 2
    points["dyn_prop"] = _dynamic_property(velocity, sight, radial, echoes.stopped)
    _fill_quality(points, measured_range, rng)
    order = np.argsort(measured_range, kind="stable")
    points = points[order][:125]
    points["id"] = np.arange(len(points))
    return points


def mount_velocity(world: World, mount: Mount, time_s: float) -> Array:
    """World velocity [2] of a mounted sensor: the vehicle's, and its turning times the lever arm."""
    before, now, after = (world.ego.pose(time_s + h) for h in (-0.02, 0.0, 0.02))
    rate = (after[2] - before[2]) / 0.04
    arm = rotate_2d(np.array([mount.translation_m[:2]]), float(now[2]))[0]
    return np.asarray(world.ego.velocity(time_s) + rate * np.array([-arm[1], arm[0]]))


def rotate_2d(vectors: Array, angle_rad: float) -> Array:
    """Vectors [N, 2] turned."""
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    return np.stack([c * vectors[:, 0] - s * vectors[:, 1], s * vectors[:, 0] + c * vectors[:, 1]], -1)


@functools.lru_cache(maxsize=16)
def _fan_rays(mount: Mount, fans: int) -> tuple[Array, RayBundle]:
    """Azimuths [N] in the radar frame of some equal horizontal fans, and their rays in the ego frame."""
    azimuth = np.tile(np.radians(np.arange(-60.0, 60.01, 0.5)), fans)
    heading = azimuth + _heading(mount.rotation())
    return azimuth, RayBundle.of(np.stack([np.cos(heading), np.sin(heading), np.zeros_like(heading)], -1))


def _heading(rotation: Array) -> float:
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def _fans(world: World, mount: Mount, ego: Array, time_s: float) -> tuple[Array, Array, Array, Array]:
    """Ranges, azimuths, faces and world directions of what horizontal fans of rays meet within the field of view."""
    origin = Pose.of_sensor(ego, mount).translation_m
    heights = (float(origin[2]), 0.18, 1.0)
    azimuth, rays = _fan_rays(mount, len(heights))
    height = np.repeat(heights, len(azimuth) // len(heights))
    origins = np.column_stack([np.broadcast_to(origin[:2], (len(height), 2)), height])
    hits = world.cast(origins, rays, float(ego[2]), time_s, reach_m=FAR_RANGE_M)
    directions = hits.directions
    limit = np.where(np.abs(azimuth) < FAR_FOV_RAD, FAR_RANGE_M, NEAR_RANGE_M)
    ok = hits.hit & (hits.distance_m < limit) & (world.materials[hits.face] != Material.GROUND)
    return hits.distance_m[ok], azimuth[ok], hits.face[ok], directions[ok]


def _from_agents(
    world: World, fans: tuple[Array, Array, Array, Array], heading: float, time_s: float, rng: np.random.Generator
) -> _Echoes:
    objects = world.objects[fans[2]]
    # Rays by agent, so that each agent's are one slice.
    order = np.argsort(objects, kind="stable")[np.count_nonzero(objects < 0) :]
    distance, azimuth, objects = fans[0][order], fans[1][order], objects[order]
    indices, starts = np.unique(objects, return_index=True)
    poses, velocities = world.poses(time_s), world.velocities(time_s)
    rows: list[_Echoes] = []
    for index, first, last in zip(indices, starts, [*starts[1:], len(objects)], strict=True):
        agent = world.agents[index]
        nearest, bearing = float(distance[first:last].min()), float(azimuth[first])
        # Long bodies echo most when seen end-on or broadside and least from the corner.
        aspect = float(poses[index, 2]) - heading - bearing
        rcs = agent.shape.rcs_dbsm - 4.0 * math.sin(2 * aspect) ** 2
        width, length, _ = agent.shape.size_wlh_m
        size = max(width, length)
        tries = 1 + int(size > 1.2) + int(size / 2.5)
        count = int((rng.random(tries) < _detection_chance(rcs, nearest)).sum())
        if count == 0:
            continue
        chosen = rng.integers(first, last, count)
        # Echoes come from inside the outline as often as from its edge.
        depth = rng.uniform(0, 0.35, count) * min(width, 1.5)
        velocity = np.repeat(velocities[index][None], count, 0)
        if agent.attribute == "cycle.with_rider" or agent.shape.detection_name == "pedestrian":
            velocity *= 1 + rng.normal(0, 0.15, (count, 1))  # swinging limbs and turning wheels
        # Swerling I: the echo's power is exponentially distributed around its mean.
        fluctuation = 10 * np.log10(rng.exponential(1.0, count) + 0.05)
        waiting = agent.track.moves and math.hypot(*velocities[index]) < 0.2
        rows.append(
            _Echoes(distance[chosen] + depth, azimuth[chosen], rcs + fluctuation, velocity, np.full(count, waiting))
        )
    return _merge(rows)


def _detection_chance(rcs_dbsm: float, range_m: float) -> float:
    """From the radar equation: signal falls with the fourth power of range, against an exponential echo's threshold.

    Calibrated to give about 0.35 for a pedestrian at 20 m and 0.95 for a truck at 40 m. It gets no better
    below 18 m.
    """
    signal_to_threshold = 10 ** ((rcs_dbsm + 5.4 - 40 * math.log10(max(range_m, 18.0) / 20)) / 10)
    return float(0.97 * math.exp(-1.0 / signal_to_threshold) ** 0.75)


def _from_town(
    world: World, fans: tuple[Array, Array, Array, Array], time_s: float, rng: np.random.Generator
) -> _Echoes:
    """Clutter: walls where they face the radar, poles, trees."""
    distance, azimuth, face, directions = fans
    town = world.objects[face] < 0
    distance, azimuth, face, directions = distance[town], azimuth[town], face[town], directions[town]
    normals = world.face_normals(time_s)[face]
    facing = np.abs((normals * directions).sum(1))
    metal = world.materials[face] == Material.STEEL
    chance = np.where(metal, 0.12, 0.01 + 0.07 * facing**8) * np.exp(-distance / 80)
    keep = rng.random(len(face)) < chance
    count = int(keep.sum())
    rcs = rng.normal(3, 6, count) + 6 * facing[keep] ** 8
    return _Echoes(distance[keep], azimuth[keep], rcs, np.zeros((count, 2)), np.zeros(count, bool))


def _ghosts(echoes: _Echoes, rng: np.random.Generator) -> _Echoes:
    """Multipath: a strong echo comes a second time, from farther away and a little beside."""
    strong = (echoes.rcs_dbsm > 12) & (rng.random(len(echoes.rcs_dbsm)) < 0.06) & (echoes.range_m < 35)
    count = int(strong.sum())
    return _Echoes(
        echoes.range_m[strong] * rng.uniform(1.5, 2.1, count),
        echoes.azimuth_rad[strong] + rng.normal(0, 0.06, count),
        echoes.rcs_dbsm[strong] - 10,
        echoes.velocity_mps[strong] * 1.5,
        echoes.stopped[strong],
    )


def _noise(rng: np.random.Generator) -> _Echoes:
    """False alarms anywhere in the field of view; at least one, since a file without points cannot be told."""
    count = 1 + int(rng.poisson(2.0))
    velocity = np.where(rng.random((count, 1)) < 0.2, rng.normal(0, 3, (count, 2)), 0.0)
    return _Echoes(
        rng.uniform(2, NEAR_RANGE_M, count),
        rng.uniform(-NEAR_FOV_RAD, NEAR_FOV_RAD, count),
        rng.normal(-4, 3, count),
        velocity,
        np.zeros(count, bool),
    )


def _merge(parts: list[_Echoes]) -> _Echoes:
    if not parts:
        return _Echoes(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 2)), np.zeros(0, bool))
    return _Echoes(
        np.concatenate([p.range_m for p in parts]),
        np.concatenate([p.azimuth_rad for p in parts]),
        np.concatenate([p.rcs_dbsm for p in parts]),
        np.concatenate([p.velocity_mps for p in parts]),
        np.concatenate([p.stopped for p in parts]),
    )


def _dynamic_property(velocity: Array, sight: Array, radial: Array, stopped: Array) -> Array:
    """NuScenes' dyn_prop: 0 moving, 1 stationary, 2 oncoming, 3 stationary candidate, 6 crossing moving, 7 stopped."""
    speed = np.hypot(velocity[:, 0], velocity[:, 1])
    crossing = (speed > 1.0) & (np.abs((velocity * sight).sum(1)) < 0.4 * speed)
    still = np.where(np.abs(radial) > 0.25, 3, np.where(stopped, 7, 1))
    moving = np.where(crossing, 6, np.where(radial < 0, 2, 0))
    return np.where(speed > 0.3, moving, still).astype(np.int8)


def _fill_quality(points: Array, range_m: Array, rng: np.random.Generator) -> None:
    """The codes of a valid, unambiguous cluster, with the error classes seen in real files."""
    points["is_quality_valid"] = 1
    points["ambig_state"] = 3
    points["x_rms"] = np.where(range_m < 30, 19, 20)
    points["y_rms"] = np.where(range_m < 30, 19, 20)
    points["pdh0"] = np.where(rng.random(len(points)) < 0.93, 1, 2)
    points["vx_rms"] = 16 + rng.integers(0, 3, len(points))
    points["vy_rms"] = 3
