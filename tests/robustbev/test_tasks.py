"""What a task beside detection may rely on, from its head to what a robot and a file are given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fusion.runtime import TensorSpec
from robustbev import PerceptionModel, RigConfig
from robustbev.export import ExportError, _check_outputs
from robustbev.export.check import compare
from robustbev.export.graphs import ModelGraph, perception_outputs
from robustbev.export.interface import model_interface
from robustbev.precision import Precision
from robustbev.results.ticks import tick_result
from sensors.batch import SensorBatch
from tests.counting import Counts, CountsTask, counting
from tests.small_replay import CAMERA_CHANNELS, RADAR_CHANNELS, noise_frame, noise_tick
from tests.tiny_model import random_sensors, tiny_config, tiny_model

RIG = RigConfig(camera_channels=CAMERA_CHANNELS, lidar_channels=("LIDAR_TOP",), radar_channels=RADAR_CHANNELS)
SENSORS = {"camera": 6, "lidar": 1, "radar": 5}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> PerceptionModel:
    return counting(tiny_model(rig=RIG.model_dump()), monkeypatch).eval()


def one_camera() -> SensorBatch:
    """Of six, which sees a part of the grid."""
    batch = random_sensors().only(("camera",))
    batch.part("camera").present[:, 1:] = False
    return batch


def test_it_answers_with_any_subset_and_boxes_stay_as_they_were(model: PerceptionModel) -> None:
    with torch.no_grad():
        seen, plain = model(one_camera()), tiny_model()(one_camera())
    assert torch.equal(seen.boxes.score, plain.boxes.score)
    known = ~seen.outputs["counts"].count.isnan()
    assert 0 < known.float().mean() < 1
    assert torch.equal(known, seen.fused.coverage > 0)
    shown = seen.maps(1)["counts/count"]
    assert (list(seen.maps(1)), shown.low, shown.high) == (["counts/count"], 0.0, 2.0)
    np.testing.assert_array_equal(shown.values, seen.outputs["counts"].count[1])
    np.testing.assert_array_equal(np.nanmax(shown.shares), np.nanmax(shown.values.clip(0, 2)) / 2)


def test_where_nothing_is_perceived_nothing_is_said(model: PerceptionModel) -> None:
    """Whatever the task itself says there."""
    with torch.no_grad():
        seen = model(random_sensors().only(()))
    claims = replace(seen, outputs={**seen.outputs, "counts": Counts(torch.zeros(2, 16, 16))})
    assert np.isnan(claims.maps(0)["counts/count"].shares).all()
    frame = noise_frame(3)
    outputs = model.perceive(frame).outputs
    assert list(outputs) == ["counts"]
    assert outputs["counts"]["count"].shape == (16, 16)
    assert model.perceive(replace(frame, cameras=None, lidar=None, radar=None)).outputs == {}


def test_logits_come_in_float32_whatever_the_head_computes_in(model: PerceptionModel) -> None:
    model.precision = Precision("bfloat16", "asked for")
    outputs = model.perceive(noise_frame(3)).outputs
    assert model.heads["counts"].dtype == torch.bfloat16
    assert outputs["counts"]["count"].dtype == np.float32


def test_a_task_that_is_null_is_not_asked_and_detection_always_is() -> None:
    assert list(tiny_config(tasks={"counts": None}).tasks) == ["detection"]


def test_a_tick_has_its_maps(model: PerceptionModel) -> None:
    with torch.no_grad():
        seen = model(random_sensors(1))
    assert list(tick_result(noise_tick(3), seen, model.config).maps) == ["counts/count"]


def test_a_map_that_does_not_lie_on_the_grid_is_refused(model: PerceptionModel) -> None:
    with torch.no_grad():
        seen = model(random_sensors())
    coarse = replace(seen, outputs={"counts": Counts(torch.zeros(2, 8, 8))})
    with pytest.raises(ValueError, match=r"map counts/count: expected .* \[16, 16\], got \[8, 8\]: give"):
        coarse.maps(0)


def test_an_exported_file_has_its_outputs_under_its_name(model: PerceptionModel) -> None:
    outputs = model_interface(model, SENSORS).outputs
    assert [spec.name for spec in outputs[7:]] == ["counts_count", "perceived", "attention", "coverage"]
    assert ModelGraph(model).outputs == tuple(spec.name for spec in outputs)


def test_two_tensors_of_one_name_are_refused(model: PerceptionModel) -> None:
    model.config = model.config.model_copy(
        update={"tasks": {**model.config.tasks, "lidar": model.config.tasks["counts"]}}
    )
    model.heads["lidar"] = model.heads["counts"]
    with pytest.raises(ExportError, match=r"would be called 'lidar_count'.*another name"):
        model_interface(model, SENSORS)


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ((), r"output counts_count: .* no such output for a batch of 2, and the model gives float32 \[2, 16, 16\]"),
        ((("count", "float32", (16, "B", 16)),), r"float32 \[16, 2, 16\] for .* gives float32 \[2, 16, 16\]"),
        ((("count", "int64", ("B", 16, 16)),), r"int64 \[2, 16, 16\] for .* gives float32"),
        ((("count", "float32", ("B", 16, 16)), ("sum", "float32", ("B",))), r"counts_sum: .* gives none: correct"),
    ],
)
def test_an_interface_that_is_not_the_output_s_is_told(
    model: PerceptionModel, monkeypatch: pytest.MonkeyPatch, specs: tuple[Any, ...], words: str
) -> None:
    with torch.no_grad():
        expected = perception_outputs(model(random_sensors()))
    _check_outputs(model_interface(model, SENSORS), expected)
    monkeypatch.setattr(CountsTask, "interface", lambda self: tuple(TensorSpec(*spec) for spec in specs))
    with pytest.raises(ExportError, match=words):
        _check_outputs(model_interface(model, SENSORS), expected)


def test_an_exported_output_may_be_nan_where_the_models_is_and_nowhere_else(model: PerceptionModel) -> None:
    with torch.no_grad():
        expected = perception_outputs(model(one_camera()))
    assert compare(expected, expected).fits
    for wrong in (expected["counts_count"].nan_to_num(), torch.full((2, 16, 16), torch.nan)):
        difference = compare(expected, expected | {"counts_count": wrong})
        assert (difference.fits, difference.where) == (False, "counts_count")
