"""A whole run with the real model: stopped and continued, kept from mixing with another, tracked."""

import dataclasses
import itertools
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

pytest.importorskip("mlflow")

import robustbev
import training.loop.checkpoint
import training.runs.run
from robustbev import choose_precision
from robustbev.checkpoints import find_checkpoint
from sensors.nuscenes.index import build_index
from sensors.nuscenes.reader import NuScenesReader
from tests.small_nuscenes import SmallNuScenes
from tests.tracked import AWAY, tracked
from training.commands.app import app
from training.console.progress import Bars
from training.loop.checkpoint import CheckpointWriteError
from training.loop.history import read_history
from training.runs.config import RunConfig
from training.runs.files import RunError, RunFiles
from training.runs.run import absolute_paths, run_training
from training.tracking.mlflow_store import TrackingWarning
from training.tracking.outbox import Outbox

MODEL: dict[str, Any] = {
    "channels": 16,
    "grid": {"cell_m": 1.6},
    "modalities": {
        "camera": {"image_height_px": 32, "image_width_px": 64, "dim": 32, "depth": 1, "feature_channels": 16},
        "lidar": {"pillar_channels": 8},
        "radar": {"width": 8},
    },
    "backbone": {"widths": [16, 16]},
}


def config(data: SmallNuScenes, runs_dir: Path, name: str, **changes: Any) -> RunConfig:
    content: dict[str, Any] = {
        "name": name, "runs_dir": runs_dir, "epochs": 4, "batch_size": 1, "model": MODEL,
        "data": {"nuscenes": data.config, "workers": 0}, "tracking": {"enabled": False},
        "runner": {"device": "cpu", "checkpoint": {"every_steps": 2}},
    }  # fmt: skip
    return RunConfig.model_validate(content | changes)


class KilledError(Exception):
    pass


class KillingBars(Bars):
    """Ends the process, as far as the run can tell, when a step is shown."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def __call__(self, what: str, done: int, total: int | None, note: str = "") -> None:
        if done == self._step:
            raise KilledError


def losses(run: RunConfig) -> list[float]:
    return [row["loss"] for row in read_history(RunFiles(run.run_dir).history)]


def weights(run: RunConfig) -> dict[str, torch.Tensor]:
    return robustbev.load(find_checkpoint(run.run_dir)).state_dict()


@pytest.fixture(scope="module")
def whole(small_nuscenes: SmallNuScenes, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that nobody disturbed."""
    run = config(small_nuscenes, tmp_path_factory.mktemp("runs"), "whole")
    outcome = run_training(run, Bars())
    assert outcome.step == outcome.total_steps > 8
    return run


@pytest.mark.parametrize("killed_at", [3, 7])
def test_the_real_model_goes_on_bit_for_bit(
    small_nuscenes: SmallNuScenes, tmp_path: Path, whole: RunConfig, killed_at: int
) -> None:
    run = config(small_nuscenes, tmp_path, "killed")
    with pytest.raises(KilledError):
        run_training(run, KillingBars(killed_at))
    files = RunFiles(run.run_dir)
    assert not files.is_complete(run)
    torch.manual_seed(99)
    run_training(run, Bars())
    assert files.is_complete(run)
    assert losses(run) == losses(whole)
    mine, theirs = weights(run), weights(whole)
    assert [name for name, value in mine.items() if not torch.equal(value, theirs[name])] == []


def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(
    small_nuscenes: SmallNuScenes, tmp_path: Path, whole: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = config(small_nuscenes, tmp_path, "full"), save_file

    def full(tensors: Any, path: Path) -> None:
        if "step-00000004" in str(path):
            raise OSError(28, "No space left on device")
        real(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(training.loop.checkpoint, "save_file", full)
        with pytest.raises(CheckpointWriteError, match="step-00000003 is intact"):
            run_training(run, Bars())
    run_training(run, Bars())
    assert losses(run) == losses(whole)


def test_a_full_disk_is_told_by_the_checkpoint_that_it_costs_though_the_outbox_is_on_it_too(
    small_nuscenes: SmallNuScenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(small_nuscenes, tmp_path, "full")
    run = run.model_copy(update={"tracking": run.tracking.model_copy(update={"enabled": True, "uri": AWAY})})
    files = RunFiles(run.run_dir)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def train(*_: Any) -> None:
        monkeypatch.setattr(Outbox, "_append", full)
        raise CheckpointWriteError("step-00000003 is intact")

    monkeypatch.setattr(training.runs.run, "_train", train)
    files.root.mkdir(parents=True)
    with tracked(files), pytest.raises(CheckpointWriteError), pytest.warns(TrackingWarning, match="has not taken"):
        run_training(run, Bars())


def test_another_configuration_is_another_run(small_nuscenes: SmallNuScenes, whole: RunConfig) -> None:
    other = config(small_nuscenes, whole.runs_dir, "whole", seed=5, optim={"lr": 0.5})
    with pytest.raises(
        RunError, match=r"began with another configuration.*--fresh.*\nseed: 0 then, 5 now\noptim\.lr: 0\.001 then"
    ):
        run_training(other, Bars())
    free = config(small_nuscenes, whole.runs_dir, "whole", evaluation={"batch_size": 1})
    assert RunFiles(whole.run_dir).is_complete(free)


@pytest.fixture
def own_data(small_nuscenes: SmallNuScenes, tmp_path: Path) -> SmallNuScenes:
    """The same data set, which nobody else uses."""
    shutil.copytree(small_nuscenes.root, tmp_path / "data")
    return dataclasses.replace(small_nuscenes, root=tmp_path / "data")


def test_data_that_were_moved_are_the_same_data(own_data: SmallNuScenes, tmp_path: Path, whole: RunConfig) -> None:
    run = config(own_data, tmp_path / "runs", "half")
    with pytest.raises(KilledError):
        run_training(run, KillingBars(5))
    moved = dataclasses.replace(own_data, root=tmp_path / "elsewhere")
    own_data.root.rename(moved.root)
    there, files = config(moved, run.runs_dir, "half"), RunFiles(run.run_dir)
    run_training(there, Bars())
    assert losses(there) == losses(whole)
    assert str(moved.root) in files.config.read_text()
    assert files.is_complete(there)
    shutil.rmtree(moved.root)
    assert files.is_complete(there)  # data that are gone have not changed
    assert not files.is_complete(run)  # and whether these are the same cannot be known


def test_other_data_at_the_same_path_are_refused(own_data: SmallNuScenes, tmp_path: Path) -> None:
    run = config(own_data, tmp_path / "runs", "half")
    build_index(run.data.nuscenes)
    RunFiles(run.run_dir).begin(run)
    (RunFiles(run.run_dir).checkpoints / "step-00000001").mkdir(parents=True)
    table = own_data.root / run.data.nuscenes.version / "sample_annotation.json"
    rows = json.loads(table.read_text())
    rows[0]["num_lidar_pts"] += 1
    table.write_text(json.dumps(rows))
    with pytest.raises(
        RunError, match=r"began with another configuration.*\ndata set in .*: [0-9a-f]{16} then, [0-9a-f]{16}"
    ):
        run_training(run, Bars())


def test_a_setting_newer_than_the_run_stood_at_its_default(small_nuscenes: SmallNuScenes, whole: RunConfig) -> None:
    """A run that an older release began goes on, unless the new setting is used."""
    file = RunFiles(whole.run_dir).config
    text = file.read_text()
    assert "\nfreeze: []\n" in text
    file.write_text(text.replace("\nfreeze: []\n", "\n"))
    try:
        assert RunFiles(whole.run_dir).is_complete(whole)
        frozen = config(small_nuscenes, whole.runs_dir, "whole", freeze=["camera"])
        assert RunFiles(whole.run_dir).differences(frozen) == ["freeze: [] then, ['camera'] now"]
    finally:
        file.write_text(text)


def test_fresh_starts_over_and_init_from_starts_from_other_weights(
    small_nuscenes: SmallNuScenes, tmp_path: Path, whole: RunConfig
) -> None:
    run = config(small_nuscenes, tmp_path, "fresh", epochs=1)
    run_training(run, Bars())
    first = losses(run)
    assert first != losses(whole)[: len(first)]  # another schedule
    again = config(small_nuscenes, tmp_path, "fresh", epochs=1, init_from=whole.run_dir)
    run_training(again, Bars(), fresh=True)
    assert losses(again)[0] != first[0]


def test_a_run_is_worked_on_by_one_process_at_a_time(whole: RunConfig) -> None:
    with RunFiles(whole.run_dir).locked(), pytest.raises(RunError, match="another process works on this run"):
        run_training(whole, Bars())


def test_the_model_knows_whose_data_it_was_given(small_nuscenes: SmallNuScenes, whole: RunConfig) -> None:
    checkpoint = find_checkpoint(whole.run_dir)
    model, nuscenes = robustbev.load(checkpoint), whole.data.nuscenes
    assert model.config.rig is not None
    assert model.config.rig.channels() == nuscenes.channels()
    assert (model.config.rig.lidar_sweeps, model.config.rig.radar_sweeps) == (
        nuscenes.lidar_sweeps,
        nuscenes.radar_sweeps,
    )
    reader = NuScenesReader(nuscenes, nuscenes.train_split, classes=model.config.classes)
    assert model.perceive(reader.frame(0)).perceived
    card = (checkpoint / "README.md").read_text()
    assert f"split {nuscenes.train_split} (" in card
    assert "Not evaluated" in card
    with pytest.raises(ValueError, match=r"model\.rig follows from data"):
        RunConfig.model_validate(whole.model_dump() | {"model": model.config})


def test_mlflow_gets_configuration_figures_and_model_of_one_run(
    small_nuscenes: SmallNuScenes, mlflow_database: Path, tmp_path: Path
) -> None:
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    run = config(small_nuscenes, tmp_path, "tracked", tracking={"every_steps": 2})
    with pytest.raises(KilledError):
        run_training(run, KillingBars(5))
    run_training(run, Bars())
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        (run_id, status), *others = database.execute("select run_uuid, status from runs").fetchall()
        tags = dict(database.execute("select key, value from tags").fetchall())
        data = database.execute("select name, digest from datasets order by name").fetchall()
        params = dict(database.execute("select key, value from params").fetchall())
        rows = database.execute("select key, step, value from metrics order by step").fetchall()
    assert (others, status) == ([], "FINISHED")
    assert run_id == json.loads(RunFiles(run.run_dir).mlflow.read_text())["run_id"]
    assert tags["data.id"]
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("robustbev train", "LOCAL")
    assert [(name, tags["data.id"].startswith(digest)) for name, digest in data] == [
        (f"{small_nuscenes.root.name} small_train", True),
        (f"{small_nuscenes.root.name} small_val", True),
    ]
    assert tags["precision"].startswith(f"{choose_precision('auto', 'cpu', training=True).name}: ")
    assert params["model.grid.cell_m"] == "1.6"
    assert {"train/loss", "train/loss/heatmap", "train/lr", "train/samples_per_s", "memory/resident_mib"} <= {
        key for key, *_ in rows
    }
    assert len({(key, step) for key, step, _ in rows}) == len(rows)
    each = losses(run)
    ends = [step for step in range(1, len(each) + 1) if step % 2 == 0 or step % 3 == 0]  # three steps an epoch
    means = [sum(each[begun:end]) / (end - begun) for begun, end in itertools.pairwise([0, *ends])]
    assert [row[1:] for row in rows if row[0] == "train/loss"] == list(
        zip(ends, map(pytest.approx, means), strict=True)
    )
    artifacts = tmp_path / "mlartifacts" / run_id / "artifacts"
    assert {path.name for path in artifacts.rglob("*") if path.is_file()} == {
        "config.yaml", "model.safetensors", "config.json", "README.md", "history.jsonl",
    }  # fmt: skip


def test_paths_become_absolute_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    moved = absolute_paths(RunConfig(init_from=Path("a")))
    assert moved.runs_dir == tmp_path / "runs"
    assert moved.init_from == tmp_path / "a"
    assert moved.data.nuscenes.root == tmp_path / "data" / "nuscenes"
    assert moved.data.nuscenes.index_dir is None


def test_train_on_a_complete_run_sends_what_mlflow_has_not_taken(whole: RunConfig) -> None:
    files = RunFiles(whole.run_dir)
    words = ["tracking.enabled=true", f"tracking.uri={AWAY}"]
    with tracked(files) as outbox:
        outbox.metrics({"loss": 1.0}, 1)
        with pytest.warns(TrackingWarning, match=r"has not taken 1 rows .*refused"):
            done = CliRunner().invoke(app, ["train", "--config", str(files.config), *words])
    assert "is complete" in done.output
