"""What is found, given and absent can be seen in each panel, where it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from robustbev import ModelConfig
from robustbev.perception import TaskMap
from robustbev.results.palette import ALARM
from sensors.palette import class_rgb
from tests.robustbev.results.replay_results import CLASSES, GRID, boxes, frame, result
from tests.training.pictures.scene.scenes import SIDE_PX, drawn, from_above, near, scene
from training.pictures.scene.canvas import GREY
from training.pictures.scene.panels import above, cameras, channels_there, grid_map, legend, maps

PX = SIDE_PX / 24  # a metre


def test_a_found_box_lies_where_it_was_found() -> None:
    without = drawn(above(scene(result(found=boxes()))))
    picture = drawn(above(scene(result(found=boxes((10.0, 6.0, 0.0, 0, 0.9))))))
    changed = np.argwhere((picture != without).any(axis=-1))
    row, column = from_above(10.0, 6.0)
    # 4.5 x 1.9 m and an arrow of half a second at (3, -4) m/s from its middle, which stays inside lengthwise
    assert abs((changed.min(axis=0) + changed.max(axis=0))[0] / 2 - row) < 3
    assert changed[:, 1].min() == pytest.approx(column - 0.95 * PX, abs=3)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_found_box_has_the_colour_of_its_class(label: int) -> None:
    picture = drawn(above(scene(result(found=boxes((10.0, 6.0, 0.0, label, 0.9))))))
    counts = [near(picture, class_rgb(name, k)).sum() for k, name in enumerate(CLASSES)]
    assert np.argmax(counts) == label
    assert counts[label] > 100


def test_truth_is_an_outline_black_beside_what_was_found_and_of_its_class_alone() -> None:
    truth = boxes((12.0, -8.0, 0.0, 0, 1.0))
    row, column = from_above(12.0 + 2.25, -8.0)
    edge = (slice(row - 1, row + 2), slice(column - 5, column + 5))
    assert drawn(above(scene(result())))[edge].min() > 150
    assert drawn(above(scene(result(), truth=truth)))[edge].min(axis=0).max() < 120
    assert near(drawn(above(scene(result(), truth=truth, found=None)))[edge], class_rgb("car", 0), 40).any()


def test_points_are_drawn_where_they_are_and_only_of_sensors_that_were_given() -> None:
    """The LiDAR's first point lies 10.9 m ahead, in line with the vehicle."""
    row, column = from_above(10.9, 0.0)
    around = (slice(row - 3, row + 4), slice(column - 3, column + 4))
    one = scene(result(found=boxes()))
    assert drawn(above(one))[around].min() < 220
    assert drawn(above(dataclasses.replace(one, given=("camera", "radar"))))[around].min() >= 220


def test_modalities_are_present_by_their_own_sensors() -> None:
    config = ModelConfig.model_validate(
        {"modalities": {"lidar": {}, "lidar_rear": {"kind": "lidar", "channels": ["LIDAR_REAR"]}}}
    )
    assert channels_there(config, frame(0)) == {"lidar": ("LIDAR_TOP",), "lidar_rear": ()}
    one = scene(result(), channels=channels_there(config, frame(0)), attention=np.full((2, *GRID.shape), 0.5))
    assert one.present == ("lidar",)
    titles = [panel.title for panel in maps(one)]
    assert titles == ["attention to lidar 50%", "lidar_rear absent: null 50%", "colours mixed by share"]


def test_no_perception_cannot_be_overlooked() -> None:
    assert near(drawn(above(scene(result(perceived=False)))), ALARM, 3).mean() > 0.1
    assert not near(drawn(above(scene(result(found=boxes())))), ALARM, 3).any()


def test_pictures_are_shown_boxes_on_them_and_absent_cameras_are_grey() -> None:
    columns, (front, back) = cameras(scene(result(found=boxes((10.0, 0.2, 0.0, 0, 0.9)))))
    assert (columns, front.title, back.title) == (2, "front", "back")
    picture = drawn(front, 180, 320)
    assert near(picture, (200, 40, 40)).sum() > 10_000  # the left half is red
    assert near(picture, (0, 114, 178), 20).sum() > 100
    assert not near(drawn(back, 180, 320), (200, 40, 40)).any()
    note = cameras(scene(result(), given=("lidar",)))[1][0].note
    assert note == "not given to the model"


def test_depth_lies_on_the_picture_where_lidar_points_do() -> None:
    """One point is 10.9 m ahead at the height of 0.8 m, in the middle of the picture but for the camera's place."""
    picture = drawn(cameras(scene(result()), depth=True)[1][0], 90, 160)
    plain = drawn(cameras(scene(result(), found=None))[1][0], 90, 160)
    changed = np.argwhere(picture != (0.55 * plain).astype(np.uint8))
    # x = 79.5 + 125 * 0.2 / 9.4, y = 44.5 + 125 * 0.8 / 9.4
    assert changed[:, :2].mean(axis=0) == pytest.approx((55.1, 82.2), abs=1.5)


def test_maps_have_x_up_and_y_to_the_left() -> None:
    share = np.zeros(GRID.shape)
    share[-1, 0] = 1.0  # furthest ahead, furthest right
    picture = drawn(grid_map("share", share, GRID, (0.0, 1.0))).astype(int)
    brightest = np.argwhere((picture[..., 0] > 220) & (picture[..., 2] < 120))  # the top of cividis
    assert brightest[:, 0].max() < SIDE_PX / 12 + 1
    assert brightest[:, 1].min() > SIDE_PX * 11 / 12 - 1


def test_maps_say_what_they_are_of() -> None:
    seen = scene(result(perceived=False), coverage=np.zeros(GRID.shape))
    panels = maps(seen)
    assert [panel.title.split()[0] for panel in panels] == ["camera", "lidar", "radar", "colours", "coverage"]
    assert all("absent" in panel.title for panel in panels[:3])
    assert panels[-1].values == (0.0, 1.0)
    white = near(drawn(panels[0]), (255, 255, 255), 3)
    assert white[:100, :100].sum() > 50  # crossed out


def test_a_tasks_map_is_one_more_and_grey_where_nothing_is_known() -> None:
    values = np.full(GRID.shape, 2.0, np.float32)
    values[: GRID.shape[0] // 2] = np.nan  # behind
    panel = maps(scene(result(), task_maps={"counts/count": TaskMap(values, 0.0, 2.0)}))[-1]
    assert (panel.title, panel.values) == ("counts/count", (0.0, 2.0))
    picture = drawn(panel)
    assert near(picture[SIDE_PX * 3 // 4 :], GREY, 3).mean() > 0.95
    assert not near(picture[: SIDE_PX // 4], GREY, 3).any()


def test_the_legend_explains_what_can_be_seen() -> None:
    one = scene(result(), truth=boxes((12.0, -8.0, 0.0, 1, 1.0)))
    words = [meaning for _, _, meaning in legend([one])]
    assert words == [
        "truth (white on the pictures)",
        "car",
        "forklift",
        "LiDAR, darker is higher",
        "radar, line: way in 0.5 s",
    ]
    alone = dataclasses.replace(one, found=None, given=("camera",))
    assert [meaning for _, _, meaning in legend([alone])] == ["pedestrian"]
