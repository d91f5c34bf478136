"""Triangles with a colour and a material per face, and a builder that makes them from prisms.

Legend: V vertices, F faces, K corners of a ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
RGB = tuple[float, float, float]


class Material(IntEnum):
    """What a face is made of: decides LiDAR reflectivity and camera texture."""

    GROUND = 0
    PAINTED_METAL = 1
    GLASS = 2
    RUBBER = 3
    STEEL = 4
    FACADE = 5
    CONCRETE = 6
    BARK = 7
    FOLIAGE = 8
    CLOTH = 9
    SKIN = 10
    PLASTIC = 11
    REFLECTOR = 12
    HEADLIGHT = 13
    TAILLIGHT = 14
    STREETLIGHT = 15
    CANVAS = 16


# Share of 905 nm light that comes back, by material, before the incidence angle. Orders of magnitude from the
# literature on LiDAR reflectivity (asphalt 0.1, vegetation 0.5, retro-reflective film far above 1).
LIDAR_REFLECTIVITY: Array = np.array(
    [0.12, 0.35, 0.06, 0.05, 0.45, 0.32, 0.30, 0.20, 0.45, 0.38, 0.45, 0.42, 1.00, 0.70, 0.80, 0.50, 0.50],
    dtype=np.float32,
)


@dataclass(frozen=True, slots=True)
class Mesh:
    """vertices_m [V, 3] f32, faces [F, 3] i32 (counter-clockwise seen from outside), colors [F, 3] f32 in 0..1
    (linear light), materials [F] u8.
    """

    vertices_m: Array
    faces: Array
    colors: Array
    materials: Array

    def moved(self, *, x_m: float, y_m: float, yaw_rad: float) -> Mesh:
        """The same mesh turned about z and then shifted."""
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        vertices = self.vertices_m @ rotation.T + np.array([x_m, y_m, 0.0])
        return Mesh(vertices.astype(np.float32), self.faces, self.colors, self.materials)

    def face_normals(self) -> Array:
        """Outward unit normals [F, 3]."""
        a, b, c = (self.vertices_m[self.faces[:, i]] for i in range(3))
        n = np.cross(b - a, c - a)
        length = np.linalg.norm(n, axis=1, keepdims=True)
        return (n / np.maximum(length, 1e-12)).astype(np.float32)


def concatenate(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of all, in order."""
    starts = np.cumsum([0] + [len(m.vertices_m) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.vertices_m for m in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)]).astype(np.int32),
        np.concatenate([m.colors for m in meshes]),
        np.concatenate([m.materials for m in meshes]),
    )


def prism_faces(k: int) -> Array:
    """Faces [4 K - 4, 3] of a prism whose vertices are its bottom ring, then its top ring."""
    i = np.arange(k)
    j = (i + 1) % k
    fan = np.arange(1, k - 1)
    zero = np.zeros_like(fan)
    return np.concatenate(
        [
            np.stack([i, j, j + k], 1),
            np.stack([i, j + k, i + k], 1),
            np.stack([zero + k, fan + k, fan + k + 1], 1),
            np.stack([zero, fan + 1, fan], 1),
        ]
    )


_PRISM_FACES = {k: prism_faces(k) for k in (3, 4, 5, 6, 8, 10, 12)}


_CIRCLES = {
    k: np.stack([np.cos((np.arange(k) + 0.5) * 2 * np.pi / k), np.sin((np.arange(k) + 0.5) * 2 * np.pi / k)], -1)
    for k in _PRISM_FACES
}


def _across(axis: Array) -> Array:
    """Two unit vectors [2, 3] that make a right-handed frame with an axis; plain arithmetic, as it is called very often."""
    x, y, z = (float(v) for v in axis / max(float(np.sqrt(axis @ axis)), 1e-9))
    # Cross product with the x axis, or with the y axis where that is too near.
    e1 = (0.0, -z, y) if abs(x) < 0.7 else (z, 0.0, -x)
    n = (e1[0] ** 2 + e1[1] ** 2 + e1[2] ** 2) ** 0.5
    a, b, c = e1[0] / n, e1[1] / n, e1[2] / n
    return np.array([[a, b, c], [y * c - z * b, z * a - x * c, x * b - y * a]])


@dataclass
class MeshBuilder:
    """Collects prisms; `build()` makes the mesh."""

    _vertices: list[Array] = field(default_factory=list)
    _faces: list[Array] = field(default_factory=list)
    _colors: list[RGB] = field(default_factory=list)
    _materials: list[int] = field(default_factory=list)
    _count: int = 0

    def prism(self, bottom_m: Array, top_m: Array, color: RGB, material: Material) -> None:
        """A solid between two rings [K, 3], both counter-clockwise seen from the top."""
        faces = _PRISM_FACES[len(bottom_m)]
        self._vertices.append(np.concatenate([bottom_m, top_m]))
        self._faces.append(faces + self._count)
        self._count += 2 * len(bottom_m)
        self._colors.append(color)
        self._materials.append(int(material))

    def box(
        self,
        centre_m: tuple[float, float, float],
        size_m: tuple[float, float, float],
        color: RGB,
        material: Material = Material.PAINTED_METAL,
        *,
        top: tuple[float, float] = (1.0, 1.0),
        top_shift_m: float = 0.0,
        yaw_rad: float = 0.0,
    ) -> None:
        """A box; its top face may be narrower (`top` scales x and y) and shifted along x: bonnets, cabins, cones."""
        cx, cy, cz = centre_m
        lx, ly, lz = size_m
        ring = np.array([[0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]]) * (lx, ly)
        upper = ring * top + (top_shift_m, 0.0)
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        rotation = np.array([[c, s], [-s, c]])
        bottom = np.column_stack([ring @ rotation + (cx, cy), np.full(4, cz - lz / 2)])
        above = np.column_stack([upper @ rotation + (cx, cy), np.full(4, cz + lz / 2)])
        self.prism(bottom, above, color, material)

    def cylinder(
        self,
        start_m: tuple[float, float, float],
        end_m: tuple[float, float, float],
        radius_m: float,
        color: RGB,
        material: Material,
        *,
        end_radius_m: float | None = None,
        sides: int = 8,
    ) -> None:
        """A round (K-sided) rod, wheel, trunk or cone from `start_m` to `end_m`."""
        start, end = np.asarray(start_m, float), np.asarray(end_m, float)
        ring = _CIRCLES[sides] @ _across(end - start)
        end_radius = radius_m if end_radius_m is None else end_radius_m
        self.prism(start + ring * radius_m, end + ring * end_radius, color, material)

    def rod(
        self,
        start_m: tuple[float, float, float],
        end_m: tuple[float, float, float],
        thickness_m: float,
        color: RGB,
        material: Material,
    ) -> None:
        """A thin square bar: frames, limbs, arms."""
        self.cylinder(start_m, end_m, thickness_m * 0.6, color, material, sides=4)

    def build(self) -> Mesh:
        """The mesh of everything so far."""
        counts = [len(faces) for faces in self._faces]
        return Mesh(
            np.concatenate(self._vertices).astype(np.float32),
            np.concatenate(self._faces).astype(np.int32),
            np.repeat(np.array(self._colors, np.float32), counts, axis=0),
            np.repeat(np.array(self._materials, np.uint8), counts),
        )
