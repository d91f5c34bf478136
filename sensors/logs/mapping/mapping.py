"""Which topic of a log is which sensor: a YAML file's content, or proposed from what a log holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from sensors.camera.rectification import is_fisheye
from sensors.logs.messages import CameraInfo
from sensors.settings import StrictModel

_RECTIFIED = frozenset({"rect", "rectified", "undistorted"})
_NOT = frozenset({"not", "non", "no", "un", "pre", "without"})
Seconds = Annotated[float, Field(allow_inf_nan=False)]


def words_of(topic: str) -> list[str]:
    """The words of /camFrontLeft/image_raw: cam, front, left, image, raw."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", topic)
    return [word.lower() for word in re.findall(r"[A-Za-z]+|\d+", split)]


def called_rectified(topic: str) -> bool:
    """Whether a topic of pictures is called after rectified ones, and nowhere after such as are not (non_rectified)."""
    words = words_of(topic)
    before = [words[i - 1] if i else "" for i, word in enumerate(words) if word in _RECTIFIED]
    return bool(before) and _NOT.isdisjoint(before)


def is_rectified(info: CameraInfo, topic: str, rectified: bool | None) -> bool:
    """Whether the pictures on a topic are rectified, as `CameraTopics.rectified` tells of them."""
    if rectified is not None:
        return rectified
    return called_rectified(topic) or not (info.D.any() or is_fisheye(info.distortion_model))


class CameraTopics(StrictModel):
    """A camera: pictures and their calibration.

    `rectified`: whether the pictures are, as the calibration's R and P say; else K and D hold, and they are rectified here.
    None: they are where D is all 0 (but a fisheye's), or the topic is called rectified: a word "rect", "rectified" or
    "undistorted", without a "not", "non", "no", "un", "pre" or "without" before it.
    """

    image: str
    info: str
    rectified: bool | None = None
    frame: str | None = None  # None: as the messages say
    offset_s: Seconds = 0.0  # added to the messages' stamps: a clock that is slow by 20 ms has 0.02

    @property
    def data(self) -> str:
        """The topic of what it measures."""
        return self.image


class PointTopics(StrictModel):
    """A sensor whose messages are points. `fields` names the log's fields where they have other names than ours."""

    points: str
    frame: str | None = None
    offset_s: Seconds = 0.0
    fields: dict[str, str] = Field(default_factory=dict)  # ours -> the log's

    @property
    def data(self) -> str:
        """The topic of what it measures."""
        return self.points


class LidarTopics(PointTopics):
    """A LiDAR; our fields are x, y, z, intensity, ring.

    `time_field`: the log's field that says how long after the message's stamp a point was measured (before: negative), in units
    of `time_scale_s` seconds. Points are then brought to the stamp by the ego motion within the sweep. None: all are of it.
    """

    intensity_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # times the log's intensity is 0..255
    time_field: str | None = None
    time_scale_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class RadarTopics(PointTopics):
    """A radar; our fields are x, y, z, rcs, vx_comp, vy_comp."""


class LogMapping(StrictModel):
    """Channels are named as in the checkpoint's configuration (CAM_FRONT, LIDAR_TOP, RADAR_FRONT ...)."""

    cameras: dict[str, CameraTopics] = Field(default_factory=dict)
    lidars: dict[str, LidarTopics] = Field(default_factory=dict)
    radars: dict[str, RadarTopics] = Field(default_factory=dict)
    ego_frame: str = "base_link"  # on the ground under the middle of the rear axle, as nuScenes' ego
    global_frame: str | None = "map"  # None: the log knows no ego motion, and none is compensated
    truth: str | None = None  # annotated boxes

    @property
    def by_kind(self) -> dict[str, Mapping[str, CameraTopics | LidarTopics | RadarTopics]]:
        """Kind of sensors -> channel -> where it is."""
        return {"camera": self.cameras, "lidar": self.lidars, "radar": self.radars}

    @property
    def by_channel(self) -> dict[str, CameraTopics | LidarTopics | RadarTopics]:
        """Channel -> where it is, cameras first."""
        return {channel: where for of_kind in self.by_kind.values() for channel, where in of_kind.items()}

    @model_validator(mode="after")
    def _check(self) -> LogMapping:
        names = [name for of_kind in self.by_kind.values() for name in of_kind]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"channel {twice[0]} is named twice")
        if not names:
            raise ValueError("name at least one of cameras, lidars, radars")
        return self
