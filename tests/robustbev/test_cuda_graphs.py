"""Replayed answers promise to be the model's own. What CUDA records is played here by running the model again in its memory."""

from __future__ import annotations

import copy
import pickle
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import combinations
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from bev.detection.boxes import Boxes
from robustbev import PerceptionModel, Precision
from robustbev.cuda_graphs import CudaGraphs, GraphWarning, _Recorded, folded
from robustbev.network import PerceptionNetwork
from robustbev.perception import Perception
from robustbev.precision import PrecisionName
from sensors.batch import SensorBatch
from sensors.frames import KINDS
from tests.robustbev.test_model import FUSERS, assert_same
from tests.tiny_model import random_lidar, random_sensors, tiny_model


class Recording(CudaGraphs):
    """Counts what it records."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def _record(self, model: PerceptionNetwork, batch: SensorBatch) -> _Recorded:
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
    return batch.having(lidar=random_lidar(1, seed, points=count))


@torch.no_grad()
def test_every_subset_is_answered_as_by_the_model(model: PerceptionModel) -> None:
    graphs = Recording()
    subsets = [names for count in range(4) for names in combinations(KINDS, count)]
    for seed in (0, 1):
        for names in subsets:
            batch = random_sensors(1, seed).only(names)
            assert_same(graphs(model, batch), model(batch))
    assert graphs.count == len(subsets), "recorded for the first batch, replayed for the second"


@torch.no_grad()
def test_a_drive_needs_few_graphs_whatever_the_number_of_points(model: PerceptionModel) -> None:
    graphs, batch = Recording(), random_sensors(1).only(("lidar",))
    for count in (1, 300, 512, 513, 1000, 4097, 5000, 5121, 6100, 5200, 4100, 600, 3):  # fewer than before, too
        given = with_points(batch, count, count)
        got, expected = graphs(model, given).fused.features, model(given).fused.features
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)  # a product of more rows rounds otherwise
    assert graphs.count == 4  # of at most 512, 1024, 5120 and 6144 points


@torch.no_grad()
def test_an_answer_is_left_alone_by_the_next(model: PerceptionModel) -> None:
    graphs = Recording()
    first = graphs(model, random_sensors(1, 0))
    graphs(model, random_sensors(1, 1))
    assert_same(first, model(random_sensors(1, 0)))
    (recorded,) = graphs._recorded.values()
    assert not {t.data_ptr() for t in tensors_of(first)} & {t.data_ptr() for t in tensors_of(recorded.seen)}


@torch.no_grad()
def test_other_weights_and_changed_ones_are_recorded_anew() -> None:
    model, graphs, batch = tiny_model(), Recording(), random_sensors(1)
    for count in (1, 1):
        graphs(model, batch)
        assert graphs.count == count
    last = model.detection.head.heatmap[-1]
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    last.bias.add_(1.0)
    assert_same(graphs(model, batch), model(batch))
    assert graphs.count == 2
    last.bias = torch.nn.Parameter(torch.zeros_like(last.bias))
    assert_same(graphs(model, batch), model(batch))
    assert graphs.count == 3


@torch.no_grad()
def test_stale_graphs_give_their_memory_back_before_others_take_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graphs, batch = tiny_model(), Recording(), random_sensors(1)
    graphs(model, batch)
    stale, record = weakref.ref(next(iter(graphs._recorded.values()))), graphs._record
    there: list[object] = []

    def noted(*given: Any) -> _Recorded:
        there.append(stale())
        return record(*given)

    monkeypatch.setattr(graphs, "_record", noted)
    next(model.parameters()).add_(1.0)
    graphs(model, batch)
    assert there == [None]


@torch.no_grad()
def test_a_graph_of_one_precision_does_not_outlive_its_weights() -> None:
    """Which are narrow in one copy of the model and wide in another, of which there is one at a time."""
    model, graphs, batch = tiny_model(), Recording(), random_sensors(1).only(("radar",))
    for count, precision in enumerate(("float32", "bfloat16", "float32"), start=1):
        model.precision = Precision(precision, "for this test")  # type: ignore[arg-type]
        for _ in range(2):
            assert_same(graphs(model, batch), model(batch))
            assert graphs.count == count


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
    batch = random_sensors(2)
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
def test_a_batch_that_no_model_can_answer_is_told_as_by_the_model(model: PerceptionModel) -> None:
    graphs, batch = Recording(), random_sensors(1)
    assert batch.part("camera") is not None
    wrong = batch.having(camera=replace(batch.part("camera"), present=batch.part("camera").present[:, :5]))
    for refused in (model, lambda batch: graphs(model, batch)):
        with pytest.raises(ValueError, match=r"camera\.present"):
            refused(wrong)
    assert_same(graphs(model, batch), model(batch))
    assert len(graphs._recorded) == 1


class Streams:
    """torch.cuda where there is no GPU: what runs on a stream runs at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: bool) -> None:
        self.current, self.refuses = Mock(name="the caller's"), refuses
        self.all: list[Mock] = []
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "Stream", self.new)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "graph", self.recording)
        for name in ("graph_pool_handle", "CUDAGraph", "Event"):
            monkeypatch.setattr(torch.cuda, name, Mock(name=name))

    def new(self, device: torch.device) -> Mock:
        self.all.append(Mock(name=f"stream {len(self.all)}"))
        return self.all[-1]

    @contextmanager
    def on(self, stream: Mock) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def recording(self, graph: object, *, stream: Mock, **_: object) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        if self.refuses:  # as torch, which then leaves its stream the current one
            raise RuntimeError("operation not permitted")
        self.current = before


@torch.no_grad()
def test_a_recording_is_of_the_models_answer_and_shares_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graphs, streams = tiny_model(), CudaGraphs(), Streams(monkeypatch, refuses=False)
    before = streams.current
    for names in (KINDS, ("lidar", "radar"), ()):
        batch = random_sensors(1).only(names)
        got, expected = graphs(model, batch), model(batch)
        torch.testing.assert_close(got.fused.features, expected.fused.features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.boxes.score, expected.boxes.score, rtol=1e-4, atol=1e-5)
    assert len(graphs._recorded) == 3
    assert len(streams.all) == 4, "one for each encoder and one for lift tables, whatever the number of graphs"
    assert streams.current is before


@torch.no_grad()
def test_a_batch_that_runs_into_an_error_by_itself_refuses_no_other(
    model: PerceptionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = copy.deepcopy(model)
    graphs, batch = Recording(), random_sensors(1)
    monkeypatch.setattr(mine.detection, "forward", Mock(side_effect=RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        graphs(mine, batch)
    monkeypatch.undo()
    assert_same(graphs(mine, batch), mine(batch))
    assert len(graphs._recorded) == 1


@torch.no_grad()
def test_a_recording_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graphs, batch = tiny_model(), CudaGraphs(), random_sensors(1)
    streams = Streams(monkeypatch, refuses=True)
    before = streams.current
    with pytest.warns(GraphWarning, match="operation not permitted"):
        assert_same(graphs(model, batch), model(batch))
    assert streams.current is before, "and not the one of the recording, on which nobody else waits"
    assert (len(graphs._recorded), graphs._folded, graphs._pool) == (0, None, None)


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
