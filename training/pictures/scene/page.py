"""Panels on one page: the frame of a film, a still, a sheet of equal views.

Letters: H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from robustbev.results.palette import ALARM, STATE_COLOURS
from sensors.palette import RGB
from sensors.replay.tick import SensorStatus
from training.pictures.scene import canvas as draw
from training.pictures.scene.cameras import short_name
from training.pictures.scene.canvas import GREY, INK, Pixels, Place
from training.pictures.scene.panels import CELL_COLOURS, Mark, Panel, Scene, above, cameras, legend

WIDTH_PX, HEIGHT_PX = 1920, 1080
_MARGIN, _TOP = 20, 62
_ABOVE = Place(_MARGIN, _TOP, 856, 880)
_RIGHT = Place(_ABOVE.right + _MARGIN, _TOP, WIDTH_PX - _ABOVE.right - 2 * _MARGIN, 880)
_STRIP = Place(_MARGIN, _ABOVE.bottom + 12, WIDTH_PX - 2 * _MARGIN, 110)
_GAP = 10
_LABEL = 24  # height of the title above a panel
_SCALE = 18  # of the colours and their values below it
_ROW = 24  # of a legend


def page(scene: Scene, maps: Sequence[Panel], *, title: str, note: str = "", status: str = "") -> Pixels:
    """[H, 1920, 3]: the scene from above, the cameras, `maps` below them, the legend, every sensor's state where that is known.

    H is 1080, or less without states.
    """
    canvas = draw.blank(HEIGHT_PX, WIDTH_PX)
    _headline(canvas, title, note, status, INK if scene.perceived else ALARM)
    tile(canvas, _ABOVE, [above(scene)])
    columns, pictures = cameras(scene)
    bottom = tile(canvas, Place(_RIGHT.left, _RIGHT.top, _RIGHT.width, _RIGHT.height // 2), pictures, columns)
    marks = legend([scene])
    if not scene.sensors:
        tile(canvas, Place(_RIGHT.left, bottom, _RIGHT.width, _RIGHT.bottom - bottom), maps)
        return canvas[: _legend(canvas, _STRIP, marks) + _GAP]
    room = _RIGHT.bottom - _legend(None, replace(_RIGHT, top=bottom), marks)
    bottom = tile(canvas, Place(_RIGHT.left, bottom, _RIGHT.width, room), maps)
    _legend(canvas, replace(_RIGHT, top=bottom), marks)
    _states(canvas, _STRIP, scene.sensors)
    return canvas


def sheet(
    panels: Sequence[Panel],
    columns: int,
    *,
    title: str,
    note: str = "",
    marks: Sequence[Mark] = (),
    width_px: int = WIDTH_PX,
) -> Pixels:
    """[H, W, 3]: panels in rows of `columns`, as wide as the sheet, and a legend below them."""
    room = width_px - 2 * _MARGIN
    row = round(room / columns / panels[0].aspect) + _LABEL + _SCALE + _GAP
    place = Place(_MARGIN, _TOP, room, -(-len(panels) // columns) * row)
    canvas = draw.blank(_legend(None, replace(place, top=place.bottom), marks) + _GAP, width_px)
    _headline(canvas, title, note, "", INK)
    bottom = tile(canvas, place, panels, columns)
    return canvas[: _legend(canvas, replace(place, top=bottom), marks) + _GAP]


def tile(canvas: Pixels, place: Place, panels: Sequence[Panel], columns: int | None = None) -> int:
    """Draw panels of one shape in rows, as large as they fit; -> where the next thing may begin."""
    if not panels:
        return place.top
    above_px, below_px = _LABEL, _SCALE if any(panel.values for panel in panels) else 0
    aspect = panels[0].aspect

    def width_of(columns: int) -> int:
        height = (place.height + _GAP) // -(-len(panels) // columns) - _GAP - above_px - below_px
        return max(1, min((place.width + _GAP) // columns - _GAP, int(height * aspect)))

    columns = columns or max(range(1, len(panels) + 1), key=width_of)
    width, pitch = width_of(columns), (place.width + _GAP) // columns
    height = max(1, round(width / aspect))
    row_px = above_px + height + below_px + _GAP
    for k, panel in enumerate(panels):
        row, column = divmod(k, columns)
        view = Place(place.left + column * pitch, place.top + row * row_px + above_px, width, height)
        _title(canvas, Place(view.left, view.top - above_px, max(width, min(pitch - _GAP, 300)), above_px), panel)
        panel.draw(view.of(canvas))
        if panel.values:
            _scale(canvas, Place(view.left, view.bottom + 4, width, 10), panel.values)
    return place.top + -(-len(panels) // columns) * row_px


def _headline(canvas: Pixels, title: str, note: str, status: str, colour: RGB) -> None:
    """The title, and from the right how it stands and a note in grey."""
    end = canvas.shape[1] - _MARGIN
    for words, size_px, shade in ((status, 22, colour), (note, 15, GREY)):
        if words:
            at = (end, 29 - size_px // 2)
            end -= 30 + draw.write(canvas, words, at, size_px=size_px, colour=shade, bold=size_px == 22, align="right")
    draw.write(canvas, title, (_MARGIN, 18), size_px=22, bold=True, room_px=end - _MARGIN)


def _title(canvas: Pixels, place: Place, panel: Panel) -> None:
    left, end = place.left, place.right
    if panel.swatch is not None:
        Place(left, place.top + 5, 11, 11).of(canvas)[:] = panel.swatch
        left += 17
    if panel.note:
        at = (end, place.top + 3)
        end -= 12 + draw.write(canvas, panel.note, at, size_px=13, colour=GREY, align="right")
    draw.write(canvas, panel.title, (left, place.top + 2), size_px=14, room_px=end - left)


def _scale(canvas: Pixels, place: Place, values: tuple[float, float]) -> None:
    """The colours of a map between the values that they stand for."""
    low, high = (f"{value:.2g}" for value in values)
    left = place.left + 6 + draw.write(canvas, low, (place.left, place.top - 2), size_px=12, colour=GREY)
    end = place.right - 6
    end -= draw.write(canvas, high, (place.right, place.top - 2), size_px=12, colour=GREY, align="right")
    index = np.linspace(0, 255, max(0, end - left)).astype(np.uint8)
    Place(left, place.top, len(index), place.height).of(canvas)[:] = draw.colour_map(CELL_COLOURS)[index]


def _legend(canvas: Pixels | None, place: Place, marks: Sequence[Mark]) -> int:
    """What the marks mean, in as many lines as it takes; -> where it ends. Without a canvas nothing is drawn."""
    x, y = 0, place.top
    for mark, colour, meaning in marks:
        width = 26 + draw.width_px(meaning, 14)
        if x and x + width > place.width:
            x, y = 0, y + _ROW
        if canvas is not None:
            sign = Place(place.left + x, y + 4, 18, 12)
            _sign(sign.of(canvas), mark, colour)
            draw.write(canvas, meaning, (sign.left + 26, sign.top - 3), size_px=14, colour=GREY)
        x += width + 20
    return y + _ROW if marks else y


def _sign(view: Pixels, mark: str, colour: RGB) -> None:
    match mark:
        case "filled":
            view[:] = (np.array(colour) + 255) // 2
            draw.border(view, colour)
        case "outline":
            draw.border(view, colour)
        case "diamond":
            draw.lines(view, [np.array([[1, 6], [5, 2], [9, 6], [5, 10]])], colour, closed=True)
            draw.lines(view, [np.array([[5, 6], [17, 6]])], colour)
        case "dots":
            draw.dots(view, np.array([[2, 6], [7, 4], [12, 7], [15, 3]]), np.full((4, 3), colour, np.uint8), 2, 2)


def _states(canvas: Pixels, place: Place, sensors: Mapping[str, SensorStatus]) -> None:
    """A card a sensor: its name, its state as word and colour, why."""
    rows = 1 if len(sensors) <= 14 else 2
    columns = -(-len(sensors) // rows)
    width, height = (place.width + 6) // columns - 6, (place.height + 6) // rows - 6
    for k, status in enumerate(sensors.values()):
        row, column = divmod(k, columns)
        card = Place(place.left + column * (width + 6), place.top + row * (height + 6), width, height).of(canvas)
        colour = STATE_COLOURS[status.state]
        card[:] = [round(255 - 0.14 * (255 - value)) for value in colour]
        card[:6] = colour
        name = ("cam " if status.modality == "camera" else "") + short_name(status.channel)
        red, green, blue = (round(0.78 * value) for value in colour)  # dark enough to be read on its pale ground
        lines = [(9, name, 13, GREY), (25, str(status.state), 16, (red, green, blue))]
        if rows == 1:
            age_ms = (status.age_us or 0) / 1000
            age = f"{abs(age_ms):.0f} ms {'old' if age_ms >= 0 else 'after the tick'}"
            lines.append((48, age if status.age_us is not None else "", 13, GREY))
            why = draw.wrapped(status.detail, 11, width - 14, 3)
            lines += [(66 + 14 * k, words, 11, GREY) for k, words in enumerate(why)]
        for y, words, size, ink in lines:
            draw.write(card, words, (7, y), size_px=size, colour=ink, bold=size == 16, room_px=width - 12)
