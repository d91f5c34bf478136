"""What keeps `perceive` quick, and changes no bit of what it answers: kept lift tables, a warm-up, several threads."""

from __future__ import annotations

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bev.lift.kept
import robustbev
from bev.lift.table import build_lift_table
from robustbev import Detections, PerceptionModel, RigConfig, load, save
from robustbev.inference import subsets_of
from sensors.frames import CameraImage, SensorFrame
from tests.small_replay import CAMERA_CHANNELS, RADAR_CHANNELS, noise_frame
from tests.tiny_model import tiny_model

RIG = RigConfig(camera_channels=CAMERA_CHANNELS, lidar_channels=("LIDAR_TOP",), radar_channels=RADAR_CHANNELS)


@pytest.fixture
def model() -> PerceptionModel:
    return tiny_model(rig=RIG.model_dump()).eval()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry a table that is built."""
    calls: list[int] = []
    build = build_lift_table

    def counting(*tensors: torch.Tensor, **of: Any) -> Any:
        calls.append(len(calls))
        return build(*tensors, **of)

    monkeypatch.setattr(bev.lift.kept, "build_lift_table", counting)
    return calls


def assert_same(got: Detections, expected: Detections) -> None:
    for field in fields(Detections):
        mine, theirs = getattr(got, field.name), getattr(expected, field.name)
        if isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, theirs, err_msg=field.name)
        elif field.name != "outputs":
            assert mine == theirs, field.name


def cameras_of(frame: SensorFrame) -> list[CameraImage]:
    return [camera for camera in frame.cameras or () if camera is not None]


def moved(frame: SensorFrame, step_m: float) -> SensorFrame:
    change = np.eye(4)
    change[0, 3] = step_m
    cameras = [replace(c, reference_T_camera=change @ c.reference_T_camera) for c in cameras_of(frame)]
    return replace(frame, cameras=tuple(cameras))


def fresh(model: PerceptionModel, frame: SensorFrame) -> Detections:
    """What a model answers that has kept nothing."""
    return copy.deepcopy(model).perceive(frame)


def test_a_table_is_built_once_a_calibration_and_changes_no_bit(model: PerceptionModel, built: list[int]) -> None:
    first, second = noise_frame(3), noise_frame(4)
    cameras = [
        replace(new, intrinsics=old.intrinsics, reference_T_camera=old.reference_T_camera)
        for old, new in zip(cameras_of(first), cameras_of(second), strict=True)
    ]
    second = replace(second, cameras=tuple(cameras))  # other pictures, the same calibration
    model.perceive(first)
    kept = model.perceive(second)
    assert len(built) == 1
    assert_same(kept, fresh(model, second))


def test_another_calibration_or_another_lost_camera_has_a_table_of_its_own(
    model: PerceptionModel, built: list[int]
) -> None:
    frame = noise_frame(3)
    lost = replace(frame, cameras=tuple(cameras_of(frame)[1:]))
    for other in (frame, moved(frame, 1e-6), lost, frame, lost):
        answer = model.perceive(other)
        assert_same(answer, fresh(model, other))
    assert len(model.tables) == 3


def test_tables_are_few_and_the_least_lately_used_goes(model: PerceptionModel, built: list[int]) -> None:
    frame = noise_frame(3)
    for step in range(20):
        model.perceive(moved(frame, 0.1 * step))
        model.perceive(frame)  # asked for again and again, it stays
    assert len(model.tables) == 4
    assert len(built) == 20
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(other.tables) == 0


def test_who_trains_on_a_batch_is_given_no_tensor_of_inference(model: PerceptionModel) -> None:
    frame = noise_frame(3)
    model.perceive(frame)
    features = model.train().encode(model.batch([frame, frame]))["camera"]
    assert features is not None
    features.features.sum().backward()


def test_a_batch_of_another_size_has_another_table(model: PerceptionModel) -> None:
    frame = noise_frame(3)
    one, two = model.batch([frame]), model.batch([frame, frame])
    table = two.part("camera").lift
    assert table.visible.shape[0] == 2 * one.part("camera").lift.visible.shape[0]


def test_several_threads_are_answered_as_one_to_the_bit(model: PerceptionModel) -> None:
    """Of every subset and several calibrations at a time, more than are kept."""
    frames = []
    for seed in range(3):
        whole = moved(noise_frame(seed), 0.2 * seed)
        fields_of: dict[str, Any] = {"camera": "cameras", "lidar": "lidar", "radar": "radar"}
        for subset in subsets_of(tuple(model.config.modalities)):
            gone: dict[str, Any] = {f: None for name, f in fields_of.items() if name not in subset}
            frames.append(replace(whole, **gone))
    expected = [fresh(model, frame) for frame in frames]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(model.perceive, frames * 3))
    for answer, frame_answer in zip(answers, expected * 3, strict=True):
        assert_same(answer, frame_answer)


def test_a_warm_up_answers_every_subset_says_nothing_and_leaves_no_trace(
    model: PerceptionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, ...]] = []
    forward = model.perceive_features

    def watching(features: Any, batch_size: int) -> Any:
        seen.append(tuple(part is not None for part in features.values()))
        return forward(features, batch_size)

    monkeypatch.setattr(model, "perceive_features", watching)
    expected = fresh(model, noise_frame(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.warm_up()
    assert len(set(seen)) == 7
    assert all(map(any, seen))
    monkeypatch.undo()
    assert_same(model.perceive(noise_frame(3)), expected)


def test_a_warm_up_of_a_model_that_does_not_know_its_sensors_wants_their_names() -> None:
    unknown = tiny_model().eval()
    with pytest.raises(ValueError, match="does not name its sensors"):
        unknown.warm_up()
    unknown.warm_up(RIG)


def test_load_sets_the_threads_of_the_process(model: PerceptionModel, tmp_path: Path) -> None:
    save(model, tmp_path)
    before = torch.get_num_threads()
    try:
        load(tmp_path, threads=2)
        assert torch.get_num_threads() == 2
        load(tmp_path)
        assert torch.get_num_threads() == 2
        for wrong in (0, True, 1.5):
            with pytest.raises(ValueError, match="threads: expected None or a number from 1 on"):
                robustbev.load(tmp_path, threads=wrong)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)
