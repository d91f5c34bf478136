"""The pictures of one sample, of data alone and of what a model found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from bev.detection.boxes import Boxes
from fusion.features import FusedBEV
from robustbev import Perception
from sensors.nuscenes.config import NuScenesConfig
from tests.counting import Counts, counting
from tests.robustbev.results.replay_results import GRID, TWO, boxes, result
from tests.small_nuscenes import SmallNuScenes
from tests.tiny_model import tiny_model
from tests.training.pictures.scene.scenes import scene
from training.data.dataset import DataConfig
from training.runs.config import RunConfig
from training.runs.show import perceive_sample, show, show_found, show_truth


def check(paths: list[Path]) -> None:
    """They are pictures and not blank, and nothing else is left."""
    for path in paths:
        image = cv2.imread(str(path))
        assert image is not None, path
        assert min(image.shape[:2]) > 300
        assert image.std() > 8
        assert not list(path.parent.glob(".*"))


def perception(found: Boxes, *, perceived: bool = True) -> Perception:
    batch = Boxes(*(getattr(found, field.name)[None] for field in dataclasses.fields(Boxes)))
    attention = torch.full((1, 3, *GRID.shape), 1 / 3)
    fused = FusedBEV(torch.zeros(1), attention, torch.full((1, *GRID.shape), float(perceived)))
    return Perception({"detection": batch}, fused, ("camera", "lidar", "radar"), torch.tensor([perceived]))


def test_all_pictures_are_written(tmp_path: Path) -> None:
    one = dataclasses.replace(
        scene(result()), truth=boxes((12.0, -8.0, 0.0, 1, 1.0)), found=None, attention=None, sensors={}
    )
    one = dataclasses.replace(one, frame=dataclasses.replace(one.frame, token="token"))
    truth = show_truth(one, tmp_path)
    seen = {"camera+lidar": perception(TWO), "lidar": perception(TWO), "radar": perception(TWO, perceived=False)}
    found = show_found(one, seen, "camera+lidar", tmp_path)
    assert [path.name for path in (*truth, *found)] == [
        "token_truth.png", "token_truth_cameras.png", "token_camera+lidar.png", "token_camera+lidar_cameras.png",
        "token_camera+lidar_attention.png", "token_subsets.png",
    ]  # fmt: skip
    check([*truth, *found])


def test_a_scene_of_which_nothing_is_known_is_drawn_too(tmp_path: Path) -> None:
    nothing = scene(result(perceived=False), camera_channels=(), truth=Boxes.empty(), sensors={})
    check(show_found(nothing, {"lidar": perception(TWO[:0], perceived=False)}, "lidar", tmp_path))


def test_maps_of_tasks_are_drawn_with_their_truth_beside_them(
    small_nuscenes: SmallNuScenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = counting(tiny_model(camera=None), monkeypatch)
    data = DataConfig(nuscenes=small_nuscenes.config)
    seen, truth = perceive_sample(model, data, "small_val", "sample-1-1", ["lidar", "radar"])
    assert set(seen) == {"lidar", "radar"}
    assert truth["counts/count"].sum() == 2  # the boxes of the sample
    count = Counts(torch.zeros(1, *GRID.shape))
    one = dataclasses.replace(perception(TWO), outputs={**perception(TWO).outputs, "counts": count})
    drawn = []
    for name, truths in (("without", {}), ("with", {"counts/count": np.ones(GRID.shape, np.float32)})):
        show_found(scene(result()), {"lidar": one}, "lidar", tmp_path / name, truth_maps=truths)
        (path,) = (tmp_path / name).glob("*_attention.png")
        drawn.append(cv2.imread(str(path)).shape)
    assert drawn[0] != drawn[1]  # one panel more of the same width in all


def test_pictures_of_the_real_keyframe(real_config: NuScenesConfig, tmp_path: Path) -> None:
    check(show(RunConfig(data=DataConfig(nuscenes=real_config)), tmp_path))
