"""Training in stages: what is frozen stays as it is, to the bit; what a checkpoint lacks starts fresh if that is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch

import robustbev
from robustbev import CheckpointError
from tests.tiny_model import random_sensors, random_training_batch, tiny_model
from training.loop.optim import OptimConfig, build_optimizer
from training.loop.step import StepConfig, TrainingStep


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def take_steps(model: robustbev.PerceptionModel, count: int = 2, **changes: Any) -> None:
    step = TrainingStep(model, StepConfig.model_validate({"precision": "float32"} | changes))
    optimizer = build_optimizer(model, OptimConfig(lr=0.01))
    model.train()
    for _ in range(count):
        optimizer.zero_grad()
        step(step.draw(random_training_batch(), seeded())).loss.backward()
        optimizer.step()


def test_what_is_frozen_keeps_its_weights_and_its_batch_statistics() -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.freeze(["encoders.camera", "encoders.lidar", "fuser.key_value"])
    take_steps(model)
    for name, tensor in model.state_dict().items():
        frozen = name.startswith(("encoders.camera.", "encoders.lidar.", "fuser.key_value."))
        if frozen:
            assert torch.equal(tensor, before[name]), name
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {name.partition(".")[0] for name in moved} >= {"encoders", "fuser", "backbone", "heads", "auxiliary"}


def test_a_frozen_part_must_exist() -> None:
    with pytest.raises(ValueError, match=r"no parameter lies under 'cam'; the model's parts are encoders, fuser"):
        tiny_model().freeze(["cam"])


def test_the_first_stage_teaches_encoders_alone() -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    take_steps(model, stage="encoders")
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.partition(".")[0] for name in moved} == {"encoders", "auxiliary", "image_heads"}


def test_a_part_may_be_fresh_where_that_is_said(tmp_path: Path) -> None:
    """A camera and LiDAR model's weights in a model that has radar as well."""
    small, whole = (
        tiny_model(1, radar=None, fuser={"kind": "mean", "absent": "mask"}),
        tiny_model(2, fuser={"kind": "mean", "absent": "mask"}),
    )
    fresh = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    state = small.state_dict()
    with pytest.raises(CheckpointError, match=r"missing encoders\.radar\."):
        robustbev.load_weights(whole, state, source="there")
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in whole.state_dict().items())
    robustbev.load_weights(whole, state, source="there", may_lack=["encoders.radar", "auxiliary.radar"])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, state.get(name, fresh[name])), name
    batch = random_sensors().only(("camera", "lidar"))
    assert torch.equal(whole(batch).boxes.score, small(batch).boxes.score)
