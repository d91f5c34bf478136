"""The parts of a replay's picture that are the same for every grid: a camera, an attention map, a legend, the sensors' states.

Letters: N boxes, S segments, X and Y cells, H and W pixels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bev.detection.boxes import Boxes
from robustbev.results.palette import ALARM, STATE_COLOURS
from robustbev.results.result import TickResult
from sensors.frames import CameraImage
from sensors.palette import MODALITY_COLOURS, RGB, class_rgb
from sensors.replay.tick import SensorStatus
from training.pictures.drawing import on_picture
from training.pictures.film import canvas as draw
from training.pictures.film.canvas import Place
from training.pictures.projection import BOX_EDGES, FRONT_EDGES, project_segments
from training.pictures.scene.bev import ARROW_S

Pixels = NDArray[np.uint8]

INK: RGB = (34, 34, 34)
GREY: RGB = (105, 105, 105)


def alarm(view: Pixels) -> None:
    """Strike through a scene of which nothing is known."""
    view[:] = ((view.astype(np.uint16) * 2 + np.array([255, 225, 225], np.uint16)) // 3).astype(np.uint8)
    height, width = view.shape[:2]
    band = Place(0, height // 2 - 56, width, 112)
    draw.fill(view, band, ALARM)
    white = (255, 255, 255)
    draw.write(view, "NO PERCEPTION", (width // 2, band.top + 18), size_px=40, colour=white, bold=True, align="middle")
    words = "no sensor covers any cell: this is not \u201cnothing there\u201d"
    draw.write(view, words, (width // 2, band.top + 74), size_px=17, colour=white, align="middle", room_px=width - 16)


def camera_view(
    canvas: Pixels, place: Place, camera: CameraImage, classes: tuple[str, ...], found: Boxes, truth: Boxes | None
) -> None:
    """The picture with found boxes in their colours, truth in thin white."""
    shown, scale = draw.fit(canvas, place, camera.image)
    view = shown.of(canvas)
    if truth is not None:
        for _, segments in _segments(truth, camera):
            draw.lines(view, (segments + 0.5) * scale - 0.5, (215, 215, 215))
    for index, segments in _segments(found, camera):
        label = int(found.label[index])
        draw.lines(view, (segments + 0.5) * scale - 0.5, _light(class_rgb(classes[label], label)), 2)


def _segments(boxes: Boxes, camera: CameraImage) -> list[tuple[int, NDArray[Any]]]:
    """(index, [S, 2, 2] px) of the boxes that may be seen, all projected at once: edges and a cross on the front."""
    if not len(boxes):
        return []
    corners = boxes.corners_m().double().numpy()  # [N, 8, 3]
    edges = np.concatenate([BOX_EDGES, FRONT_EDGES])
    segments, seen = project_segments(
        corners[:, edges[:, 0]].reshape(-1, 3), corners[:, edges[:, 1]].reshape(-1, 3), camera
    )
    segments, seen = segments.reshape(len(boxes), len(edges), 2, 2), seen.reshape(len(boxes), len(edges))
    height, width = camera.image.shape[:2]
    found = []
    for index, (lines, visible) in enumerate(zip(segments, seen, strict=True)):
        lines = lines[visible]
        if len(lines):
            low, high = lines.min(axis=(0, 1)), lines.max(axis=(0, 1))
            if (high > 0).all() and low[0] < width and low[1] < height:
                found.append((index, lines))
    return found


@lru_cache(maxsize=64)
def _light(colour: RGB) -> RGB:
    red, green, blue = (round(255 * value) for value in on_picture("#{:02x}{:02x}{:02x}".format(*colour)))
    return (red, green, blue)


def heat(share: NDArray[Any]) -> Pixels:
    """[X, Y] in 0..1 as colours, x up and y to the left, large enough that cells keep sharp edges when fitted."""
    index = np.clip(np.rint(255 * share[::-1, ::-1]), 0, 255).astype(np.uint8)
    factor = max(1, -(-300 // max(index.shape)))
    return _ramp()[np.kron(index, np.ones((factor, factor), np.uint8))]


@lru_cache(maxsize=1)
def _ramp() -> Pixels:
    """[256, 3]: matplotlib's cividis."""
    import matplotlib

    return (255 * matplotlib.colormaps["cividis"](np.arange(256))[:, :3]).astype(np.uint8)


def legend(canvas: Pixels, place: Place, result: TickResult, found: Boxes, truth: Boxes | None) -> None:
    """Only what can be seen, in as many lines as there is room for."""
    items: list[tuple[RGB, str]] = []
    for label in sorted(set(found.label.tolist())):
        name = result.classes[label]
        items.append((class_rgb(name, label), name.replace("_", " ")))
    if truth is not None:
        items.append((INK, "truth (outline, white on pictures)"))
    if result.tick.frame.radar is not None:
        items.append((MODALITY_COLOURS["radar"], f"radar, line: way in {ARROW_S:g} s"))
    if result.tick.frame.lidar is not None:
        items.append(((140, 140, 140), "LiDAR, darker is higher"))
    x, y = place.left, place.top
    for colour, name in items:
        width = 18 + draw.width_px(name, 13) + 16
        if x + width > place.right:
            x, y = place.left, y + 20
        if y + 18 > place.bottom:
            return
        draw.fill(canvas, Place(x, y + 3, 12, 12), colour)
        draw.write(canvas, name, (x + 18, y), size_px=13, colour=GREY)
        x += width


def states(canvas: Pixels, place: Place, sensors: tuple[SensorStatus, ...]) -> None:
    """A card a sensor: its name, its state as word and colour, why."""
    if not sensors:
        return
    rows = 1 if len(sensors) <= 14 else 2
    columns = -(-len(sensors) // rows)
    width = (place.width - (columns - 1) * 6) // columns
    height = (place.height - (rows - 1) * 6) // rows
    for k, status in enumerate(sensors):
        row, column = divmod(k, columns)
        card = Place(place.left + column * (width + 6), place.top + row * (height + 6), width, height)
        colour = STATE_COLOURS[status.state]
        pale = tuple(round(255 - 0.14 * (255 - value)) for value in colour)
        draw.fill(canvas, card, (pale[0], pale[1], pale[2]))
        draw.fill(canvas, Place(card.left, card.top, card.width, 6), colour)
        name = status.channel.lower().removeprefix("camera_").removeprefix("cam_").replace("_", " ")
        name = f"cam {name}" if status.modality == "camera" else name
        left, room = card.left + 7, width - 12
        draw.write(canvas, name, (left, card.top + 11), size_px=12, room_px=room)
        draw.write(
            canvas, str(status.state), (left, card.top + 28), size_px=15, colour=_dark(colour), bold=True, room_px=room
        )
        if rows == 1:
            age = "" if status.age_us is None else f"{status.age_us / 1000:.0f} ms old"
            draw.write(canvas, age, (left, card.top + 52), size_px=12, colour=GREY, room_px=room)
            for line, words in enumerate(draw.wrapped(status.detail, 11, room, 2)):
                draw.write(canvas, words, (left, card.top + 71 + 15 * line), size_px=11, colour=GREY, room_px=room)


def _dark(colour: RGB) -> RGB:
    """Dark enough to be read on a pale ground of the same hue."""
    red, green, blue = (round(0.78 * value) for value in colour)
    return (red, green, blue)
