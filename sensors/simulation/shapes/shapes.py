"""Vehicles and trailers, each out of the parts that tell its class: cabins, wheels, windows, arms, cargo boxes.

Body frame of every shape: x forward, y left, z up, origin on the ground under the centre of its box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sensors.nuscenes.config import DETECTION_CLASS_OF_CATEGORY
from sensors.simulation.shapes.mesh import RGB, Array, Material, Mesh, MeshBuilder

BOX_MARGIN_M = 0.05
"""Boxes stand this far off the shape on each side, so that range noise does not throw points out of them."""

GLASS: RGB = (0.03, 0.04, 0.05)
TYRE: RGB = (0.02, 0.02, 0.02)
STEEL: RGB = (0.25, 0.25, 0.27)
WHITE: RGB = (0.75, 0.75, 0.75)


@dataclass(frozen=True, slots=True)
class Shape:
    """A mesh in its body frame with what nuScenes says of it.

    size_wlh_m: width, length, height of the annotated box, which stands on the ground (z 0) and is centred on the origin.
    rcs_dbsm: mean radar cross-section seen broadside.
    """

    category: str
    mesh: Mesh
    size_wlh_m: tuple[float, float, float]
    rcs_dbsm: float

    @property
    def detection_name(self) -> str:
        """The detection class of the category, as nuScenes maps it."""
        return DETECTION_CLASS_OF_CATEGORY[self.category]


def fit(category: str, builder: MeshBuilder, rcs_dbsm: float) -> Shape:
    """Centre the mesh on the origin and read its box off its extent."""
    mesh = builder.build()
    low, high = mesh.vertices_m.min(axis=0), mesh.vertices_m.max(axis=0)
    shift = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, 0.0])
    size = (high[1] - low[1] + 2 * BOX_MARGIN_M, high[0] - low[0] + 2 * BOX_MARGIN_M, high[2] + BOX_MARGIN_M)
    moved = Mesh((mesh.vertices_m - shift).astype(np.float32), mesh.faces, mesh.colors, mesh.materials)
    rounded = (round(float(size[0]), 3), round(float(size[1]), 3), round(float(size[2]), 3))
    return Shape(category, moved, rounded, rcs_dbsm)


def body_color(rng: np.random.Generator) -> RGB:
    """Car paint as it is seen on streets: mostly white, grey, black, some colour."""
    palette: Array = np.array(
        [
            (0.80, 0.80, 0.80), (0.45, 0.46, 0.48), (0.20, 0.21, 0.23), (0.04, 0.04, 0.05), (0.55, 0.03, 0.03),
            (0.04, 0.10, 0.40), (0.10, 0.30, 0.45), (0.35, 0.30, 0.22), (0.05, 0.22, 0.10),
        ]
    )  # fmt: skip
    share = [0.25, 0.17, 0.12, 0.15, 0.1, 0.08, 0.06, 0.04, 0.03]
    color = palette[rng.choice(len(palette), p=share)] * rng.uniform(0.85, 1.15)
    return (float(color[0]), float(color[1]), float(color[2]))


def bright_color(rng: np.random.Generator) -> RGB:
    """A saturated or white colour for buses, tarpaulins, helmets."""
    palette = [
        (0.75, 0.75, 0.72), (0.60, 0.04, 0.04), (0.05, 0.15, 0.55), (0.70, 0.35, 0.02), (0.05, 0.40, 0.15),
        (0.70, 0.60, 0.05), (0.30, 0.08, 0.40), (0.05, 0.45, 0.50),
    ]  # fmt: skip
    return palette[int(rng.integers(len(palette)))]


def _wheels(b: MeshBuilder, xs_m: list[float], half_width_m: float, radius_m: float, *, width_m: float = 0.25) -> None:
    for x in xs_m:
        for side in (-1, 1):
            outer, inner = side * half_width_m, side * (half_width_m - width_m)
            low, high = min(outer, inner), max(outer, inner)
            b.cylinder((x, low, radius_m), (x, high, radius_m), radius_m, TYRE, Material.RUBBER, sides=8)
            b.cylinder(
                (x, outer - side * 0.03, radius_m),
                (x, outer + side * 0.01, radius_m),
                radius_m * 0.6,
                STEEL,
                Material.STEEL,
                sides=4,
            )


def _lights(b: MeshBuilder, front_x_m: float, rear_x_m: float, half_width_m: float, z_m: float) -> None:
    for side in (-1, 1):
        y = side * (half_width_m - 0.2)
        b.box((front_x_m, y, z_m), (0.06, 0.3, 0.16), (0.9, 0.9, 0.8), Material.HEADLIGHT)
        b.box((rear_x_m, y, z_m + 0.1), (0.06, 0.26, 0.18), (0.6, 0.02, 0.02), Material.TAILLIGHT)
    b.box((rear_x_m, 0, z_m - 0.05), (0.05, 0.5, 0.12), (0.8, 0.8, 0.6), Material.REFLECTOR)


def car(rng: np.random.Generator) -> Shape:
    """Sedan, hatchback, SUV or van."""
    kind = rng.choice(["sedan", "hatch", "suv", "van"], p=[0.4, 0.25, 0.25, 0.1])
    length, width, height, cabin_share, cabin_back, taper = {
        "sedan": (4.75, 1.85, 1.48, 0.56, -0.05, 0.68),
        "hatch": (4.1, 1.78, 1.52, 0.66, -0.14, 0.76),
        "suv": (4.75, 1.95, 1.78, 0.68, -0.13, 0.80),
        "van": (5.1, 2.0, 2.1, 0.82, -0.08, 0.86),
    }[str(kind)]
    length, width, height = (v * float(rng.uniform(0.94, 1.06)) for v in (length, width, height))
    paint = body_color(rng)
    b = MeshBuilder()
    belt = 0.22 + 0.47 * (height - 0.22)
    b.box((0, 0, (0.22 + belt) / 2), (length, width, belt - 0.22), paint, top=(0.96, 0.92))
    cabin_length = cabin_share * length
    cx = cabin_back * length
    b.box(
        (cx, 0, (belt + height - 0.06) / 2),
        (cabin_length, width * 0.88, height - 0.06 - belt),
        GLASS,
        Material.GLASS,
        top=(taper, 0.82),
        top_shift_m=-0.03 * length,
    )
    roof_x = cx - 0.03 * length
    b.box((roof_x, 0, height - 0.04), (cabin_length * (taper + 0.02), width * 0.75, 0.08), paint)
    for side in (-1, 1):  # the B-pillars keep the side from being one sheet of glass
        b.rod(
            (cx, side * width * 0.43, belt),
            (roof_x, side * width * 0.37, height - 0.05),
            0.12,
            paint,
            Material.PAINTED_METAL,
        )
        b.box((cx + 0.45 * cabin_length, side * (width / 2 + 0.01), belt + 0.05), (0.12, 0.12, 0.14), paint)
    _wheels(b, [-0.31 * length, 0.31 * length], width / 2 + 0.01, 0.33)
    _lights(b, length / 2, -length / 2, width / 2, 0.62)
    return fit("vehicle.car", b, 12.0)


def truck(rng: np.random.Generator) -> Shape:
    """Box truck, dump truck, pick-up or a tractor without its trailer."""
    kind = rng.choice(["box", "dump", "pickup", "flat"], p=[0.5, 0.2, 0.15, 0.15])
    if kind == "pickup":
        return _pickup(rng)
    length, width = float(rng.uniform(6.2, 8.8)), float(rng.uniform(2.25, 2.5))
    height = float(rng.uniform(2.8, 3.5))
    b = MeshBuilder()
    cab_length = 1.75
    _cab(b, front_x_m=length / 2, length_m=cab_length, width_m=width, height_m=min(height, 2.75), rng=rng)
    bed_front, bed_back = length / 2 - cab_length - 0.25, -length / 2
    bed_x, bed_length = (bed_front + bed_back) / 2, bed_front - bed_back
    b.box((bed_x - 0.1, 0, 0.8), (bed_length + 0.5, width * 0.45, 0.25), (0.05, 0.05, 0.05), Material.STEEL)
    if kind == "box":
        b.box(
            (bed_x, 0, (1.0 + height) / 2), (bed_length, width, height - 1.0), bright_color(rng), Material.PAINTED_METAL
        )
        b.box((bed_x, 0, 1.05), (bed_length + 0.02, width + 0.02, 0.14), (0.3, 0.3, 0.3), Material.STEEL)
    elif kind == "dump":
        color = bright_color(rng)
        b.box((bed_x, 0, 1.65), (bed_length * 0.88, width * 0.9, 1.2), color, top=(1.13, 1.1))
        b.box(
            (bed_x, 0, 2.32), (bed_length * 0.8, width * 0.8, 0.3), (0.22, 0.16, 0.1), Material.CONCRETE, top=(0.5, 0.5)
        )
    else:
        b.box((bed_x, 0, 1.05), (bed_length, width, 0.2), (0.2, 0.13, 0.08), Material.STEEL)
        for k in range(3):
            x = bed_back + bed_length * (k + 0.5) / 3
            b.box((x, 0, 1.55), (bed_length * 0.26, width * 0.8, 0.8), bright_color(rng), Material.CANVAS)
    _wheels(b, [length / 2 - 0.9, -length * 0.22, -length * 0.36], width / 2, 0.48, width_m=0.35)
    _lights(b, length / 2 + 0.03, bed_back, width / 2, 0.85)
    return fit("vehicle.truck", b, 20.0)


def _cab(
    b: MeshBuilder, *, front_x_m: float, length_m: float, width_m: float, height_m: float, rng: np.random.Generator
) -> None:
    paint = body_color(rng) if rng.random() < 0.5 else bright_color(rng)
    x = front_x_m - length_m / 2
    split = 0.55 + 0.5 * (height_m - 0.55)
    b.box((x, 0, (0.45 + split) / 2), (length_m, width_m * 0.97, split - 0.45), paint)
    b.box(
        (x - 0.03, 0, (split + height_m) / 2),
        (length_m - 0.06, width_m * 0.95, height_m - split),
        paint,
        top=(0.85, 0.92),
        top_shift_m=-0.1,
    )
    glass_z = split + 0.32 * (height_m - split)
    b.box(
        (front_x_m - 0.12, 0, glass_z),
        (0.16, width_m * 0.86, 0.5 * (height_m - split)),
        GLASS,
        Material.GLASS,
        top_shift_m=-0.05,
    )
    for side in (-1, 1):
        b.box((x + 0.2, side * width_m * 0.475, glass_z), (0.8, 0.06, 0.45 * (height_m - split)), GLASS, Material.GLASS)


def _pickup(rng: np.random.Generator) -> Shape:
    length, width, height = float(rng.uniform(5.2, 5.7)), 1.95, 1.85
    paint = body_color(rng)
    b = MeshBuilder()
    b.box((0, 0, 0.7), (length, width, 0.6), paint, top=(0.98, 0.95))
    b.box((0.05 * length, 0, 1.36), (0.38 * length, width * 0.9, 0.74), GLASS, Material.GLASS, top=(0.72, 0.85))
    b.box((0.05 * length, 0, height - 0.08), (0.3 * length, width * 0.78, 0.1), paint)
    for side in (-1, 1):
        b.box((-0.32 * length, side * width * 0.45, 1.15), (0.36 * length, 0.1, 0.4), paint)
    b.box((-0.49 * length, 0, 1.15), (0.08, width * 0.9, 0.4), paint)
    _wheels(b, [-0.31 * length, 0.31 * length], width / 2 + 0.02, 0.4)
    _lights(b, length / 2, -length / 2, width / 2, 0.75)
    return fit("vehicle.truck", b, 15.0)


def tractor(rng: np.random.Generator) -> Shape:
    """The towing half of a semi-trailer: tall cab, short bare chassis."""
    b = MeshBuilder()
    length, width, height = float(rng.uniform(5.8, 6.6)), 2.45, float(rng.uniform(3.0, 3.5))
    _cab(b, front_x_m=length / 2, length_m=2.3, width_m=width, height_m=height, rng=rng)
    b.box((-0.2, 0, 0.85), (length - 0.5, 0.9, 0.3), (0.05, 0.05, 0.05), Material.STEEL)
    b.cylinder((-length * 0.28, 0, 1.0), (-length * 0.28, 0, 1.12), 0.45, STEEL, Material.STEEL)
    _wheels(b, [length / 2 - 1.2, -length * 0.22, -length * 0.40], width / 2, 0.5, width_m=0.4)
    _lights(b, length / 2 + 0.02, -length / 2 + 0.1, width / 2, 0.9)
    return fit("vehicle.truck", b, 20.0)


def bus(rng: np.random.Generator) -> Shape:
    """A city bus: one long body, a dark band of windows all around, doors, a bright stripe."""
    length, width = float(rng.uniform(9.5, 12.0)), float(rng.uniform(2.55, 2.85))
    height = float(rng.uniform(3.0, 3.4))
    paint, stripe = bright_color(rng), bright_color(rng)
    b = MeshBuilder()
    b.box((0, 0, 0.3 + 0.5 * (1.35 - 0.3)), (length, width, 1.05), paint)
    b.box((0, 0, 0.55), (length + 0.02, width + 0.02, 0.22), stripe)
    b.box((0, 0, 1.95), (length - 0.02, width - 0.02, 1.2), GLASS, Material.GLASS)
    b.box((0, 0, (2.5 + height) / 2), (length, width, height - 2.5), paint, top=(0.98, 0.92))
    pillars = int(length // 1.5)
    for k in range(pillars + 1):
        x = -length / 2 + 0.05 + k * (length - 0.1) / pillars
        for side in (-1, 1):
            b.box((x, side * (width / 2 - 0.02), 1.95), (0.12, 0.06, 1.2), paint)
    for x in (length * 0.38, -length * 0.05):
        b.box((x, -width / 2, 1.4), (1.2, 0.05, 2.0), GLASS, Material.GLASS)
    b.box((-length * 0.2, 0, height + 0.12), (2.2, 1.6, 0.25), (0.6, 0.6, 0.6))
    b.box((length / 2, 0, 2.75), (0.06, 1.5, 0.3), (0.9, 0.5, 0.05), Material.HEADLIGHT)
    _wheels(b, [length * 0.27, -length * 0.25], width / 2 + 0.01, 0.5, width_m=0.3)
    _lights(b, length / 2, -length / 2, width / 2, 0.75)
    return fit("vehicle.bus.rigid", b, 22.0)


def trailer(rng: np.random.Generator) -> Shape:
    """A cargo box, tank or tarpaulin on rear wheels with landing legs in front and no cab."""
    kind = rng.choice(["box", "tank", "tarp"], p=[0.5, 0.2, 0.3])
    length, width, height = float(rng.uniform(7.5, 11.0)), 2.5, float(rng.uniform(3.6, 4.0))
    b = MeshBuilder()
    b.box((0, 0, 1.05), (length, 1.0, 0.25), (0.1, 0.1, 0.1), Material.STEEL)
    if kind == "tank":
        color = (0.6, 0.62, 0.65) if rng.random() < 0.6 else bright_color(rng)
        radius = (height - 1.2) / 2
        b.cylinder(
            (-length / 2, 0, 1.2 + radius), (length / 2, 0, 1.2 + radius), radius, color, Material.STEEL, sides=10
        )
        b.box((0, 0, height + 0.03), (length * 0.7, 0.5, 0.06), STEEL, Material.STEEL)
    else:
        color = WHITE if rng.random() < 0.3 else bright_color(rng)
        material = Material.CANVAS if kind == "tarp" else Material.PAINTED_METAL
        b.box((0, 0, (1.2 + height) / 2), (length, width, height - 1.2), color, material, top=(1.0, 0.97))
        ribs = 9 if kind == "tarp" else 5
        for k in range(ribs):
            x = -length / 2 + (k + 0.5) * length / ribs
            dark = (color[0] * 0.6, color[1] * 0.6, color[2] * 0.6)
            b.box((x, 0, (1.2 + height) / 2), (0.08, width + 0.04, height - 1.25), dark, material)
    for side in (-1, 1):
        b.box((length * 0.28, side * 0.8, 0.5), (0.14, 0.14, 1.0), STEEL, Material.STEEL)
        b.box((0, side * (width / 2 - 0.02), 1.15), (length * 0.9, 0.05, 0.1), (0.8, 0.1, 0.05), Material.REFLECTOR)
    _wheels(b, [-length * 0.20, -length * 0.32, -length * 0.44], width / 2, 0.48, width_m=0.4)
    for side in (-1, 1):
        b.box((-length / 2, side * 1.0, 1.0), (0.06, 0.3, 0.2), (0.6, 0.02, 0.02), Material.TAILLIGHT)
    return fit("vehicle.trailer", b, 21.0)


def construction_vehicle(rng: np.random.Generator) -> Shape:
    """Excavator, wheel loader or road roller, in machine yellow."""
    kind = rng.choice(["excavator", "loader", "roller"], p=[0.5, 0.35, 0.15])
    yellow = (float(rng.uniform(0.62, 0.85)), float(rng.uniform(0.36, 0.48)), 0.02)
    dark = (0.05, 0.05, 0.05)
    scale = float(rng.uniform(0.9, 1.1))
    b = MeshBuilder()
    if kind == "excavator":
        for side in (-1, 1):
            b.box((0, side * 1.05 * scale, 0.42), (3.7 * scale, 0.55, 0.84), dark, Material.STEEL, top=(0.85, 1.0))
        b.cylinder((0, 0, 0.8), (0, 0, 1.05), 0.9, dark, Material.STEEL)
        b.box((-0.5 * scale, 0, 1.65), (3.0 * scale, 2.5 * scale, 1.1), yellow)
        b.box((-1.6 * scale, 0, 1.7), (0.9, 2.4 * scale, 1.25), (0.12, 0.12, 0.12), Material.STEEL)
        b.box((0.45 * scale, 0.7 * scale, 2.4), (1.3, 1.0, 1.5), GLASS, Material.GLASS, top=(0.8, 0.9))
        b.box((0.35 * scale, 0.7 * scale, 3.15), (1.2, 1.0, 0.1), yellow)
        elbow = (float(rng.uniform(2.2, 3.0)) * scale, -0.3, float(rng.uniform(3.6, 4.2)))
        wrist = (elbow[0] + 1.1, -0.3, 1.5)
        b.rod((0.5, -0.3, 1.7), elbow, 0.5, yellow, Material.PAINTED_METAL)
        b.rod(elbow, wrist, 0.38, yellow, Material.PAINTED_METAL)
        b.box((wrist[0] - 0.1, -0.3, 0.95), (0.9, 1.1, 0.9), (0.15, 0.14, 0.12), Material.STEEL, top=(0.6, 1.0))
    elif kind == "loader":
        for x in (-1.35 * scale, 1.35 * scale):
            for side in (-1, 1):
                y = side * 1.0 * scale
                b.cylinder((x, y - 0.3, 0.75), (x, y + 0.3, 0.75), 0.75, TYRE, Material.RUBBER, sides=10)
        b.box((-1.3 * scale, 0, 1.45), (2.4 * scale, 1.7 * scale, 1.0), yellow, top=(0.9, 0.85))
        b.box((0.1, 0, 2.3), (1.4, 1.5 * scale, 1.8), GLASS, Material.GLASS, top=(0.8, 0.9))
        b.box((0.1, 0, 3.22), (1.4, 1.5, 0.12), yellow)
        b.box((1.3 * scale, 0, 1.1), (1.4, 0.9, 0.6), yellow)
        for side in (-1, 1):
            b.rod((0.9, side * 0.5, 1.6), (2.6 * scale, side * 0.5, 0.8), 0.26, yellow, Material.PAINTED_METAL)
        b.box((2.95 * scale, 0, 0.65), (0.9, 2.6 * scale, 1.1), (0.2, 0.19, 0.17), Material.STEEL, top=(1.3, 1.0))
    else:
        b.cylinder((1.5, -1.0, 0.75), (1.5, 1.0, 0.75), 0.75, STEEL, Material.STEEL, sides=12)
        _wheels(b, [-1.3], 1.05, 0.75, width_m=0.5)
        b.box((-1.3, 0, 1.55), (2.2, 1.6, 0.9), yellow)
        b.box((1.5, 0, 1.55), (1.9, 2.2, 0.15), yellow)
        b.box((0.1, 0, 1.2), (1.2, 1.4, 0.5), yellow)
        b.box((-0.3, 0, 2.45), (1.3, 1.5, 1.0), GLASS, Material.GLASS, top=(0.85, 0.9))
        b.box((-0.3, 0, 3.0), (1.7, 1.8, 0.1), yellow)
    return fit("vehicle.construction", b, 18.0)
