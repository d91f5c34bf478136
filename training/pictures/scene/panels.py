"""One instant in panels: from above, in each camera, and in maps of the bird's-eye-view grid.

Letters: N boxes, M modalities, P points, X and Y cells, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bev.detection.boxes import Boxes
from bev.grid import BEVGrid
from robustbev import ModelConfig, RigConfig
from robustbev.perception import TaskMap
from robustbev.results.content import newest, points_in_reference
from robustbev.results.palette import ALARM
from sensors.frames import CameraImage, SensorFrame
from sensors.palette import MODALITY_COLOURS, RGB, class_rgb, modality_rgb
from sensors.replay.tick import SensorStatus
from training.pictures.projection import box_segments, project_points
from training.pictures.scene import canvas as draw
from training.pictures.scene.cameras import Look, arrange, directions, short_name
from training.pictures.scene.canvas import GREY, INK, Pixels, Place

Mark = tuple[str, RGB, str]  # of a legend: its sign, colour and meaning

MOVING_MPS = 0.5  # slower velocities get no arrow
ARROW_S = 0.5  # an arrow is as long as the way in this time
CELL_COLOURS = "cividis"
_DEPTH_M = (3.0, 50.0)
_LARGE_PX = 500  # pictures as wide as this have room for thicker lines and points
VEHICLE_M = np.array([[3.7, 0.0], [2.7, 0.9], [-1.0, 0.9], [-1.0, -0.9], [2.7, -0.9]])  # nuScenes' car, rear axle at 0
_TRUTH_ON_PICTURE: RGB = (235, 235, 235)


@dataclass(frozen=True)
class Scene:
    """What there is to draw of one instant. All boxes are in the reference frame of `frame`."""

    frame: SensorFrame
    grid: BEVGrid
    classes: tuple[str, ...]
    truth: Boxes | None = None  # None: not known
    found: Boxes | None = None  # already cut at a score; None: no model was asked
    perceived: bool = True  # False: no sensor covers any cell
    attention: NDArray[np.floating[Any]] | None = None  # [M, X, Y]
    coverage: NDArray[np.floating[Any]] | None = None  # [X, Y] of the model as a whole
    task_maps: Mapping[str, TaskMap] = field(default_factory=dict)  # by their titles
    channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of M modalities, those that the frame has
    given: tuple[str, ...] | None = None  # the modalities that the model was given; None: all
    camera_channels: tuple[str, ...] = ()  # absent ones too
    looks: Mapping[str, Look] = field(default_factory=dict)  # where absent cameras looked when they were there
    sensors: Mapping[str, SensorStatus] = field(default_factory=dict)  # channel -> how it stands, where that is known

    @property
    def present(self) -> tuple[str, ...]:
        """The modalities that the model was given and the frame has."""
        given = self.channels if self.given is None else self.given
        return tuple(name for name, channels in self.channels.items() if channels and name in given)

    @property
    def truths_inside(self) -> int:
        """How many true boxes have their centre on the grid."""
        center_m = (self.truth or Boxes.empty()).center_m[:, :2]
        return int((self.grid.flat_index(center_m) < self.grid.num_cells).sum())

    @property
    def count(self) -> str:
        """How many boxes were found, in words."""
        return f"{len(self.found or ())} found" if self.perceived else "NO PERCEPTION"

    def gives(self, channel: str) -> bool:
        """Whether the model was given what this sensor delivered."""
        return self.given is None or any(channel in self.channels[name] for name in self.present)


@dataclass(frozen=True)
class Panel:
    """A titled view. `draw` fills the pixels [H, W, 3] that it is handed, `aspect` times as wide as high."""

    title: str
    aspect: float
    draw: Callable[[Pixels], None]
    note: str = ""  # at the right of the title
    swatch: RGB | None = None  # before the title
    values: tuple[float, float] | None = None  # what the ends of `CELL_COLOURS` stand for, of a map


def channels_there(config: ModelConfig, frame: SensorFrame) -> dict[str, tuple[str, ...]]:
    """Modality of a model -> its sensors that the frame has."""
    rig = RigConfig(
        camera_channels=tuple(camera.channel for camera in frame.cameras or () if camera is not None),
        lidar_channels=tuple(newest(frame.lidar)),
        radar_channels=tuple(newest(frame.radar)),
    )
    return {name: config.channels_of(name, rig) for name in config.modalities}


def above(scene: Scene, title: str = "from above, forward is up", note: str = "") -> Panel:
    """Points, boxes and the vehicle from above, of the sensors that the model was given."""
    return Panel(title, _aspect(scene.grid), partial(_draw_above, scene=scene), note)


def cameras(scene: Scene, *, depth: bool = False) -> tuple[int, list[Panel]]:
    """How many columns, and the pictures row by row: with boxes, or with `depth` the LiDAR points."""
    there = {camera.channel: camera for camera in scene.frame.cameras or () if camera is not None}
    channels = tuple(dict.fromkeys((*scene.camera_channels, *there)))
    columns, order = arrange(channels, dict(scene.looks) | directions(scene.frame))
    panels: list[Panel] = []
    for name in order:
        view = partial(_draw_camera, scene=scene, camera=there.get(name), channel=name, depth=depth)
        note = "" if depth or name not in there or scene.gives(name) else "not given to the model"
        note = f"{_DEPTH_M[0]:g} m yellow, {_DEPTH_M[1]:g} m violet" if depth and not panels else note
        panels.append(Panel(short_name(name) + (", LiDAR" if depth else ""), 16 / 9, view, note))
    return columns, panels


def grid_map(
    title: str, values: NDArray[Any], grid: BEVGrid, ends: tuple[float, float], *,
    swatch: RGB | None = None, crossed: bool = False,
) -> Panel:  # fmt: skip
    """A map [X, Y] of the grid; `ends` are the values that the first and the last colour stand for, grey is NaN."""
    index = np.clip(np.rint(255 * (np.nan_to_num(values) - ends[0]) / (ends[1] - ends[0])), 0, 255).astype(np.uint8)
    cells = np.where(np.isnan(values)[..., None], np.array(GREY, np.uint8), draw.colour_map(CELL_COLOURS)[index])
    view = partial(_draw_cells, cells=cells, grid=grid, crossed=crossed)
    return Panel(title, _aspect(grid), view, swatch=swatch, values=ends)


def maps(scene: Scene) -> list[Panel]:
    """Whom the fusion trusts: a map for each modality on one scale, one of their colours mixed by share; coverage; tasks'."""
    panels = []
    if scene.attention is not None:
        ends = (0.0, max(float(scene.attention.max(initial=0.0)), 1e-6))
        colours = [modality_rgb(name, k) for k, name in enumerate(scene.channels)]
        for name, share, colour in zip(scene.channels, scene.attention, colours, strict=True):
            gone, mean = name not in scene.present, f"{100 * share.mean():.0f}%"
            title = f"{name} absent: null {mean}" if gone else f"attention to {name} {mean}"
            panels.append(grid_map(title, share, scene.grid, ends, swatch=colour, crossed=gone))
        mixed = np.einsum("mxy,mc->xyc", scene.attention, np.array(colours, float)).clip(0, 255).astype(np.uint8)
        cells = partial(_draw_cells, cells=mixed, grid=scene.grid)
        panels.append(Panel("colours mixed by share", _aspect(scene.grid), cells))
    if scene.coverage is not None:
        panels.append(grid_map(f"coverage {100 * scene.coverage.mean():.0f}%", scene.coverage, scene.grid, (0.0, 1.0)))
    panels += [grid_map(name, one.values, scene.grid, (one.low, one.high)) for name, one in scene.task_maps.items()]
    return panels


def legend(scenes: Sequence[Scene]) -> list[Mark]:
    """What can be seen from above in these scenes; all have or lack found boxes."""
    asked = scenes[0].found is not None
    marks = [("outline", INK, "truth (white on the pictures)")] if asked and scenes[0].truth is not None else []
    boxes = [scene.found if asked else scene.truth for scene in scenes]
    for label in sorted({label for some in boxes if some is not None for label in some.label.tolist()}):
        name = scenes[0].classes[label]
        marks.append(("filled" if asked else "outline", class_rgb(name, label), name.replace("_", " ")))
    if any(scene.gives(name) for scene in scenes for name in newest(scene.frame.lidar)):
        marks.append(("dots", GREY, "LiDAR, darker is higher"))
    if any(scene.gives(name) for scene in scenes for name in newest(scene.frame.radar)):
        marks.append(("diamond", MODALITY_COLOURS["radar"], f"radar, line: way in {ARROW_S:g} s"))
    return marks


def _aspect(grid: BEVGrid) -> float:
    return (grid.y_max_m - grid.y_min_m) / (grid.x_max_m - grid.x_min_m)


def pixels_at(view: Pixels, grid: BEVGrid, xy_m: NDArray[Any]) -> NDArray[np.float64]:
    """[..., 2] metres (x forward, y left) -> [..., 2] pixels (right, down) from the top left of a view of the whole grid."""
    left_top = np.array([grid.y_max_m, grid.x_max_m])
    size_m = np.array([grid.y_max_m - grid.y_min_m, grid.x_max_m - grid.x_min_m])
    return (left_top - np.asarray(xy_m, np.float64)[..., ::-1]) / size_m * view.shape[1::-1]


def _draw_above(view: Pixels, scene: Scene) -> None:
    pixels = partial(pixels_at, view, scene.grid)
    view[:] = 250
    draw_rings(view, scene.grid)
    frame = scene.frame
    for name, sweep in newest(frame.lidar).items():
        if scene.gives(name):
            points = points_in_reference(sweep, frame.time_us)
            points = points[np.isfinite(points[:, :3]).all(axis=1)]
            points = points[np.argsort(points[:, 2], kind="stable")]
            grey = (215 - 135 * np.clip((points[:, 2] + 0.5) / 3.0, 0, 1)).astype(np.uint8)
            draw.dots(view, pixels(points[:, :2]), np.stack([grey] * 3, axis=1), 2, 1)
    for name, sweep in newest(frame.radar).items():
        if scene.gives(name):
            points = points_in_reference(sweep, frame.time_us)
            points = points[np.isfinite(points[:, [0, 1, 4, 5]]).all(axis=1)]
            at, end = pixels(points[:, :2]), pixels(points[:, :2] + ARROW_S * points[:, 4:6])
            diamond = 3.5 * np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])
            draw.lines(view, at[:, None] + diamond, MODALITY_COLOURS["radar"], closed=True)
            moving = np.linalg.norm(points[:, 4:6], axis=1) > MOVING_MPS
            draw.lines(view, np.stack([at, end], axis=1)[moving], MODALITY_COLOURS["radar"])
    if scene.truth is not None:
        _draw_boxes(view, scene, scene.truth, None if scene.found is None else INK, filled=False)
    if scene.found is not None:
        _draw_boxes(view, scene, scene.found, None, filled=True)
    draw.shape(view, pixels(VEHICLE_M), INK)
    if not scene.perceived:
        _draw_alarm(view)
    draw.border(view, draw.FAINT)


def draw_rings(view: Pixels, grid: BEVGrid) -> None:
    """Rings of 10 m, named at the left, behind or where the grid reaches further."""
    origin, aside = pixels_at(view, grid, np.array([[0.0, 0.0], [0.0, -1.0]]))
    far_m = max(abs(v) for v in (grid.x_min_m, grid.x_max_m, grid.y_min_m, grid.y_max_m))
    along = 0.7071 if grid.x_max_m > -grid.x_min_m else -0.7071
    for radius_m in range(10, int(1.5 * far_m) + 1, 10):
        draw.circle(view, origin, radius_m * (aside - origin)[0], (214, 220, 224))
        x, y = pixels_at(view, grid, np.array([along * radius_m, 0.7071 * radius_m])).astype(int).tolist()
        draw.write(view, f"{radius_m} m", (x + 4, y - 8), size_px=12, colour=(110, 125, 135))


def _draw_boxes(view: Pixels, scene: Scene, boxes: Boxes, colour: RGB | None, *, filled: bool) -> None:
    """Outlines in this colour or those of the classes, headings, arrows; half-transparent inside where `filled`."""
    corners_m = boxes.corners_m()[:, :4, :2].double().numpy()  # front-left, front-right, rear-right, rear-left
    way_m = corners_m.mean(axis=1) + ARROW_S * boxes.velocity_mps.double().numpy()
    moving = np.linalg.norm(boxes.velocity_mps.numpy(), axis=1) > MOVING_MPS  # False where it is not known, NaN
    rings, ends = pixels_at(view, scene.grid, corners_m), pixels_at(view, scene.grid, way_m)
    colours = [colour or class_rgb(scene.classes[label], label) for label in boxes.label.tolist()]
    if filled:
        layer = view.copy()
        for ring, shade in zip(rings, colours, strict=True):
            draw.shape(layer, ring, shade)
        view[:] = ((view.astype(np.uint16) + layer) // 2).astype(np.uint8)
    for ring, shade, end, moves in zip(rings, colours, ends, moving, strict=True):
        center, front = ring.mean(axis=0), ring[:2].mean(axis=0)
        draw.lines(view, [ring], shade, 2 if filled else 1, closed=True)
        draw.lines(view, [np.stack([center, front])], shade)
        if moves:
            draw.arrow(view, center, end, shade)


def _draw_alarm(view: Pixels) -> None:
    """Strike through a scene of which nothing is known."""
    view[:] = ((view.astype(np.uint16) * 2 + np.array([255, 225, 225], np.uint16)) // 3).astype(np.uint8)
    height, width = view.shape[:2]
    size = max(12, width // 18)
    band = Place(0, height // 2 - round(1.4 * size), width, round(2.8 * size)).of(view)
    band[:] = ALARM
    words = "no sensor covers any cell: this is not “nothing there”"
    for text, y, size_px in (("NO PERCEPTION", 0.35, size), (words, 1.8, max(10, round(0.42 * size)))):
        at = (width // 2, round(y * size))
        draw.write(band, text, at, size_px=size_px, colour=draw.WHITE, bold=y < 1, align="middle", room_px=width - 8)


def _draw_camera(view: Pixels, scene: Scene, camera: CameraImage | None, channel: str, depth: bool) -> None:
    """The picture with found boxes in their colours, truth in white, or in its colours where no model was asked."""
    view[:] = 238
    if camera is None:
        status = scene.sensors.get(channel)
        word = "absent" if status is None or status.given else f"absent: {status.state}"
        at = (view.shape[1] // 2, view.shape[0] // 2 - 10)
        draw.write(view, word, at, colour=GREY, align="middle", room_px=view.shape[1])
        return
    view, scale = draw.fit(view, camera.image)
    if depth:
        _draw_depth(view, scene.frame, camera, scale)
        return
    for boxes, truth in ((scene.truth or Boxes.empty(), True), (scene.found or Boxes.empty(), False)):
        for index, segments in box_segments(boxes, camera):
            label, paths = int(boxes.label[index]), (segments + 0.5) * scale - 0.5
            if truth and view.shape[1] >= _LARGE_PX:
                draw.lines(view, paths, (60, 60, 60), 3)  # a dark rim, without which white is lost on a white wall
            white = truth and scene.found is not None
            colour = _TRUTH_ON_PICTURE if white else draw.light(class_rgb(scene.classes[label], label))
            draw.lines(view, paths, colour, 1 if truth else 2)


def _draw_depth(view: Pixels, frame: SensorFrame, camera: CameraImage, scale: float) -> None:
    """The picture, darkened, with the LiDAR points that fall on it by depth: where calibration is wrong, they slide off."""
    view[:] = (0.55 * view).astype(np.uint8)
    low, high = np.log(_DEPTH_M)
    side = 3 if view.shape[1] >= _LARGE_PX else 2
    for sweep in newest(frame.lidar).values():
        at, depth_m = project_points(points_in_reference(sweep, frame.time_us)[:, :3].astype(np.float64), camera)
        order = np.argsort(-depth_m, kind="stable")  # near ones on top
        index = (255 * np.clip((high - np.log(depth_m[order])) / (high - low), 0, 1)).astype(np.uint8)
        draw.dots(view, (at[order] + 0.5) * scale - side / 2, draw.colour_map("viridis")[index], side, side)


def _draw_cells(view: Pixels, cells: Pixels, grid: BEVGrid, crossed: bool = False) -> None:
    """[X, Y, 3] with x up and y to the left, the vehicle as a triangle; `crossed` out where it says nothing of a sensor."""
    view[:] = cv2.resize(np.ascontiguousarray(cells[::-1, ::-1]), view.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    height, width = view.shape[:2]
    if crossed:
        draw.lines(view, np.array([[[0, 0], [width, height]], [[0, height], [width, 0]]]), draw.WHITE)
    triangle = pixels_at(view, grid, np.zeros(2)) + np.array([[0, -6], [5, 5], [-5, 5]])
    draw.shape(view, triangle, draw.WHITE)
    draw.lines(view, [triangle], (0, 0, 0), closed=True)
