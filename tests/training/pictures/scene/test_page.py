"""Pages: everything has its place, whatever the grid and however many the sensors."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from bev.grid import BEVGrid
from robustbev.results.palette import STATE_COLOURS
from sensors.replay.tick import SensorState, SensorStatus
from tests.robustbev.results.replay_results import boxes, result
from tests.training.pictures.scene.scenes import CONFIG, near, scene
from training.pictures.film import FramePainter
from training.pictures.scene.canvas import Place, blank, fitting, wrapped, write
from training.pictures.scene.page import page, sheet, tile
from training.pictures.scene.panels import Panel, grid_map, maps

STRIP = slice(954, 1064)  # of the sensors' states


def test_boxes_below_the_score_are_not_drawn() -> None:
    faint, none = result(found=boxes((10.0, 6.0, 0.0, 0, 0.2))), result(found=boxes())
    assert np.array_equal(FramePainter(CONFIG).paint(faint), FramePainter(CONFIG).paint(none))
    assert not np.array_equal(FramePainter(CONFIG, min_score=0.1).paint(faint), FramePainter(CONFIG).paint(none))


@pytest.mark.parametrize("state", SensorState)
def test_every_state_has_its_colour(state: SensorState) -> None:
    """The third card is the LiDAR's; each begins with a strip of its colour."""
    strip = page(scene(result(states={"LIDAR_TOP": state})), [], title="")[STRIP][2, 20:1900]
    colours = [tuple(strip[round((k + 0.5) * len(strip) / 4)].tolist()) for k in range(4)]
    ok, missing = STATE_COLOURS[SensorState.OK], STATE_COLOURS[SensorState.MISSING]
    assert colours == [ok, missing, STATE_COLOURS[state], ok]
    assert len(set(STATE_COLOURS.values())) == len(SensorState)


@pytest.mark.parametrize(
    ("grid", "count"), [(BEVGrid(0.0, 40.0, -10.0, 10.0, 2.0), 4), (BEVGrid(-10.0, 10.0, -40.0, 40.0, 2.0), 30)]
)
def test_any_grid_and_any_number_of_sensors_and_maps_fit(grid: BEVGrid, count: int) -> None:
    long = "expected a transform from base_link to this sensor, got none at all in the whole of the log"
    sensors = {f"S{k}": SensorStatus(f"S{k}", "radar", SensorState.UNCALIBRATED, None, long) for k in range(count)}
    one = scene(result(found=boxes()), grid=grid, attention=np.full((3, *grid.shape), 1 / 3), sensors=sensors)
    more = [grid_map(f"map {k}", np.zeros(grid.shape), grid, (0.0, 1.0)) for k in range(5)]
    title = "a title that is far too long for the headline of any picture " * 4
    picture = page(one, [*maps(one), *more], title=title, status="+0.00 s")
    assert picture.shape == (1080, 1920, 3)
    assert near(picture[STRIP], STATE_COLOURS[SensorState.UNCALIBRATED], 3).sum() > 1000
    assert (picture[1065:] == 255).all()  # nothing runs over the margin
    assert (picture[:, 1905:] == 255).all()


def fill(view: NDArray[np.uint8], colour: tuple[int, int, int]) -> None:
    view[:] = colour


def test_one_more_panel_is_one_more_entry() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    panels = [Panel(str(colour), 1.0, partial(fill, colour=colour)) for colour in colours]
    for count in (2, 3):
        canvas = blank(300, 640)
        assert tile(canvas, Place(10, 10, 620, 280), panels[:count]) <= 300
        areas = [near(canvas, colour, 0).sum() for colour in colours]
        assert min(areas[:count]) > 150 * 150
        assert len(set(areas[:count])) == 1  # all of one size
        assert not any(areas[count:])
    assert sheet(panels, 2, title="three").shape[1] == 1920


def test_a_camera_that_fails_keeps_its_place() -> None:
    """Of a camera that is not nuScenes' only where it looked tells its place; here at the left of the one that stays."""
    one = result()
    (camera, *_) = one.tick.frame.cameras or ()
    assert camera is not None
    pose = np.array([[0.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    left = dataclasses.replace(camera, channel="z", reference_T_camera=pose)
    sensors = {name: SensorStatus(name, "camera", SensorState.OK, 0) for name in ("CAM_FRONT", "z")}
    there, gone = (
        dataclasses.replace(one.tick, frame=dataclasses.replace(one.tick.frame, cameras=cameras), sensors=sensors)
        for cameras in ((camera, left), (camera, None))
    )
    painter = FramePainter(CONFIG)
    painter.paint(dataclasses.replace(one, tick=there))
    view = painter.paint(dataclasses.replace(one, tick=gone))[:500, 900:1390]
    assert not near(view, (200, 40, 40)).any()  # CAM_FRONT's picture is at the right


def test_text_stays_in_its_room() -> None:
    words = "a sentence that is longer than its place"
    assert fitting(words, 12, False, 1000) == words
    assert fitting(words, 12, False, 90).endswith("…")
    canvas = blank(40, 300)
    assert write(canvas, words, (5, 5), size_px=12, room_px=90) <= 92
    assert (canvas[:, 100:] == 255).all()
    assert (canvas[:, :100] < 255).any()
    for at in ((290, 35), (-20, -5), (400, 5)):  # over an edge: cut, and no error
        write(canvas, words, at)
    assert wrapped("one two three four", 12, 60, 2) == ["one two", "three four"]
    assert wrapped("", 12, 60, 2) == []
