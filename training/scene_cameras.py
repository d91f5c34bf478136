"""A scene as the cameras see it: boxes and LiDAR points on the pictures.

Letters: N cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sensors.frames import CameraImage, SensorFrame
from training.drawing import FAINT, INK, class_colour, on_picture
from training.projection import box_segments, lidar_in_reference, project_points
from training.scene_bev import Scene, newest_sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.gridspec import GridSpecFromSubplotSpec

_PLACES = {  # where the field expects nuScenes' cameras: (row, column)
    "CAM_FRONT_LEFT": (0, 0), "CAM_FRONT": (0, 1), "CAM_FRONT_RIGHT": (0, 2),
    "CAM_BACK_LEFT": (1, 0), "CAM_BACK": (1, 1), "CAM_BACK_RIGHT": (1, 2),
}  # fmt: skip


def draw_cameras(layout: GridSpecFromSubplotSpec, scene: Scene, depth: bool) -> None:
    """Fill the 2 x 3 places of `layout` with the pictures: boxes on them, or with `depth` the LiDAR points."""
    assert layout.figure is not None
    for (row, column), name, camera in arrange(scene.frame.cameras, scene.camera_channels):
        axes = layout.figure.add_subplot(layout[row, column])
        title = name.replace("CAM_", "").replace("_", " ").lower()
        if camera is None:
            axes.set_facecolor("#EEEEEE")
            axes.text(
                0.5, 0.5, "absent", ha="center", va="center", transform=axes.transAxes, color="#777777", fontsize=11
            )
            axes.set_box_aspect(9 / 16)
        elif depth:
            draw_camera_depth(axes, camera, scene.frame)
            title += ", LiDAR by depth, 3 m yellow to 50 m violet" if (row, column) == (0, 0) else ", LiDAR"
        else:
            draw_camera(axes, camera, scene)
            if "camera" not in scene.given:
                title += " (not given to the model)"
        axes.set_title(title, fontsize=8.5, color=INK, loc="left", pad=2)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(FAINT)


def arrange(
    cameras: Sequence[CameraImage | None] | None, channels: Sequence[str]
) -> list[tuple[tuple[int, int], str, CameraImage | None]]:
    """((row, column), name, camera) in two rows of three: forward-looking above, backward below, left at the left.

    nuScenes' channels have their usual places; others are placed by where they look, as far as six places go.
    """
    cameras = list(cameras) if cameras is not None else [None] * (len(channels) or 6)
    names = [
        camera.channel if camera is not None else (channels[i] if i < len(channels) else f"camera {i}")
        for i, camera in enumerate(cameras)
    ]
    if all(name in _PLACES for name in names):
        return [(_PLACES[name], name, camera) for name, camera in zip(names, cameras, strict=True)]

    def looks(i: int) -> tuple[bool, float]:
        camera = cameras[i]
        axis = np.array([1.0, 0.0]) if camera is None else camera.reference_T_camera[:2, 2]
        return bool(axis[0] < 0), float(-axis[1])

    order = sorted(range(len(cameras)), key=looks)[:6]
    return [(divmod(place, 3), names[i], cameras[i]) for place, i in enumerate(order)]


def draw_camera(axes: Axes, camera: CameraImage, scene: Scene) -> None:
    """The picture with truth boxes (white, thin) and found boxes (colour of the class), a cross on their fronts."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import Normal, Stroke

    _show_image(axes, camera)
    halo = [Stroke(linewidth=2.2, foreground="black", alpha=0.55), Normal()]
    if scene.truth is not None:
        for index, lines in box_segments(scene.truth, camera):
            label = int(scene.truth.label[index])
            colour = "white" if scene.found is not None else on_picture(class_colour(scene.classes[label], label))
            wide = 0.8 if scene.found is not None else 1.2
            axes.add_collection(LineCollection(list(lines), colors=[colour], linewidths=wide, path_effects=halo))
    if scene.found is not None:
        for index, lines in box_segments(scene.found, camera):
            label = int(scene.found.label[index])
            colour = on_picture(class_colour(scene.classes[label], label))
            axes.add_collection(LineCollection(list(lines), colors=[colour], linewidths=1.3))


def draw_camera_depth(axes: Axes, camera: CameraImage, frame: SensorFrame) -> None:
    """The picture, darkened, with the LiDAR points that fall on it, coloured by depth."""
    _show_image(axes, camera, dim=0.55)
    width_in = axes.get_window_extent().width / axes.figure.dpi
    size = 0.3 * width_in**1.5  # points grow with the picture, though less than it does
    for sweep in newest_sweeps(frame.lidar):
        pixels, depth = project_points(lidar_in_reference(sweep), camera)
        far_first = np.argsort(-depth)
        axes.scatter(
            pixels[far_first, 0], pixels[far_first, 1], c=np.log(depth[far_first]), cmap="viridis_r",
            vmin=np.log(3.0), vmax=np.log(50.0), s=size, linewidths=0,
        )  # fmt: skip


def _show_image(axes: Axes, camera: CameraImage, dim: float = 1.0) -> None:
    height, width = camera.image.shape[:2]
    image = camera.image if dim == 1.0 else (camera.image * dim).astype(np.uint8)
    axes.imshow(image, interpolation="antialiased")
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
