"""A scene as the cameras see it: boxes and LiDAR points on the pictures.

Letters: N cameras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sensors.frames import CameraImage, SensorFrame
from training.pictures.drawing import FAINT, INK, class_colour, on_picture
from training.pictures.projection import box_segments, lidar_in_reference, project_points
from training.pictures.scene.bev import Scene, newest_sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.gridspec import SubplotSpec

Look = tuple[float, float]  # x forward and y left of a camera's axis in the reference frame
_ONE_ROW, _WIDEST = 3, 4  # cameras
_PLACES = {  # where the field expects nuScenes' cameras: (row, column)
    "CAM_FRONT_LEFT": (0, 0), "CAM_FRONT": (0, 1), "CAM_FRONT_RIGHT": (0, 2),
    "CAM_BACK_LEFT": (1, 0), "CAM_BACK": (1, 1), "CAM_BACK_RIGHT": (1, 2),
}  # fmt: skip


def draw_cameras(place: SubplotSpec, scene: Scene, depth: bool, *, hspace: float, wspace: float) -> None:
    """Fill `place` with the pictures: boxes on them, or with `depth` the LiDAR points."""
    from matplotlib.gridspec import GridSpecFromSubplotSpec

    shown = arrange(scene.frame.cameras, scene.camera_channels)
    layout = GridSpecFromSubplotSpec(shown.rows, shown.columns, place, hspace=hspace, wspace=wspace)
    assert layout.figure is not None
    for (row, column), name, camera in shown.places:
        axes = layout.figure.add_subplot(layout[row, column])
        title = short_name(name)
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
            if "camera" not in scene.given_kinds:
                title += " (not given to the model)"
        axes.set_title(title, fontsize=8.5, color=INK, loc="left", pad=2)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(FAINT)


@dataclass(frozen=True)
class Arrangement:
    """Where the pictures of N cameras go."""

    rows: int
    columns: int
    places: tuple[tuple[tuple[int, int], str, CameraImage | None], ...]  # ((row, column), channel, camera)


def arrange(
    cameras: Sequence[CameraImage | None] | None, channels: Sequence[str], looks: Mapping[str, Look] | None = None
) -> Arrangement:
    """Rows for N cameras, left at the left: one row for up to three, two for up to eight, as many as it takes for more.

    nuScenes' six channels have their usual places. Others are placed by where they look, those that look forward above.

    Args:
        cameras: None where one is absent; None for all of them.
        channels: their names, in the same order.
        looks: where absent cameras looked when they were there; one of which that is not known comes last.
    """
    cameras = list(cameras) if cameras is not None else [None] * len(channels)
    names = [
        camera.channel if camera is not None else (channels[i] if i < len(channels) else f"camera {i}")
        for i, camera in enumerate(cameras)
    ]
    if len(names) > _ONE_ROW and all(name in _PLACES for name in names):
        places = [(_PLACES[name], name, camera) for name, camera in zip(names, cameras, strict=True)]
        return Arrangement(2, 3, tuple(places))
    rows = 1 if len(cameras) <= _ONE_ROW else max(2, -(-len(cameras) // _WIDEST))
    columns = max(1, -(-len(cameras) // rows))
    order = _from_left(names, dict(looks or {}) | directions(cameras), columns)
    by_name = dict(zip(names, cameras, strict=True))
    return Arrangement(rows, columns, tuple((divmod(k, columns), name, by_name[name]) for k, name in enumerate(order)))


def directions(cameras: Sequence[CameraImage | None]) -> dict[str, Look]:
    """Channel -> where it looks, of the cameras that are there."""
    return {
        camera.channel: (float(camera.reference_T_camera[0, 2]), float(camera.reference_T_camera[1, 2]))
        for camera in cameras
        if camera is not None
    }


def _from_left(names: Sequence[str], looks: Mapping[str, Look], first: int) -> list[str]:
    """Channels in the order of their places: the `first` that look forward most from left to right, then the others so."""
    known = sorted((name for name in names if name in looks), key=lambda name: -looks[name][0])
    front, back = (sorted(part, key=lambda name: -looks[name][1]) for part in (known[:first], known[first:]))
    return [*front, *back, *(name for name in names if name not in looks)]


def short_name(channel: str) -> str:
    """A camera's channel as a title: CAM_FRONT_LEFT and CAMERA_FRONT_LEFT are "front left"."""
    return channel.removeprefix("CAMERA_").removeprefix("CAM_").replace("_", " ").lower()


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
