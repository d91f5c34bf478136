"""Where the sensors of a rig stand and look, from above: one that is turned, swapped or misplaced shows at a glance."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from bev.grid import BEVGrid
from robustbev.results.content import newest, sensor_poses
from sensors.frames import CameraImage, SensorFrame
from sensors.palette import MODALITY_COLOURS
from training.pictures.scene import canvas as draw
from training.pictures.scene.canvas import INK, Pixels
from training.pictures.scene.panels import VEHICLE_M, draw_rings, pixels_at

_SIDE_PX = 900
_LOOK_M, _AXIS_M = 6.0, 2.5  # how far a field of view and an axis are drawn
_ASIDE = 0.3  # more than this to a side, and a name goes on to that side
_AROUND_M = 8.0  # beyond the outermost sensor


def draw_rig(frame: SensorFrame) -> Pixels:
    """[900, 900, 3]: cameras with their horizontal field of view, LiDARs and radars with their own x axis, each by its name.

    Args:
        frame: one whose poses are mounts alone (`NuScenesReader.frame(i, motion=False)`), or of a vehicle that stands.
    """
    poses = sensor_poses(frame)
    side_m = _AROUND_M + max((float(np.abs(pose[:2, 3]).max()) for pose in poses.values()), default=0.0)
    view = draw.blank(_SIDE_PX, _SIDE_PX)
    grid = BEVGrid(-side_m, side_m, -side_m, side_m, cell_m=2 * side_m)
    at = partial(pixels_at, view, grid)
    draw_rings(view, grid)
    draw.shape(view, at(VEHICLE_M), (225, 225, 225))
    looks = {camera.channel: _field_of_view_m(camera) for camera in frame.cameras or () if camera is not None}
    layer = view.copy()
    for look_m in looks.values():
        draw.shape(layer, at(look_m), MODALITY_COLOURS["camera"])
    view[:] = (0.75 * view + 0.25 * layer).astype(np.uint8)
    names: dict[str, tuple[NDArray[np.float64], float]] = {}  # where, and how far to the left of the sensor or vehicle
    for channel, look_m in looks.items():
        draw.lines(view, [at(look_m)], MODALITY_COLOURS["camera"], closed=True)
        names[channel] = look_m[0] + 1.08 * (look_m[len(look_m) // 2] - look_m[0]), 0.0
    for kind, sweeps in (("lidar", newest(frame.lidar)), ("radar", newest(frame.radar))):
        for channel in sweeps:
            stands_m, x_axis = poses[channel][:2, 3], poses[channel][:2, 0]
            draw.circle(view, at(stands_m), 5, MODALITY_COLOURS[kind])
            draw.arrow(view, at(stands_m), at(stands_m + _AXIS_M * x_axis), MODALITY_COLOURS[kind])
            aside = x_axis[1] if abs(x_axis[1]) > _ASIDE else stands_m[1]
            names[channel] = stands_m + (_AXIS_M + 0.4) * x_axis, aside
    for channel, (name_m, aside) in names.items():
        x, y = at(name_m).round().astype(int).tolist()
        align = "middle" if abs(aside) < _ASIDE else "right" if aside > 0 else "left"
        draw.write(view, channel, (x, y - 9), size_px=14, align=align, bold=True)
    words = "from above, forward is up; cameras with their field of view, LiDARs and radars with their own x axis"
    draw.write(view, words, (12, 10), colour=INK, room_px=_SIDE_PX - 24)
    return view


def _field_of_view_m(camera: CameraImage) -> NDArray[np.float64]:
    """[14, 2] corners in the reference frame: the camera, then the ends of rays from the left of its picture to the right.

    A ray is as long as it is level: what looks down is drawn short.
    """
    height, width = camera.image.shape[:2]
    columns = np.linspace(-0.5, width - 0.5, 13)
    rays = np.linalg.solve(camera.intrinsics, np.stack([columns, np.full(13, height / 2 - 0.5), np.ones(13)]))
    ends = camera.reference_T_camera[:3, :3] @ (_LOOK_M * rays / np.linalg.norm(rays, axis=0))
    stands_m = camera.reference_T_camera[:2, 3]
    return np.concatenate([stands_m[None], stands_m + ends[:2].T])
