"""Draws docs/inputs.png: frames and axes from above and from the side, a box's sizes and yaw, and the times of one frame.

python docs/draw_inputs.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Arc, Polygon, Rectangle

from sensors.palette import MODALITY_COLOURS

PICTURE = Path(__file__).with_name("inputs.png")
COLOUR: dict[str, Any] = {kind: np.array(rgb) / 255 for kind, rgb in MODALITY_COLOURS.items()}
BOX_M, SIZE_M, YAW_RAD = np.array([9.8, 4.2]), (1.9, 4.4, 1.6), np.radians(30)  # centre (x, y); width, length, height


def arrow(
    axes: Axes, start: Any, end: Any, text: str = "", colour: Any = "black", off: Any = (0, 0), style: str = "-|>"
) -> None:
    """From one point of the axes to another, with a word at its end."""
    properties = {"arrowstyle": style, "color": colour, "shrinkA": 0, "shrinkB": 0, "lw": 1.4}
    axes.annotate("", xy=tuple(end), xytext=tuple(start), arrowprops=properties)
    if text:
        place = np.asarray(end) + off
        axes.text(*place, text, color=colour, ha="center", va="center", fontsize=8)


def above(point_m: Any) -> Any:
    """(x, y) of the ego frame -> (horizontal, vertical) in the picture: x is up, y is left."""
    return -np.asarray(point_m)[..., 1], np.asarray(point_m)[..., 0]


def draw_above(axes: Axes) -> None:
    """The vehicle, its axes, a camera's and a LiDAR's, and a box with width, length, yaw and velocity."""
    axes.add_patch(Rectangle((-0.95, -1.0), 1.9, 4.7, facecolor="0.9", edgecolor="0.5"))
    axes.add_patch(Polygon([(0, 1.7), (-4.6, 9.7), (4.6, 9.7)], facecolor=COLOUR["camera"], alpha=0.12))
    arrow(axes, (0, 0), (0, 4.6), "x forward", off=(-1.7, -0.3))
    arrow(axes, (0, 0), (-3.4, 0), "y left", off=(0, -0.55))
    axes.plot(0, 0, "ko", ms=4)
    axes.text(1.2, -0.35, "ego: on the ground,\nunder the middle of\nthe rear axle", fontsize=7, va="center")
    arrow(axes, (0, 1.7), (1.6, 1.7), "x right", COLOUR["camera"], (1.3, 0))
    arrow(axes, (0, 1.7), (0, 3.2), "", COLOUR["camera"])
    axes.text(0.2, 3.0, "z where it looks", color=COLOUR["camera"], fontsize=8)
    axes.plot(0, 0.95, "o", color=COLOUR["lidar"], ms=6)
    axes.text(1.2, 0.95, "LiDAR: axes of its own", color=COLOUR["lidar"], fontsize=7)
    width_m, length_m, _ = SIZE_M
    ahead = np.array([np.cos(YAW_RAD), np.sin(YAW_RAD)])
    left = np.array([-ahead[1], ahead[0]])
    corners = [
        BOX_M + a * length_m / 2 * ahead + b * width_m / 2 * left for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))
    ]
    axes.add_patch(Polygon(np.column_stack(above(np.array(corners))), facecolor="none", edgecolor="tab:green", lw=1.8))
    centre = np.array(above(BOX_M))
    axes.plot(*centre, "o", color="tab:green", ms=4)
    arrow(axes, centre, above(BOX_M + 4.3 * ahead), "velocity\nover ground", "tab:green", (-0.4, 0.75))
    axes.plot([centre[0], centre[0]], [centre[1], centre[1] + 3.6], color="0.5", ls=":", lw=1)
    axes.add_patch(Arc(tuple(centre), 5.2, 5.2, theta1=90, theta2=90 + np.degrees(YAW_RAD), color="black", lw=1.2))
    axes.text(centre[0] - 0.75, centre[1] + 2.95, "yaw", fontsize=8, ha="center")
    low = [BOX_M - length_m / 2 * ahead + b * (width_m / 2) * left - 0.45 * ahead for b in (-1, 1)]
    arrow(axes, above(low[0]), above(low[1]), "", "tab:green", style="<->")
    axes.text(*above(BOX_M - 3.5 * ahead + 0.9 * left), "width", color="tab:green", fontsize=8, ha="center")
    side = [BOX_M + a * (length_m / 2) * ahead - (width_m / 2 + 0.45) * left for a in (-1, 1)]
    arrow(axes, above(side[0]), above(side[1]), "", "tab:green", style="<->")
    axes.text(*above(BOX_M - (width_m / 2 + 1.45) * left), "length", color="tab:green", fontsize=8, ha="center")
    axes.set(title="from above", xlim=(-8.7, 6.2), ylim=(-1.6, 15.6), xticks=[], yticks=[], aspect="equal")


def draw_side(axes: Axes) -> None:
    """Heights: the ground, the camera's axes, the middle of a box."""
    axes.axhline(0, color="0.6", lw=1)
    axes.add_patch(Rectangle((-1.0, 0.25), 4.7, 1.25, facecolor="0.9", edgecolor="0.5"))
    axes.plot(0, 0, "ko", ms=4)
    arrow(axes, (0, 0), (0, 3.1), "z up", off=(-0.8, -0.1))
    arrow(axes, (0, 0), (3.2, 0), "x", off=(0.4, -0.45))
    arrow(axes, (1.7, 1.6), (3.4, 1.6), "z", COLOUR["camera"], (0.4, 0))
    arrow(axes, (1.7, 1.6), (1.7, 0.5), "y down", COLOUR["camera"], (0.95, -0.05))
    axes.plot(0.95, 1.9, "o", color=COLOUR["lidar"], ms=6)
    axes.add_patch(Rectangle((7.2, 0.0), 4.4, SIZE_M[2], facecolor="none", edgecolor="tab:green", lw=1.8))
    axes.plot(9.4, SIZE_M[2] / 2, "o", color="tab:green", ms=4)
    axes.text(9.4, SIZE_M[2] / 2 + 0.22, "center_m: its middle", color="tab:green", fontsize=7, ha="center")
    arrow(axes, (12.1, 0), (12.1, SIZE_M[2]), "", "tab:green", style="<->")
    axes.text(12.3, SIZE_M[2] / 2, "height", color="tab:green", fontsize=8, va="center")
    axes.set(title="from the side", xlim=(-2.2, 14.6), ylim=(-0.9, 3.7), xticks=[], yticks=[], aspect="equal")


def draw_times(axes: Axes) -> None:
    """What of which time is brought where."""
    rows = {"camera": (-35, 3), "lidar": (0, 2), "radar": (14, 1)}
    axes.axvline(0, color="black", lw=1.2)
    axes.text(2, 4.1, "time_us of the frame:\nthe reference", fontsize=7, va="center")
    for kind, (time_ms, row) in rows.items():
        axes.plot([-105, 45], [row, row], color="0.85", lw=1, zorder=0)
        axes.plot(time_ms, row, "o", color=COLOUR[kind], ms=6)
        axes.text(
            -108, row, {"lidar": "LiDAR"}.get(kind, kind), color=COLOUR[kind], fontsize=8, ha="right", va="center"
        )
        if time_ms:
            arrow(axes, (time_ms, row - 0.28), (0, row - 0.28), "", COLOUR[kind])
    axes.plot([-50, 0], [2.28, 2.28], color=COLOUR["lidar"], lw=4, alpha=0.35)
    axes.text(-52, 2.28, "times of its points", color=COLOUR["lidar"], fontsize=7, ha="right", va="center")
    axes.plot(np.arange(-103, 46, 20), np.zeros(8), "k|", ms=9)
    axes.text(-108, 0, "ego poses", fontsize=8, ha="right", va="center")
    axes.set(
        title="times: motion brings all to the reference", xlim=(-150, 62), ylim=(-0.6, 4.7), yticks=[], xlabel="ms"
    )
    for spine in ("left", "right", "top"):
        axes.spines[spine].set_visible(False)


def main() -> None:
    """Write the picture beside the page."""
    figure = plt.figure(figsize=(9.6, 5.6), layout="constrained")
    axes = figure.subplot_mosaic([["above", "side"], ["above", "times"]], width_ratios=[1, 1.5])
    draw_above(axes["above"])
    draw_side(axes["side"])
    draw_times(axes["times"])
    figure.savefig(PICTURE, dpi=90, metadata={"Software": ""})


if __name__ == "__main__":
    main()
