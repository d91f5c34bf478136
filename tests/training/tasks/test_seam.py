"""What training promises a task beside detection: its truth, its losses by weight, its figures of every sample."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sensors.nuscenes.reader import NuScenesReader
from tests.counting import CountsTraining, asked_for_counts, counting
from tests.small_nuscenes import SmallNuScenes
from tests.tiny_model import random_training_batch, tiny_config, tiny_model
from training.data.batch import TrainingBatch
from training.data.dataset import DataConfig, NuScenesDataset, collate_samples
from training.data.sampling import SampleKey
from training.evaluation.subsets import predict_subsets
from training.loop.step import StepConfig, TrainingStep
from training.runs.config import RunConfig
from training.tasks.predictions import Predictions
from training.tasks.task import TrainingTask


def batch_with_truth(seed: int, *tokens: str) -> TrainingBatch:
    """In each cell of the first sample stand `seed` objects, in each of the second one more."""
    batch = random_training_batch(seed=seed)
    truth = torch.tensor([seed, seed + 1.0])[:, None, None].expand(2, 16, 16)
    return replace(batch, tokens=tokens, truth={"counts": truth})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_its_losses_have_its_name_and_weight(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(**weights: float) -> dict[str, torch.Tensor]:
        model, batch = counting(tiny_model(), monkeypatch), batch_with_truth(1, "a", "b")
        weight, bias = model.heads["counts"].parameters()
        torch.nn.init.zeros_(weight)
        torch.nn.init.constant_(bias, 3.0)
        config = StepConfig.model_validate({"precision": precision, "weights": {"tasks": weights}})
        step = TrainingStep(model.train(), config)
        output = step(step.draw(batch, torch.Generator().manual_seed(0)))
        torch.testing.assert_close(output.loss.detach(), sum(output.parts.values()))
        return output.parts

    assert parts()["counts/l1"] == 1.5
    assert parts(counts=0.25)["counts/l1"] == 0.375
    assert parts(counts=0.0)["counts/l1"] == 0.0


@pytest.mark.parametrize("name", ["lanes", "detection"])
def test_a_weight_of_nothing_is_refused_before_anything_is_read(name: str) -> None:
    with pytest.raises(ValueError, match=rf"step\.weights\.tasks: .*none.*got '{name}'.*step\.weights\.heatmap"):
        RunConfig.model_validate({"step": {"weights": {"tasks": {name: 1.0}}}})


def test_a_task_that_lacks_a_part_is_told_when_it_is_made() -> None:
    class Half(TrainingTask):
        pass

    with pytest.raises(TypeError, match=r"figures'?, '?losses'?, '?measure"):
        Half()  # type: ignore[abstract]


def test_every_sample_is_measured_once_with_its_own_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the limit, however batches lie, and with what each subset perceives."""
    model = counting(tiny_model(), monkeypatch)
    batches = [batch_with_truth(1, "a", "b"), batch_with_truth(3, "c", "d"), batch_with_truth(5, "b", "e")]
    batches[0] = replace(batches[0], sensors=batches[0].sensors.only(("lidar",)))
    few = predict_subsets(model, batches, ["lidar"], limit=3)["lidar"].measured["counts"]
    assert list(few) == ["a", "b", "c"]
    found = predict_subsets(model, batches, ["lidar", "camera+radar"])
    for subset, nothing in (("lidar", []), ("camera+radar", ["a", "b"])):
        measured = found[subset].measured["counts"]
        there = {token: truth / 256 for token, (_, truth) in measured.items()}
        assert there == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 6}
        sums = [total for total, _ in measured.values() if total is not None]
        assert len(set(sums)) == len(sums) == 5 - len(nothing)
        assert [token for token, (total, _) in measured.items() if total is None] == nothing
        assert list(found[subset].boxes) == list(measured)


def test_what_ranks_measured_comes_together() -> None:
    merged = Predictions()
    merged.update(Predictions(no_perception=["a"], measured={"counts": {"a": 1}, "lanes": {"a": 2}}))
    merged.update(Predictions(measured={"counts": {"b": 3}}))
    assert merged.measured == {"counts": {"a": 1, "b": 3}, "lanes": {"a": 2}}
    assert merged.no_perception == ["a"]


def test_its_truth_turns_with_the_sample(small_nuscenes: SmallNuScenes, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = []
    truth = CountsTraining.truth

    def kept(self: CountsTraining, reader: NuScenesReader, index: int, boxes: object, bev_change: object) -> object:
        changes.append(bev_change)
        return truth(self, reader, index, boxes, bev_change)

    monkeypatch.setattr(CountsTraining, "truth", kept)
    model = asked_for_counts(tiny_config(camera=None), monkeypatch)
    data = DataConfig(nuscenes=small_nuscenes.config)
    train = NuScenesDataset(data, model, "small_train", train=True, seed=0)
    still = NuScenesDataset(data, model, "small_train", train=False, seed=0)
    for index in range(3):
        key = SampleKey(epoch=0, index=index, visit=0)
        moved, plain = train[key], still[key]
        change, nothing = changes[-2:]
        assert isinstance(change, np.ndarray)
        assert nothing is None
        seen = moved.boxes.center_m[:, :2]
        rows, columns = moved.truth["counts"].nonzero(as_tuple=True)
        cells = {tuple(cell) for cell in ((seen + 12.8) / 1.6).floor().int().tolist()}
        assert cells == set(zip(rows.tolist(), columns.tolist(), strict=True))
        centers = (
            torch.cat([plain.boxes.center_m, torch.ones(len(plain.boxes), 1)], dim=1) @ torch.tensor(change).float().T
        )
        assert all(torch.cdist(centers[:, :2], xy[None]).min() < 1e-3 for xy in seen)


def test_truth_of_some_samples_alone_or_of_two_shapes_is_refused(
    small_nuscenes: SmallNuScenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = asked_for_counts(tiny_config(camera=None), monkeypatch)
    dataset = NuScenesDataset(DataConfig(nuscenes=small_nuscenes.config), model, "small_val", train=False, seed=0)
    first, second = (dataset[SampleKey(epoch=0, index=index, visit=0)] for index in range(2))
    batch = collate_samples([first, second], dataset.preparation)
    assert torch.equal(batch.truth["counts"][1], second.truth["counts"])
    without, other = replace(second, truth={}), replace(second, truth={"counts": torch.zeros(3)})
    for pair, words in (
        ((first, without), r"got \[16, 16\] for sample sample-1-0 and None for sample-1-1"),
        ((without, first), r"got None for sample sample-1-1 and \[16, 16\] for sample-1-0"),
        ((first, other), r"got \[16, 16\] .* and \[3\] for"),
    ):
        with pytest.raises(ValueError, match=f"truth of task counts: expected a tensor of one shape .*{words}"):
            collate_samples(list(pair), dataset.preparation)
