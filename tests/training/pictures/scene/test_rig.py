"""A rig from above shows each sensor where it stands and to where it looks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sensors.frames import CameraImage, LidarSweep, RadarSweep, SensorFrame
from sensors.motion.poses import LINK_T_OPTICAL, pose
from sensors.palette import MODALITY_COLOURS
from tests.training.pictures.scene.scenes import near
from training.pictures.scene.canvas import INK
from training.pictures.scene.rig import draw_rig

AHEAD, LEFT, DOWN = (1, 0, 0, 0), (2**-0.5, 0, 0, 2**-0.5), (2**-0.5, 0, 2**-0.5, 0)
K = np.array([[50.0, 0, 49.5], [0, 50, 49.5], [0, 0, 1]])  # 90 degrees
PICTURE = np.zeros((100, 100, 3), np.uint8)
SIDE_M = 10.0  # of half the picture: the sensor that is furthest stands 2 m from the origin
RED, GREEN, BLUE = MODALITY_COLOURS["camera"]
SEEN = (191 + RED // 4, 191 + GREEN // 4, 191 + BLUE // 4)


def rig(turn: tuple[float, ...], at_m: tuple[float, float, float] = (2.0, 0.0, 1.5)) -> SensorFrame:
    camera = CameraImage("FRONT", PICTURE, K, pose(at_m, wxyz=turn) @ LINK_T_OPTICAL, 0)
    lidar = LidarSweep("ROOF", np.ones((1, 5), np.float32), pose((0, 0, 2), wxyz=LEFT), 0)
    return SensorFrame("rig", 0, (camera, None), (lidar, lidar), None, np.eye(4))


def at(x_m: float, y_m: float) -> tuple[int, int]:
    """(row, column): x is up, y to the left."""
    return round(450 - 450 / SIDE_M * x_m), round(450 - 450 / SIDE_M * y_m)


@pytest.mark.parametrize(
    ("turn", "seen", "unseen"),
    [
        (AHEAD, [(6.5, 0.5), (5, 2.7), (5, -2.7)], [(5, 3.4), (1, -1.5), (9, 0.5)]),
        (LEFT, [(2.5, 5), (4.2, 2.5)], [(6.5, 0.5), (2.5, -5)]),
        (DOWN, [], [(6.5, 0.5), (2.5, 5), (-5, 0.5)]),
    ],
)
def test_a_camera_covers_where_it_looks(
    turn: tuple[float, ...], seen: list[tuple[float, float]], unseen: list[tuple[float, float]]
) -> None:
    coloured = near(draw_rig(rig(turn)), SEEN, 3)
    assert [coloured[at(*place)] for place in seen] == [True] * len(seen)
    assert [coloured[at(*place)] for place in unseen] == [False] * len(unseen)


def test_a_lidar_and_a_radar_point_along_their_own_x_axis() -> None:
    frame = replace(rig(AHEAD), cameras=None)
    radar = RadarSweep("BUMPER", np.ones((1, 6), np.float32), pose((-2, 0, 0.5), wxyz=(0, 0, 0, 1)), 0)
    picture = draw_rig(replace(frame, radar=(radar,)))
    for kind, along in (("lidar", (0.0, 1.0)), ("radar", (-3.0, 0.0))):
        row, column = at(*along)
        around = picture[row - 1 : row + 2, column - 1 : column + 2]
        assert near(around, MODALITY_COLOURS[kind], 60).any(), kind
    assert not near(picture, SEEN, 3).any()


def test_each_sensor_is_named_where_it_points() -> None:
    """Letters beyond the field of view, and beyond the axis."""
    named, unnamed = (draw_rig(rig(AHEAD, (2.0, 0.0, z_m))) for z_m in (1.5, 1.0))
    np.testing.assert_array_equal(named, unnamed)  # heights are not seen
    for x_m, y_m in ((8.5, 0.0), (0.0, 3.5)):
        row, column = at(x_m, y_m)
        assert near(named[row - 14 : row + 14, column - 30 : column + 30], INK, 40).sum() > 20


def test_a_frame_of_nothing_is_a_vehicle_alone() -> None:
    picture = draw_rig(SensorFrame("none", 0, None, None, None, np.eye(4)))
    assert not any(near(picture, colour, 3).any() for colour in MODALITY_COLOURS.values())
