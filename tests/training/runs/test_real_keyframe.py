"""The real nuScenes keyframe: the tiny model learns it by heart, and configs/nuscenes.yaml takes a whole training step on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import robustbev
from sensors.camera.vit_weights import load_vit_weights
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import build_index
from tests.small_nuscenes import lidar_points
from training.data.batch import TrainingBatch
from training.data.loader import build_loader
from training.loop.callbacks import Callback, StepRecord
from training.loop.checkpoint import TrainingState
from training.loop.optim import AveragedWeights, build_optimizer
from training.loop.step import TrainingStep
from training.loop.train import Plan, train
from training.runs.config import RunConfig, load_run_config
from training.tasks.detection.matching import match

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


class Repeated:
    """`training.loop.train.Batches`: one batch again and again."""

    def __init__(self, batch: TrainingBatch, steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int) -> Iterator[TrainingBatch]:
        return iter([self.batch] * (self.steps - start))


class Records(Callback):
    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)


def on_keyframe(name: str, data: NuScenesConfig, *overrides: str) -> RunConfig:
    """A shipped configuration on the real keyframe, whose radars and sweeps are what it has."""
    settings = {"root": data.root, "version": data.version, "train_split": "mini_train", "index_dir": data.index_dir}
    radars = f"data.nuscenes.radar_channels=[{', '.join(data.radar_channels)}]"
    build_index(data)
    return load_run_config(
        CONFIGS / name, [*(f"data.nuscenes.{key}={value}" for key, value in settings.items()), radars, *overrides]
    )


def first_batch(config: RunConfig, batch_size: int = 1) -> TrainingBatch:
    loader = build_loader(config.data, config.model, "mini_train", batch_size=batch_size, train=True, seed=config.seed)
    return next(iter(loader.epoch(0)))


@pytest.mark.slow
def test_the_tiny_model_learns_the_keyframe_by_heart(real_config: NuScenesConfig) -> None:
    """At least 90% of the boxes with 5 or more LiDAR points are found within 1 m and with the right class."""
    torch.manual_seed(0)
    config = on_keyframe("tiny.yaml", real_config, "data.workers=0", "optim.lr=0.003")
    batch = first_batch(config)
    model = robustbev.build(config.model)
    step = TrainingStep(model, config.step)
    state = TrainingState(model, build_optimizer(model, config.optim), None)
    plan = Plan(epochs=1, optim=config.optim)
    train(state, step, step.draw, Repeated(batch, 45), plan, device=torch.device("cpu"))
    loader = build_loader(config.data, config.model, "mini_train", batch_size=1, train=False)
    with torch.no_grad():
        perception = model.eval()(next(iter(loader.epoch(0))).sensors)
    truth, points = loader.reader.boxes(0), torch.as_tensor(lidar_points(loader.reader, 0))
    can_be_found = (model.grid.flat_index(truth.center_m[:, :2]) < model.grid.num_cells) & (points >= 5)
    found = torch.isin(torch.arange(len(truth)), match(perception.boxes[0], truth, distance_m=1.0))
    assert can_be_found.sum() >= 10
    assert found[can_be_found].float().mean() >= 0.9


def step_of_nuscenes_config(real_config: NuScenesConfig, tmp_path: Path, device: str, *overrides: str) -> None:
    """One optimiser step of configs/nuscenes.yaml, accumulation, mixed precision and averaged weights included."""
    torch.manual_seed(0)
    weights = tmp_path / "vit_small_patch16_224.safetensors"
    config = on_keyframe("nuscenes.yaml", real_config, "data.workers=0", f"camera_weights={weights}", *overrides)
    model = robustbev.build(config.model)
    published = {
        name: value.contiguous()
        for name, value in model.encoder("camera").vit.state_dict().items()
        if not name.startswith("neck")
    }
    published["pos_embed"] = torch.randn(1, 1 + 14 * 14, 384)  # 224 x 224 px, as published
    save_file(published, weights)
    report = load_vit_weights(model.encoder("camera").vit, weights)
    assert not [name for name in report.missing if not name.startswith("neck")]
    model.to(device)
    before = {name: value.clone() for name, value in model.named_parameters()}
    state = TrainingState(model, build_optimizer(model, config.optim), AveragedWeights(model, 0.9))
    records = Records()
    accumulation = config.optim.accumulation
    step = TrainingStep(model, config.step)
    train(
        state, step, step.draw, Repeated(first_batch(config), accumulation),
        Plan(epochs=1, optim=config.optim), device=torch.device(device), callbacks=[records],
    )  # fmt: skip
    assert [record.samples for record in records.steps] == [accumulation]
    assert all(value == value and abs(value) < 1e4 for value in records.steps[0].parts.values())
    assert {"heatmap", "velocity", "attribute", "depth_camera", "image_camera", "auxiliary_camera"} <= set(
        records.steps[0].parts
    )
    still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    # Of ten modality draws some leave a null embedding or a head without gradient; the encoders always move.
    assert not [
        name for name in still if name.startswith(("encoders.camera", "encoders.lidar", "backbone", "heads"))
    ], still


@pytest.mark.slow
def test_the_nuscenes_config_takes_a_training_step(real_config: NuScenesConfig, tmp_path: Path) -> None:
    """With pictures of half the size, for the time that a CPU takes."""
    sizes = ("model.modalities.camera.image_height_px=128", "model.modalities.camera.image_width_px=352")
    step_of_nuscenes_config(real_config, tmp_path, "cpu", *sizes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_nuscenes_config_takes_a_training_step_on_a_gpu(real_config: NuScenesConfig, tmp_path: Path) -> None:
    step_of_nuscenes_config(real_config, tmp_path, "cuda")
