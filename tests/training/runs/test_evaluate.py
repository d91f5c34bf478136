"""From a saved model to tables and pictures, as `robustbev evaluate` and `robustbev show` do it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import robustbev
import training.tracking.sending
from sensors.corruptions import Corruption, CorruptionError
from sensors.frames import KINDS
from sensors.nuscenes.index import data_id
from tests.small_nuscenes import SmallNuScenes
from tests.tracked import AWAY, figures, kept, steps, tracked
from training.data.dataset import DataConfig
from training.evaluation.config import every_subset
from training.files.config_file import to_yaml
from training.runs.config import RunConfig, load_run_config
from training.runs.evaluate import evaluate_checkpoint
from training.runs.files import RunFiles, run_of
from training.runs.release import release
from training.runs.show import show, show_run

SUBSETS = every_subset(KINDS)

MODEL = {
    "channels": 16,
    "grid": {"cell_m": 1.6},
    "modalities": {
        "camera": {"image_height_px": 32, "image_width_px": 64, "dim": 32, "depth": 1, "feature_channels": 16},
        "lidar": {"pillar_channels": 8},
        "radar": {"width": 8},
    },
    "backbone": {"widths": [16, 16]},
    "tasks": {"detection": {"max_boxes": 20}},
}


@pytest.fixture(scope="module")
def run(small_nuscenes: SmallNuScenes, tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """A run that kept one checkpoint of an untrained model."""
    root = tmp_path_factory.mktemp("runs") / "small"
    config = RunConfig.model_validate(
        {
            "name": "small", "runs_dir": root.parent, "model": MODEL,
            "data": {"nuscenes": small_nuscenes.config, "workers": 0}, "runner": {"device": "cpu"},
            "evaluation": {"score_threshold": 0.0, "processes": 1},
        }
    )  # fmt: skip
    files = RunFiles(root)
    torch.manual_seed(0)
    checkpoint = robustbev.save(robustbev.build(config.model), files.checkpoints / "step-00000001")
    (checkpoint / "training_state.json").write_text("{}")  # marks it as complete
    files.config.write_text(to_yaml(config))
    files.history.write_text(json.dumps({"step": 1, "loss": 1.0, "parts": {"heatmap": 0.5}, "lr": 1e-3}) + "\n")
    return files


def test_a_checkpoint_at_the_root_of_a_container_lies_in_no_run() -> None:
    assert run_of(Path("/model.safetensors")) is None


def test_evaluate_finds_the_run_of_a_checkpoint_and_leaves_all_its_files(run: RunFiles) -> None:
    seen: list[tuple[str, int, int | None]] = []
    results = evaluate_checkpoint(run.root, progress=lambda *step: seen.append(step))
    assert tuple(results) == SUBSETS
    for name in ("subsets.json", "table.md", "table.csv", "subsets.png", "radar/results_nusc.json"):
        assert (run.evaluation / name).is_file()
    summary = json.loads((run.root / "subsets.json").read_text())
    assert set(summary) == set(SUBSETS)
    assert seen[-1] == ("score", 7, 7)
    assert all(0 <= result.mean_ap <= 1 and result.samples == 3 for result in results.values())


def test_the_card_of_a_checkpoint_gets_the_figures_and_goes_with_the_model(run: RunFiles, tmp_path: Path) -> None:
    results = evaluate_checkpoint(run.root)
    out = release(run.root, tmp_path / "to hand on")
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (out / "README.md").read_text()
    for result in results.values():
        assert f"| {result.subset.replace('+', ' + ')} | {result.mean_ap:.3f} | {result.nds:.3f} |" in card
    assert "3 keyframes" in card
    channels = load_run_config(run.config).data.nuscenes.channels()
    assert all(name in card for name in channels["camera"] + channels["radar"])
    assert robustbev.load(out).config == robustbev.load(run.root).config
    with pytest.raises(ValueError, match="is a checkpoint of a run"):
        release(out, run.checkpoints / "step-00000001")


def test_an_mlflow_that_is_away_gets_figures_and_tables_later(run: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    run.config.write_text(to_yaml(load_run_config(run.config, [f"tracking.uri={AWAY}"])))
    with tracked(run) as outbox:
        with pytest.warns(
            UserWarning, match=r"MLflow \(http.*has not taken .*are kept in .*the next command on this run"
        ):
            evaluate_checkpoint(run.root)
        assert steps(outbox) == {1}
        assert {f"val/mAP/{subset}" for subset in SUBSETS} <= set(figures(outbox))
        (description,) = [row["value"] for _, row in outbox.rows() if row.get("tag") == "mlflow.note.content"]
        assert description == (run.evaluation / "table.md").read_text()
        assert all(math.isfinite(value) for value in figures(outbox).values())
        assert kept(outbox)["evaluation"] == ["subsets.json", "table.md", "table.csv", "subsets.png"]
        assert kept(outbox)["evaluation/lidar+radar"] == ["metrics_summary.json"]


def test_a_run_that_is_not_tracked_tells_mlflow_nothing(run: RunFiles) -> None:
    with tracked(run) as outbox:
        config = load_run_config(run.config, ["tracking.enabled=false", "evaluation.subsets=[radar]"])
        evaluate_checkpoint(run.root, config)
        show_run(run.root, config)
        assert list(outbox.rows()) == []


def test_submissions_go_to_mlflow_where_asked_for(run: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.tracking.sending, "send_now", lambda run: None)
    with tracked(run) as outbox:
        evaluate_checkpoint(
            run.root, load_run_config(run.config, ["tracking.submissions=true", "evaluation.subsets=[radar]"])
        )
        assert kept(outbox)["evaluation/radar"] == ["metrics_summary.json", "results_nusc.json"]


def test_figures_on_other_data_do_not_take_the_place_of_the_runs_own(
    run: RunFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        training.tracking.sending, "log_report", lambda *_: pytest.fail("the run's MLflow is not to hear of it")
    )
    (run.root / "subsets.json").write_text("own")
    settings = ["data.nuscenes.val_split=small_train", "evaluation.subsets=[lidar]"]
    config = load_run_config(run.config, settings)
    with pytest.raises(ValueError, match=r"val_split is small_train, and small_val in the run; say with --out"):
        evaluate_checkpoint(run.root, config)
    assert list(evaluate_checkpoint(run.root, config, out_dir=tmp_path / "other")) == ["lidar"]
    assert (tmp_path / "other" / "table.md").is_file()
    assert (run.root / "subsets.json").read_text() == "own"


def test_a_run_on_moved_data_is_evaluated_on_its_own(
    run: RunFiles, small_nuscenes: SmallNuScenes, tmp_path: Path
) -> None:
    """By the id of the data set; of a run that noted none the path must do."""
    shutil.copytree(small_nuscenes.root, tmp_path / "moved")
    config = load_run_config(run.config, [f"data.nuscenes.root={tmp_path / 'moved'}", "evaluation.subsets=[lidar]"])
    with pytest.raises(ValueError, match=r"data\.nuscenes\.root is .*moved, and .* in the run; say with --out"):
        evaluate_checkpoint(run.root, config)
    run.data.write_text(json.dumps({"data_id": data_id(small_nuscenes.config)}))
    try:
        evaluate_checkpoint(run.root, config)
        assert list(json.loads(run.subsets.read_text())) == ["lidar"]
        run.data.write_text(json.dumps({"data_id": "0" * 64}))
        with pytest.raises(ValueError, match="holds another data set than the run's; say with --out"):
            evaluate_checkpoint(run.root, config)
    finally:
        run.data.unlink()


def test_a_model_that_lies_in_no_run_says_what_is_missing(run: RunFiles, tmp_path: Path) -> None:
    model = robustbev.load(run.checkpoints / "step-00000001")
    robustbev.save(model, tmp_path / "somewhere")
    with pytest.raises(ValueError, match="--config"):
        evaluate_checkpoint(tmp_path / "somewhere")
    with pytest.raises(robustbev.CheckpointError, match=r"nowhere: not found; expected .* folder of a run"):
        evaluate_checkpoint(tmp_path / "nowhere")


def test_show_draws_truth_without_a_model_and_finds_with_one(run: RunFiles, tmp_path: Path) -> None:
    from training.runs.config import load_run_config

    config = load_run_config(run.config)
    assert len(show(config, tmp_path)) == 2
    paths = show(config, tmp_path, checkpoint=run.root, subset="radar+lidar", sample=1, score=0.0)
    assert any(path.name.endswith("_lidar+radar_attention.png") for path in paths)
    assert all(path.stat().st_size > 20_000 for path in paths)
    with pytest.raises(ValueError, match="samples 0 to 2"):
        show(config, tmp_path, sample=3)
    with pytest.raises(ValueError, match="not in split"):
        show(config, tmp_path, sample="unknown")


def test_pictures_of_a_corruption_have_its_name_and_are_of_what_it_changes(
    small_nuscenes: SmallNuScenes, tmp_path: Path
) -> None:
    config = RunConfig(data=DataConfig(nuscenes=small_nuscenes.config))
    paths = show(config, tmp_path, sample=1, corruption=Corruption("lidar_lagging", 1))
    assert [path.name for path in paths] == [f"sample-1-1_lidar_lagging-1_truth{part}.png" for part in ("", "_cameras")]
    with pytest.raises(
        CorruptionError, match=r"lidar_lagging-1 changes nothing in sample sample-1-0: .* another --sample"
    ):
        show(config, tmp_path, sample=0, corruption=Corruption("lidar_lagging", 1))


def test_pictures_of_a_run_lie_in_its_folder(run: RunFiles) -> None:
    paths = show_run(run.root)
    assert {path.parent for path in paths} == {run.pictures}
    assert "training.png" in {path.name for path in paths}
