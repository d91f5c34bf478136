"""Cameras are arranged as they look."""

from __future__ import annotations

import math

import pytest

from training.pictures.scene.cameras import arrange, short_name

NUSCENES = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")


@pytest.mark.parametrize(
    ("yaws_deg", "rows"),
    [
        ([0], [["0"]]),
        ([-60, 0, 60], [["60", "0", "-60"]]),
        ([35, -35, 145, -145], [["35", "-35"], ["145", "-145"]]),
        ([0, 72, 144, -144, -72], [["72", "0", "-72"], ["144", "-144"]]),
        ([0, 20, -20, 60, -60, 100, -100, 170], [["60", "20", "0", "-20"], ["100", "170", "-60", "-100"]]),
    ],
)
def test_any_number_of_cameras_has_its_places(yaws_deg: list[int], rows: list[list[str]]) -> None:
    looks = {str(yaw): (math.cos(math.radians(yaw)), math.sin(math.radians(yaw))) for yaw in yaws_deg}
    columns, names = arrange(list(looks), looks)
    assert [names[k : k + columns] for k in range(0, len(names), columns)] == rows


def test_nuscenes_cameras_have_their_places_when_all_of_them_are_absent() -> None:
    columns, names = arrange(NUSCENES, {})
    assert (columns, [short_name(name) for name in names]) == (
        3, ["front left", "front", "front right", "back left", "back", "back right"],
    )  # fmt: skip


def test_a_camera_of_which_nobody_knows_where_it_looks_comes_last() -> None:
    assert arrange(["a", "b", "c"], {"b": (1.0, 0.0), "c": (0.5, 0.8)})[1] == ["c", "b", "a"]
