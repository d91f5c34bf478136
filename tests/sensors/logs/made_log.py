"""One of each kind of payload, and a bag in SQLite of one in MCAP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rosbags.convert import convert

from sensors.logs.messages import (
    CameraInfo,
    EncodedImage,
    FrameTransform,
    FrameTransforms,
    LogMessage,
    Payload,
    PointCloud,
    RawImage,
    SceneBoxes,
    TruthBox,
)

T0_NS = 1_600_000_000_123_456_789
RECORD = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("id", "<i2"), ("state", "i1")])


def sqlite_bag(mcap: Path, folder: Path) -> Path:
    """As `rosbags-convert --src MCAP --dst FOLDER --dst-storage sqlite3` makes it."""
    convert([mcap], folder, "sqlite3", 9, None, "none", None, None, (), (), (), ())
    return folder


def message(topic: str, payload: Payload, after_ns: int = 0) -> LogMessage:
    return LogMessage(topic, T0_NS + after_ns, T0_NS + after_ns + 7, payload)


def transform(parent: str, child: str, x: float = 1.5) -> FrameTransform:
    return FrameTransform(T0_NS, parent, child, (x, -0.1, 1e-9), (0.8, 0.0, -0.6, 0.0))


def some_points(count: int = 5) -> PointCloud:
    points = np.zeros(count, RECORD)
    points["x"], points["id"], points["state"] = np.arange(count) / 3, -np.arange(count), 7
    return PointCloud(T0_NS, "RADAR_FRONT", points)


def one_of_each() -> dict[str, Payload]:
    """Topic -> payload, of every kind that can be written."""
    K = np.array([[250.0, 0, 160.25], [0, 251, 90], [0, 0, 1]])
    info = CameraInfo(
        T0_NS,
        "CAM_FRONT",
        320,
        180,
        "plumb_bob",
        np.array([0.1, -0.2, 0, 0, 0]),
        K,
        np.eye(3),
        np.hstack([K, np.ones((3, 1))]),
    )
    car = TruthBox(
        "instance-7f",
        "vehicle.car",
        (12.5, -3.25, 0.9),
        (1.9, 4.6, 1.7),
        (0.8, 0, 0, 0.6),
        (2.1, -0.3),
        "vehicle.moving",
        22,
    )
    unknown = TruthBox("instance-80", "animal", (1, 2, 3), (0.4, 1.1, 0.6), (1, 0, 0, 0))
    return {
        "/cam_front/image_rect_compressed": EncodedImage(T0_NS, "CAM_FRONT", "jpeg", b"\xff\xd8 picture \x00\xff\xd9"),
        "/cam_raw": RawImage(T0_NS, "CAM_RAW", "rgb8", 2, 3, 10, bytes(range(20))),
        "/cam_front/camera_info": info,
        "/radar_front": some_points(),
        "/tf": FrameTransforms((transform("map", "base_link"), transform("map", "other", -2.0)), static=False),
        "/markers/annotations": SceneBoxes(T0_NS, "map", (car, unknown)),
    }
