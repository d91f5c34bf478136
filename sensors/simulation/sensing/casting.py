"""Ray casting with Embree: bundles of rays, what they hit, and the bodies that move.

What stands still is one Embree scene for the whole drive. Each body that moves has an Embree scene in its own frame,
built once: at every instant the rays that point towards it are carried into that frame, which is far cheaper than
building it anew in the world.

Legend: N rays, M moving bodies, F faces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sensors.simulation.shapes.mesh import Array, Mesh, concatenate
from sensors.simulation.shapes.shapes import Shape

BINS = 720
NO_HIT_M = np.float32(1e6)


@dataclass(frozen=True, slots=True)
class RayBundle:
    """Rays that turn together: directions [N, 3] f32 (unit, z up), sorted by azimuth in `order` [N], of which bin b holds
    `order[first[b] : first[b + 1]]`.
    """

    directions: Array
    order: Array
    first: Array

    @classmethod
    def of(cls, directions: Array) -> RayBundle:
        """Sort unit vectors [N, 3] by azimuth."""
        bins = _azimuth_bin(np.arctan2(directions[:, 1], directions[:, 0]))
        order = np.argsort(bins, kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=BINS))])
        return cls(np.ascontiguousarray(directions, np.float32), order, first)

    def between(self, low: int, high: int) -> Array:
        """Numbers of the rays from azimuth bin `low` to `high`, both included, the way round that goes up."""
        if low <= high:
            return np.asarray(self.order[self.first[low] : self.first[high + 1]])
        return np.concatenate([self.order[self.first[low] :], self.order[: self.first[high + 1]]])

    def turned(self, yaw_rad: float) -> Array:
        """Directions [N, 3] after a turn about z."""
        return _turned(self.directions, yaw_rad)


@dataclass(frozen=True, slots=True)
class Hits:
    """What rays met: distance_m [N] f32 (NO_HIT_M: nothing), face [N] i32 (-1: nothing); directions [N, 3] of the rays."""

    distance_m: Array
    face: Array
    directions: Array

    @property
    def hit(self) -> Array:
        """Which rays met anything [N] bool."""
        return self.face >= 0


def embree_scene(vertices_m: Array, faces: Array) -> Any:
    """An Embree scene of a mesh; embreex has no types."""
    from embreex import rtcore_scene
    from embreex.mesh_construction import TriangleMesh

    scene = rtcore_scene.EmbreeScene()
    TriangleMesh(scene, np.ascontiguousarray(vertices_m, np.float32), np.ascontiguousarray(faces, np.int32))
    return scene


def rotate(vectors: Array, rotation: Array) -> Array:
    """Vectors [N, 3] turned by a rotation [3, 3]. Not `@`: BLAS would start threads that spin beside the other workers."""
    r = rotation.astype(vectors.dtype)
    x, y, z = (np.ascontiguousarray(vectors[:, i]) for i in range(3))
    out = np.empty_like(vectors, order="C")
    for i in range(3):
        out[:, i] = r[i, 0] * x + r[i, 1] * y + r[i, 2] * z
    return out


class MovingBodies:
    """The bodies that move. Their faces are numbered through, body after body."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.mesh: Mesh | None = concatenate([s.mesh for s in shapes]) if shapes else None
        self.face_counts = [len(s.mesh.faces) for s in shapes]
        self._first_face = np.cumsum([0, *self.face_counts])
        self._normals = self.mesh.face_normals() if self.mesh else np.zeros((0, 3), np.float32)
        self._scenes = [embree_scene(s.mesh.vertices_m, s.mesh.faces) for s in shapes]
        self._radius_m = np.array([float(np.hypot(*s.size_wlh_m[:2])) / 2 for s in shapes])
        self._height_m = [s.size_wlh_m[2] for s in shapes]

    def normals(self, poses: Array) -> Array:
        """Outward normals [F, 3] with the bodies at x, y, yaw [M, 3]."""
        yaw = np.repeat(poses[:, 2], self.face_counts)
        c, s, n = np.cos(yaw).astype(np.float32), np.sin(yaw).astype(np.float32), self._normals
        return np.stack([c * n[:, 0] - s * n[:, 1], s * n[:, 0] + c * n[:, 1], n[:, 2]], -1)

    def cast(self, poses: Array, origins: Array, rays: RayBundle, yaw_rad: float, distance: Array, face: Array) -> None:
        """Shorten `distance` [N] and set `face` [N] where a ray meets a body at x, y, yaw [M, 3] before it meets anything else.

        origins [N, 3] f32 lie within a metre of each other; yaw turns the rays.
        """
        offset = poses[:, :2] - origins[0, :2]
        gap = np.hypot(offset[:, 0], offset[:, 1])
        bearing = np.arctan2(offset[:, 1], offset[:, 0]) - yaw_rad
        margin = np.arcsin(np.minimum(1.0, self._radius_m / np.maximum(gap, 1e-3)))
        low, high = _azimuth_bin(bearing - margin) - 1, _azimuth_bin(bearing + margin) + 1
        lowest, highest = float(origins[:, 2].min()), float(origins[:, 2].max())
        for i in np.argsort(gap, kind="stable"):
            close = gap[i] < self._radius_m[i] + 1.0
            some = rays.order if close else rays.between(int(low[i]) % BINS, int(high[i]) % BINS)
            if len(some) and not close:
                near, far = gap[i] - self._radius_m[i], gap[i] + self._radius_m[i]
                top = self._height_m[i] - lowest
                up, down = math.atan2(top, near if top > 0 else far), math.atan2(-highest, near)
                z = rays.directions[some, 2]
                some = some[(z < math.sin(up) + 1e-3) & (z > math.sin(down) - 1e-3) & (distance[some] > near)]
            if len(some):
                self._cast_one(i, poses[i], origins, rays, yaw_rad, some, distance, face)

    def _cast_one(
        self,
        i: int,
        pose: Array,
        origins: Array,
        rays: RayBundle,
        yaw_rad: float,
        some: Array,
        distance: Array,
        face: Array,
    ) -> None:
        offset: Array = origins[some] - np.array([pose[0], pose[1], 0.0], np.float32)
        start, direction = _turned(offset, -float(pose[2])), _turned(rays.directions[some], yaw_rad - float(pose[2]))
        hits = self._scenes[i].run(start, direction, distance[some], query="INTERSECT", output=True)
        met = np.flatnonzero(hits["primID"] >= 0)
        distance[some[met]] = hits["tfar"][met]
        face[some[met]] = hits["primID"][met] + self._first_face[i]


def _turned(vectors: Array, yaw_rad: float) -> Array:
    """Vectors [N, 3] f32 turned about z."""
    c, s = np.float32(math.cos(yaw_rad)), np.float32(math.sin(yaw_rad))
    out = np.empty_like(vectors)
    x, y = vectors[:, 0], vectors[:, 1]
    out[:, 0], out[:, 1], out[:, 2] = c * x - s * y, s * x + c * y, vectors[:, 2]
    return out


def _azimuth_bin(azimuth_rad: Array) -> Array:
    return np.floor((azimuth_rad % (2 * np.pi)) * (BINS / (2 * np.pi))).astype(np.int64) % BINS
