"""Failures in training: what fails, how often, and that depth is taught of what pictures show; frames altered by the loader."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from robustbev import CameraConfig, GridConfig, LidarConfig, ModelConfig, RadarConfig
from sensors.corruptions import Corruption
from sensors.frames import History, SensorFrame
from sensors.prepare import prepare
from tests.sensors.health.failing_rig import arrays, no_past, past_of, rig_frame
from tests.small_nuscenes import SmallNuScenes
from tests.training.data.test_dataset import assert_equal
from training.data.augmentation import AugmentationConfig
from training.data.dataset import DataConfig, NuScenesDataset
from training.data.failures import FailureConfig, fail
from training.data.loader import build_loader
from training.data.sampling import SampleKey

MODEL = ModelConfig(
    modalities={
        "camera": CameraConfig(image_height_px=64, image_width_px=96), "lidar": LidarConfig(), "radar": RadarConfig()
    },
    grid=GridConfig(),
)  # fmt: skip
EACH = ("camera_lost", "camera_late", "camera_jitter", "view", "lidar_sectors", "lidar_beams", "lidar_points", "lidar_late",
        "lidar_jitter", "radar_late")  # fmt: skip


def only(*names: str, **values: Any) -> FailureConfig:
    """Failures that always happen, and no others."""
    return FailureConfig(**dict.fromkeys(EACH, 0.0) | dict.fromkeys(names, 1.0) | values)


def run(
    config: FailureConfig, frame: SensorFrame, epoch: int = 0, seed: int = 0
) -> tuple[SensorFrame, SensorFrame | None]:
    return fail(frame, config, np.random.default_rng(seed), epoch, past_of(frame))


def test_each_failure_changes_what_it_names_and_nothing_else() -> None:
    frame = rig_frame()
    touched = {"camera": "cameras", "view": "cameras", "lidar": "lidar", "radar": "radar"}
    for name in EACH:
        config = only(name, views=("dark",))
        made, depth = run(config, frame)
        field = touched[name.split("_")[0]]
        assert depth is not None, name
        for other in ("cameras", "lidar", "radar"):
            before, after = getattr(frame, other), getattr(made, other)
            assert (before is after) == (other != field), name
    made, depth = run(only(), frame)
    assert made is frame
    assert depth is None


def test_all_at_once_leaves_a_frame_that_can_be_prepared(small_nuscenes: SmallNuScenes) -> None:
    for seed in range(10):
        made, _ = run(only(*EACH), rig_frame(), seed=seed)
        assert made.cameras is not None
        assert any(camera is not None for camera in made.cameras)
        assert made.lidar_sectors is not None
        assert 18 <= made.lidar_sectors.sum() <= 32
        assert all(np.isfinite(array).all() for array in arrays(made))


def test_absent_sensors_cannot_fail() -> None:
    rigs: list[dict[str, Any]] = [{"cameras": 0}, {"points": -1}, {"radars": 0}, {"cameras": 1, "points": 0}]
    for rig in rigs:
        frame = rig_frame(**rig)
        made, _ = fail(frame, only(*EACH), np.random.default_rng(0), 0, past_of(frame, **rig))
        assert (made.cameras is None) == (frame.cameras is None)
        assert (made.lidar is None) == (frame.lidar is None)
        assert (made.radar is None) == (frame.radar is None)


def test_depth_is_taught_from_what_did_not_fail() -> None:
    frame = rig_frame()
    for name in ("camera_jitter", "lidar_jitter", "lidar_late", "lidar_points", "lidar_sectors", "view"):
        _, depth = run(only(name), frame)
        assert depth is not None
        assert depth.lidar is frame.lidar
        assert all(a is b for a, b in zip(depth.cameras or (), frame.cameras or (), strict=True))


def test_late_and_lost_cameras_are_taught_no_depth() -> None:
    frame = rig_frame()
    made, depth = run(only("camera_late"), frame)
    assert depth is not None
    assert depth.cameras == (None, None, None)
    made, depth = run(only("camera_lost", cameras_lost=(2, 2)), frame)
    assert depth is not None
    present = [camera is not None for camera in made.cameras or ()]
    assert sum(present) == 1
    assert [camera is not None for camera in depth.cameras or ()] == present


def test_probabilities_grow_over_the_first_epochs() -> None:
    frame = rig_frame(cameras=1, size_px=(9, 16), points=32)
    config = only("lidar_points", ramp_epochs=4)
    share = [np.mean([run(config, frame, epoch, seed)[0] is not frame for seed in range(200)]) for epoch in range(6)]
    np.testing.assert_allclose(share, [0, 0.25, 0.5, 0.75, 1, 1], atol=0.13)  # four standard deviations


def test_the_first_keyframe_of_a_scene_cannot_be_late() -> None:
    frame = rig_frame(0)
    made, depth = fail(frame, only("camera_late", "lidar_late", "radar_late"), np.random.default_rng(0), 0, no_past)
    assert made is frame
    assert depth is None


@pytest.mark.parametrize(("values", "message"), [
    ({"cameras_lost": (0, 2)}, "cameras_lost: expected 1 <= low <= high, got 0 and 2"),
    ({"sectors_lost": (4, 36)}, "sectors_lost: expected 1 <= low <= high <= 35, got 4 and 36"),
    ({"points_lost": (0.5, 0.2)}, "points_lost: expected 0 <= low <= high <= 1"),
    ({"view_severity": (1, 6)}, "view_severity"),
    ({"views": ("camera_frozen",)}, "views"),
    ({"beam_steps": ()}, "beam_steps"),
    ({"camera_lost": 1.5}, "camera_lost"),
    ({"camera_loss": 0.5}, "camera_loss"),
])  # fmt: skip
def test_impossible_failures_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FailureConfig(**values)


@pytest.fixture
def config(small_nuscenes: SmallNuScenes) -> DataConfig:
    return DataConfig(nuscenes=small_nuscenes.config, workers=0)


def failing(config: DataConfig, failures: FailureConfig | None) -> DataConfig:
    return config.model_copy(update={"augmentation": AugmentationConfig(failures=failures)})


def test_failures_do_not_depend_on_the_number_of_workers(config: DataConfig) -> None:
    often = failing(config, FailureConfig(**dict.fromkeys(EACH, 0.5)))
    with_workers = often.model_copy(update={"workers": 2})
    one = build_loader(often, MODEL, "small_train", batch_size=1, train=True, seed=3)
    two = build_loader(with_workers, MODEL, "small_train", batch_size=1, train=True, seed=3)
    for epoch in range(2):
        for a, b in zip(one.epoch(epoch), two.epoch(epoch), strict=True):
            assert_equal(a, b)


def test_failures_leave_augmentation_and_depth_as_they_were(config: DataConfig) -> None:
    """The same mirror, turn, cut and depth targets, with and without a LiDAR that lost most of its points."""
    plain = build_loader(failing(config, None), MODEL, "small_train", batch_size=3, train=True, seed=1)
    thin = build_loader(failing(config, only("lidar_points", "lidar_jitter")), MODEL, "small_train", batch_size=3, train=True,
                        seed=1)  # fmt: skip
    (a,), (b,) = plain.epoch(0), thin.epoch(0)
    assert a.sensors.part("lidar") is not None
    assert b.sensors.part("lidar") is not None
    assert (b.sensors.part("lidar").count < a.sensors.part("lidar").count).all()
    assert a.sensors.part("camera") is not None
    assert b.sensors.part("camera") is not None
    assert torch.equal(a.sensors.part("camera").images, b.sensors.part("camera").images)
    assert torch.equal(a.boxes.center_m, b.boxes.center_m)
    assert (a.depth_m["camera"] > 0).any()
    assert torch.equal(a.depth_m["camera"], b.depth_m["camera"])


def test_failures_are_for_training_alone(config: DataConfig) -> None:
    failed = build_loader(failing(config, only(*EACH)), MODEL, "small_val", batch_size=3, train=False)
    clean = build_loader(failing(config, None), MODEL, "small_val", batch_size=3, train=False)
    assert_equal(next(iter(failed.epoch(0))), next(iter(clean.epoch(0))))


def test_the_sample_before_is_found_within_its_scene(config: DataConfig) -> None:
    dataset = NuScenesDataset(config, MODEL, "small_val", train=False, seed=0)
    assert [dataset.reader.previous(i) for i in range(3)] == [None, 0, 1]
    history = dataset.past.history(2)
    tokens = [None if (frame := history(n)) is None else frame.token for n in range(4)]
    assert tokens == ["sample-1-2", "sample-1-1", "sample-1-0", None]


def blind(frame: SensorFrame, history: History) -> SensorFrame:
    """Without LiDAR wherever there is a past."""
    return frame if history(1) is None else replace(frame, lidar=None)


@pytest.mark.parametrize("workers", [0, 1])
def test_frames_are_altered_before_they_are_prepared(config: DataConfig, workers: int) -> None:
    with_workers = config.model_copy(update={"workers": workers})
    loader = build_loader(with_workers, MODEL, "small_val", batch_size=3, train=False, alter=blind)
    (batch,) = loader.epoch(0)
    assert batch.sensors.part("lidar") is not None
    assert batch.sensors.part("lidar").present.tolist() == [[True], [False], [False]]


def test_a_corruption_alters_the_frames_of_a_dataset_that_was_sent_to_a_worker(config: DataConfig) -> None:
    change = Corruption("lidar_lagging", 1)
    dataset = NuScenesDataset(config, MODEL, "small_val", train=False, seed=0, alter=change)
    dataset[SampleKey(0, 0, 0)]  # frames that it keeps do not travel
    dataset = pickle.loads(pickle.dumps(dataset))
    clean = NuScenesDataset(config, MODEL, "small_val", train=False, seed=0)
    late, now = (d[SampleKey(0, 1, 0)].frame.items["lidar"].points for d in (dataset, clean))
    assert late is not None
    assert now is not None
    assert late.shape != now.shape or not np.array_equal(late, now)
    expected = prepare(change(clean.reader.frame(1), clean.past.history(1)), clean.preparation).items["lidar"].points
    np.testing.assert_array_equal(late, expected)
