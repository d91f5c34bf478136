"""People, two-wheelers, cones and barriers. Frames as in `shapes.py`."""

from __future__ import annotations

import itertools

import numpy as np

from sensors.simulation.shapes.mesh import RGB, Material, MeshBuilder
from sensors.simulation.shapes.shapes import STEEL, TYRE, Shape, body_color, bright_color, fit

SKIN_TONES: tuple[RGB, ...] = ((0.60, 0.38, 0.27), (0.42, 0.24, 0.14), (0.22, 0.12, 0.07), (0.68, 0.48, 0.38))
ORANGE: RGB = (0.85, 0.17, 0.02)


def _clothes(rng: np.random.Generator) -> RGB:
    c = rng.uniform(0.02, 0.6, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(0.03, 0.5))
    return (float(c[0]), float(c[1]), float(c[2]))


def _torso_and_head(
    b: MeshBuilder,
    *,
    hip: tuple[float, float],
    shoulder: tuple[float, float],
    shirt: RGB,
    skin: RGB,
    hat: RGB,
    breadth_m: float,
) -> None:
    """Torso from hip (x, z) to shoulder (x, z), with the head above; y is 0."""
    cx, cz = (hip[0] + shoulder[0]) / 2, (hip[1] + shoulder[1]) / 2
    b.box(
        (hip[0], 0, cz),
        (0.24, breadth_m * 0.8, shoulder[1] - hip[1]),
        shirt,
        Material.CLOTH,
        top=(1.0, 1.25),
        top_shift_m=shoulder[0] - hip[0],
    )
    head_x, head_z = shoulder[0] + 0.15 * (shoulder[0] - cx), shoulder[1] + 0.02
    b.cylinder((head_x, 0, head_z), (head_x, 0, head_z + 0.2), 0.1, skin, Material.SKIN, sides=6)
    b.cylinder(
        (head_x, 0, head_z + 0.18), (head_x, 0, head_z + 0.27), 0.12, hat, Material.CLOTH, end_radius_m=0.07, sides=6
    )


def pedestrian(rng: np.random.Generator, *, worker: bool = False, walking: bool = True) -> Shape:
    """An adult, child or construction worker: two legs, torso, arms, head."""
    child = not worker and rng.random() < 0.12
    height = float(rng.uniform(1.15, 1.45) if child else rng.normal(1.74, 0.08))
    k = height / 1.75
    skin = SKIN_TONES[int(rng.integers(len(SKIN_TONES)))]
    shirt = ORANGE if worker else _clothes(rng)
    hat: RGB = (0.8, 0.65, 0.03) if worker else (0.06, 0.04, 0.03)
    trousers = _clothes(rng)
    stride = float(rng.uniform(0.12, 0.3)) * k if walking else 0.05
    b = MeshBuilder()
    for side, forward in ((1, stride), (-1, -stride)):
        b.cylinder(
            (forward, side * 0.12 * k, 0.0),
            (0, side * 0.1 * k, 0.86 * k),
            0.085 * k,
            trousers,
            Material.CLOTH,
            sides=5,
            end_radius_m=0.1 * k,
        )
        b.cylinder(
            (-forward * 0.8, side * 0.27 * k, 0.78 * k),
            (0, side * 0.24 * k, 1.4 * k),
            0.055 * k,
            shirt,
            Material.CLOTH,
            sides=4,
        )
    _torso_and_head(
        b, hip=(0.0, 0.84 * k), shoulder=(0.0, 1.47 * k), shirt=shirt, skin=skin, hat=hat, breadth_m=0.44 * k
    )
    if worker:
        b.box((0, 0, 1.15 * k), (0.27, 0.43 * k, 0.09), (0.85, 0.85, 0.5), Material.REFLECTOR)
    elif rng.random() < 0.3:
        b.box((-0.17, 0, 1.2 * k), (0.16, 0.3 * k, 0.42 * k), bright_color(rng), Material.CLOTH)
    category = "human.pedestrian.construction_worker" if worker else f"human.pedestrian.{'child' if child else 'adult'}"
    return fit(category, b, -7.0)


def _spoked_wheel(b: MeshBuilder, x_m: float, radius_m: float) -> None:
    angle = np.arange(9) * (2 * np.pi / 8)
    rim = [(x_m + radius_m * float(np.cos(a)), 0.0, radius_m * 1.06 + radius_m * float(np.sin(a))) for a in angle]
    for start, end in itertools.pairwise(rim):
        b.cylinder(start, end, 0.035, TYRE, Material.RUBBER, sides=3)
    for i in range(4):
        b.cylinder(rim[i], rim[i + 4], 0.012, STEEL, Material.STEEL, sides=3)


def bicycle(rng: np.random.Generator, *, rider: bool) -> Shape:
    """Two thin spoked wheels, a diamond frame, handlebar and saddle; with or without somebody on it."""
    frame = bright_color(rng)
    b = MeshBuilder()
    r, wheelbase = float(rng.uniform(0.31, 0.35)), float(rng.uniform(1.02, 1.12))
    rear, front = -wheelbase / 2, wheelbase / 2
    _spoked_wheel(b, rear, r)
    _spoked_wheel(b, front, r)
    crank, seat, head = (-0.08, 0.0, 0.32), (-0.22, 0.0, 0.88), (front - 0.14, 0.0, 0.86)
    for start, end in (
        (crank, seat), (crank, head), (seat, head), (crank, (rear, 0.0, r)), (seat, (rear, 0.0, r)), (head, (front, 0.0, r)),
    ):  # fmt: skip
        b.rod(start, end, 0.05, frame, Material.PAINTED_METAL)
    bar = (front - 0.18, 0.0, 1.02)
    b.rod(head, bar, 0.045, STEEL, Material.STEEL)
    b.rod((bar[0], -0.28, 1.03), (bar[0], 0.28, 1.03), 0.05, TYRE, Material.STEEL)
    b.box((-0.25, 0, 0.93), (0.26, 0.15, 0.07), TYRE, Material.CLOTH)
    b.box((rear - 0.3, 0, 0.62), (0.04, 0.08, 0.08), (0.7, 0.02, 0.02), Material.REFLECTOR)
    if rng.random() < 0.3:
        b.box((front + 0.02, 0, 0.86), (0.28, 0.34, 0.22), (0.3, 0.2, 0.1), Material.CLOTH)
    if rider:
        _rider(b, rng, saddle=(-0.22, 0.95), bar=(bar[0], 1.05), foot_z_m=0.25, lean_m=0.32)
    return fit("vehicle.bicycle", b, 0.0 if rider else -3.0)


def _rider(
    b: MeshBuilder,
    rng: np.random.Generator,
    *,
    saddle: tuple[float, float],
    bar: tuple[float, float],
    foot_z_m: float,
    lean_m: float,
) -> None:
    """Somebody seated: saddle and bar are (x, z)."""
    shirt, trousers = _clothes(rng), _clothes(rng)
    skin = SKIN_TONES[int(rng.integers(len(SKIN_TONES)))]
    shoulder = (saddle[0] + lean_m, saddle[1] + 0.55)
    _torso_and_head(b, hip=saddle, shoulder=shoulder, shirt=shirt, skin=skin, hat=bright_color(rng), breadth_m=0.42)
    for side, low in ((1, foot_z_m), (-1, foot_z_m + 0.2)):
        knee = (saddle[0] + 0.38, side * 0.14, saddle[1] - 0.22)
        b.cylinder((saddle[0], side * 0.1, saddle[1]), knee, 0.085, trousers, Material.CLOTH, sides=5)
        b.cylinder(knee, (saddle[0] + 0.2, side * 0.13, low), 0.065, trousers, Material.CLOTH, sides=5)
        b.cylinder(
            (shoulder[0], side * 0.22, shoulder[1] - 0.05),
            (bar[0], side * 0.25, bar[1]),
            0.05,
            shirt,
            Material.CLOTH,
            sides=4,
        )


def motorcycle(rng: np.random.Generator, *, rider: bool) -> Shape:
    """Two fat wheels, a solid body with tank and seat, fork, headlamp; with or without somebody on it."""
    paint = bright_color(rng) if rng.random() < 0.6 else body_color(rng)
    b = MeshBuilder()
    r, wheelbase = float(rng.uniform(0.30, 0.33)), float(rng.uniform(1.35, 1.5))
    rear, front = -wheelbase / 2, wheelbase / 2
    for x in (rear, front):
        b.cylinder((x, -0.08, r), (x, 0.08, r), r, TYRE, Material.RUBBER, sides=10)
        b.cylinder((x, -0.09, r), (x, 0.09, r), r * 0.5, STEEL, Material.STEEL, sides=6)
    b.box((-0.02, 0, 0.48), (0.7, 0.34, 0.4), (0.07, 0.07, 0.07), Material.STEEL)
    b.box((0.15, 0, 0.82), (0.62, 0.34, 0.28), paint, top=(0.7, 0.8))
    b.box((-0.45, 0, 0.8), (0.75, 0.3, 0.14), TYRE, Material.CLOTH)
    b.box((rear - 0.12, 0, 0.72), (0.4, 0.22, 0.16), paint)
    for side in (-1, 1):
        b.rod((front - 0.28, side * 0.12, 1.0), (front, side * 0.1, r), 0.07, STEEL, Material.STEEL)
        b.box((-0.5, side * 0.2, 0.35), (0.7, 0.1, 0.12), STEEL, Material.STEEL)
    b.rod((front - 0.3, -0.36, 1.08), (front - 0.3, 0.36, 1.08), 0.06, TYRE, Material.STEEL)
    b.box((front - 0.12, 0, 0.95), (0.16, 0.22, 0.2), (0.9, 0.9, 0.8), Material.HEADLIGHT)
    b.box((rear - 0.34, 0, 0.75), (0.05, 0.16, 0.1), (0.7, 0.02, 0.02), Material.TAILLIGHT)
    if rng.random() < 0.3:
        b.box((front - 0.15, 0, 1.15), (0.06, 0.4, 0.35), (0.2, 0.2, 0.22), Material.GLASS)
    if rider:
        _rider(b, rng, saddle=(-0.32, 0.88), bar=(front - 0.3, 1.1), foot_z_m=0.35, lean_m=0.2)
    return fit("vehicle.motorcycle", b, 5.0 if rider else 3.0)


def traffic_cone(rng: np.random.Generator) -> Shape:
    """An orange cone, or a post, with white bands on a square foot."""
    height = float(rng.uniform(0.7, 1.1))
    b = MeshBuilder()
    foot = 0.38 if height < 0.85 else 0.44
    b.box((0, 0, 0.035), (foot, foot, 0.07), (0.06, 0.05, 0.05), Material.RUBBER)
    levels = np.array([0.07, 0.4 * height, 0.58 * height, 0.72 * height, 0.86 * height, height])
    radii = np.interp(levels, [0.07, height], [foot * 0.42, 0.05])
    white: RGB = (0.85, 0.85, 0.85)
    for i in range(5):
        band = i in (1, 3)
        b.cylinder(
            (0, 0, float(levels[i])),
            (0, 0, float(levels[i + 1])),
            float(radii[i]),
            white if band else ORANGE,
            Material.REFLECTOR if band else Material.PLASTIC,
            end_radius_m=float(radii[i + 1]),
            sides=6,
        )
    return fit("movable_object.trafficcone", b, -9.0)


def barrier(rng: np.random.Generator, *, kind: int | None = None) -> Shape:
    """Striped board on feet (0), concrete element (1) or water-filled plastic (2). The long side is y, as in nuScenes."""
    kind = int(rng.integers(3)) if kind is None else kind
    width, height = float(rng.uniform(2.1, 2.6)), float(rng.uniform(0.9, 1.1))
    b = MeshBuilder()
    red: RGB = (0.7, 0.05, 0.03)
    white: RGB = (0.8, 0.8, 0.8)
    stripes = 6
    if kind == 0:
        for k in range(stripes):
            y = -width / 2 + (k + 0.5) * width / stripes
            color = red if k % 2 else white
            for z in (height - 0.18, height - 0.55):
                b.box((0, y, z), (0.07, width / stripes, 0.26), color, Material.REFLECTOR)
        for side in (-1, 1):
            b.box((0, side * width * 0.4, height / 2), (0.08, 0.08, height), STEEL, Material.STEEL)
            b.box((0, side * width * 0.4, 0.05), (0.5, 0.14, 0.1), TYRE, Material.RUBBER)
    elif kind == 1:
        grey: RGB = (0.42, 0.41, 0.38)
        b.box((0, 0, 0.2), (0.55, width, 0.4), grey, Material.CONCRETE, top=(0.6, 1.0))
        b.box((0, 0, 0.4 + (height - 0.4) / 2), (0.33, width, height - 0.4), grey, Material.CONCRETE, top=(0.55, 1.0))
        for k in range(3):
            y = (k - 1) * width * 0.33
            b.box((0, y, height * 0.72), (0.32, width * 0.14, 0.2), red, Material.REFLECTOR)
    else:
        for k in range(2):
            color = (0.75, 0.12, 0.03) if k else white
            y = (k - 0.5) * width / 2
            b.box((0, y, height * 0.3), (0.5, width * 0.49, height * 0.6), color, Material.PLASTIC, top=(0.6, 1.0))
            b.box((0, y, height * 0.8), (0.28, width * 0.49, height * 0.4), color, Material.PLASTIC)
    return fit("movable_object.barrier", b, -1.0 if kind != 1 else 2.0)
