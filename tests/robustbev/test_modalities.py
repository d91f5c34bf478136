"""Modalities by name: several of one kind, each with its own encoder, null embedding, dropout and share of the attention."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import robustbev
from robustbev import Detections, ModelConfig, PerceptionModel, RigConfig, load, save
from robustbev.checkpoints import CheckpointError
from robustbev.export import export, model_inputs
from robustbev.export.check import compare, runner
from robustbev.export.example import masked, random_batch
from robustbev.export.graphs import ModelGraph, perception_outputs
from robustbev.export.interface import model_interface
from sensors.errors import SensorDataWarning
from sensors.frames import NOT_GIVEN, CameraImage, LidarSweep, SensorFrame
from sensors.prepare import collate, prepare
from tests.small_replay import CAMERA_CHANNELS, RADAR_CHANNELS, noise_frame
from tests.tiny_model import random_training_batch, tiny_config
from training.data.dataset import DataConfig, with_rig
from training.evaluation.config import every_subset
from training.files.config_file import ConfigError
from training.loop.step import StepConfig, TrainingStep
from training.runs.config import load_run_config

SMALL = {"image_height_px": 32, "image_width_px": 64, "dim": 16, "depth": 1, "heads": 2, "feature_channels": 16}
THERMAL = {"kind": "camera", "channels": ["THERMAL"], **SMALL, "context_channels": 8}
NAMES: dict[str, dict[str, Any]] = {
    "camera": {**SMALL, "depth_bins": {"min_m": 1.0, "max_m": 13.0, "count": 12}}, "thermal": THERMAL,
    "front": {"kind": "lidar", "channels": ["LIDAR_TOP"], "pillar_channels": 8},
    "rear": {"kind": "lidar", "channels": ["LIDAR_REAR"], "pillar_channels": 8},
    "radar": {"width": 8},
}  # fmt: skip
RIG = RigConfig(
    camera_channels=(*CAMERA_CHANNELS, "THERMAL"),
    lidar_channels=("LIDAR_TOP", "LIDAR_REAR"),
    radar_channels=RADAR_CHANNELS,
)


def named(**changes: Any) -> ModelConfig:
    values = tiny_config().model_dump() | {"modalities": NAMES, "rig": RIG.model_dump()} | changes
    return ModelConfig.model_validate(values)


@pytest.fixture(scope="module")
def model() -> PerceptionModel:
    torch.manual_seed(0)
    return robustbev.build(named()).eval()


@pytest.fixture(scope="module")
def frame() -> SensorFrame:
    """Front and rear LiDAR see a half of the turn each; the thermal camera looks ahead."""
    whole = noise_frame(0)
    assert whole.cameras is not None
    assert whole.lidar is not None
    assert whole.cameras[0] is not None
    points = whole.lidar[0].points
    halves = [points[points[:, 0] > 0], points[points[:, 0] <= 0]]
    sweeps = tuple(
        replace(whole.lidar[0], channel=channel, points=half, reference_T_lidar=np.eye(4))
        for channel, half in zip(RIG.lidar_channels, halves, strict=True)
    )
    thermal: CameraImage = replace(whole.cameras[0], channel="THERMAL")
    return replace(whole, cameras=(*whole.cameras, thermal), lidar=sweeps)


def perceive(model: PerceptionModel, frame: SensorFrame) -> Detections:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.perceive(frame, min_score=0)


def without(frame: SensorFrame, *channels: str) -> SensorFrame:
    assert frame.cameras is not None
    assert frame.lidar is not None
    return replace(
        frame,
        cameras=tuple(None if c is None or c.channel in channels else c for c in frame.cameras),
        lidar=tuple(sweep for sweep in frame.lidar if sweep.channel not in channels),
    )


def test_each_has_an_encoder_a_null_and_an_auxiliary_head_of_its_own(model: PerceptionModel) -> None:
    names = tuple(NAMES)
    assert tuple(model.encoders) == tuple(model.auxiliary) == names
    assert tuple(model.image_heads) == ("camera", "thermal")
    state = model.state_dict()
    assert {f"fuser.tokens.null.{name}" for name in names} <= set(state)
    assert model.encoders["front"] is not model.encoders["rear"]


def test_a_frame_is_shared_out_by_channels(model: PerceptionModel, frame: SensorFrame) -> None:
    preparation = robustbev.preparation(model.config)
    batch = collate([prepare(frame, preparation)], preparation)
    assert batch.part("camera").present.shape == (1, len(CAMERA_CHANNELS))
    assert batch.part("thermal").present.tolist() == [[True]]
    assert batch.part("front").points[0, : int(batch.part("front").count), 0].min() > 0
    assert batch.part("rear").points[0, : int(batch.part("rear").count), 0].max() <= 0
    seen = perceive(model, frame)
    assert seen.modalities == tuple(NAMES)
    assert all(sensor.absence is None for sensor in seen.sensors.values())


@pytest.mark.parametrize(("name", "channel"), [("rear", "LIDAR_REAR"), ("thermal", "THERMAL")])
def test_one_of_two_is_lost_by_itself(model: PerceptionModel, frame: SensorFrame, name: str, channel: str) -> None:
    """Its own null takes its place and nobody else is touched: the same bits as of a batch without this part."""
    preparation = robustbev.preparation(model.config)
    with torch.no_grad():
        lost = model(collate([prepare(without(frame, channel), preparation)], preparation))
        expected = model(collate([prepare(frame, preparation)], preparation).having(**{name: None}))
    assert torch.equal(lost.boxes.score, expected.boxes.score)
    assert torch.equal(lost.fused.features, expected.fused.features)
    assert perceive(model, without(frame, channel)).sensors[channel].absence is NOT_GIVEN


def test_a_dead_lidar_takes_only_its_own_cells_with_it(frame: SensorFrame) -> None:
    lidars = {name: NAMES[name] for name in ("front", "rear")}
    rig = RIG.only(("lidar",))
    model = robustbev.build(named(modalities=lidars, rig=rig.model_dump())).eval()
    alone = replace(frame, cameras=None, radar=None)
    dead: LidarSweep = replace(alone.lidar[1], points=np.full((9, 5), np.nan, np.float32))  # type: ignore[index]
    half = replace(alone, lidar=(alone.lidar[0], dead))  # type: ignore[index]
    preparation = robustbev.preparation(model.config)
    with torch.no_grad():
        one = model.encode(collate([prepare(half, preparation)], preparation))
        both = model.encode(collate([prepare(alone, preparation)], preparation))
    assert one["rear"] is None
    assert one["front"] is not None
    assert both["front"] is not None
    assert torch.equal(one["front"].coverage, both["front"].coverage)
    ahead = (
        model.grid.centers_m()[..., 0] > 3
    )  # none of its points lies behind, where it must not stand for the dead one
    behind = model.grid.centers_m()[..., 0] < -3
    assert one["front"].coverage[0][ahead].mean() > 0.9
    assert not one["front"].coverage[0][behind].any()
    assert both["rear"] is not None
    assert both["rear"].coverage[0][behind].mean() > 0.9
    absence = perceive(model, half).sensors["LIDAR_REAR"].absence
    assert absence is not None
    assert "none of 9 points" in absence.reason
    assert not perceive(model, replace(alone, lidar=None)).perceived


def test_a_rig_without_a_named_sensor_is_told_and_perceives(model: PerceptionModel, frame: SensorFrame) -> None:
    less = RIG.model_copy(update={"camera_channels": CAMERA_CHANNELS})
    assert frame.cameras is not None
    with pytest.warns(
        SensorDataWarning, match="modality thermal: the rig has no camera THERMAL, .*: it counts as absent"
    ):
        seen = model.perceive(replace(frame, cameras=frame.cameras[:-1]), less, min_score=0)
    np.testing.assert_array_equal(seen.score, perceive(model, without(frame, "THERMAL")).score)


def test_a_step_teaches_each_by_its_name() -> None:
    torch.manual_seed(0)
    model = robustbev.build(named())
    counts = dict.fromkeys(NAMES, 1)
    batch = random_training_batch(2, sensors=random_batch(model, counts, batch_size=2))
    depth = torch.full((2, 1, 4, 8), 5.0)
    batch = replace(batch, depth_m={"camera": depth, "thermal": depth})
    config = StepConfig.model_validate({"dropout": {"modality": {"thermal": 1.0, "rear": 0.0}, "others": 0.0}})
    step = TrainingStep(model, config)
    drawn = step.draw(batch, torch.Generator().manual_seed(0))
    assert drawn.views is not None
    assert drawn.views[0, 0].tolist() == [True, False, True, True, True]
    parts = step(drawn).parts
    assert {"depth_camera", "depth_thermal", "image_thermal", "auxiliary_rear"} <= set(parts)
    step(drawn).loss.backward()
    assert all(p.grad is not None for p in model.encoders["thermal"].parameters())  # through its auxiliary head


def test_it_is_saved_and_loaded_under_its_names(model: PerceptionModel, frame: SensorFrame, tmp_path: Path) -> None:
    again = load(save(model, tmp_path), "cpu")
    assert again.config == model.config
    np.testing.assert_array_equal(perceive(again, frame).score, perceive(model, frame).score)


@pytest.mark.slow
def test_the_whole_model_exports_and_any_of_them_can_be_taken_away(tmp_path: Path) -> None:
    """Without cameras."""
    torch.manual_seed(0)
    few = {name: {**NAMES[name], "blocks": 0} for name in ("front", "rear")}
    model = robustbev.build(named(modalities=few, rig=RIG.only(("lidar",)).model_dump())).eval()
    path = export(model, tmp_path, kind="pt2", name="few")
    batch = random_batch(model, dict.fromkeys(few, 1), seed=3)
    run = runner(path, "pt2", ModelGraph(model))
    inputs = model_inputs(model, batch)
    assert {"front_lidar_points", "rear_lidar_points", "present"} <= set(inputs)
    for present in ([True, True], [True, False], [False, True]):
        mask = torch.tensor([present]).expand(2, 2)
        with torch.no_grad():
            expected = perception_outputs(model(masked(batch, few, mask)))
        difference = compare(expected, run(inputs | {"present": mask.contiguous()}))
        assert difference.fits, str(difference)


def test_the_inputs_of_a_modality_carry_its_name_where_that_is_not_its_kind(model: PerceptionModel) -> None:
    counts = {"camera": 6, "thermal": 1, "front": 1, "rear": 1, "radar": 5}
    specs = {spec.name: spec for spec in model_interface(model, counts).inputs}
    inputs = model_inputs(model, random_batch(model, counts))
    assert list(specs) == list(inputs)
    assert {"images", "thermal_images", "front_lidar_points", "radar_points"} <= set(specs)
    assert specs["front_lidar_points"].shape[1] != specs["rear_lidar_points"].shape[1]  # each has points of its own
    for name, spec in specs.items():
        assert inputs[name].ndim == len(spec.shape)


def test_subsets_are_of_the_names() -> None:
    subsets = every_subset(tuple(NAMES))
    assert subsets[0] == "camera+thermal+front+rear+radar"
    assert len(subsets) == 1 + 5 + 5
    assert "camera+front+rear+radar" in subsets
    assert "thermal" in subsets


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({"a": {"kind": "lidar"}, "b": {"kind": "lidar"}}, "a and b are both of kind lidar and name no channels"),
        (
            {"a": {"kind": "lidar", "channels": ["TOP"]}, "b": {"kind": "lidar", "channels": ["TOP"]}},
            "channel TOP is named twice by modalities of kind lidar",
        ),
        ({"a": {"dim": 3}}, "kind"),
        ({"all": {"kind": "lidar"}}, "'all' has another meaning already"),
        ({"keys": {"kind": "lidar"}}, "'keys' has another meaning already"),
        ({"training": {"kind": "lidar"}}, "'training' has another meaning already"),
        ({"a b": {"kind": "lidar"}}, "pattern"),
        ({"a": {"kind": "lidar", "channels": ["LIDAR_SIDE"]}}, "modalities.a.channels: the rig has no lidar LIDAR_SIDE"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(modalities: dict[str, Any], message: str) -> None:
    rig = RigConfig(lidar_channels=("LIDAR_TOP",))
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate({"modalities": modalities, "rig": rig.model_dump()})


def test_what_no_other_names_is_left_to_the_one_that_names_nothing() -> None:
    config = named()
    assert config.channels_of("camera", RIG) == CAMERA_CHANNELS
    assert config.channels_of("thermal", RIG) == ("THERMAL",)
    assert config.kinds == ("camera", "lidar", "radar")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"camera": {}, "lidar": null}', "camera: .* before modalities and tasks went by name: .* train anew"),
        ('{"decode": {"max_boxes": 9}}', "decode: .* before modalities and tasks went by name: .* train anew"),
        (
            '{"tasks": {"lanes": {"kind": "lanes"}}}',
            r"tasks\.lanes.* no such task: use the one that it was trained with",
        ),
    ],
)
def test_a_checkpoint_of_another_version_is_told(
    model: PerceptionModel, tmp_path: Path, text: str, message: str
) -> None:
    directory = save(model, tmp_path)
    (directory / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"config\.json: .* {message}"):
        load(directory, "cpu")


def test_what_is_frozen_by_a_modality_s_name_alone_is_told_where_it_lies(model: PerceptionModel) -> None:
    with pytest.raises(
        ValueError, match=r"'thermal'; .*did you mean encoders\.thermal or auxiliary\.thermal or image_heads"
    ):
        model.freeze(["thermal"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{model: {camera: {}}}", "model.camera: unknown key, .*; did you mean model.modalities.camera?"),
        (
            "{model: {modalities: {front: {kind: camera, channels: [A], pillar_channels: 8}}}}",
            "model.modalities.front.pillar_channels: unknown key, expected one of channels, senses, kind, image_height_px",
        ),
        ("{evaluation: {subsets: [typo]}}", "evaluation.subsets: expected some of .* camera, lidar, radar .* got 'typo'"),
        ("{model: {modalities: {on: {kind: lidar}}}}", "the key 'on' is a bool in YAML: expected text"),
        ("{step: {dropout: {modality: {typo: 1.0}}}}", "names 'typo', .* camera, lidar, radar; where a base names it"),
        ("{evaluation: {watch: [typo]}}", "evaluation.watch: expected some of .* camera, lidar, radar .* got 'typo'"),
    ],
)  # fmt: skip
def test_a_run_s_configuration_says_what_is_wrong_with_a_name(words: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(words, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_run_config(path)


def test_a_channel_that_the_data_do_not_have_is_refused_before_training() -> None:
    """Such a checkpoint could not be loaded: its rig lacks a sensor that a modality names."""
    few = ModelConfig.model_validate({"modalities": {"front": {"kind": "lidar", "channels": ["LIDAR_TYPO"]}}})
    with pytest.raises(
        ValueError, match=r"model\.modalities\.front\.channels: the rig has no lidar LIDAR_TYPO, .*LIDAR_TOP; "
    ):
        with_rig(few, DataConfig())
