"""A training step and `perceive` of a whole model on this device: equal to the CPU's, how fast, and where the host waits."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import robustbev
from bev.detection.boxes import Boxes
from robustbev import CameraConfig, ModelConfig, PerceptionModel, choose_precision
from robustbev.cuda_graphs import CudaGraphs, GraphWarning, folded
from robustbev.export.example import random_batch
from sensors.batch import SensorBatch, map_tensors
from sensors.frames import KINDS
from sensors.points import DroppedPoints
from tests.gpu.measure import ROOT, host_waits, milliseconds, peak_mib, relative_error, synchronise
from training.data.batch import TrainingBatch
from training.loop.step import StepConfig, TrainingStep

PARTS = (
    "encoders.camera",
    "encoders.camera.vit",
    "encoders.lidar",
    "encoders.radar",
    "fuser",
    "backbone",
    "heads.detection",
)


def sensors(model: PerceptionModel, batch_size: int, points: int) -> SensorBatch:
    """Noise from six cameras, a LiDAR and five radars, on the CPU."""
    batch = random_batch(model, {"camera": 6, "lidar": 1, "radar": 5}, batch_size=batch_size, points=points)
    assert batch.part("lidar") is not None
    return batch.having(lidar=replace(batch.part("lidar"), count=torch.full((batch_size,), points)))


def training_batch(model: PerceptionModel, batch_size: int, points: int, boxes: int = 64) -> TrainingBatch:
    """The same with truth anywhere on the grid."""
    config = model.config
    draw = torch.Generator().manual_seed(1)
    reach_m = 0.9 * config.grid.x_max_m
    camera = config.of_kind(CameraConfig)["camera"]
    height, width = (side // camera.feature_stride_px for side in camera.image_size)
    center_m = torch.rand(batch_size, boxes, 3, generator=draw) * 2 * reach_m - reach_m
    center_m[..., 2] = 0
    none = torch.zeros(batch_size, boxes)
    return TrainingBatch(
        sensors=sensors(model, batch_size, points),
        boxes=Boxes(
            center_m=center_m,
            size_m=torch.tensor([2.0, 4.5, 1.6]).repeat(batch_size, boxes, 1),
            yaw_rad=torch.rand(batch_size, boxes, generator=draw) * 6 - 3,
            velocity_mps=torch.zeros(batch_size, boxes, 2),
            label=torch.randint(0, len(config.classes), (batch_size, boxes), generator=draw),
            attribute=none.long(),
            score=none + 1,
        ),
        box_valid=torch.ones(batch_size, boxes, dtype=torch.bool),
        depth_m={"camera": torch.rand(batch_size, 6, height, width, generator=draw) * 50 + 1},
        tokens=tuple(f"sample-{b}" for b in range(batch_size)),
        indices=tuple(range(batch_size)),
        dropped=DroppedPoints(),
    )


def training(
    config: ModelConfig,
    device: torch.device,
    precision: str,
    *,
    batch_size: int,
    points: int,
    rounds: int = 12,
    compiled: bool | None = None,
) -> dict[str, Any]:
    """Steps on one synthetic batch: equal loss to the CPU's, samples a second, by part, waits, kernels that take the time.

    Raises:
        ValueError: the loss differs from the CPU's in float32 by more than the precision explains.
    """
    torch.manual_seed(0)
    model = robustbev.build(config)
    batch = training_batch(model, batch_size, points)
    figures: dict[str, Any] = _compared(model, batch, device, precision) if compiled is None else {}
    torch.backends.cudnn.allow_tf32 = True  # as torch has it, and so `robustbev train`
    step = TrainingStep(
        model.to(device), StepConfig.model_validate({"precision": precision, "compile": bool(compiled)})
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    moved = step.draw(batch, torch.Generator().manual_seed(1)).to(device)
    losses: list[Tensor] = []

    def take() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = step(moved).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())

    ms = milliseconds(take, device, rounds=rounds)
    figures |= {
        "batch_size": batch_size,
        "parameters_million": sum(p.numel() for p in model.parameters()) / 1e6,
        "step_ms": ms,
        "samples_per_s": batch_size / ms * 1e3,
        "peak_mib": peak_mib(take, device),
        "loss_first_and_last": [float(losses[0]), float(losses[-1])],
    }
    with host_waits(device) as waits:
        take()
    figures["host_waits"] = sum(waits.values())
    figures["host_waits_by_line"] = dict(waits.most_common())
    with _by_part(model, device) as parts:
        loss = step(moved).loss
        parts["backward"] = milliseconds(loss.backward, device, rounds=1, warmup=0)
    figures["parts_ms"] = parts
    figures |= _kernels(take, device)
    return figures


def _compared(model: PerceptionModel, batch: TrainingBatch, device: torch.device, precision: str) -> dict[str, Any]:
    """The loss of this device and that of the CPU in float32."""
    batch = _first(batch, 1)  # a full-size sample takes the CPU seconds

    def loss_of(precision: str, where: torch.device) -> float:
        step = TrainingStep(model.to(where), StepConfig.model_validate({"precision": precision}))
        moved = step.draw(batch, torch.Generator().manual_seed(1)).to(where)
        with torch.no_grad():
            return float(step(moved).loss)

    expected, got = loss_of("float32", torch.device("cpu")), loss_of(precision, device)
    limit = 1e-3 if precision == "float32" else 3e-2  # bfloat16 has eight bits, and a loss sums errors of either sign
    if not abs(got - expected) <= limit * abs(expected):
        raise ValueError(f"expected a loss of {expected:.5f}, as on the CPU in float32, got {got:.5f} in {precision}")
    return {"loss_on_cpu": expected, "loss_here": got}


def _first(batch: TrainingBatch, count: int) -> TrainingBatch:
    """The first samples of a batch."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor | tuple):
            return value[:count]
        if isinstance(value, Mapping):
            return {name: cut(part) for name, part in value.items()}
        if hasattr(value, "__dataclass_fields__"):
            changes = {name: cut(getattr(value, name)) for name in value.__dataclass_fields__}
            return replace(value, **changes)
        return value

    first: TrainingBatch = replace(cut(replace(batch, dropped=None)), dropped=batch.dropped)  # type: ignore[arg-type]
    return replace(first, sensors=replace(first.sensors, batch_size=count))


@contextmanager
def _by_part(model: PerceptionModel, device: torch.device) -> Iterator[dict[str, float]]:
    """Milliseconds of the forward pass of each part, its device's queue emptied before and after."""
    parts: dict[str, float] = {}
    started: dict[str, float] = {}
    handles = []

    def before(name: str) -> None:
        synchronise(device)
        started[name] = time.perf_counter()

    def after(name: str) -> None:
        synchronise(device)
        parts[name] = parts.get(name, 0.0) + (time.perf_counter() - started[name]) * 1e3

    for name in PARTS:
        module: nn.Module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: before(name)))
        handles.append(module.register_forward_hook(lambda *_, name=name: after(name)))
    try:
        yield parts
    finally:
        for handle in handles:
            handle.remove()


def _kernels(work: Any, device: torch.device) -> dict[str, Any]:
    """The kernels that take most of the time, by torch's profiler, and how many are launched."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        work()
        synchronise(device)
    rows = profiler.key_averages()

    def own_ms(row: Any) -> float:
        return (row.self_device_time_total if cuda else row.self_cpu_time_total) / 1e3

    longest = sorted(rows, key=own_ms, reverse=True)[:15]
    ran = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    return {
        "kernels_ms": {row.key[:80]: round(own_ms(row), 3) for row in longest},
        "launches": sum(row.count for row in rows if row.key.startswith("cudaLaunchKernel")),
        "kernels": len(ran),  # of a graph, too, that is one launch
    }


def perceive(config: ModelConfig, device: torch.device, *, points: int) -> dict[str, Any]:
    """Tensors to boxes, one sample: equal to the CPU's; eager and by CUDA graphs; waits; by part.

    Raises:
        ValueError: what is seen differs from the CPU's by more than rounding.
    """
    torch.manual_seed(0)
    model = robustbev.build(config).eval()
    batch = sensors(model, 1, points)
    figures: dict[str, Any] = {}
    torch.backends.cudnn.allow_tf32 = False  # for the comparison
    with torch.inference_mode():
        assert batch.part("camera") is not None
        cameras = batch.part("camera")
        table = model.encoder("camera").table(cameras.intrinsics, cameras.reference_T_camera, cameras.present)
        # The CPU's table on both: rounding moves points at the edge of a cell into the next.
        same = batch.having(camera=replace(cameras, lift=table))
        expected, encoded = model(same).fused.features, model.encode(same)
        model, batch, same = model.to(device), batch.to(device), same.to(device)
        figures["errors_of"] = {
            name: relative_error(mine.features, theirs.features)
            for name, mine in model.encode(same).items()
            if mine is not None and (theirs := encoded[name]) is not None
        }
        error = relative_error(model(same).fused.features, expected)
        if not error <= 1e-3:  # float32, TF32 off: hundreds of layers of rounding
            raise ValueError(
                f"expected the fused grid of the CPU within 1e-3, got an error of {error:.2e}; encoders: {figures['errors_of']}"
            )
        figures["error"] = error
        torch.backends.cudnn.allow_tf32 = True
        figures["eager_float32_ms"] = milliseconds(lambda: model(batch), device)
        with host_waits(device) as waits:
            model(batch)
        figures["host_waits"] = sum(waits.values())
        figures["host_waits_by_line"] = dict(waits.most_common())
        with _by_part(model, device) as parts:
            model(batch)
        figures["parts_ms"] = parts
        if device.type == "cuda":
            model.precision = choose_precision("bfloat16", device)
            figures["eager_bfloat16_ms"] = milliseconds(lambda: model(batch), device)
            figures |= _replayed(model, batch, device)
    return figures


def _replayed(model: PerceptionModel, batch: SensorBatch, device: torch.device) -> dict[str, Any]:
    """By CUDA graphs, for every part of the sensors: equal to what is computed launch by launch, and how fast.

    Raises:
        ValueError: a replayed answer is another one.
    """
    figures: dict[str, Any] = {"replayed_ms_of": {}}
    graphs = CudaGraphs()
    with warnings.catch_warnings():
        warnings.simplefilter("error", GraphWarning)
        for count in (3, 2, 1):
            for names in combinations(KINDS, count):
                part = batch.only(names)
                expected, got = model(part), graphs(model, part)
                error = relative_error(got.fused.features, expected.fused.features)
                apart = float((got.boxes.score - expected.boxes.score).abs().mean())
                if not (error <= 2e-2 and apart <= 2e-2):
                    raise ValueError(
                        f"{names}: expected the answer of each launch by itself, got errors of {error}, {apart}"
                    )
                figures["replayed_ms_of"]["+".join(names)] = milliseconds(
                    lambda part=part: graphs(model, part).boxes.to("cpu"),  # type: ignore[misc]
                    device,
                )
                figures["replayed_error"] = max(error, figures.get("replayed_error", 0.0))
    recorded = next(iter(graphs._recorded.values()))
    figures["replay_alone_ms"] = milliseconds(recorded.play, device)
    return figures | {f"replayed_{name}": value for name, value in _kernels(recorded.play, device).items()}


def stages(config: ModelConfig, device: torch.device, *, points: int) -> dict[str, Any]:
    """What `perceive` consists of, each part as a graph of its own where there are graphs: milliseconds, and kernels of each."""
    torch.manual_seed(0)
    built = robustbev.build(config).eval().to(device)
    built.precision = choose_precision("bfloat16", device)
    model, batch = folded(built), sensors(built, 1, points).to(device)
    cameras, camera = batch.part("camera"), model.encoder("camera")
    pictures = torch.randn(6, 3, *camera.image_size, device=device)
    with torch.inference_mode(), model.precision.autocast(device.type):
        embedding = camera.calibration(camera.rays(cameras.intrinsics, cameras.reference_T_camera).flatten(0, 1))
        features = model.encode(batch)
        fused = model.fuser(features, grid_shape=model.grid.shape, batch_size=1)
        motion, seen = model._measured(features, 1), model.backbone(fused.features)
        logits = map_tensors(model.detection(seen, motion), lambda tensor: tensor.float())
        work: dict[str, Any] = {name: partial(model.encode, batch.only((name,))) for name in KINDS}
        work |= {
            "camera: table": partial(camera.table, cameras.intrinsics, cameras.reference_T_camera, cameras.present),
            "camera: network": partial(camera.vit, pictures, embedding),
            "fuser": partial(model.fuser, features, grid_shape=model.grid.shape, batch_size=1),
            "measured motion": partial(model._measured, features, 1),
            "backbone": partial(model.backbone, fused.features),
            "head": partial(model.detection, seen, motion),
            "decode": partial(model.detection.decode, logits, fused.coverage),
        }
        return {name: _stage(part, device) for name, part in work.items()}


def _stage(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"ms": milliseconds(work, device)}
    here, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    here.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work()  # whose memory the graph writes
    figures = {"ms": milliseconds(graph.replay, device), **_kernels(graph.replay, device)}
    del kept
    return figures


def real_training(root: Path, version: str, split: str, config: Path, out: Path, seconds: float) -> dict[str, Any]:
    """`robustbev train` on real frames, stopped after `seconds`: samples a second of the second half, and the wait for data."""
    workers = max((os.cpu_count() or 1) - 2, 1)
    command = [
        sys.executable, "-c", "from training.cli import main; main()", "train", "--config", str(config), "name=gpu",
        f"runs_dir={out}", "epochs=1000", "batch_size=16", f"data.workers={workers}",
        "optim.accumulation=1", "camera_weights=null", "runner.workers=0",
        "tracking.enabled=false", f"data.nuscenes.root={root}", f"data.nuscenes.version={version}",
        f"data.nuscenes.train_split={split}", f"data.nuscenes.val_split={split}",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            output, _ = process.communicate(timeout=60)
    history = out / "gpu" / "history.jsonl"
    steps = [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []
    if len(steps) < 10:
        raise ValueError(
            f"expected at least 10 steps of robustbev train in {seconds:.0f} s, got {len(steps)}: {output[-800:]}"
        )
    late = steps[len(steps) // 2 :]
    busy = sum(step["seconds"] for step in late)
    return {
        "steps": len(steps),
        "samples_per_s": sum(step["samples"] for step in late) / busy,
        "step_ms": statistics.median(step["seconds"] for step in late) * 1e3,
        "share_waiting_for_data": sum(step["data_wait_seconds"] for step in late) / busy,
        "loss_first_and_last": [steps[0]["loss"], steps[-1]["loss"]],
        "cuda_mib": statistics.median(step["cuda_memory_bytes"] for step in late) / 2**20,
    }
