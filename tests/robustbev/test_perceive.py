"""A saved model and a frame of numpy arrays are all that a robot needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbev import (
    Detections,
    ModelCard,
    NoPerceptionError,
    PerceptionModel,
    RigConfig,
    SubsetFigures,
    load,
    perceive_frame,
    preparation,
    save,
)
from robustbev.inference import without
from sensors.calibration import FloatArray
from sensors.camera.images import resize, resize_reference
from sensors.frames import NOT_GIVEN, SensorFrame
from tests.small_replay import CAMERA_CHANNELS, RADAR_CHANNELS, noise_frame
from tests.tiny_model import tiny_config, tiny_model

RIG = RigConfig(camera_channels=CAMERA_CHANNELS, lidar_channels=("LIDAR_TOP",), radar_channels=RADAR_CHANNELS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PerceptionModel:
    """Saved and loaded again, as a robot would have it."""
    return load(save(tiny_model(rig=RIG.model_dump()), tmp_path_factory.mktemp("model")))


@pytest.fixture
def frame() -> SensorFrame:
    return noise_frame(3)


def assert_same(got: Detections, expected: Detections) -> None:
    for name in (
        "center_m",
        "size_m",
        "yaw_rad",
        "velocity_mps",
        "label",
        "attribute",
        "score",
        "attention",
        "coverage",
    ):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    assert got.perceived == expected.perceived


def test_it_sees_what_the_model_sees(model: PerceptionModel, frame: SensorFrame) -> None:
    seen = perceive_frame(model, frame, preparation(model.config))
    found = model.perceive(frame, min_score=0)
    boxes = seen.shown(0)
    assert len(found) == len(boxes) > 0
    np.testing.assert_array_equal(found.center_m, boxes.center_m.numpy())
    np.testing.assert_array_equal(found.score, boxes.score.numpy())
    np.testing.assert_array_equal(found.attention, seen.fused.attention[0].numpy())
    assert all(isinstance(getattr(found, name), np.ndarray) for name in ("center_m", "label", "coverage"))


def test_a_batch_of_frames_is_what_the_model_is_given(model: PerceptionModel, frame: SensorFrame) -> None:
    assert frame.cameras is not None
    shuffled = replace(frame, cameras=frame.cameras[::-1])
    with torch.inference_mode():
        seen = model(model.batch([shuffled]))
    found = model.perceive(frame, min_score=0)
    np.testing.assert_array_equal(found.score, seen.shown(0).score.numpy())
    np.testing.assert_array_equal(found.center_m, seen.shown(0).center_m.numpy())


def test_each_sample_of_a_batch_is_one_frame_with_its_own_sensors(model: PerceptionModel, frame: SensorFrame) -> None:
    frames = [frame, noise_frame(4, ("camera", "lidar")), replace(noise_frame(5, ("radar",)), radar=frame.radar)]
    batch = model.batch(frames)
    assert batch.batch_size == 3
    present = {name: batch.part(name).present.any(1).tolist() for name in model.config.modalities}
    assert present == {"camera": [True, True, False], "lidar": [True, True, False], "radar": [True, False, True]}
    alone = model.batch(frames[1:2])
    assert "radar" not in alone.parts
    count = int(alone.part("lidar").count)
    assert torch.equal(batch.part("camera").images[1], alone.part("camera").images[0])
    assert torch.equal(batch.part("lidar").points[1, :count], alone.part("lidar").points[0, :count])
    with torch.inference_mode():
        encoded = model.encode(batch)
    assert encoded["radar"] is not None
    assert encoded["radar"].coverage[1].max() == 0 < encoded["radar"].coverage[2].max()


def test_a_batch_of_what_is_no_frame_is_refused(model: PerceptionModel, frame: SensorFrame) -> None:
    for frames, got in (([], "none"), (frame, "SensorFrame")):
        with pytest.raises(ValueError, match=f"expected a list of at least one SensorFrame, got {got}: give one as"):
            model.batch(frames)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected a sensors\.frames\.SensorFrame, got NoneType"):
        model.batch([frame, None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="this model's rig"):
        model.batch([frame], RigConfig(lidar_channels=("ROOF",)))


def test_each_object_has_names_and_plain_numbers(model: PerceptionModel, frame: SensorFrame) -> None:
    found = model.perceive(frame, min_score=0)
    first = next(iter(found))
    assert first.name == model.config.classes[found.label[0]]
    assert first.attribute is None or first.attribute in model.config.attributes
    assert first.score == pytest.approx(found.score.max())
    assert [type(v) for v in (*first.center_m, *first.size_m, first.yaw_rad, *first.velocity_mps)] == [float] * 9
    assert len(list(found)) == len(found)


def test_boxes_below_the_least_score_are_left_out(model: PerceptionModel, frame: SensorFrame) -> None:
    everything = model.perceive(frame, min_score=0)
    middle = float(np.median(everything.score))
    found = model.perceive(frame, min_score=middle)
    assert len(found) == int((everything.score >= middle).sum()) < len(everything)
    with pytest.raises(ValueError, match=r"min_score: expected 0 to less than 1, got 1\.5"):
        model.perceive(frame, min_score=1.5)


def test_cameras_are_told_apart_by_their_channels(model: PerceptionModel, frame: SensorFrame) -> None:
    assert frame.cameras is not None
    lost = tuple(camera if n != 2 else None for n, camera in enumerate(frame.cameras))
    expected = model.perceive(replace(frame, cameras=lost))
    there = tuple(camera for camera in lost if camera is not None)
    assert_same(model.perceive(replace(frame, cameras=there[::-1])), expected)


def test_trust_is_shared_among_the_sensors_that_see_and_the_rest_went_to_nulls(
    model: PerceptionModel, frame: SensorFrame
) -> None:
    whole, part = model.perceive(frame), model.perceive(replace(frame, radar=None))
    for seen in (whole, part):
        assert set(seen.trust) == {"camera", "lidar", "radar"}
        assert sum(seen.trust.values()) + seen.null_share == pytest.approx(1, abs=1e-5)
    assert min(whole.trust.values()) > 0
    assert part.trust["radar"] == 0
    assert part.null_share >= part.attention[2, part.coverage > 0].mean() - 1e-6 > 0


def test_every_sensor_of_the_rig_is_told(model: PerceptionModel, frame: SensorFrame) -> None:
    assert frame.lidar is not None
    points = frame.lidar[0].points.copy()
    points[:3, 0], points[3:5, :3], points[5:9, 2] = np.nan, 0, 99
    sweep = replace(frame.lidar[0], points=points, time_us=frame.time_us - 40_000)
    seen = model.perceive(replace(frame, lidar=(sweep,), radar=None))
    assert (seen.token, seen.time_us) == (frame.token, frame.time_us)
    assert tuple(seen.sensors) == (*CAMERA_CHANNELS, "LIDAR_TOP", *RADAR_CHANNELS)
    top, radar = seen.sensors["LIDAR_TOP"], seen.sensors["RADAR_0"]
    assert (top.absence, top.age_us, top.points) == (None, 40_000, 200)
    assert (top.dropped.lidar_not_finite, top.dropped.lidar_outside) == (3, 4)
    assert top.dropped.lidar_near >= 2
    assert top.kept == 200 - top.dropped.total
    assert (radar.absence, radar.age_us, radar.points, radar.coverage) == (NOT_GIVEN, None, 0, 0)


@pytest.mark.parametrize("channel", ["CAM_2", "LIDAR_TOP", "RADAR_1"])
def test_the_coverage_of_a_sensor_is_what_it_covers_alone(
    model: PerceptionModel, frame: SensorFrame, channel: str
) -> None:
    alone = frame
    for other in {*CAMERA_CHANNELS, "LIDAR_TOP", *RADAR_CHANNELS} - {channel}:
        alone = without(alone, other)
    for seen in (model.perceive(alone), model.perceive(frame)):
        assert seen.sensors[channel].coverage == pytest.approx(model.perceive(alone).coverage.mean(), abs=1e-6)


def test_no_sensor_is_no_empty_road(model: PerceptionModel, frame: SensorFrame) -> None:
    blind = model.perceive(replace(frame, cameras=None, lidar=None, radar=None))
    assert not blind.perceived
    assert blind.score.size == 0
    assert set(blind.trust.values()) == {0.0}
    assert blind.null_share == 1
    for ask in (len, bool, list):
        with pytest.raises(NoPerceptionError, match="not the same as nothing being there"):
            ask(blind)


@pytest.mark.parametrize(
    ("sensor", "says"),
    [
        ("camera", "camera CAM_ROOF is not of this model's rig: its camera channels are CAM_0, .*rig="),
        ("lidar", "LiDAR LIDAR_ROOF is not of this model's rig: its LiDAR channels are LIDAR_TOP"),
        ("radar", "radar RADAR_ROOF is not of this model's rig: its radar channels are RADAR_0, "),
    ],
)
def test_a_sensor_that_the_rig_does_not_have(
    model: PerceptionModel, frame: SensorFrame, sensor: str, says: str
) -> None:
    assert frame.cameras is not None
    assert frame.cameras[0] is not None
    assert frame.lidar is not None
    assert frame.radar is not None
    strange = {
        "camera": replace(frame, cameras=(replace(frame.cameras[0], channel="CAM_ROOF"),)),
        "lidar": replace(frame, lidar=(replace(frame.lidar[0], channel="LIDAR_ROOF"),)),
        "radar": replace(frame, radar=(replace(frame.radar[0], channel="RADAR_ROOF"),)),
    }[sensor]
    with pytest.raises(ValueError, match=says):
        model.perceive(strange)


def test_more_of_a_sensor_than_in_training(model: PerceptionModel, frame: SensorFrame) -> None:
    assert frame.cameras is not None
    assert frame.lidar is not None
    with pytest.raises(ValueError, match="at most 1 sweep of LiDAR LIDAR_TOP, as in training, got 2"):
        model.perceive(replace(frame, lidar=frame.lidar * 2))
    with pytest.raises(ValueError, match="at most one picture of camera CAM_0, as in training, got 2"):
        model.perceive(replace(frame, cameras=frame.cameras[:1] * 2))


def test_sensors_by_other_names(model: PerceptionModel, frame: SensorFrame) -> None:
    assert frame.lidar is not None
    other = replace(frame, lidar=(replace(frame.lidar[0], channel="roof"),))
    assert_same(model.perceive(other, RIG.model_copy(update={"lidar_channels": ("roof",)})), model.perceive(frame))


def test_three_cameras_with_the_weights_of_six(model: PerceptionModel, frame: SensorFrame) -> None:
    assert frame.cameras is not None
    three = replace(frame, cameras=frame.cameras[:3])
    rig = RIG.model_copy(update={"camera_channels": CAMERA_CHANNELS[:3]})
    got, expected = model.perceive(three, rig), model.perceive(three)
    np.testing.assert_array_equal(got.coverage, expected.coverage)
    np.testing.assert_allclose(got.score, expected.score, atol=1e-5)


def test_a_model_of_before_that_does_not_know_its_rig(frame: SensorFrame, tmp_path: Path) -> None:
    folder = save(tiny_model(), tmp_path)
    file = folder / "config.json"
    content = json.loads(file.read_text())
    del content["rig"]
    file.write_text(json.dumps(content))
    old = load(folder)
    with pytest.raises(ValueError, match=r"config.json does not name its sensors .*give rig="):
        old.perceive(frame)
    assert old.perceive(frame, RIG).perceived


def test_a_model_in_training_is_refused(frame: SensorFrame) -> None:
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        tiny_model(rig=RIG.model_dump()).train().perceive(frame)


def test_pictures_of_any_size_are_cut_to_the_networks(model: PerceptionModel, frame: SensorFrame) -> None:
    assert frame.cameras is not None
    large = tuple(
        None
        if c is None
        else replace(c, image=np.repeat(np.repeat(c.image, 3, 0), 3, 1), intrinsics=_scaled(c.intrinsics))
        for c in frame.cameras
    )
    got, expected = (model.perceive(f, min_score=0) for f in (replace(frame, cameras=large), frame))
    np.testing.assert_array_equal(got.coverage, expected.coverage)
    np.testing.assert_allclose(got.score[:5], expected.score[:5], atol=1e-3)


def _scaled(intrinsics: FloatArray) -> FloatArray:
    return np.array([[3, 0, 1], [0, 3, 1], [0, 0, 1]]) @ intrinsics


@pytest.mark.parametrize("old", [(900, 1600), (450, 800), (64, 176), (37, 91), (133, 400), (101, 277)])
def test_without_opencv_pictures_differ_by_one_level_at_most(old: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    for size in ((64, 176), (80, 220)):
        apart = np.abs(resize(image, size).astype(int) - resize_reference(image, size).astype(int))
        assert apart.max() <= 1
        assert apart.mean() < 0.2


# The configuration and the card


def test_a_rig_has_the_models_modalities_alone() -> None:
    assert tiny_model(radar=None, rig=RIG.only(("camera", "lidar")).model_dump()).config.rig is not None
    with pytest.raises(ValueError, match="rig: expected channels of camera, lidar alone"):
        tiny_config(radar=None, rig=RIG.model_dump())
    with pytest.raises(ValueError, match="channel TOP is named twice"):
        RigConfig(camera_channels=("TOP",), lidar_channels=("TOP",))


def test_the_card_says_what_is_known_and_what_is_not(tmp_path: Path) -> None:
    model = tiny_model(rig=RIG.model_dump())
    bare = (save(model, tmp_path / "bare") / "README.md").read_text()
    assert "not safety-certified" in bare
    assert "Not stated." in bare
    assert "Not evaluated." in bare
    figures = (SubsetFigures("camera+lidar", 0.6834, 0.625), SubsetFigures("radar", 0.41, 0.486))
    card = ModelCard("night model", "600 drives", "144 keyframes", figures, ("Never saw snow.",))
    told = (save(model, tmp_path / "told", card) / "README.md").read_text()
    assert "# night model" in told
    assert "| camera + lidar | 0.683 | 0.625 |" in told
    assert "Measured on 144 keyframes" in told
    assert "- Never saw snow." in told
    assert all(name in told for name in (*CAMERA_CHANNELS, "LIDAR_TOP", *model.config.classes))
    assert "Not stated" not in told
    assert "Not evaluated" not in told
