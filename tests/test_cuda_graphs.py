"""Replayed answers promise to be the model's own. What CUDA records is played here by running the model again in its memory."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import fields, replace
from itertools import combinations
from typing import Any

import pytest
import torch

from bev.boxes import Boxes
from robustbev import PerceptionModel, Precision
from robustbev.cuda_graphs import CudaGraphs, GraphWarning, _Recorded, folded
from robustbev.model import Perception
from robustbev.precision import PrecisionName
from sensors.batch import MODALITIES, SensorBatch
from tests.test_robustbev import FUSERS, assert_same
from tests.tiny_model import random_lidar, random_sensors, tiny_model


class Recording(CudaGraphs):
    """Counts what it records."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def _record(self, model: PerceptionModel, batch: SensorBatch) -> _Recorded:
        self.count += 1
        batch = batch.copied()
        seen = model(batch)

        def play() -> None:
            again = model(batch)
            for target, source in zip(tensors_of(seen), tensors_of(again), strict=True):
                target.copy_(source)

        return _Recorded(batch, seen, play)


def tensors_of(seen: Perception) -> list[torch.Tensor]:
    boxes = [getattr(seen.boxes, field.name) for field in fields(Boxes)]
    return [*boxes, seen.fused.features, seen.fused.attention, seen.fused.coverage, seen.perceived]


@pytest.fixture(scope="module")
def model() -> PerceptionModel:
    return tiny_model()


def with_points(batch: SensorBatch, count: int, seed: int) -> SensorBatch:
    return replace(batch, lidar=random_lidar(1, seed, points=count))


@torch.no_grad()
def test_every_subset_is_answered_as_by_the_model(model: PerceptionModel) -> None:
    graphs = Recording()
    subsets = [names for count in range(4) for names in combinations(MODALITIES, count)]
    for seed in (0, 1):
        for names in subsets:
            batch = random_sensors(1, seed).only(names)
            assert_same(graphs(model, batch), model(batch))
    assert graphs.count == len(subsets), "recorded for the first batch, replayed for the second"


@torch.no_grad()
def test_a_drive_needs_few_graphs_whatever_the_number_of_points(model: PerceptionModel) -> None:
    graphs, batch = Recording(), random_sensors(1)
    for count in range(700, 1000, 20):
        given = with_points(batch, count, count)
        assert_same(graphs(model, given), model(given))
    assert graphs.count == 3  # of at most 768, 896 and 1024 points


@torch.no_grad()
def test_an_answer_is_left_alone_by_the_next(model: PerceptionModel) -> None:
    graphs = Recording()
    first = graphs(model, random_sensors(1, 0))
    graphs(model, random_sensors(1, 1))
    assert_same(first, model(random_sensors(1, 0)))


@torch.no_grad()
def test_other_weights_and_changed_ones_are_recorded_anew() -> None:
    model, graphs, batch = tiny_model(), Recording(), random_sensors(1)
    for count in (1, 1):
        graphs(model, batch)
        assert graphs.count == count
    last = model.head.heatmap[-1]
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    last.bias.add_(1.0)
    assert_same(graphs(model, batch), model(batch))
    assert graphs.count == 2
    last.bias = torch.nn.Parameter(torch.zeros_like(last.bias))
    assert_same(graphs(model, batch), model(batch))
    assert graphs.count == 3


@torch.no_grad()
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, *FUSERS, {"lidar": {"pillar_channels": 8, "sparse_blocks": 2}}])
def test_what_is_recorded_answers_as_the_model(changes: dict[str, Any], precision: PrecisionName) -> None:
    model = tiny_model(**changes)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # as after a training, where the norm changes something
            draw = torch.Generator().manual_seed(layer.num_features)
            for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
                assert tensor is not None
                tensor.copy_(torch.rand(layer.num_features, generator=draw) + 0.5)
    model.precision = Precision(precision, "for this test")
    copied, before = folded(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in copied.modules())
    for seed in (0, 1):
        batch = random_sensors(2, seed)
        got, expected = copied(batch).fused.features, model(batch).fused.features
        error = (got - expected).norm() / expected.norm()
        assert error < (1e-5 if precision == "float32" else 2e-2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_a_model_that_cannot_be_recorded_answers_all_the_same_and_says_why_once(
    model: PerceptionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> _Recorded:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(CudaGraphs, "_record", refuse)
    graphs, batch = CudaGraphs(), random_sensors(1)
    with pytest.warns(GraphWarning, match="slower: CUDA error: operation not permitted when stream is capturing$"):
        assert_same(graphs(model, batch), model(batch))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GraphWarning)
        assert_same(graphs(model, batch), model(batch))


@torch.no_grad()
def test_the_least_used_graph_goes_first(model: PerceptionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbev.cuda_graphs._MOST_GRAPHS", 2)
    graphs, batch = Recording(), random_sensors(1)
    lidar, radar, camera = (batch.only((name,)) for name in ("lidar", "radar", "camera"))
    for given in (lidar, radar, lidar, camera, lidar, camera):
        graphs(model, given)
    assert graphs.count == 3
    graphs(model, radar)
    assert graphs.count == 4


def test_a_model_is_copied_and_pickled_without_its_graphs(model: PerceptionModel) -> None:
    mine = copy.copy(model)
    mine.graphs = Recording()
    with torch.no_grad():
        mine.graphs(model, random_sensors(1))
    assert len(mine.graphs._recorded) == 1
    assert not copy.deepcopy(mine).graphs._recorded
    graphs = CudaGraphs()
    graphs._recorded = mine.graphs._recorded
    assert not pickle.loads(pickle.dumps(graphs))._recorded
