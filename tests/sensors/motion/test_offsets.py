"""Sensors that measured 0.1 s off the frame, at 15 m/s and 20 degrees/s: all is within 0.1 m of where it is without the offset.

On the geometry alone, in a simulated town: what LiDARs hit and where cameras see it. A model adds its own errors: how far the
boxes of a trained one move tests/benchmarks/offsets.py measures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sensors.calibration import apply
from sensors.frames import SensorFrame
from sensors.motion.poses import pose
from sensors.motion.trajectory import Trajectory
from sensors.readings import CameraReading, LidarReading, Reading, frame_at

pytest.importorskip("embreex")

from sensors.simulation.config import SimulationConfig
from sensors.simulation.sensing import lidar, rig
from sensors.simulation.sensing.casting import rotate
from sensors.simulation.sensing.world import Pose, World
from sensors.simulation.world.traffic import Track

SPEED_MPS, TURN_RAD_S = 15.0, np.radians(20.0)
FRAME_S = 0.5
WIDTH_PX, HEIGHT_PX = 320, 180
MOUNTED = {m.channel: pose(m.translation_m, wxyz=m.rotation_wxyz) for m in rig.SENSORS}


def us(time_s: float) -> int:
    return round(time_s * 1e6)


@pytest.fixture(scope="module")
def world() -> World:
    """A town with hardly anybody on the road but the ego vehicle, which drives a circle from where it stood."""
    town = World(SimulationConfig(agent_density=0.01, keyframes_per_scene=2), "sim-0000")
    x_m, y_m, yaw_rad = town.ego.pose(0.0)
    times_s = np.arange(0, 1.0001, 0.001)
    heading = yaw_rad + TURN_RAD_S * times_s
    radius_m = SPEED_MPS / TURN_RAD_S
    town.ego = Track(
        times_s,
        np.column_stack([
            x_m + radius_m * (np.sin(heading) - np.sin(yaw_rad)),
            y_m - radius_m * (np.cos(heading) - np.cos(yaw_rad)),
            heading,
        ]),
    )  # fmt: skip
    return town


def trajectory(world: World, step_s: float, last_s: float) -> Trajectory:
    """The true poses, told every `step_s`, at none of the sensors' times."""
    moved = Trajectory()
    for time_s in np.arange(0.003, last_s, step_s):
        x_m, y_m, yaw_rad = world.ego.pose(float(time_s))
        moved.add(us(float(time_s)), pose((x_m, y_m, 0), wxyz=rig.yaw_to_wxyz(float(yaw_rad))))
    return moved


def in_reference(world: World, points_m: Any) -> Any:
    """Points of the town in the ego frame at the frame's time, by the simulation's own geometry."""
    x_m, y_m, yaw_rad = world.ego.pose(FRAME_S)
    local = points_m - (x_m, y_m, 0)
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.column_stack([cos * local[:, 0] + sin * local[:, 1], cos * local[:, 1] - sin * local[:, 0], local[:, 2]])


def sweep(world: World, end_s: float, turn_s: float) -> tuple[LidarReading, Any]:
    """One turn of the LiDAR, stamped at its end, a tenth of it fired at a time; and where in the town each point truly is."""
    points, truth, times = [], [], []
    for tenth in range(10):
        time_s = end_s - turn_s * (9 - tenth) / 10
        fired = lidar.scan(world, time_s, np.random.default_rng(tenth), azimuth_steps=120, range_m=70.0)
        fired = fired[np.floor((np.arctan2(fired[:, 1], fired[:, 0]) / (2 * np.pi) + 0.5) * 9.999) == tenth]
        stood = Pose.of_sensor(world.ego.pose(time_s), rig.LIDAR)
        points.append(fired)
        truth.append(rotate(fired[:, :3].astype(float), stood.rotation) + stood.translation_m)
        times.append(np.full(len(fired), us(time_s)))
    reading = LidarReading("LIDAR_TOP", np.concatenate(points), us(end_s), np.concatenate(times))
    return reading, np.concatenate(truth)


def frame_of(world: World, reading: Reading, moved: Trajectory | None) -> SensorFrame:
    return frame_at(us(FRAME_S), [reading], MOUNTED, moved)


CASES = [(0.02, 1.0), (0.1, 1.0), (0.02, FRAME_S - 0.04)]  # odometry at 50 and 10 Hz, and one that comes 40 ms late
OFFSETS_S = (-0.1, 0.1)


@pytest.mark.parametrize(("step_s", "last_s"), CASES)
@pytest.mark.parametrize("offset_s", OFFSETS_S)
@pytest.mark.parametrize("turn_s", [0.0, 0.1])
def test_points_lie_where_they_would_lie_without_the_offset(
    world: World, step_s: float, last_s: float, offset_s: float, turn_s: float
) -> None:
    reading, truth = sweep(world, FRAME_S + offset_s, turn_s)
    expected = in_reference(world, truth)
    assert len(expected) > 1000

    def off_m(moved: Trajectory | None) -> Any:
        frame = frame_of(world, reading, moved)
        assert frame.lidar is not None
        placed = apply(frame.lidar[0].reference_T_lidar, frame.lidar[0].points[:, :3].astype(float))
        return np.linalg.norm(placed - expected, axis=1)

    assert off_m(trajectory(world, step_s, last_s)).max() < 0.1
    assert np.median(off_m(None)) > 0.5  # what a static mount would give


@pytest.mark.parametrize(("step_s", "last_s"), CASES)
@pytest.mark.parametrize("offset_s", OFFSETS_S)
@pytest.mark.parametrize("mount", rig.CAMERAS, ids=lambda mount: mount.channel)
def test_cameras_see_things_where_they_would_see_them_without_the_offset(
    world: World, mount: rig.Mount, step_s: float, last_s: float, offset_s: float
) -> None:
    """The town's points through the true camera and back along its rays: how far the ray passes from the point in the frame."""
    _, town_m = sweep(world, FRAME_S, 0.0)
    stood = Pose.of_sensor(world.ego.pose(FRAME_S + offset_s), mount)
    intrinsics = mount.intrinsic(WIDTH_PX, HEIGHT_PX)
    pixels = (town_m - stood.translation_m) @ stood.rotation @ intrinsics.T
    ahead = pixels[:, 2] > 1
    pixels = pixels[ahead, :2] / pixels[ahead, 2:]
    inside = ((pixels >= 0) & (pixels < (WIDTH_PX, HEIGHT_PX))).all(1)
    expected = in_reference(world, town_m[ahead][inside])
    assert len(expected) > 50
    rays = np.column_stack([pixels[inside], np.ones(inside.sum())]) @ np.linalg.inv(intrinsics).T

    def off_m(moved: Trajectory | None) -> Any:
        image = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8)
        reading = CameraReading(mount.channel, image, intrinsics, us(FRAME_S + offset_s))
        frame = frame_of(world, reading, moved)
        assert frame.cameras is not None
        assert frame.cameras[0] is not None
        from_camera = frame.cameras[0].reference_T_camera
        look = rays @ from_camera[:3, :3].T
        look /= np.linalg.norm(look, axis=1, keepdims=True)
        sight = expected - from_camera[:3, 3]
        return np.linalg.norm(sight - (sight * look).sum(1, keepdims=True) * look, axis=1)

    assert off_m(trajectory(world, step_s, last_s)).max() < 0.1
    assert np.median(off_m(None)) > 0.2  # ahead, a static mount shifts things along the ray alone, and turns them aside
