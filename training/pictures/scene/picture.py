"""One instant on one page: the scene from above, the cameras with boxes, and whom the model trusted.

Letters: M modalities, X and Y cells, N boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bev.detection.boxes import Boxes
from training.pictures.charts import draw_attention
from training.pictures.drawing import INK, new_figure, save_figure
from training.pictures.scene.bev import Scene, draw_bev, legend_handles
from training.pictures.scene.cameras import arrange, draw_cameras

_WIDTH_IN = 19.2  # of the cameras alone


def scene_picture(path: Path, scene: Scene) -> Path:
    """Draw the scene from above, the cameras with truth and found boxes, and attention.

    Without attention the LiDAR points over the pictures, coloured by depth, take its place: where calibration or time
    stamps are wrong, points slide off the objects.
    """
    from matplotlib.gridspec import GridSpec, GridSpecFromSubplotSpec

    with_maps = scene.attention is not None
    right_in = 12.2 if with_maps else 10.2  # as wide as makes the right side as high as the left
    figure = new_figure(9.3 + right_in, 9.6)
    page = GridSpec(
        1, 2, figure, width_ratios=[8.4, right_in], left=0.03, right=0.992, top=0.895, bottom=0.075, wspace=0.035
    )
    above = figure.add_subplot(page[0])
    draw_bev(above, scene)
    boxes = scene.found if scene.found is not None else scene.truth
    handles = legend_handles(scene, [] if boxes is None else [boxes])
    above.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.035), ncols=min(7, max(1, -(-len(handles) // 2))),
        fontsize=8, frameon=False, handlelength=1.4, columnspacing=1.3,
    )  # fmt: skip
    right = GridSpecFromSubplotSpec(2, 1, page[1], height_ratios=[1.0, 0.62 if with_maps else 1.0], hspace=0.09)
    draw_cameras(right[0], scene, depth=False, hspace=0.1, wspace=0.03)
    if scene.attention is None:
        draw_cameras(right[1], scene, depth=True, hspace=0.1, wspace=0.03)
    else:
        count = len(scene.modalities) + 1
        maps = GridSpecFromSubplotSpec(1, count, right[1], wspace=0.06)
        axes = [figure.add_subplot(maps[k]) for k in range(count)]
        draw_attention(axes, scene.attention, tuple(scene.modalities), scene.grid, scene.present)
    figure.text(0.03, 0.955, _headline(scene), fontsize=14, fontweight="bold", color=INK)
    figure.text(0.03, 0.925, _subline(scene), fontsize=9.5, color="#555555")
    return save_figure(figure, path)


def _headline(scene: Scene) -> str:
    if scene.found is None:
        return "What the sensors saw, and the truth"
    return f"What the model found with {' + '.join(scene.present) or 'no sensor at all'}"


def _subline(scene: Scene) -> str:
    parts = [f"sample {scene.frame.token}"]
    if scene.truth is not None:
        inside = scene.grid.flat_index(scene.truth.center_m[:, :2]) < scene.grid.num_cells
        parts.append(f"{int(inside.sum())} truth boxes in the grid")
    if scene.found is not None:
        parts.append(f"{len(scene.found)} found")
    if scene.note:
        parts.append(scene.note)
    return "   ·   ".join(parts)


def cameras_picture(path: Path, scene: Scene) -> Path:
    """The cameras alone, large: boxes on the pictures, or LiDAR by depth too where nothing was found."""
    from matplotlib.gridspec import GridSpec

    rows = 1 if scene.found is not None else 2
    shown = arrange(scene.frame.cameras, scene.camera_channels)
    pictures_in = shown.rows * (0.25 + _WIDTH_IN / shown.columns * 9 / 16)
    height_in = 0.75 + pictures_in * rows
    figure = new_figure(_WIDTH_IN, height_in)
    bottom = 0.1 / height_in
    page = GridSpec(rows, 1, figure, left=0.006, right=0.994, bottom=bottom, top=1 - 7 * bottom, hspace=0.05)
    for row in range(rows):
        draw_cameras(page[row], scene, depth=row == 1, hspace=0.08, wspace=0.015)
    figure.text(0.006, 1 - 4 * bottom, _headline(scene), fontsize=14, fontweight="bold", color=INK)
    figure.text(0.994, 1 - 4 * bottom, _subline(scene), fontsize=9.5, color="#555555", ha="right")
    return save_figure(figure, path)


def subsets_picture(path: Path, scene: Scene, found: Mapping[str, Boxes]) -> Path:
    """The same instant from above, once for every subset of the sensors.

    Args:
        scene: what all panels share.
        found: subset ("camera+lidar") -> the boxes found with it, cut at a score.
    """
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure = new_figure(5.0 * columns, 0.9 + 5.45 * rows)
    height = 0.9 + 5.45 * rows
    for k, (subset, boxes) in enumerate(found.items()):
        axes = figure.add_subplot(rows, columns, k + 1)
        given = tuple(subset.split("+"))
        draw_bev(axes, replace(scene, found=boxes, given=given), only_given=True)
        axes.set_title(subset.replace("+", " + "), fontsize=12, color=INK, loc="left", fontweight="bold")
        axes.set_title(f"{len(boxes)} found", fontsize=10, color="#555555", loc="right")
    shown = [boxes for boxes in found.values() if len(boxes)]
    figure.subplots_adjust(
        left=0.025, right=0.99, top=1 - 0.75 / height, bottom=0.62 / height, wspace=0.12, hspace=0.16
    )
    handles = legend_handles(scene, shown, say_given=False)
    if len(found) < rows * columns:  # an empty place in the grid
        place = figure.add_subplot(rows, columns, rows * columns)
        place.axis("off")
        place.legend(handles=handles, loc="center", fontsize=11, frameon=False, labelspacing=0.9)
    else:
        figure.legend(handles=handles, loc="lower center", ncols=14, fontsize=9, frameon=False, handlelength=1.4)
    figure.text(0.025, 1 - 0.35 / height, "The same instant with every subset of the sensors", fontsize=14,
                fontweight="bold", color=INK)  # fmt: skip
    figure.text(0.99, 1 - 0.35 / height, _subline(scene), fontsize=9.5, color="#555555", ha="right")
    return save_figure(figure, path)
