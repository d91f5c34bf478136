"""One tick of a replay as one picture: the scene from above, the cameras, whom the fusion trusted, every sensor's state.

Drawn by `training.pictures.film.canvas` and not by matplotlib, which takes a second for what a video needs in a
tenth of one. A painter can be used for stills alone: `FramePainter(grid).paint(result)`.

Letters: N boxes, M modalities, X and Y cells, H and W pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bev.detection.boxes import Boxes
from bev.grid import BEVGrid
from robustbev.results.content import newest, points_in_reference
from robustbev.results.grids import check_grid
from robustbev.results.palette import ALARM
from robustbev.results.result import TickResult
from sensors.palette import MODALITY_COLOURS, RGB, class_rgb, modality_rgb
from training.pictures.film import canvas as draw
from training.pictures.film.canvas import Place
from training.pictures.film.panels import GREY, INK, Pixels, alarm, camera_view, heat, legend, states
from training.pictures.scene.bev import ARROW_S, MOVING_MPS, above
from training.pictures.scene.cameras import Look, arrange, directions, short_name

HEIGHT_PX, WIDTH_PX = 900, 1600
FAINT: RGB = (205, 205, 205)
_ABOVE = Place(16, 56, 712, 712)
_RIGHT = Place(744, 56, 840, 712)
_STATES = Place(16, 784, 1568, 104)
_GAP = 8
_LABEL = 20  # height of a line above a picture


class FramePainter:
    """Paints ticks of one replay.

    Args:
        grid: of the model's attention; the scene from above shows it whole.
        title: in the headline, the log and what happens to it for example.
        min_score: boxes scored lower are not drawn.
    """

    def __init__(self, grid: BEVGrid, *, title: str = "Offline replay", min_score: float = 0.3):
        self._grid, self._title, self._min_score = grid, title, min_score
        self._start_us: int | None = None
        self._looks: dict[str, Look] = {}
        x_m, y_m = grid.x_max_m - grid.x_min_m, grid.y_max_m - grid.y_min_m
        self._scale = min(_ABOVE.height / x_m, _ABOVE.width / y_m)  # pixels a metre
        height, width = round(x_m * self._scale), round(y_m * self._scale)
        self._above = Place(
            _ABOVE.left + (_ABOVE.width - width) // 2, _ABOVE.top + (_ABOVE.height - height) // 2, width, height
        )
        self._ground = self._rings()

    def paint(self, result: TickResult, truth: Boxes | None = None) -> Pixels:
        """[900, 1600, 3] RGB. Truth, where known, is outlined in black, or white on the pictures.

        Raises:
            ValueError: the attention does not lie on the grid.
        """
        check_grid(result, self._grid)
        self._start_us = result.tick.time_us if self._start_us is None else self._start_us
        found = above(result.boxes, self._min_score)
        canvas = draw.blank(HEIGHT_PX, WIDTH_PX)
        self._headline(canvas, result, found, truth)
        self._scene(canvas, result, found, truth)
        bottom = self._cameras(canvas, result, found, truth)
        bottom = self._attention(canvas, result, bottom + 12)
        legend(canvas, Place(_RIGHT.left, bottom + 12, _RIGHT.width, _RIGHT.bottom - bottom - 12), result, found, truth)
        states(canvas, _STATES, tuple(result.tick.sensors.values()))
        return canvas

    def _headline(self, canvas: Pixels, result: TickResult, found: Boxes, truth: Boxes | None) -> None:
        seconds = (result.tick.time_us - (self._start_us or 0)) / 1e6
        said = f"{seconds:+.2f} s   tick {result.tick.index}   "
        said += f"{len(found)} found" if result.perceived else "NO PERCEPTION"
        if truth is not None:
            inside = self._grid.flat_index(truth.center_m[:, :2]) < self._grid.num_cells
            said += f"   {int(inside.sum())} there"
        colour = INK if result.perceived else ALARM
        width = draw.write(canvas, said, (WIDTH_PX - 16, 16), size_px=19, colour=colour, bold=True, align="right")
        room = WIDTH_PX - 32 - width - 24
        draw.write(canvas, self._title, (16, 16), size_px=19, bold=True, room_px=room)

    def _rings(self) -> Pixels:
        """The ground of the scene from above: rings of 10 m and what they mean."""
        ground = draw.blank(self._above.height, self._above.width, (250, 250, 250))
        far = max(abs(v) for v in (self._grid.x_min_m, self._grid.x_max_m, self._grid.y_min_m, self._grid.y_max_m))
        origin = self._pixels(np.zeros((1, 2)))[0]
        for radius_m in range(10, int(1.5 * far) + 1, 10):
            draw.circle(ground, origin, radius_m * self._scale, (214, 220, 224))
            x, y = self._pixels(np.array([[-0.7071 * radius_m, 0.7071 * radius_m]]))[0]
            draw.write(ground, f"{radius_m} m", (int(x) + 4, int(y) - 8), size_px=12, colour=(130, 145, 155))
        return ground

    def _pixels(self, xy_m: NDArray[Any]) -> NDArray[np.float64]:
        """[N, 2] metres (x forward, y left) -> [N, 2] pixels (right, down) from the top left of the scene from above."""
        low = np.array([self._grid.y_max_m, self._grid.x_max_m])
        return (low - np.asarray(xy_m, np.float64)[:, ::-1]) * self._scale

    def _scene(self, canvas: Pixels, result: TickResult, found: Boxes, truth: Boxes | None) -> None:
        view = self._above.of(canvas)
        view[:] = self._ground
        frame = result.tick.frame
        for sweep in newest(frame.lidar).values():
            self._lidar(view, points_in_reference(sweep, frame.time_us))
        for sweep in newest(frame.radar).values():
            self._radar(view, points_in_reference(sweep, frame.time_us))
        self._boxes(view, result.classes, found)
        if truth is not None:
            corners = truth.corners_m()[:, :4, :2].numpy()
            draw.outlines(view, [self._pixels(c) for c in corners], INK)
        outline = np.array(
            [[3.7, 0.0], [2.7, 0.9], [-1.0, 0.9], [-1.0, -0.9], [2.7, -0.9]]
        )  # nuScenes' car, rear axle at 0
        draw.shapes(view, [self._pixels(outline)], INK)
        if not result.perceived:
            alarm(view)
        draw.border(canvas, self._above, FAINT)

    def _lidar(self, view: Pixels, points: NDArray[np.float32]) -> None:
        """Grey points, darker the higher, on the pixels they fall on."""
        points = points[np.isfinite(points[:, :3]).all(axis=1)]
        points = points[np.argsort(points[:, 2], kind="stable")]
        at = np.floor(self._pixels(points[:, :2])).astype(np.int64)
        inside = (at >= 0).all(axis=1) & (at[:, 0] < view.shape[1] - 1) & (at[:, 1] < view.shape[0] - 1)
        at, height = at[inside], points[inside, 2]
        grey = (215 - 135 * np.clip((height + 0.5) / 3.0, 0, 1)).astype(np.uint8)[:, None]
        view[at[:, 1], at[:, 0]] = grey
        view[at[:, 1], at[:, 0] + 1] = grey

    def _radar(self, view: Pixels, points: NDArray[np.float32]) -> None:
        """A diamond a point, and a line as long as the way in half a second."""
        colour = MODALITY_COLOURS["radar"]
        points = points[np.isfinite(points[:, [0, 1, 4, 5]]).all(axis=1)]
        at, end = self._pixels(points[:, :2]), self._pixels(points[:, :2] + ARROW_S * points[:, 4:6])
        size = 3.5 * np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])
        draw.outlines(view, [one + size for one in at], colour)
        moving = np.linalg.norm(points[:, 4:6], axis=1) > MOVING_MPS
        draw.lines(view, np.stack([at, end], axis=1)[moving], colour)

    def _boxes(self, view: Pixels, classes: tuple[str, ...], found: Boxes) -> None:
        """Half-transparent, with outline, heading, and an arrow as long as the way in half a second."""
        corners = found.corners_m()[:, :4, :2].numpy()  # front-left, front-right, rear-right, rear-left
        colours = [class_rgb(classes[label], label) for label in found.label.tolist()]
        rings = [self._pixels(one) for one in corners]
        layer = view.copy()
        for ring, colour in zip(rings, colours, strict=True):
            draw.shapes(layer, [ring], colour)
        view[:] = ((view.astype(np.uint16) + layer) // 2).astype(np.uint8)
        velocity = found.velocity_mps.numpy()
        for ring, colour, speed in zip(rings, colours, velocity, strict=True):
            draw.outlines(view, [ring], colour, 2)
            center, front = ring.mean(axis=0), ring[:2].mean(axis=0)
            draw.lines(view, [np.stack([center, front])], colour)
            if np.isfinite(speed).all() and np.linalg.norm(speed) > MOVING_MPS:
                draw.arrow(view, center, center - ARROW_S * self._scale * speed[::-1], colour)

    def _cameras(self, canvas: Pixels, result: TickResult, found: Boxes, truth: Boxes | None) -> int:
        """The pictures in the rows of `arrange`, in the room of two rows of three; -> where they end."""
        channels = [s.channel for s in result.tick.sensors.values() if s.modality == "camera"]
        if not channels and not result.tick.frame.cameras:
            return _RIGHT.top - 12
        self._looks |= directions(result.tick.frame.cameras or ())  # a camera that fails keeps its place
        shown = arrange(result.tick.frame.cameras, channels, self._looks)
        room = 2 * (round((_RIGHT.width - 2 * _GAP) // 3 * 9 / 16) + _LABEL) + _GAP
        width = (_RIGHT.width - (shown.columns - 1) * _GAP) // shown.columns
        height = min(round(width * 9 / 16), (room - (shown.rows - 1) * _GAP) // shown.rows - _LABEL)
        for (row, column), name, camera in shown.places:
            left, top = _RIGHT.left + column * (width + _GAP), _RIGHT.top + row * (height + _LABEL + _GAP)
            draw.write(canvas, short_name(name), (left, top), size_px=13, room_px=width)
            place = Place(left, top + _LABEL, width, height)
            draw.fill(canvas, place, (238, 238, 238))
            if camera is None:
                status = result.tick.sensors.get(name)
                word = "absent" if status is None or status.given else f"absent: {status.state}"
                middle = (place.left + width // 2, place.top + height // 2 - 10)
                draw.write(canvas, word, middle, size_px=15, colour=GREY, align="middle", room_px=width)
            else:
                camera_view(canvas, place, camera, result.classes, found, truth)
        return _RIGHT.top + shown.rows * (height + _LABEL) + (shown.rows - 1) * _GAP

    def _attention(self, canvas: Pixels, result: TickResult, top: int) -> int:
        """A map of shares for each modality, all on one scale, with the mean; -> where they end."""
        count = max(3, len(result.modalities))
        width = (_RIGHT.width - (count - 1) * _GAP) // count
        height = min(width, 220)
        top_share = max(float(result.attention.max(initial=0.0)), 1e-6)
        present = {s.modality for s in result.tick.sensors.values() if s.given}
        for k, (name, mean) in enumerate(result.shares.items()):
            left = _RIGHT.left + k * (width + _GAP)
            gone = "" if name in present else " (absent: its null)"
            draw.write(canvas, f"attention to {name} {100 * mean:.0f}%{gone}", (left, top), size_px=13, room_px=width)
            map_place = Place(left, top + _LABEL, width, height)
            shown, _ = draw.fit(canvas, map_place, heat(result.attention[k] / top_share))
            bar = Place(left, shown.bottom + 4, max(1, round(mean * width)), 7)
            draw.fill(canvas, replace(bar, width=width), (235, 235, 235))
            draw.fill(canvas, bar, modality_rgb(name, k))
        return top + _LABEL + height + 12
