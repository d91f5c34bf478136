"""Pictures of a replay: what is found, given and absent can be seen, where it is."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bev.grid import BEVGrid
from robustbev.results.palette import ALARM, STATE_COLOURS
from robustbev.results.result import TickResult
from sensors.palette import class_rgb
from sensors.replay.tick import SensorState, SensorStatus
from tests.robustbev.results.replay_results import GRID, boxes, result
from training.pictures.film.canvas import blank, fitting, wrapped, write
from training.pictures.film.panels import heat
from training.pictures.film.pictures import FramePainter

ABOVE = (slice(56, 768), slice(16, 728))  # the scene from above; 24 m are 712 px
CARDS = slice(784, 888)


def painted(one: TickResult, grid: BEVGrid = GRID, **settings: Any) -> NDArray[np.uint8]:
    truth = settings.pop("truth", None)
    return FramePainter(grid, **settings).paint(one, truth)


def near(pixels: NDArray[np.uint8], colour: tuple[int, int, int], reach: int = 12) -> NDArray[np.bool_]:
    """[H, W]: where this colour is."""
    return (np.abs(pixels.astype(int) - colour) <= reach).all(axis=-1)


def from_above(x_m: float, y_m: float) -> tuple[int, int]:
    """(row, column) of a place in the scene from above: x up, y to the left."""
    return round((16 - x_m) * 712 / 24), round((12 - y_m) * 712 / 24)


def test_a_found_box_lies_where_it_was_found() -> None:
    without = painted(result(found=boxes()))[ABOVE]
    picture = painted(result(found=boxes((10.0, 6.0, 0.0, 0, 0.9))))[ABOVE]
    changed = np.argwhere((picture != without).any(axis=-1))
    center = (changed.min(axis=0) + changed.max(axis=0)) / 2
    row, column = from_above(10.0, 6.0)
    # 4.5 x 1.9 m and an arrow of half a second at (3, -4) m/s from its middle, which stays inside lengthwise
    assert abs(center[0] - row) < 3
    assert changed[:, 1].min() == pytest.approx(column - 0.95 * 712 / 24, abs=3)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_found_box_has_the_colour_of_its_class(label: int) -> None:
    row, column = from_above(10.0, 6.0)
    around = (slice(row - 68, row + 69), slice(column - 30, column + 31))
    picture = painted(result(found=boxes((10.0, 6.0, 0.0, label, 0.9))))[ABOVE][around]
    names = ("car", "pedestrian", "forklift")
    counts = [near(picture, class_rgb(name, k)).sum() for k, name in enumerate(names)]
    assert np.argmax(counts) == label
    assert counts[label] > 200


def test_boxes_below_the_score_are_not_drawn() -> None:
    faint = result(found=boxes((10.0, 6.0, 0.0, 0, 0.2)))
    assert np.array_equal(painted(faint), painted(result(found=boxes())))
    assert not np.array_equal(painted(faint, min_score=0.1), painted(faint))


def test_truth_is_outlined() -> None:
    truth = boxes((12.0, -8.0, 0.0, 0, 1.0))
    plain, picture = painted(result())[ABOVE], painted(result(), truth=truth)[ABOVE]
    row, column = from_above(12.0 + 2.25, -8.0)
    assert (plain[row, column - 5 : column + 5] > 150).all()
    assert picture[row - 1 : row + 2, column - 5 : column + 5].min(axis=0).max() < 120


def test_points_are_drawn_where_they_are() -> None:
    """The LiDAR's first point lies 10.9 m ahead, in line with the vehicle."""
    row, column = from_above(10.9, 0.0)
    around = painted(result(found=boxes()))[ABOVE][row - 3 : row + 4, column - 3 : column + 4]
    assert around.min() < 220
    blind = result(found=boxes())
    frame = dataclasses.replace(blind.tick.frame, lidar=None)
    blind = dataclasses.replace(blind, tick=dataclasses.replace(blind.tick, frame=frame))
    assert painted(blind)[ABOVE][row - 3 : row + 4, column - 3 : column + 4].min() >= 220


def test_no_perception_cannot_be_overlooked() -> None:
    band = near(painted(result(perceived=False))[ABOVE], ALARM, 3)
    assert band.mean() > 0.1
    assert not near(painted(result(found=boxes()))[ABOVE], ALARM, 3).any()


@pytest.mark.parametrize("state", SensorState)
def test_every_state_has_its_colour(state: SensorState) -> None:
    """The third card is the LiDAR's; each begins with a strip of its colour."""
    strip = painted(result(states={"LIDAR_TOP": state}))[784 + 2, 16:1584]
    colours = [tuple(strip[round((k + 0.5) * len(strip) / 4)].tolist()) for k in range(4)]
    ok, missing = STATE_COLOURS[SensorState.OK], STATE_COLOURS[SensorState.MISSING]
    assert colours == [ok, missing, STATE_COLOURS[state], ok]
    assert len(set(STATE_COLOURS.values())) == len(SensorState)


def test_absent_cameras_are_grey_and_pictures_are_shown() -> None:
    present, absent = painted(result()), painted(result(perceived=False))
    red = near(present[56:420, 744:], (200, 40, 40), 10)  # the left half of CAM_FRONT's picture
    assert red.sum() > 5000
    assert not near(absent[56:420, 744:], (200, 40, 40), 10).any()


def test_attention_maps_have_x_up_and_y_to_the_left() -> None:
    share = np.zeros((12, 8))
    share[11, 0] = 1.0  # furthest ahead, furthest right
    picture = heat(share)
    brightest = np.argwhere(picture.sum(axis=-1) == picture.sum(axis=-1).max())
    height, width = picture.shape[:2]
    assert brightest[:, 0].max() < height / 12 + 1
    assert brightest[:, 1].min() > width * 7 / 8 - 1


@pytest.mark.parametrize(
    ("grid", "count"), [(BEVGrid(0.0, 40.0, -10.0, 10.0, 2.0), 4), (BEVGrid(-10.0, 10.0, -40.0, 40.0, 2.0), 30)]
)
def test_any_grid_and_any_number_of_sensors_fit(grid: BEVGrid, count: int) -> None:
    one = result(found=boxes(), attention=np.full((3, *grid.shape), 1 / 3, np.float32))
    long = "expected a transform from base_link to this sensor, got none at all in the whole of the log"
    sensors = {f"S{k}": SensorStatus(f"S{k}", "radar", SensorState.UNCALIBRATED, None, long) for k in range(count)}
    one = dataclasses.replace(one, tick=dataclasses.replace(one.tick, sensors=sensors))
    picture = painted(one, grid, title="a title that is far too long for the headline of any picture " * 4)
    assert picture.shape == (900, 1600, 3)
    assert near(picture[CARDS], STATE_COLOURS[SensorState.UNCALIBRATED], 3).sum() > 1000
    assert (picture[889:] == 255).all()  # nothing runs over the margin
    assert (picture[:, 1590:] == 255).all()


def test_painting_is_repeatable_and_leaves_the_input_alone() -> None:
    one = result()
    before = one.tick.frame.cameras
    assert before is not None
    assert before[0] is not None
    image = before[0].image.copy()
    assert np.array_equal(painted(one), painted(one))
    assert np.array_equal(before[0].image, image)


def test_text_stays_in_its_room() -> None:
    words = "a sentence that is longer than its place"
    assert fitting(words, 12, False, 1000) == words
    short = fitting(words, 12, False, 90)
    assert short.endswith("…")
    canvas = blank(40, 300)
    assert write(canvas, words, (5, 5), size_px=12, room_px=90) <= 92
    assert (canvas[:, 100:] == 255).all()
    assert (canvas[:, :100] < 255).any()
    write(canvas, words, (290, 35))  # over the edge: cut, and no error
    assert wrapped("one two three four", 12, 60, 2) == ["one two", "three four"]
    assert wrapped("", 12, 60, 2) == []


def test_no_display_is_needed_and_pyplot_is_not_loaded() -> None:
    code = (
        "import sys; from tests.robustbev.results.replay_results import GRID, result; "
        "from training.pictures.film.pictures import FramePainter; "
        "FramePainter(GRID).paint(result()); assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
