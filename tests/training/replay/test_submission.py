"""A submission from a replay: each sample the boxes of its tick, in the global frame, as the devkit reads them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from bev.detection.boxes import Boxes
from robustbev.results.result import TickResult
from sensors.calibration import transforms
from sensors.frames import SensorFrame
from sensors.logs.log import LogWarning
from sensors.replay.tick import SensorState, SensorStatus, Tick
from tests.small_nuscenes import SmallNuScenes
from training.replay.submission import SubmissionWriter, scene_samples

BEGIN_US = 1_600_000_000_000_000
POSE = transforms([100.0, 50.0, 1.0, np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)])  # the car looks along the map's y


def result(offset_us: int, score: float = 0.5, *, perceived: bool = True, camera: bool = True) -> TickResult:
    """One car 10 m ahead and 2 m to the left, driving away at 5 m/s."""
    time_us = BEGIN_US + offset_us
    box = Boxes(
        center_m=torch.tensor([[10.0, 2.0, 0.5]]), size_m=torch.tensor([[2.0, 4.0, 1.5]]), yaw_rad=torch.zeros(1),
        velocity_mps=torch.tensor([[5.0, 0.0]]), label=torch.tensor([0]), attribute=torch.tensor([-1]),
        score=torch.tensor([score]),
    )  # fmt: skip
    states = {
        "lidar": SensorState.OK,
        "camera": SensorState.OK if camera else SensorState.STALE,
        "radar": SensorState.LATE,
    }
    return TickResult(
        tick=Tick(
            0, time_us, time_us, SensorFrame("tick", time_us, None, None, None, POSE),
            {name.upper(): SensorStatus(name.upper(), name, state, 0) for name, state in states.items()}, True,
        ),
        perceived=perceived,
        boxes=Boxes.empty(),
        candidates=box if perceived else Boxes.empty(),
        modalities=("camera", "lidar", "radar"),
        attention=np.zeros((3, 1, 1), np.float32),
        classes=("car",),
        attributes=("vehicle.moving",),
        trust={},
    )  # fmt: skip


def written(
    path: Path, *results: TickResult, samples: dict[str, int]
) -> tuple[dict[str, list[dict[str, object]]], list[str]]:
    """The samples' boxes, and what was told of those without."""
    writer = SubmissionWriter(path, {token: BEGIN_US + t for token, t in samples.items()})
    for each in results:
        writer.write(each)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LogWarning)
        writer.close()
    return json.loads(path.read_text())["results"], [str(one.message).partition(": ")[2] for one in caught]


def test_boxes_are_in_the_global_frame(tmp_path: Path) -> None:
    rows, _ = written(tmp_path / "r.json", result(0), samples={"a": 0})
    [row] = rows["a"]
    assert row["translation"] == pytest.approx([98.0, 60.0, 1.5])
    assert row["velocity"] == pytest.approx([0.0, 5.0], abs=1e-6)
    assert row["rotation"] == pytest.approx([np.sqrt(0.5), 0, 0, np.sqrt(0.5)], abs=1e-6)
    assert (row["sample_token"], row["detection_name"], row["attribute_name"]) == ("a", "car", "vehicle.moving")


def test_a_sample_takes_the_nearest_tick_within_50_ms(tmp_path: Path) -> None:
    ticks = [result(t, score) for t, score in ((-30_000, 0.1), (20_000, 0.2), (450_000, 0.3), (949_999, 0.4))]
    rows, told = written(tmp_path / "r.json", *ticks, samples={"a": 0, "b": 500_000, "c": 1_000_000})
    assert [[row["detection_score"] for row in rows[token]] for token in "abc"] == [
        [pytest.approx(0.2)], [pytest.approx(0.3)], [],
    ]  # fmt: skip
    (line,) = told
    assert line.startswith("1 of 3 samples have no box because no tick is near them, as c: the format has no word")


def test_a_tick_without_perception_answers_with_no_box_and_is_told(tmp_path: Path) -> None:
    rows, told = written(
        tmp_path / "r.json", result(0, perceived=False), result(500_000), samples={"a": 0, "b": 500_000}
    )
    assert rows["a"] == []
    assert [line.partition(":")[0] for line in told] == [
        "1 of 2 samples have no box because nothing was perceived there, as a"
    ]
    # A nearer tick that sees takes back what was said.
    _, told = written(tmp_path / "r.json", result(-10_000, perceived=False), result(5_000), samples={"a": 0})
    assert not told


def test_the_meta_says_which_modalities_the_model_was_given(tmp_path: Path) -> None:
    written(tmp_path / "r.json", result(0, camera=False), samples={"a": 0})
    meta = json.loads((tmp_path / "r.json").read_text())["meta"]
    assert {name for name, used in meta.items() if used} == {"use_lidar"}


def test_nothing_is_written_before_the_end_or_after_an_abort(tmp_path: Path) -> None:
    writer = SubmissionWriter(tmp_path / "r.json", {"a": BEGIN_US})
    writer.write(result(0))
    assert list(tmp_path.iterdir()) == []
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_log_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a nuScenes submission answers samples, and this log has none"):
        SubmissionWriter(tmp_path / "r.json", {})


def test_the_devkit_reads_the_submission_of_a_scene(small_nuscenes: SmallNuScenes, tmp_path: Path) -> None:
    from nuscenes.eval.common.loaders import load_prediction
    from nuscenes.eval.detection.data_classes import DetectionBox

    from sensors.nuscenes.index import open_index

    scene = open_index(small_nuscenes.config).meta.scenes[0]
    samples = scene_samples(small_nuscenes.config, scene)
    assert len(samples) == 3
    assert list(samples.values()) == sorted(samples.values())
    written(tmp_path / "r.json", *(result(t) for t in samples.values()), samples=samples)
    boxes, _ = load_prediction(str(tmp_path / "r.json"), 500, DetectionBox)
    assert boxes.sample_tokens == list(samples)
    assert len(boxes.all) == 3
    with pytest.raises(ValueError, match=f"no scene 'scene-x'; scenes there: {scene}"):
        scene_samples(small_nuscenes.config, "scene-x")
