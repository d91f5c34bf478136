"""A step promises: a finite loss that every part of the model learns from, and dropout that its generator alone decides."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bev.detection.losses import focal_loss
from bev.detection.targets import make_targets
from robustbev import PerceptionModel
from sensors.batch import SensorBatch
from sensors.frames import KINDS
from tests.tiny_model import random_sensors, random_training_batch, tiny_model
from training.data.batch import TrainingBatch
from training.loop.step import (
    DropoutConfig,
    LossWeights,
    StepConfig,
    StepOutput,
    TrainingStep,
    _compile_blocks,
    modality_present,
)

NO_DROPOUT = DropoutConfig(others=0, single_camera=0)
PARTS = {
    "heatmap", "offset", "height", "size", "yaw", "heading", "velocity", "attribute",
    "auxiliary_camera", "auxiliary_lidar", "auxiliary_radar", "depth_camera", "image_camera",
}  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step_of(model: PerceptionModel, **changes: object) -> TrainingStep:
    return TrainingStep(model.train(), StepConfig.model_validate({"precision": "float32"} | changes))


def take(step: TrainingStep, batch: TrainingBatch, generator: torch.Generator) -> StepOutput:
    return step(step.draw(batch, generator))


def views_of(step: TrainingStep, sensors: SensorBatch) -> torch.Tensor:
    """[V, B, M] bool."""
    views = step.draw(random_training_batch(sensors=sensors), seeded()).views
    assert views is not None
    return views


def without_gradient(step: TrainingStep) -> list[str]:
    return [name for name, p in step.model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize(
    ("precision", "kind"),
    [
        *itertools.product(("float32", "bfloat16"), ("cross_attention", "concat", "mean")),
        ("float16", "cross_attention"),
    ],
)
def test_every_part_of_the_loss_is_finite_and_every_parameter_learns(precision: str, kind: str) -> None:
    model = tiny_model(fuser={"kind": kind, "heads": 2})
    step = step_of(model, precision=precision, dropout=NO_DROPOUT)
    batch = random_training_batch()
    # The null embeddings learn only from what is absent.
    lidar, radar = batch.sensors.part("lidar"), batch.sensors.part("radar")
    assert lidar is not None
    assert radar is not None
    lidar.sectors[0, :, :4] = 0
    radar.present[0] = False
    output = take(step, batch, seeded())
    assert set(output.parts) == PARTS
    assert output.loss.dtype == torch.float32
    assert all(part.isfinite() and not part.requires_grad for part in output.parts.values())
    torch.testing.assert_close(output.loss.detach(), torch.stack(list(output.parts.values())).sum())
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert without_gradient(step) == []


def test_bfloat16_is_float32_but_for_rounding() -> None:
    model, batch = tiny_model(), random_training_batch()
    full, half = (take(step_of(model, precision=p), batch, seeded()).loss for p in ("float32", "bfloat16"))
    torch.testing.assert_close(half, full, rtol=0.03, atol=0.03)


def test_the_generator_alone_decides_the_dropout() -> None:
    step, batch = step_of(tiny_model(), dropout={"others": 0.5}), random_training_batch()

    def losses(seed: int, global_seed: int) -> list[float]:
        torch.manual_seed(global_seed)
        generator = seeded(seed)
        return [take(step, batch, generator).loss.item() for _ in range(4)]

    assert losses(1, 0) == losses(1, 99)
    assert losses(1, 0) != losses(2, 0)
    assert len(set(losses(1, 0))) > 1, "each step draws anew"


class NoWaiting(TorchDispatchMode):
    """Refuses every operation whose result the host needs: on a GPU it would stand still until that is computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if func is torch.ops.aten.index.Tensor:  # by positions the result's size is known, by a mask it is not
            waits = {index.dtype for index in args[1] if index is not None} & {torch.bool}
        if waits:
            raise AssertionError(f"{func} makes the host wait")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("schedule", ["independent", "structured", "split"])
def test_no_step_waits_for_its_device(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout is drawn before the batch moves, the lift's table comes with it: the host can run ahead of a GPU."""
    model = tiny_model()
    step, batch = step_of(model, dropout={"schedule": schedule, "whole_view": True}), random_training_batch()
    cameras = batch.sensors.part("camera")
    assert cameras is not None
    table = model.encoder("camera").table(cameras.intrinsics, cameras.reference_T_camera, cameras.present)
    batch = replace(batch, sensors=batch.sensors.having(camera=replace(cameras, lift=table)))
    drawn = step.draw(batch, seeded())
    for check in ("robustbev.network.check_batch", "fusion.nulls._check_values"):  # look at numbers on a CPU alone
        monkeypatch.setattr(check, lambda *_: None)

    monkeypatch.setattr("fusion.nulls.in_blocks", lambda _: False)  # a CPU's own way looks at them, too

    def refuse(tensor: torch.Tensor, *_: object) -> None:
        raise AssertionError("makes the host wait")

    for name in ("cpu", "item", "tolist", "numpy"):  # of a tensor that lies on the CPU these are no operations
        monkeypatch.setattr(torch.Tensor, name, refuse)
    with NoWaiting():  # type: ignore[no-untyped-call]
        step(drawn).loss.backward()


def test_a_whole_view_stands_beside_the_one_with_dropout() -> None:
    """Losses of both views count alike, and the encoders run once."""
    model, batch = tiny_model(), random_training_batch()
    step = step_of(model, dropout={"schedule": "structured", "whole_view": True, "single_camera": 0})
    drawn, whole = views_of(step, batch.sensors)
    assert whole.all()
    assert not drawn.all(1).any()
    assert drawn.any(1).all()
    model.eval()  # so that the views do not meet in the batch statistics
    outputs = model.training_outputs(batch.sensors, [drawn, whole])
    for view, logits in zip((drawn, whole), outputs.logits["detection"], strict=True):
        alone = model.training_outputs(batch.sensors, [view]).logits["detection"][0]
        torch.testing.assert_close(logits.heatmap, alone.heatmap)
        torch.testing.assert_close(logits.regression, alone.regression)
    both = take(step, batch, seeded()).parts["heatmap"]
    one = step_of_view(model, batch, drawn), step_of_view(model, batch, whole)
    torch.testing.assert_close(both, torch.stack(one).mean())


def step_of_view(model: PerceptionModel, batch: TrainingBatch, view: torch.Tensor) -> torch.Tensor:
    targets = make_targets(batch.boxes, batch.box_valid, model.grid, len(model.config.classes))
    logits = model.training_outputs(batch.sensors, [view]).logits["detection"][0].heatmap
    return focal_loss(logits, targets.heatmap, balance=StepConfig().class_balance).detach()


def test_split_shows_a_part_and_the_rest_of_it() -> None:
    step = step_of(tiny_model(), dropout={"schedule": "split", "single_camera": 0})
    sensors = random_sensors()
    assert sensors.part("lidar") is not None
    assert sensors.part("radar") is not None
    sensors.part("lidar").present[1] = sensors.part("radar").present[1] = False
    part, rest = views_of(step, sensors)
    assert torch.equal(part[0], ~rest[0])
    assert part[0].any()
    assert rest[0].any()
    assert torch.equal(part[1], rest[1])  # a single sensor is never taken away
    assert part[1].tolist() == [True, False, False]


def test_without_modality_dropout_there_is_no_second_view_to_pay_for() -> None:
    step = step_of(tiny_model(), dropout=NO_DROPOUT.model_copy(update={"whole_view": True}))
    views = views_of(step, random_sensors())
    assert len(views) == 1


def test_without_dropout_every_step_is_the_same() -> None:
    step, batch = step_of(tiny_model(), dropout=NO_DROPOUT), random_training_batch()
    generator = seeded()
    assert take(step, batch, generator).loss == take(step, batch, generator).loss


@pytest.mark.parametrize("dropped", KINDS)
def test_what_the_fuser_may_not_see_still_teaches_its_encoder(dropped: str) -> None:
    """Dropped is as absent to fuser and head; the auxiliary heads go on."""
    model = tiny_model()
    step, batch = (
        step_of(model, dropout=NO_DROPOUT.model_copy(update={"modality": {dropped: 1.0}})),
        random_training_batch(),
    )
    output = take(step, batch, seeded())
    output.loss.backward()
    nulls = {f"fuser.tokens.null.{name}" for name in KINDS if name != dropped}  # which nobody looked at
    assert set(without_gradient(step)) <= nulls
    without_it = replace(batch, sensors=batch.sensors.only(tuple(m for m in KINDS if m != dropped)))
    absent = take(step_of(model, dropout=NO_DROPOUT), without_it, seeded())
    for part in ("heatmap", "size", "velocity"):
        torch.testing.assert_close(output.parts[part], absent.parts[part])
    assert f"auxiliary_{dropped}" not in absent.parts


def test_a_sensor_that_the_sample_lacks_teaches_its_auxiliary_head_nothing() -> None:
    batch = random_training_batch()
    lidar = batch.sensors.part("lidar")
    assert lidar is not None
    lidar.present[:] = False
    step = step_of(tiny_model(), dropout=NO_DROPOUT)
    output = take(step, batch, seeded())
    assert output.parts["auxiliary_lidar"] == 0
    output.loss.backward()
    untouched = without_gradient(step)
    assert any(name.startswith("encoders.lidar.pillars") for name in untouched)
    nulls = ("fuser.tokens.null.camera", "fuser.tokens.null.radar")  # of what is there
    assert all(name.startswith(("encoders.lidar.", "auxiliary.lidar.", *nulls)) for name in untouched)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_stale_buffers_reach_neither_loss_nor_gradient(garbage: float) -> None:
    losses, gradients = [], []
    for value in (0.0, garbage):
        batch = random_training_batch()
        cameras, lidar, radar = batch.sensors.part("camera"), batch.sensors.part("lidar"), batch.sensors.part("radar")
        assert cameras is not None
        assert lidar is not None
        assert radar is not None
        cameras.present[0] = False
        cameras.reference_T_camera[0] = value
        cameras.intrinsics[0] = value
        lidar.present[1] = False
        lidar.points[1] = lidar.sectors[1] = value
        radar.present[0] = False
        radar.points[0] = value
        radar.reference_T_radar[0] = value
        step = step_of(tiny_model())
        output = take(step, batch, seeded())
        output.loss.backward()
        losses.append(output.loss)
        gradients.append([p.grad for p in step.model.parameters()])
    assert torch.equal(*losses)
    for clean, dirty in zip(*gradients, strict=True):
        assert clean is not None
        assert dirty is not None
        assert torch.equal(clean, dirty)


def test_single_cameras_go_and_their_depth_is_not_supervised() -> None:
    step = step_of(tiny_model(), dropout=NO_DROPOUT.model_copy(update={"single_camera": 1.0}))
    drawn = step.draw(random_training_batch(), seeded())
    assert drawn.views is not None
    assert drawn.views.all()
    assert drawn.sensors.part("camera") is not None
    stay = drawn.sensors.part("camera").present
    assert stay.sum(1).tolist() == [1, 1]
    known = drawn.depth_m["camera"]
    elsewhere = replace(drawn, depth_m={"camera": torch.where(stay[..., None, None], known, 12.0 - known)})
    here = replace(drawn, depth_m={"camera": torch.where(stay[..., None, None], 12.0 - known, known)})
    depth = step(drawn).parts["depth_camera"]
    assert depth > 0
    assert torch.equal(step(elsewhere).parts["depth_camera"], depth)
    assert not torch.equal(step(here).parts["depth_camera"], depth)


@pytest.mark.parametrize("given", [(), ("camera",), ("lidar", "radar")])
def test_any_subset_of_modalities_makes_a_step(given: tuple[str, ...]) -> None:
    batch = random_training_batch()
    batch = replace(batch, sensors=batch.sensors.only(given), depth_m=batch.depth_m if "camera" in given else {})
    output = take(step_of(tiny_model()), batch, seeded())
    output.loss.backward()
    assert output.loss.isfinite()
    assert {part for part in output.parts if part.startswith("auxiliary")} == {f"auxiliary_{name}" for name in given}


def test_no_boxes_and_no_attributes_make_a_step() -> None:
    batch = random_training_batch()
    empty = replace(batch, boxes=batch.boxes.to("cpu"), box_valid=torch.zeros_like(batch.box_valid))
    assert take(step_of(tiny_model()), empty, seeded()).loss.isfinite()
    bare = tiny_model(attributes=())
    batch.boxes.attribute[:] = -1
    assert take(step_of(bare), batch, seeded()).parts["attribute"] == 0


def test_weights_scale_their_parts() -> None:
    model, batch = tiny_model(), random_training_batch()
    names = LossWeights.model_fields.keys() - {"tasks"}
    one = dict.fromkeys(names, 1.0)
    plain = take(step_of(model, dropout=NO_DROPOUT, weights=one), batch, seeded()).parts
    scaled = take(
        step_of(model, dropout=NO_DROPOUT, weights=one | {"size": 3.0, "auxiliary": 0.0}), batch, seeded()
    ).parts
    for name, part in plain.items():
        factor = {"size": 3.0, "auxiliary": 0.0}.get(name.partition("_")[0], 1.0)
        torch.testing.assert_close(scaled[name], factor * part)


def test_presence_is_told_by_sample_and_modality() -> None:
    batch = random_sensors(3)
    assert batch.part("camera") is not None
    assert batch.part("lidar") is not None
    batch.part("camera").present[0] = False
    batch.part("camera").present[1, 1:] = False
    batch.part("lidar").present[2] = False
    present = modality_present(batch.having(radar=None), ("camera", "lidar", "radar"))
    assert present.tolist() == [[False, True, False], [True, True, False], [True, False, False]]
    assert not modality_present(SensorBatch({}, 2), ("camera", "lidar")).any()


def test_every_block_of_convolutions_is_compiled_whatever_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[object] = []

    def counted(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    torch_compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: torch_compile(block, backend=counted))
    monkeypatch.setattr("torch._dynamo.config.cache_size_limit", 8)  # as torch has it
    torch._dynamo.reset()
    model, batch = tiny_model(), random_sensors(2)
    _compile_blocks(model)
    model.train().training_outputs(batch)
    # Blocks of one size share a graph, and those of more than eight sizes would not be compiled any more.
    assert len(graphs) > 12
    torch._dynamo.reset()


def test_one_batch_can_be_learned_by_heart() -> None:
    """The plainest check of gradients there is: 60 steps on one batch take most of the heatmap loss away."""
    torch.manual_seed(0)
    model, batch = tiny_model(), random_training_batch()
    step = step_of(model, dropout=NO_DROPOUT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first: StepOutput = take(step, batch, seeded())
    output = first
    for _ in range(60):
        output = take(step, batch, seeded())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.loss < 0.35 * first.loss
    assert output.parts["heatmap"] < 0.2 * first.parts["heatmap"]
    assert output.parts["depth_camera"] < 0.9 * first.parts["depth_camera"]
