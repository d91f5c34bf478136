"""A scene as the sensors meet it: one static mesh, the moving agents, and ray casting against both.

Legend: N rays, F faces (static first, then moving), A agents.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from sensors.simulation.config import SimulationConfig
from sensors.simulation.sensing import rig
from sensors.simulation.sensing.casting import NO_HIT_M, Hits, MovingBodies, RayBundle, embree_scene
from sensors.simulation.shapes.mesh import Array, Material, Mesh, concatenate
from sensors.simulation.world.layout import TILE_M, Layout, make_layout
from sensors.simulation.world.populate import Agent, Population
from sensors.simulation.world.scenery import add_scenery
from sensors.simulation.world.traffic import TRACK_STEP_S, Register, Track
from sensors.simulation.world.weather import Weather, draw_weather

KEYFRAME_STEP_S = 0.5


def random_generator(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on the seed and the names alone, so that the order of work does not matter."""
    digest = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest[:16], dtype=np.uint32))


@dataclass(frozen=True, slots=True)
class Pose:
    """world_T_sensor: rotation [3, 3], translation_m [3]."""

    rotation: Array
    translation_m: Array

    @classmethod
    def of_sensor(cls, ego: Array, mount: rig.Mount) -> Pose:
        """The pose of a mounted sensor where the ego frame is at x, y, yaw [3]."""
        world_R_ego = turn(float(ego[2]))
        translation = world_R_ego @ np.asarray(mount.translation_m) + np.array([ego[0], ego[1], 0.0])
        return cls(world_R_ego @ mount.rotation(), translation)


def turn(yaw_rad: float) -> Array:
    """Rotation matrix [3, 3] about z."""
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


class World:
    """One scene. Cast rays with `cast`; per-face tables `colors`, `materials`, `objects` (agent index, -1 for the town)."""

    def __init__(self, config: SimulationConfig, scene_name: str) -> None:
        rng = random_generator(config.seed, scene_name, "town")
        self.duration_s = (config.keyframes_per_scene - 1) * KEYFRAME_STEP_S
        self.layout: Layout = make_layout(rng)
        self.weather: Weather = draw_weather(rng, config)
        register = Register(np.arange(-0.1, self.duration_s + 0.11, 0.2))
        population = Population(rng, self.layout, register, duration_s=self.duration_s, density=config.agent_density)
        scenery, self.lamps_m = add_scenery(rng, self.layout, register)
        population.fill()
        self.ego: Track = population.ego
        self.agents: list[Agent] = population.agents
        self._assemble(scenery)

    def _assemble(self, scenery: Mesh) -> None:
        still = [i for i, a in enumerate(self.agents) if not a.track.moves]
        self._moving = [i for i, a in enumerate(self.agents) if a.track.moves]
        placed = []
        for i in still:
            x, y, yaw = self.agents[i].track.poses[0]
            placed.append(self.agents[i].shape.mesh.moved(x_m=x, y_m=y, yaw_rad=yaw))
        self.static = concatenate([_ground(), scenery, *placed])
        static_objects = np.concatenate(
            [np.full(len(_ground().faces) + len(scenery.faces), -1)]
            + [np.full(len(m.faces), i) for i, m in zip(still, placed, strict=True)]
        )
        self._bodies = MovingBodies([self.agents[i].shape for i in self._moving])
        parts = [self.static] + ([self._bodies.mesh] if self._bodies.mesh is not None else [])
        self.colors = np.concatenate([m.colors for m in parts])
        self.materials = np.concatenate([m.materials for m in parts])
        body_objects = np.repeat(np.asarray(self._moving, np.int64), self._bodies.face_counts)
        self.objects = np.concatenate([static_objects, body_objects]).astype(np.int32)
        self._static_normals = self.static.face_normals()
        self._still_poses = np.array([a.track.poses[0] for a in self.agents], dtype=np.float64).reshape(-1, 3)
        # All moving agents share the time steps of the ego vehicle.
        self._times_s = self.ego.times_s
        self._tracks = (
            np.stack([self.agents[i].track.poses for i in self._moving], axis=1)
            if self._moving
            else np.zeros((2, 0, 3))
        )
        self._static_scene = embree_scene(self.static.vertices_m, self.static.faces)
        self._normals: tuple[float, Array] | None = None

    def poses(self, time_s: float) -> Array:
        """x, y, yaw of every agent [A, 3]."""
        poses = self._still_poses.copy()
        if self._moving:
            place = (time_s - self._times_s[0]) / TRACK_STEP_S
            i = int(np.clip(np.floor(place), 0, len(self._times_s) - 2))
            u = place - i
            poses[self._moving] = (1 - u) * self._tracks[i] + u * self._tracks[i + 1]
        return poses

    def velocities(self, time_s: float) -> Array:
        """World velocity of every agent [A, 2], m/s."""
        return (self.poses(time_s + 0.02) - self.poses(time_s - 0.02))[:, :2] / 0.04

    def face_normals(self, time_s: float) -> Array:
        """Outward normals [F, 3] at a time; the latest are kept."""
        if self._normals is None or self._normals[0] != time_s:
            moving = self._bodies.normals(self.poses(time_s)[self._moving])
            self._normals = (time_s, np.concatenate([self._static_normals, moving]))
        return self._normals[1]

    def cast(self, origins_m: Array, rays: RayBundle, yaw_rad: float, time_s: float, *, reach_m: float = 400.0) -> Hits:
        """First hits of a bundle of rays, turned by a yaw, from one point [3] or from one each [N, 3] (within a metre)."""
        directions = rays.turned(yaw_rad)
        origins = np.ascontiguousarray(np.broadcast_to(origins_m.astype(np.float32), directions.shape))
        distance: Array = np.full(len(directions), reach_m, np.float32)
        first = self._static_scene.run(origins, directions, distance, query="INTERSECT", output=True)
        face: Array = first["primID"]
        distance = np.where(face >= 0, first["tfar"], distance)
        if self._moving:
            moving = np.full(len(face), -1, np.int32)
            self._bodies.cast(self.poses(time_s)[self._moving], origins, rays, yaw_rad, distance, moving)
            face = np.where(moving >= 0, moving + np.int32(len(self.static.faces)), face)
        distance[face < 0] = NO_HIT_M
        return Hits(distance, face, directions)


def _ground() -> Mesh:
    low, high = -300.0, TILE_M + 300.0
    vertices = np.array([[low, low, 0], [high, low, 0], [high, high, 0], [low, high, 0]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    return Mesh(vertices, faces, np.full((2, 3), 0.2, np.float32), np.full(2, int(Material.GROUND), np.uint8))
