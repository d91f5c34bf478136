"""Where the pictures of any number of cameras go on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sensors.frames import SensorFrame

Look = tuple[float, float]  # x forward and y left of a camera's axis in the reference frame
_ONE_ROW, _WIDEST = 3, 4  # cameras
_NUSCENES: dict[str, Look] = {  # for those that are absent from the first
    "CAM_FRONT_LEFT": (0.6, 0.8), "CAM_FRONT": (1, 0), "CAM_FRONT_RIGHT": (0.6, -0.8),
    "CAM_BACK_LEFT": (-0.4, 0.9), "CAM_BACK": (-1, 0), "CAM_BACK_RIGHT": (-0.4, -0.9),
}  # fmt: skip


def arrange(channels: Sequence[str], looks: Mapping[str, Look]) -> tuple[int, list[str]]:
    """How many columns, and the channels row by row: those that look forward above, and left at the left.

    One row for up to three cameras, two for up to eight, as many as it takes for more. A camera of which neither `looks` nor
    nuScenes says where it looks comes last.
    """
    rows = 1 if len(channels) <= _ONE_ROW else max(2, -(-len(channels) // _WIDEST))
    columns = max(1, -(-len(channels) // rows))
    looks = _NUSCENES | dict(looks)
    known = sorted((name for name in channels if name in looks), key=lambda name: -looks[name][0])
    front, back = (sorted(part, key=lambda name: -looks[name][1]) for part in (known[:columns], known[columns:]))
    return columns, [*front, *back, *(name for name in channels if name not in looks)]


def directions(frame: SensorFrame) -> dict[str, Look]:
    """Channel -> where it looks, of the cameras that are there."""
    poses = {camera.channel: camera.reference_T_camera for camera in frame.cameras or () if camera is not None}
    return {name: (float(pose[0, 2]), float(pose[1, 2])) for name, pose in poses.items()}


def short_name(channel: str) -> str:
    """A camera's channel as a title: CAM_FRONT_LEFT and CAMERA_FRONT_LEFT are "front left"."""
    return channel.removeprefix("CAMERA_").removeprefix("CAM_").replace("_", " ").lower()
