"""The gap report promises: distances and retrieval as defined, of objects that sensors could know of, on disk and in MLflow."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import robustbev
import training.tracking.sending
from robustbev import ModelConfig, build
from sensors.nuscenes.reader import NuScenesReader
from tests.small_nuscenes import SmallNuScenes
from tests.tiny_model import random_training_batch, tiny_config, tiny_model
from tests.tracked import figures, kept, tracked
from training.evaluation.gap import RANDOM_CELLS, GapReport, Places, collect, measure, pair_gap
from training.files.config_file import to_yaml
from training.loop.step import DropoutConfig, LossWeights, StepConfig, TrainingStep
from training.pictures.gap import markdown, principal_plane, to_json
from training.runs.config import RunConfig
from training.runs.files import RunFiles
from training.runs.measure_gap import measure_gap

NO_DROPOUT = DropoutConfig(others=0, single_camera=0)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_three_places_by_hand() -> None:
    """Camera at 0, 90 and 180 degrees, radar at 0, 90 and 90: the first two find each other, the third is a tie and a miss."""
    camera = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    radar = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    gap = pair_gap("camera", "radar", camera, radar, trained=True)
    assert gap.centroid_distance == pytest.approx(math.hypot(1 / 3 - 0, 2 / 3 - 1 / 3))
    assert gap.cosine_matching == pytest.approx((1 + 1 + 0) / 3)
    assert gap.cosine_other == pytest.approx((0 + 0 + 0 + 1 - 1 + 0) / 6)
    # Camera to radar: 0 finds 0; 90 ties with the third; 180 is at 0 to its partner and to another. Back: 0, 90 and not 90.
    assert gap.recall_1 == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert gap.recall_5 == 1.0
    assert gap.chance_1 == pytest.approx(1 / 3)


@given(st.integers(2, 60), st.integers(0, 20))
def test_the_same_vectors_have_no_gap_and_find_themselves(count: int, seed: int) -> None:
    vectors = unit(count, 8, seed=seed)
    gap = pair_gap("camera", "lidar", vectors, vectors, pool=16)
    assert gap.centroid_distance == 0
    assert gap.cosine_matching == pytest.approx(1.0, abs=1e-5)
    assert gap.recall_1 == 1.0


def test_what_is_shifted_alone_still_finds_its_partner_across_the_gap() -> None:
    """The gap and the alignment are two things (Liang et al.)."""
    shared = unit(200, 7)
    camera, radar = (F.normalize(torch.cat([shared, torch.full((200, 1), side)], 1), dim=1) for side in (-1.0, 1.0))
    gap = pair_gap("camera", "radar", camera, radar)
    assert gap.centroid_distance == pytest.approx(math.sqrt(2), abs=0.01)
    assert gap.recall_1 == 1.0
    assert gap.cosine_matching < 0.01


def test_unrelated_vectors_find_each_other_by_lot() -> None:
    """2,000 places in pools of 50: R@1 of 0.02 with a standard error of 0.003 in each direction."""
    gap = pair_gap("camera", "radar", unit(2000, 16), unit(2000, 16, seed=1), pool=50)
    assert gap.chance_1 == pytest.approx(0.02)
    assert gap.recall_1 == pytest.approx(0.02, abs=0.01)
    assert gap.recall_5 == pytest.approx(0.10, abs=0.02)


def test_a_modality_that_says_the_same_everywhere_finds_nothing() -> None:
    flat = unit(1, 8).expand(40, 8)
    assert pair_gap("camera", "radar", flat, flat).recall_1 == 0


def test_only_places_that_both_cover_are_compared_and_none_is_not_a_figure() -> None:
    vectors = {"camera": unit(6, 4), "lidar": unit(6, 4, seed=1), "radar": unit(6, 4, seed=2)}
    covered = {
        "camera": torch.tensor([1, 1, 1, 0, 0, 0]).bool(),
        "lidar": torch.ones(6).bool(),
        "radar": torch.tensor([0, 0, 1, 1, 1, 1]).bool(),
    }
    vectors["camera"][3:] = math.nan
    pairs = measure(Places(vectors, covered), [("lidar", "camera")])
    assert [(p.name, p.places, p.trained) for p in pairs] == [
        ("camera-lidar", 3, True), ("camera-radar", 1, False), ("lidar-radar", 4, False),
    ]  # fmt: skip
    assert math.isfinite(pairs[0].centroid_distance)
    assert math.isnan(pairs[1].recall_1)
    report = GapReport("run", "val", 2, "anchor", 0.05, pairs, pairs)
    assert not [name for name in report.figures() if "camera-radar" in name]
    assert report.figures()["gap/objects/camera-lidar/recall_1"] == pairs[0].recall_1
    assert json.loads(json.dumps(to_json(report), allow_nan=False))["objects"][1]["recall_1"] is None
    assert "| camera - radar | never | 1 | - | - |" in markdown(report)
    assert "| camera - lidar | yes | 3 |" in markdown(report)


def test_the_plane_is_that_of_the_largest_variance() -> None:
    rows = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [0.1, 5.0, 0.1, 0.1, 2.0, 0.1]
    )
    mean, plane, shares = principal_plane(rows + 7)
    torch.testing.assert_close(mean, (rows + 7).mean(0))
    torch.testing.assert_close(plane.abs().round(), torch.eye(6)[:, [1, 4]])
    assert shares[0] + shares[1] > 0.99
    assert principal_plane(torch.ones(3, 1))[1].shape == (1, 2), "even where there is no plane"


# --- what is collected -----------------------------------------------------------------------------------------------


class Points:
    """Stands for a reader: how many points each object of each sample has."""

    def __init__(self, points: list[Tensor]) -> None:
        self._points = points

    def num_points(self, i: int) -> Tensor:
        return self._points[i]

    def __len__(self) -> int:
        return len(self._points)


def reader_of(points: list[Tensor]) -> NuScenesReader:
    return cast(NuScenesReader, Points(points))


@pytest.mark.parametrize("alignment", [None, {"mode": "pairs", "dim": 5}])
def test_objects_with_points_are_embedded_once_a_cell(alignment: dict[str, object] | None) -> None:
    model, batch = tiny_model(alignment=alignment), random_training_batch()
    batch.boxes.center_m[0, 1] = batch.boxes.center_m[0, 0]  # two in one cell
    batch.boxes.center_m[1, 0, 0] = 500.0  # one outside the grid
    points = [torch.full((6,), 3), torch.tensor([3, 3, 0, 3, 3, 3])]  # one that no sensor met
    objects, cells, samples = collect(model, [batch], reader_of(points))
    assert samples == 2
    assert all(v.shape == (4 + 3, 16 if alignment is None else 5) for v in objects.vectors.values())
    assert 1 < len(cells.vectors["lidar"]) <= 2 * RANDOM_CELLS
    for name, vectors in objects.vectors.items():
        norm = vectors[objects.covered[name]].norm(dim=1)
        assert ((norm - 1).abs() < 1e-5).logical_or(norm == 0).all()
    again = collect(model, [batch], reader_of(points))[1]
    assert torch.equal(again.vectors["radar"], cells.vectors["radar"]), "the seed decides which cells"


def test_the_limit_holds_within_a_batch_and_an_absent_modality_covers_nothing() -> None:
    model, batch = tiny_model(), random_training_batch()
    batch = replace(batch, sensors=batch.sensors.only(("camera", "lidar")))
    told: list[int] = []
    points = [torch.full((6,), 1)] * 2
    objects, _, samples = collect(
        model, [batch, batch], reader_of(points), limit=1, progress=lambda what, done, total: told.append(done)
    )
    assert (samples, told) == (1, [1])
    assert len(objects.vectors["lidar"]) == 5
    assert not objects.covered["radar"].any()


# --- the configuration and the step ------------------------------------------------------------------------------------


def test_alignment_is_off_without_a_word_and_then_the_model_is_what_it_was() -> None:
    plain, bound = tiny_model(), tiny_model(alignment={"mode": "anchor"})
    assert plain.alignment is None
    own, more = plain.state_dict(), bound.state_dict()
    assert {name for name in more if name not in own} == {name for name in more if name.startswith("alignment.")}
    assert all(torch.equal(own[name], more[name]) for name in own), "and its weights are drawn the same"


def test_a_checkpoint_from_before_alignment_loads(tmp_path: Path) -> None:
    robustbev.save(tiny_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["alignment"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert robustbev.load(tmp_path).alignment is None


def test_projections_travel_with_the_checkpoint(tmp_path: Path) -> None:
    model = tiny_model(alignment={"mode": "anchor", "anchor": "radar", "dim": 3})
    loaded = robustbev.load(robustbev.save(model, tmp_path))
    assert loaded.alignment is not None
    assert loaded.alignment.pairs == (("camera", "radar"), ("lidar", "radar"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_what_cannot_be_aligned_is_refused_by_the_configuration() -> None:
    with pytest.raises(ValueError, match="at least two modalities, and the model has only lidar"):
        tiny_config(camera=None, radar=None, alignment={})
    with pytest.raises(ValueError, match="expected one of the model's modalities camera, radar, got 'lidar'"):
        tiny_config(lidar=None, alignment={"mode": "anchor"})
    assert build(tiny_config(lidar=None, alignment={"mode": "anchor", "anchor": "radar"})).alignment is not None


def test_a_step_aligns_what_the_fuser_may_not_see_and_every_projection_learns() -> None:
    model, batch = tiny_model(alignment={}), random_training_batch()
    weights = LossWeights(alignment=0.5)

    def parts(dropout: DropoutConfig, weights: LossWeights = weights) -> dict[str, Tensor]:
        config = StepConfig(precision="float32", dropout=dropout, weights=weights)
        step = TrainingStep(model.train(), config)
        output = step(step.draw(batch, torch.Generator().manual_seed(0)))
        output.loss.backward()
        return dict(output.parts)

    whole = parts(NO_DROPOUT)
    assert model.alignment is not None
    assert all(p.grad is not None and p.grad.any() for p in model.alignment.parameters())
    dropped = parts(NO_DROPOUT.model_copy(update={"radar": 1.0}))
    torch.testing.assert_close(dropped["alignment"], whole["alignment"])
    twice = parts(NO_DROPOUT, LossWeights(alignment=1.0))
    torch.testing.assert_close(twice["alignment"], 2 * whole["alignment"])
    step = TrainingStep(tiny_model(), StepConfig())
    assert "alignment" not in step(step.draw(batch, torch.Generator())).parts


# --- the command -------------------------------------------------------------------------------------------------------


def test_every_config_of_the_comparison_is_valid() -> None:
    from training.runs.config import load_run_config

    folder = Path(__file__).resolve().parents[3] / "configs" / "ablation" / "alignment"
    configs = {path.stem: load_run_config(path) for path in folder.glob("*.yaml")}
    assert set(configs) == {"none", "pairs", "anchor"}
    found = {name: config.model.alignment for name, config in configs.items()}
    assert {name: None if a is None else a.mode for name, a in found.items()} == {
        "none": None, "pairs": "pairs", "anchor": "anchor",
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(small_nuscenes: SmallNuScenes, tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """A run that kept one checkpoint of an untrained model with alignment."""
    model: ModelConfig = tiny_config(alignment={"mode": "anchor"})
    root = tmp_path_factory.mktemp("runs") / "small"
    config = RunConfig.model_validate(
        {
            "name": "small", "runs_dir": root.parent, "model": model, "runner": {"device": "cpu"},
            "data": {"nuscenes": small_nuscenes.config, "workers": 0, "min_points": 0},
        }
    )  # fmt: skip
    files = RunFiles(root)
    torch.manual_seed(0)
    checkpoint = robustbev.save(build(config.model), files.checkpoints / "step-00000001")
    (checkpoint / "training_state.json").write_text("{}")  # marks it as complete
    files.config.write_text(to_yaml(config))
    return files


def test_a_checkpoint_gives_json_markdown_a_picture_and_figures_in_mlflow(
    run: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.tracking.sending, "send_now", lambda run: None)
    with tracked(run) as outbox:
        report, folder = measure_gap(run.root)
        logged, copied = figures(outbox), kept(outbox)
    assert folder == run.gap
    assert report.samples == 3
    assert [(p.name, p.trained) for p in report.objects] == [
        ("camera-lidar", True), ("camera-radar", False), ("lidar-radar", True),
    ]  # fmt: skip
    content = json.loads((folder / "gap.json").read_text())
    assert content["figures"] == report.figures() == logged
    assert "gap/cells/lidar-radar/centroid_distance" in logged
    assert logged["gap/temperature"] == pytest.approx(0.07)
    assert copied == {"gap": ["gap.json", "gap.md", "gap.png"]}
    assert (folder / "gap.png").stat().st_size > 20_000
    assert "alignment anchor" in (folder / "gap.md").read_text()


def test_one_modality_has_no_gap(run: RunFiles, tmp_path: Path) -> None:
    robustbev.save(build(tiny_config(camera=None, radar=None)), tmp_path)
    config = RunConfig(runner={"device": "cpu"})
    with pytest.raises(ValueError, match="a gap lies between two modalities, and the model has only lidar"):
        measure_gap(tmp_path, config, out_dir=tmp_path)
