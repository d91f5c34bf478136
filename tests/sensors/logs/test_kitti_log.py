"""A real ROS 2 log: ten frames of a KITTI drive, one camera and a LiDAR of 64 beams. Skipped where it is not there."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from sensors.logs.log import Log
from sensors.logs.mapping.file import check_mapping
from sensors.logs.mapping.inspect import inspect_log
from sensors.logs.messages import CameraInfo, EncodedImage, FrameTransforms, PointCloud
from sensors.logs.open import open_log

START_NS = 1_317_038_400_000_000_000  # 2011-09-26T12:00:00Z, by the log's README


@pytest.fixture(scope="module")
def kitti() -> Log:
    default = Path(__file__).resolve().parents[3].parent / "shared" / "real" / "kitti-drive.mcap"
    path = Path(os.environ.get("ROBUSTBEV_REAL_LOG") or default)
    if not path.is_file():
        pytest.skip(
            "no real drive log: expected it at ../shared/real/kitti-drive.mcap, or where ROBUSTBEV_REAL_LOG points"
        )
    return open_log(path)


def test_all_31_messages_have_the_shapes_of_their_sensors(kitti: Log) -> None:
    messages = list(kitti.messages())
    assert not kitti.damage
    assert Counter(type(message.payload) for message in messages) == {
        CameraInfo: 10, EncodedImage: 10, PointCloud: 10, FrameTransforms: 1
    }  # fmt: skip
    assert kitti.span_ns() == (START_NS, START_NS + 900_000_000)
    for message in messages:
        payload = message.payload
        if isinstance(payload, EncodedImage):
            assert simplejpeg.decode_jpeg(payload.data).shape == (375, 1242, 3)
        elif isinstance(payload, PointCloud):
            assert payload.frame_id == "lidar_top"
            assert payload.points.dtype.names == ("x", "y", "z", "intensity")
            assert 100_000 < len(payload.points) < 130_000
            xyz = np.stack([payload.points[name] for name in "xyz"])
            assert np.abs(xyz).max() < 121  # the sensor's range
        elif isinstance(payload, CameraInfo):
            assert (payload.width_px, payload.height_px, payload.P.shape) == (1242, 375, (3, 4))
            assert payload.P[0, 3] != 0
        elif isinstance(payload, FrameTransforms):
            assert payload.static
            assert [(one.parent, one.child) for one in payload.transforms] == [
                ("base_link", "lidar_top"), ("base_link", "cam_front")
            ]  # fmt: skip
            assert payload.transforms[0].translation_m == (0.0, 0.0, 1.73)


def test_a_seek_starts_with_mounts_and_calibration(kitti: Log) -> None:
    messages = list(kitti.messages(start_ns=START_NS + 550_000_000))
    first, second = messages[0].payload, messages[1].payload
    assert isinstance(first, FrameTransforms)
    assert first.static
    assert isinstance(second, CameraInfo)
    assert second.stamp_ns == START_NS + 500_000_000
    assert len(messages) == 2 + 4 * 3


def test_its_proposed_mapping_fits(kitti: Log) -> None:
    summary = inspect_log(kitti)
    mapping = summary.proposal.mapping
    assert mapping is not None
    check_mapping(mapping, kitti)
    assert mapping.cameras["CAM_FRONT"].image == "/cam_front/image_rect_compressed"
    assert mapping.lidars["LIDAR_TOP"].intensity_scale == 255  # KITTI's are 0..1
    assert (mapping.radars, mapping.ego_frame, mapping.global_frame) == ({}, "base_link", None)
    rates = {topic.name: topic.rate_hz for topic in summary.topics}
    assert rates["/lidar_top"] == pytest.approx(10)
