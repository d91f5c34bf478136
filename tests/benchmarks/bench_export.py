"""The exported model under ONNX Runtime against eager torch: the model of configs/tiny.yaml on input of a real size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import robustbev
from robustbev.export import check, export, model_inputs
from robustbev.export.example import random_batch
from robustbev.export.graphs import ModelGraph, perception_outputs
from sensors.batch import SensorBatch
from tests.benchmarks.bench_pillars import drive as sweeps
from tests.benchmarks.conftest import Compare
from training.runs.config import load_run_config

CAMERAS, RADARS, LIDAR_POINTS, RADAR_POINTS = 6, 5, 35_000, 600


def drive(model: robustbev.PerceptionModel) -> SensorBatch:
    """One sample: six pictures with their table, five radars, and one sweep of a 32-beam LiDAR."""
    batch = random_batch(model, {"camera": CAMERAS, "lidar": 1, "radar": RADARS}, batch_size=1, points=LIDAR_POINTS)
    cameras, lidar, radar = batch.part("camera"), batch.part("lidar"), batch.part("radar")
    assert cameras is not None
    assert lidar is not None
    assert radar is not None
    table = model.encoder("camera").table(cameras.intrinsics, cameras.reference_T_camera, cameras.present)
    points = sweeps(torch.Generator().manual_seed(0))[0][:, :LIDAR_POINTS]
    return batch.having(
        camera=replace(cameras, lift=table),
        lidar=replace(lidar, points=points, count=torch.tensor([LIDAR_POINTS])),
        radar=replace(radar, points=radar.points[:, :RADAR_POINTS], count=torch.tensor([RADAR_POINTS])),
    )


def bench_exported_model(compare: Compare, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = robustbev.build(load_run_config(Path("configs/tiny.yaml"), []).model).eval()
    path = export(model, tmp_path, kind="onnx", cameras=CAMERAS, radars=RADARS)
    batch = drive(model)
    feed = {name: tensor.numpy() for name, tensor in model_inputs(model, batch).items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def eager() -> robustbev.Perception:
        with torch.inference_mode():
            return model(batch)

    got = dict(zip(ModelGraph(model).outputs, map(torch.from_numpy, session.run(None, feed)), strict=True))
    difference = check.compare(perception_outputs(eager()), got)
    assert difference.fits, difference
    result = compare(
        "tiny model, 6 cameras, 35k points", 15, onnxruntime=lambda: session.run(None, feed), eager_torch=eager
    )
    assert result.ratio("eager torch") >= 1
