"""What stands beside the road: buildings, walls, trees, bushes, lamps, signs, signals."""

from __future__ import annotations

import numpy as np

from sensors.simulation.shapes.mesh import RGB, Array, Material, Mesh, MeshBuilder
from sensors.simulation.world.layout import TILE_M, TILE_PX, Layout, Road, Surface
from sensors.simulation.world.traffic import Register

FACADES: tuple[RGB, ...] = (
    (0.45, 0.20, 0.14), (0.55, 0.48, 0.38), (0.40, 0.40, 0.42), (0.60, 0.58, 0.52), (0.30, 0.18, 0.12), (0.25, 0.30, 0.36),
    (0.62, 0.52, 0.30),
)  # fmt: skip


def rectangle(x_m: float, y_m: float, yaw_rad: float, length_m: float, width_m: float) -> Array:
    """Corners [4, 2] of a turned rectangle."""
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    corners = np.array([[0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]]) * (length_m, width_m)
    return np.asarray(corners @ np.array([[c, s], [-s, c]]) + (x_m, y_m))


def add_scenery(rng: np.random.Generator, layout: Layout, register: Register) -> tuple[Mesh, list[tuple[float, float]]]:
    """Everything immovable, as one mesh in world coordinates, and the places of the street lamps.

    Closes its footprints in `register`.
    """
    b = MeshBuilder()
    lamps = _lamps(rng, layout, register, b)
    _signals(rng, layout, register, b)
    _sidewalk_trees(rng, layout, register, b)
    for road in layout.roads:
        _buildings(rng, layout, road, register, b)
    _park(rng, layout, register, b)
    return b.build(), lamps


def surface_at(layout: Layout, x_m: float, y_m: float) -> int:
    """Ground code of a place; grass outside the tile."""
    if not (0 <= x_m < TILE_M and 0 <= y_m < TILE_M):
        return int(Surface.GRASS)
    return int(
        layout.surface[min(int(y_m * TILE_PX / TILE_M), TILE_PX - 1), min(int(x_m * TILE_PX / TILE_M), TILE_PX - 1)]
    )


def _only_grass(layout: Layout, polygon_m: Array) -> bool:
    """Whether a rectangle [4, 2] lies on grass, by a grid of 7 x 7 points; outside the tile all is grass."""
    a, b, _, d = polygon_m
    u, w = (g.reshape(-1, 1) for g in np.meshgrid(np.linspace(0, 1, 7), np.linspace(0, 1, 7)))
    cell = np.floor((a + u * (b - a) + w * (d - a)) * (TILE_PX / TILE_M)).astype(int)
    cell = cell[((cell >= 0) & (cell < TILE_PX)).all(axis=1)]
    return bool((layout.surface[cell[:, 1], cell[:, 0]] == Surface.GRASS).all())


def _buildings(rng: np.random.Generator, layout: Layout, road: Road, register: Register, b: MeshBuilder) -> None:
    for _ in range(60):
        s, side = float(rng.uniform(-95, 95)), float(rng.choice([-1, 1]))
        length, depth, height = float(rng.uniform(8, 24)), float(rng.uniform(7, 14)), float(rng.gamma(4, 2.4) + 3.5)
        set_back = float(rng.uniform(0.8, 22))
        x, y, yaw = road.at(s, side * (road.outer_m + set_back + depth / 2))
        footprint = rectangle(x, y, yaw, length + 0.8, depth + 0.8)
        if not _only_grass(layout, footprint) or register.is_blocked(footprint):
            continue
        register.block(footprint)
        facade = FACADES[int(rng.integers(len(FACADES)))]
        b.box((x, y, height / 2), (length, depth, height), facade, Material.FACADE, yaw_rad=yaw)
        if rng.random() < 0.5:
            roof_color = (0.25, 0.08, 0.05) if rng.random() < 0.5 else (0.1, 0.1, 0.11)
            b.box(
                (x, y, height + 0.9),
                (length + 0.6, depth + 0.6, 1.8),
                roof_color,
                Material.CONCRETE,
                top=(0.8, 0.1),
                yaw_rad=yaw,
            )
    for _ in range(6):
        s, side = float(rng.uniform(-70, 70)), float(rng.choice([-1, 1]))
        length = float(rng.uniform(6, 16))
        x, y, yaw = road.at(s, side * (road.outer_m + 0.4))
        footprint = rectangle(x, y, yaw, length, 0.5)
        if _only_grass(layout, footprint) and not register.is_blocked(footprint):
            register.block(footprint)
            height = float(rng.uniform(0.9, 2.2))
            b.box(
                (x, y, height / 2),
                (length, 0.25, height),
                FACADES[int(rng.integers(4))],
                Material.CONCRETE,
                yaw_rad=yaw,
            )


def _lamps(rng: np.random.Generator, layout: Layout, register: Register, b: MeshBuilder) -> list[tuple[float, float]]:
    places = []
    for road in layout.roads:
        side = float(rng.choice([-1, 1]))
        for s in np.arange(-80 + float(rng.uniform(0, 10)), 85, float(rng.uniform(18, 28))):
            side = -side
            x, y, yaw = road.at(float(s), side * (road.half_width_m + 0.35))
            if surface_at(layout, x, y) != Surface.SIDEWALK:
                continue
            register.block(rectangle(x, y, yaw, 0.4, 0.4))
            height = 6.5
            arm = np.array([np.sin(yaw), -np.cos(yaw)]) * side * 1.6
            b.cylinder((x, y, 0), (x, y, height), 0.1, (0.2, 0.21, 0.22), Material.STEEL, end_radius_m=0.06, sides=6)
            tip = (x + float(arm[0]), y + float(arm[1]))
            b.rod((x, y, height), (tip[0], tip[1], height + 0.2), 0.09, (0.2, 0.21, 0.22), Material.STEEL)
            b.box(
                (tip[0], tip[1], height + 0.12),
                (0.6, 0.25, 0.12),
                (0.9, 0.8, 0.6),
                Material.STREETLIGHT,
                yaw_rad=yaw + np.pi / 2,
            )
            places.append(tip)
    return places


def _signals(rng: np.random.Generator, layout: Layout, register: Register, b: MeshBuilder) -> None:
    if layout.crossing_s_m is not None:
        radius = layout.crossing_radius_m()
        for index, road in enumerate(layout.roads):
            middle = layout.crossing_s_m if index == 0 else 0.0
            for side in (-1, 1):
                x, y, yaw = road.at(middle + side * (radius + 0.9), side * (road.half_width_m + 0.5))
                register.block(rectangle(x, y, yaw, 0.4, 0.4))
                b.cylinder((x, y, 0), (x, y, 3.6), 0.08, (0.1, 0.1, 0.1), Material.STEEL, sides=6)
                b.box((x, y, 3.2), (0.3, 0.35, 0.95), (0.05, 0.05, 0.05), Material.PLASTIC, yaw_rad=yaw)
                color: RGB = (0.9, 0.05, 0.03) if index else (0.05, 0.8, 0.3)
                b.box((x, y, 3.45 if index else 2.95), (0.34, 0.16, 0.18), color, Material.TAILLIGHT, yaw_rad=yaw)
    _signs_and_bins(rng, layout, register, b)


def _signs_and_bins(rng: np.random.Generator, layout: Layout, register: Register, b: MeshBuilder) -> None:
    road = layout.roads[0]
    for _ in range(10):
        s, side = float(rng.uniform(-70, 70)), float(rng.choice([-1, 1]))
        x, y, yaw = road.at(s, side * (road.half_width_m + 0.4))
        if surface_at(layout, x, y) != Surface.SIDEWALK or register.is_blocked(rectangle(x, y, yaw, 1.0, 1.0)):
            continue
        register.block(rectangle(x, y, yaw, 0.5, 0.5))
        if rng.random() < 0.5:
            b.cylinder((x, y, 0), (x, y, 2.5), 0.04, (0.4, 0.4, 0.4), Material.STEEL, sides=5)
            sign: RGB = [(0.7, 0.03, 0.03), (0.03, 0.15, 0.6), (0.75, 0.6, 0.03)][int(rng.integers(3))]
            b.box((x, y, 2.3), (0.05, 0.65, 0.65), sign, Material.REFLECTOR, yaw_rad=yaw)
        else:
            bin_color = (0.05, 0.2, 0.08) if rng.random() < 0.5 else (0.15, 0.15, 0.17)
            b.cylinder((x, y, 0), (x, y, 0.95), 0.27, bin_color, Material.PLASTIC, sides=8)


def _tree(rng: np.random.Generator, b: MeshBuilder, x_m: float, y_m: float) -> None:
    height = float(rng.uniform(3.8, 8.0))
    green: RGB = (float(rng.uniform(0.04, 0.14)), float(rng.uniform(0.14, 0.26)), float(rng.uniform(0.02, 0.06)))
    trunk = float(rng.uniform(0.1, 0.2))
    b.cylinder(
        (x_m, y_m, 0),
        (x_m, y_m, height * 0.5),
        trunk,
        (0.12, 0.08, 0.05),
        Material.BARK,
        end_radius_m=trunk * 0.7,
        sides=6,
    )
    crown = float(rng.uniform(1.1, 2.2))
    if rng.random() < 0.25:
        b.cylinder((x_m, y_m, 1.2), (x_m, y_m, height), crown * 0.8, green, Material.FOLIAGE, end_radius_m=0.1, sides=8)
        return
    for _ in range(3):
        dx, dy, dz = (float(v) for v in rng.normal(0, (crown * 0.35, crown * 0.35, 0.4)))
        z = height * 0.68 + dz
        r = crown * float(rng.uniform(0.6, 0.9))
        b.cylinder(
            (x_m + dx, y_m + dy, z - r * 0.8),
            (x_m + dx, y_m + dy, z),
            r * 0.55,
            green,
            Material.FOLIAGE,
            end_radius_m=r,
            sides=8,
        )
        b.cylinder(
            (x_m + dx, y_m + dy, z),
            (x_m + dx, y_m + dy, z + r * 0.8),
            r,
            green,
            Material.FOLIAGE,
            end_radius_m=r * 0.4,
            sides=8,
        )


def _sidewalk_trees(rng: np.random.Generator, layout: Layout, register: Register, b: MeshBuilder) -> None:
    for road in layout.roads:
        if rng.random() < 0.35:
            continue
        spacing = float(rng.uniform(8, 15))
        for side in (-1, 1):
            for s in np.arange(-85, 85, spacing):
                x, y, yaw = road.at(float(s + rng.normal(0, 0.8)), side * (road.half_width_m + 0.55))
                spot = rectangle(x, y, yaw, 0.5, 0.5)
                if (
                    rng.random() < 0.6
                    and surface_at(layout, x, y) == Surface.SIDEWALK
                    and not register.is_blocked(spot)
                ):
                    register.block(spot)
                    _tree(rng, b, x, y)


def _park(rng: np.random.Generator, layout: Layout, register: Register, b: MeshBuilder) -> None:
    for _ in range(90):
        x, y = rng.uniform(15, TILE_M - 15, 2).tolist()
        spot = rectangle(x, y, 0.0, 1.6, 1.6)
        if not _only_grass(layout, spot) or register.is_blocked(spot):
            continue
        register.block(spot)
        if rng.random() < 0.6:
            _tree(rng, b, x, y)
        else:
            r, h = float(rng.uniform(0.4, 0.8)), float(rng.uniform(0.5, 1.4))
            b.cylinder((x, y, 0), (x, y, h), r, (0.05, 0.16, 0.04), Material.FOLIAGE, end_radius_m=r * 0.8, sides=8)
