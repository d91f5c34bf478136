"""A sensor that comes later: added to a model that is there, by gates that start closed, without a bit of what it had lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from robustbev import CameraConfig, Detections, PerceptionModel, RigConfig, load, save, with_sensor
from robustbev.export import export
from sensors.frames import CameraImage, SensorFrame
from tests.small_replay import CAMERA_CHANNELS, RADAR_CHANNELS, noise_frame
from tests.tiny_model import tiny_config, tiny_model

RIG = RigConfig(camera_channels=CAMERA_CHANNELS, lidar_channels=("LIDAR_TOP",), radar_channels=RADAR_CHANNELS)


def thermal(channels: tuple[str, ...] | None = ("CAM_THERMAL",)) -> CameraConfig:
    camera = tiny_config().modalities["camera"]
    assert isinstance(camera, CameraConfig)
    return camera.model_copy(update={"channels": channels})


@pytest.fixture
def model() -> PerceptionModel:
    return tiny_model(rig=RIG.model_dump()).eval()


def warm(frame: SensorFrame) -> SensorFrame:
    """With a picture of the thermal camera, which looks as the first camera does, from beside it."""
    assert frame.cameras is not None
    first = frame.cameras[0]
    assert isinstance(first, CameraImage)
    picture = np.random.default_rng(7).integers(0, 256, first.image.shape, dtype=np.uint8)
    aside = first.reference_T_camera.copy()
    aside[1, 3] += 0.3
    pictured = replace(first, channel="CAM_THERMAL", image=picture, reference_T_camera=aside)
    return replace(frame, cameras=(*frame.cameras, pictured))


def assert_same_boxes(got: Detections, expected: Detections) -> None:
    for name in ("center_m", "size_m", "yaw_rad", "velocity_mps", "score", "label", "attribute"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)


def opened(model: PerceptionModel) -> PerceptionModel:
    """As after training."""
    added: Any = model.fuser.added
    nn.init.constant_(added.attention_gate, 0.8)
    nn.init.constant_(added.feed_forward_gate, -0.5)
    return model


def test_with_its_gates_closed_and_when_it_is_lost_the_old_model_answers_to_the_bit(model: PerceptionModel) -> None:
    wider, frame = with_sensor(model, "thermal", thermal()), noise_frame(3)
    expected = model.perceive(frame)
    closed = wider.perceive(warm(frame))
    assert_same_boxes(closed, expected)
    assert wider.config.rig is not None
    assert wider.config.rig.camera_channels == (*CAMERA_CHANNELS, "CAM_THERMAL")
    assert closed.sensors["CAM_THERMAL"].absence is None
    assert_same_boxes(opened(wider).perceive(frame), expected)
    seen = wider.perceive(warm(frame))
    assert set(seen.trust) == {*model.config.modalities, "thermal"}
    assert not np.array_equal(seen.center_m, expected.center_m) or not np.array_equal(seen.score, expected.score)
    assert set(model.config.modalities) == {"camera", "lidar", "radar"}  # as it was


@pytest.mark.parametrize("freeze", [True, False])
def test_only_what_is_new_learns_unless_all_may(model: PerceptionModel, freeze: bool) -> None:
    wider = with_sensor(model, "thermal", thermal(), freeze=freeze)
    learns = {name for name, parameter in wider.named_parameters() if parameter.requires_grad}
    new = {n for n, _ in wider.named_parameters() if ".thermal." in f".{n}." or n.startswith("fuser.added.")}
    assert new
    assert learns == (new if freeze else {name for name, _ in wider.named_parameters()})


def test_it_is_saved_loaded_and_exported_as_any_model(model: PerceptionModel, tmp_path: Path) -> None:
    wider = opened(with_sensor(model, "thermal", thermal()))
    again = load(save(wider, tmp_path / "model"))
    frame = warm(noise_frame(3))
    assert_same_boxes(again.perceive(frame), wider.perceive(frame))
    again.perceive(replace(frame, lidar=None))
    assert export(again, tmp_path, kind="pt2", part="fuser", name="wider").is_file()


def test_what_cannot_be_added_is_told(model: PerceptionModel) -> None:
    for name, config, words in (
        ("camera", thermal(), "has a modality camera already"),
        ("thermal", thermal(None), "expected channels, the names of the sensors of thermal"),
        ("no name", thermal(), "modalities"),
    ):
        with pytest.raises(ValueError, match=words):
            with_sensor(model, name, config)
    with pytest.raises(ValueError, match="whose fuser is not gated"):
        with_sensor(with_sensor(model, "thermal", thermal()), "more", thermal(("CAM_MORE",)))


def test_a_model_that_does_not_know_its_sensors_still_does_not() -> None:
    assert with_sensor(tiny_model().eval(), "thermal", thermal()).config.rig is None
