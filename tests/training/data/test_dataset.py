"""From a data set to batches: what a training loop may rely on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import robustbev
from robustbev import CameraConfig, GridConfig, LidarConfig, ModelConfig, RadarConfig
from sensors.errors import SensorDataError, SensorDataWarning
from sensors.nuscenes.config import NuScenesConfig
from tests.small_nuscenes import SmallNuScenes
from training.data.augmentation import AugmentationConfig
from training.data.batch import TrainingBatch
from training.data.dataset import DataConfig, open_reader, with_rig
from training.data.loader import build_loader
from training.loop.step import modality_present

MODEL = ModelConfig(
    modalities={
        "camera": CameraConfig(image_height_px=64, image_width_px=96), "lidar": LidarConfig(), "radar": RadarConfig()
    },
    grid=GridConfig(),
)  # fmt: skip
PLAIN = AugmentationConfig(bev=None, image=None)


@pytest.fixture
def config(small_nuscenes: SmallNuScenes) -> DataConfig:
    return DataConfig(nuscenes=small_nuscenes.config, workers=0)


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in a batch, in order."""
    if isinstance(value, Tensor):
        return [value]
    if hasattr(value, "__dataclass_fields__"):
        return [tensor for f in fields(value) for tensor in tensors(getattr(value, f.name))]
    if isinstance(value, Mapping):
        return [tensor for part in value.values() for tensor in tensors(part)]
    return []


def assert_equal(one: TrainingBatch, two: TrainingBatch) -> None:
    assert one.tokens == two.tokens
    pairs = list(zip(tensors(one), tensors(two), strict=True))
    assert len(pairs) > 20
    for a, b in pairs:
        assert torch.equal(a.nan_to_num(-1e9), b.nan_to_num(-1e9))


def test_a_training_batch_has_everything_in_its_place(config: DataConfig) -> None:
    loader = build_loader(config, MODEL, "small_train", batch_size=2, train=True)
    assert len(loader) == 1
    (batch,) = loader.epoch(0)
    sensors = batch.sensors
    assert sensors.part("camera") is not None
    assert sensors.part("lidar") is not None
    assert sensors.part("radar") is not None
    assert sensors.part("camera").images.shape == (2, 1, 3, 64, 96)
    assert sensors.part("camera").images.dtype == torch.uint8
    assert sensors.part("camera").lift is not None
    assert sensors.part("lidar").points.shape[::2] == (2, 5)
    assert sensors.part("radar").present.tolist() == [[True, False]] * 2
    assert batch.depth_m["camera"].shape == (2, 1, 8, 12)
    assert (batch.depth_m["camera"] > 0).any()
    assert batch.box_valid.any(dim=1).all()
    assert batch.boxes.center_m.shape == (*batch.box_valid.shape, 3)
    assert batch.to("cpu").tokens == batch.tokens


def test_for_a_gpu_the_model_makes_the_lift_table_and_gives_the_same(config: DataConfig) -> None:
    (batch,) = build_loader(config, MODEL, "small_train", batch_size=2, train=True).epoch(0)
    (bare,) = build_loader(config, MODEL, "small_train", batch_size=2, train=True, device="cuda").epoch(0)
    assert batch.sensors.part("camera") is not None
    assert bare.sensors.part("camera") is not None
    assert bare.sensors.part("camera").lift is None
    camera = robustbev.build(MODEL).eval().encoder("camera")
    assert camera is not None
    with torch.inference_mode():
        assert torch.equal(
            camera(bare.sensors.part("camera")).bev.features, camera(batch.sensors.part("camera")).bev.features
        )


def test_points_and_boxes_agree_after_augmentation(config: DataConfig) -> None:
    """The truth of a world in which every sweep sees the same points: distances from box to points do not change."""
    plain = build_loader(config.model_copy(update={"augmentation": PLAIN, "keep_outside": True}), MODEL, "small_train",
                         batch_size=1, train=False)  # fmt: skip
    wild = build_loader(
        config.model_copy(update={"keep_outside": True}), MODEL, "small_train", batch_size=1, train=True
    )
    before = {batch.tokens[0]: batch for batch in plain.epoch(0)}
    for batch in wild.epoch(0):
        assert batch.sensors.part("lidar") is not None
        other = before[batch.tokens[0]]
        assert other.sensors.part("lidar") is not None
        count = int(batch.sensors.part("lidar").count[0])
        assert count == int(other.sensors.part("lidar").count[0])
        scale = batch.boxes.size_m[0, 0, 0] / other.boxes.size_m[0, 0, 0]
        distance = (batch.sensors.part("lidar").points[0, :count, :3] - batch.boxes.center_m[0, 0]).norm(dim=1) / scale
        expected = (other.sensors.part("lidar").points[0, :count, :3] - other.boxes.center_m[0, 0]).norm(dim=1)
        torch.testing.assert_close(distance, expected, atol=1e-3, rtol=1e-4)


def test_evaluation_is_in_order_without_changes_and_with_all_truth(config: DataConfig) -> None:
    loader = build_loader(config, MODEL, "small_val", batch_size=2, train=False)
    batches = list(loader.epoch(0))
    assert [batch.tokens for batch in batches] == [("sample-1-0", "sample-1-1"), ("sample-1-2",)]
    assert batches[0].indices == (0, 1)
    assert batches[0].box_valid.sum(dim=1).tolist() == [1, 2]  # the child without a point too
    truth = loader.reader.boxes(0)
    torch.testing.assert_close(batches[0].boxes.center_m[0, :1], truth.center_m)
    assert_equal(batches[0], next(iter(loader.epoch(5))))


def test_training_truth_leaves_out_boxes_without_points_and_outside_the_grid(config: DataConfig) -> None:
    plain = config.model_copy(update={"augmentation": PLAIN})
    loader = build_loader(plain, MODEL, "small_train", batch_size=3, train=True)
    (batch,) = loader.epoch(0)
    assert batch.box_valid.sum(dim=1).tolist() == [1, 1, 1]
    strict = build_loader(plain.model_copy(update={"min_points": 23}), MODEL, "small_train", batch_size=3, train=True)
    (batch,) = strict.epoch(0)
    assert not batch.box_valid.any()
    narrow = MODEL.model_copy(update={"grid": GridConfig(x_min_m=-3.2, x_max_m=3.2, y_min_m=-3.2, y_max_m=3.2)})
    (batch,) = build_loader(plain, narrow, "small_train", batch_size=3, train=True).epoch(0)
    assert not batch.box_valid.any()


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_batches_do_not_depend_on_the_number_of_workers(config: DataConfig, start_method: str) -> None:
    with_workers = config.model_copy(update={"workers": 2, "start_method": start_method})
    one = build_loader(config, MODEL, "small_train", batch_size=1, train=True, seed=3)
    two = build_loader(with_workers, MODEL, "small_train", batch_size=1, train=True, seed=3)
    for epoch in range(2):
        for a, b in zip(one.epoch(epoch), two.epoch(epoch), strict=True):
            assert_equal(a, b)


def test_a_resumed_epoch_gives_the_batches_that_were_left(config: DataConfig) -> None:
    whole = list(build_loader(config, MODEL, "small_train", batch_size=1, train=True).epoch(4))
    rest = list(build_loader(config, MODEL, "small_train", batch_size=1, train=True).epoch(4, start=1))
    assert len(rest) == len(whole) - 1
    for a, b in zip(whole[1:], rest, strict=True):
        assert_equal(a, b)


def test_an_epoch_that_was_left_early_does_not_leak_into_the_next(config: DataConfig) -> None:
    with_worker = config.model_copy(update={"workers": 1})
    loader = build_loader(with_worker, MODEL, "small_train", batch_size=1, train=True)
    next(iter(loader.epoch(0)))
    expected = build_loader(config, MODEL, "small_train", batch_size=1, train=True)
    for a, b in zip(loader.epoch(1), expected.epoch(1), strict=True):
        assert_equal(a, b)


def test_a_loader_leaves_the_runs_random_numbers_alone(config: DataConfig) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(build_loader(config, MODEL, "small_train", batch_size=1, train=True).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_sensors_that_the_model_does_not_use_are_not_read(config: DataConfig, small_nuscenes: SmallNuScenes) -> None:
    model = MODEL.model_copy(update={"modalities": {"lidar": MODEL.modalities["lidar"]}})
    (batch,) = build_loader(config, model, "small_train", batch_size=3, train=True).epoch(0)
    assert batch.sensors.part("camera") is None
    assert batch.sensors.part("radar") is None
    assert not batch.depth_m
    cameras_only = MODEL.model_copy(update={"modalities": {"camera": MODEL.modalities["camera"]}})
    (batch,) = build_loader(config, cameras_only, "small_train", batch_size=3, train=True).epoch(0)
    assert batch.sensors.part("lidar") is None
    assert batch.depth_m  # LiDAR still teaches depth


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_ends_the_epoch_with_its_own_words(
    small_nuscenes: SmallNuScenes, tmp_path: Path, workers: int
) -> None:
    shutil.copytree(small_nuscenes.root, tmp_path / "copy")
    path = tmp_path / "copy/samples/LIDAR_TOP/LIDAR_TOP-0-3.pcd.bin"
    path.write_bytes(path.read_bytes()[:-1])
    nuscenes = small_nuscenes.config.model_copy(update={"root": tmp_path / "copy"})
    loader = build_loader(
        DataConfig(nuscenes=nuscenes, workers=workers), MODEL, "small_train", batch_size=1, train=False
    )
    with pytest.raises(SensorDataError, match=r"^LIDAR_TOP: .*LIDAR_TOP-0-3\.pcd\.bin \(token LIDAR_TOP-0-3\)"):
        list(loader.epoch(0))


def test_dropped_points_are_counted_in_the_batch(small_nuscenes: SmallNuScenes, tmp_path: Path) -> None:
    import numpy as np

    shutil.copytree(small_nuscenes.root, tmp_path / "copy")
    path = tmp_path / "copy/samples/LIDAR_TOP/LIDAR_TOP-0-0.pcd.bin"
    points = np.fromfile(path, "<f4").reshape(-1, 5)
    points[:17, 0] = np.nan
    points.tofile(path)
    nuscenes = small_nuscenes.config.model_copy(update={"root": tmp_path / "copy"})
    loader = build_loader(DataConfig(nuscenes=nuscenes, workers=0), MODEL, "small_train", batch_size=1, train=False)
    batch = next(iter(loader.epoch(0)))
    assert batch.dropped.lidar_not_finite == 17
    assert batch.sensors.part("lidar") is not None
    assert batch.sensors.part("lidar").points.isfinite().all()


@pytest.mark.parametrize("train", [True, False])
def test_a_sample_whose_lidar_gave_nothing_usable_counts_as_without_and_is_told(
    small_nuscenes: SmallNuScenes, tmp_path: Path, train: bool
) -> None:
    """Whole files of zeros, which no check of files can refuse."""
    root = tmp_path / "copy"
    shutil.copytree(small_nuscenes.root, root)
    for file in (*root.glob("samples/LIDAR_TOP/LIDAR_TOP-0-3*"), *root.glob("sweeps/LIDAR_TOP/LIDAR_TOP-0-[12]*")):
        file.write_bytes(bytes(file.stat().st_size))
    nuscenes = small_nuscenes.config.model_copy(update={"root": root})
    loader = build_loader(DataConfig(nuscenes=nuscenes, workers=0), MODEL, "small_train", batch_size=3, train=train)
    with pytest.warns(SensorDataWarning) as told:
        (batch,) = loader.epoch(0)
    (message,) = [str(warning.message) for warning in told]
    assert (
        "LIDAR_TOP counts as absent in sample sample-0-1: none of 600 points in 3 sweeps is usable: 600 on the"
        in message
    )
    assert batch.sensors.part("lidar") is not None
    present = dict(zip(batch.tokens, batch.sensors.part("lidar").present.tolist(), strict=True))
    assert present == {"sample-0-0": [True], "sample-0-1": [False], "sample-0-2": [True]}
    assert batch.dropped.lidar_near >= 600
    assert modality_present(batch.sensors, tuple(MODEL.modalities))[batch.tokens.index("sample-0-1")].tolist() == [
        True,
        False,
        True,
    ]


def test_labels_and_attributes_are_numbered_as_the_model_numbers_them(config: DataConfig) -> None:
    model = MODEL.model_copy(update={"classes": tuple(reversed(MODEL.classes))})
    reader = open_reader(config, model, "small_train")
    assert model.classes[int(reader.boxes(0).label[0])] == "car"


def test_one_training_batch_of_the_real_keyframe_at_full_size(real_config: NuScenesConfig) -> None:
    camera = CameraConfig(image_height_px=256, image_width_px=704)
    model = ModelConfig(
        modalities={"camera": camera, "lidar": LidarConfig(), "radar": RadarConfig()},
        grid=GridConfig(x_min_m=-51.2, x_max_m=51.2, y_min_m=-51.2, y_max_m=51.2, z_min_m=-5.0, z_max_m=3.0),
    )
    loader = build_loader(DataConfig(nuscenes=real_config, workers=0), model, "mini_train", batch_size=1, train=True)
    (batch,) = loader.epoch(0)
    assert batch.sensors.part("camera") is not None
    assert batch.sensors.part("camera").images.shape == (1, 6, 3, 256, 704)
    assert batch.sensors.part("radar") is not None
    assert batch.sensors.part("radar").present.tolist() == [[True]]
    assert (batch.depth_m["camera"] > 0).sum() > 1000
    assert 40 < int(batch.box_valid.sum()) < 68


@pytest.mark.parametrize(
    ("rear", "radar_channels", "name", "kind"),
    [({"kind": "lidar", "channels": []}, ("RADAR_FRONT",), "rear", "lidar"), (None, (), "radar", "radar")],
)
def test_a_modality_without_any_sensor_is_told(
    rear: dict[str, Any] | None, radar_channels: tuple[str, ...], name: str, kind: str
) -> None:
    model = ModelConfig.model_validate({"modalities": {"lidar": {}, "radar": {}, "rear": rear}})
    data = DataConfig(nuscenes=NuScenesConfig(radar_channels=radar_channels))
    with pytest.warns(SensorDataWarning) as told:
        with_rig(model, data)
    (message,) = (str(warning.message) for warning in told)
    assert message.startswith(
        f"model.modalities.{name}: data.nuscenes.{kind}_channels has none for it: it will be absent"
    )
    assert f"set model.modalities.{name}=null, or name its channels" in message
