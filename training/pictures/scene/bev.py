"""A scene from above: points, radar, boxes, the vehicle.

Letters: P points, N boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bev.detection.boxes import Boxes
from bev.grid import BEVGrid
from sensors.frames import KINDS, RadarSweep, SensorFrame
from training.pictures.drawing import FAINT, INK, MODALITY_COLOURS, class_colour
from training.pictures.projection import lidar_in_reference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RADAR_COLOUR = MODALITY_COLOURS["radar"]
MOVING_MPS = 0.5  # slower velocities get no arrow
ARROW_S = 0.5  # an arrow is as long as the way in this time


@dataclass(frozen=True)
class Scene:
    """What a scene picture shows. All boxes are in the reference frame of `frame`."""

    frame: SensorFrame
    grid: BEVGrid
    classes: tuple[str, ...]
    truth: Boxes | None = None
    found: Boxes | None = None  # already cut at a score, see `above`
    given: tuple[str, ...] | None = None  # the modalities that the model was given; None: all
    attention: NDArray[np.floating[Any]] | None = None  # [M, X, Y]
    modalities: Mapping[str, str] = field(default_factory=lambda: {kind: kind for kind in KINDS})
    """What axis M of `attention` counts: modality -> the kind of its sensors."""
    camera_channels: tuple[str, ...] = ()  # names of `frame.cameras`, to name those that are absent
    note: str = ""

    @property
    def present(self) -> tuple[str, ...]:
        """The modalities that were given and that the frame has."""
        there = {"camera": self.frame.cameras, "lidar": self.frame.lidar, "radar": self.frame.radar}
        given = self.modalities if self.given is None else self.given
        return tuple(name for name, kind in self.modalities.items() if name in given and there[kind] is not None)

    @property
    def given_kinds(self) -> tuple[str, ...]:
        """The kinds of sensors of which the model was given anything."""
        return KINDS if self.given is None else tuple(self.modalities[name] for name in self.given)


def above(boxes: Boxes, score: float) -> Boxes:
    """The boxes scored at least `score`."""
    return boxes[boxes.score >= score]


def draw_bev(axes: Axes, scene: Scene, *, only_given: bool = False) -> None:
    """The scene from above: x (forward) up, y to the left, so that left is left.

    With `only_given` the points of modalities that the model was not given are left out.
    """
    shown = scene.given_kinds if only_given else KINDS
    for sweep in newest_sweeps(scene.frame.lidar) if "lidar" in shown else ():
        points = lidar_in_reference(sweep)
        axes.scatter(
            points[:, 1], points[:, 0], c=np.clip(points[:, 2], -0.5, 3.0), cmap="Greys", vmin=-2.2, vmax=3.0, s=1.1,
            linewidths=0, zorder=1,
        )  # fmt: skip
    for sweep in newest_sweeps(scene.frame.radar) if "radar" in shown else ():
        _draw_radar(axes, sweep)
    _draw_boxes(axes, scene)
    _draw_surroundings(axes, scene.grid)


def _draw_boxes(axes: Axes, scene: Scene) -> None:
    """Found boxes filled with the colour of their class; truth in outline, black where it is to be compared with."""
    if scene.found is not None:
        for i, label in enumerate(scene.found.label.tolist()):
            _draw_box(axes, scene.found[i : i + 1], class_colour(scene.classes[label], label), filled=True)
    if scene.truth is not None:
        for i, label in enumerate(scene.truth.label.tolist()):
            colour = INK if scene.found is not None else class_colour(scene.classes[label], label)
            _draw_box(axes, scene.truth[i : i + 1], colour, filled=False)


def _draw_surroundings(axes: Axes, grid: BEVGrid) -> None:
    """Range rings, our own vehicle, the limits of the grid."""
    from matplotlib.patches import Circle

    far = max(abs(v) for v in (grid.x_min_m, grid.x_max_m, grid.y_min_m, grid.y_max_m))
    for radius in range(10, int(far) + 1, 10):
        axes.add_patch(
            Circle((0, 0), radius, fill=False, edgecolor="#8FA3B0", linewidth=0.7, linestyle=(0, (4, 4)), zorder=2)
        )
        axes.text(-0.707 * radius, 0.707 * radius, f"{radius} m", fontsize=7.5, color="#5F7380", zorder=2, clip_on=True)
    front, rear, half = 3.7, -1.0, 0.9  # nuScenes' reference lies on the rear axle of a car of 4.7 x 1.8 m
    axes.fill([half, half, 0, -half, -half], [rear, front - 1, front, front - 1, rear], color=INK, zorder=6)
    axes.set_xlim(grid.y_max_m, grid.y_min_m)
    axes.set_ylim(grid.x_min_m, grid.x_max_m)
    axes.set_aspect("equal")
    axes.set_xlabel("y, to the left (m)", fontsize=8.5, color=INK, labelpad=1)
    axes.set_ylabel("x, forward (m)", fontsize=8.5, color=INK, labelpad=1)
    axes.tick_params(labelsize=8, colors=INK, length=3)
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def newest_sweeps(sweeps: Sequence[Any] | None) -> list[Any]:
    """The newest sweep of each channel; older ones would smear what moves."""
    newest: dict[str, Any] = {}
    for sweep in sweeps or ():
        if sweep.channel not in newest or sweep.time_us > newest[sweep.channel].time_us:
            newest[sweep.channel] = sweep
    return list(newest.values())


def _draw_radar(axes: Axes, sweep: RadarSweep) -> None:
    from matplotlib.collections import LineCollection

    rotation, translation = sweep.reference_T_radar[:3, :3], sweep.reference_T_radar[:3, 3]
    points = sweep.points[:, :3].astype(np.float64) @ rotation.T + translation
    velocity = np.concatenate([sweep.points[:, 4:6], np.zeros((len(points), 1))], axis=1) @ rotation.T
    axes.scatter(
        points[:, 1],
        points[:, 0],
        s=16,
        marker="D",
        facecolors="none",
        edgecolors=RADAR_COLOUR,
        linewidths=0.9,
        zorder=3,
    )
    moving = np.linalg.norm(velocity[:, :2], axis=1) > MOVING_MPS
    ends = points[moving] + ARROW_S * velocity[moving]
    lines = np.stack([points[moving][:, [1, 0]], ends[:, [1, 0]]], axis=1)
    axes.add_collection(LineCollection(list(lines), colors=RADAR_COLOUR, linewidths=1.1, zorder=3))


def _draw_box(axes: Axes, box: Boxes, colour: str, filled: bool) -> None:
    from matplotlib.colors import to_rgba

    corners = box.corners_m()[0, :4, :2].double().cpu().numpy()  # front-left, front-right, rear-right, rear-left
    ring = corners[[0, 1, 2, 3, 0]]
    if filled:
        axes.fill(ring[:, 1], ring[:, 0], facecolor=to_rgba(colour, 0.5), edgecolor=colour, linewidth=1.6, zorder=5)
    else:
        axes.plot(ring[:, 1], ring[:, 0], color=colour, linewidth=1.1, zorder=4, solid_joinstyle="miter")
    center, front = corners.mean(axis=0), corners[:2].mean(axis=0)
    axes.plot([center[1], front[1]], [center[0], front[0]], color=colour, linewidth=1.1, zorder=5)
    velocity = box.velocity_mps[0].double().cpu().numpy()
    if np.isfinite(velocity).all() and np.linalg.norm(velocity) > MOVING_MPS:
        end = center + ARROW_S * velocity
        style = {
            "arrowstyle": "-|>",
            "color": colour,
            "linewidth": 1.0,
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 8,
        }
        if not filled:
            style["linestyle"] = (0, (2, 1.5))
        axes.annotate(
            "", xy=(end[1], end[0]), xytext=(center[1], center[0]), arrowprops=style, zorder=5, annotation_clip=True
        )


def legend_handles(scene: Scene, boxes: Sequence[Boxes], *, say_given: bool = True) -> list[Any]:
    """What a legend explains: truth, the classes that occur in `boxes`, LiDAR and radar points."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    found = scene.truth is None or not any(b is scene.truth for b in boxes)
    if found and scene.truth is not None:
        handles.append(Line2D([], [], color=INK, linewidth=1.4, label="truth"))
    for label in sorted({label for b in boxes for label in b.label.tolist()}):
        colour, name = class_colour(scene.classes[label], label), scene.classes[label].replace("_", " ")
        handles.append(Patch(facecolor=colour + "73" if found else "none", edgecolor=colour, label=name))
    unused = {k: ", not given" if say_given and k not in scene.given_kinds else "" for k in KINDS}
    if scene.frame.lidar is not None:
        label = f"LiDAR (darker is higher{unused['lidar']})"
        handles.append(Line2D([], [], color="#666666", marker=".", linestyle="", label=label))
    if scene.frame.radar is not None:
        label = f"radar (line: way in {ARROW_S:g} s{unused['radar']})"
        handles.append(
            Line2D([], [], color=RADAR_COLOUR, marker="D", markerfacecolor="none", markersize=4, label=label)
        )
    return handles
