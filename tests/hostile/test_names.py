"""A page of hostile names: as class, channel, topic, scene, token, run and title through every command, picture and report.

Each is shown, and does nothing else: nothing moves a terminal's cursor, loads a picture, is a formula, ends a command, or is
written elsewhere.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import robustbev
from robustbev import ModelCard, ModelConfig, RigConfig, SubsetFigures
from tests.hostile.test_text import NAMES, harmless
from tests.robustbev.results.replay_results import result
from tests.small_nuscenes import VERSION, SmallNuScenes
from tests.tiny_model import tiny_config
from tests.training.comparison.test_report import COLUMNS, job
from tests.training.pictures.scene.scenes import scene
from training.commands.app import app
from training.comparison.pictures import comparison_dots
from training.comparison.report import Comparison, Row
from training.files.config_file import to_yaml
from training.pictures.charts import subset_chart, training_curves
from training.pictures.scene import canvas
from training.pictures.scene.canvas import save
from training.pictures.scene.page import page
from training.runs.config import RunConfig
from training.runs.files import RunFiles
from training.tasks.detection.result import SubsetResult

ALL = "=$\\bad$\x1b[31m\u202e[/red]<script>x</script>|../../up`x`![i](http://x.invalid)\n"  # one name for every door
MARKDOWN_THAT_ACTS = re.compile(r"<script|(?<!\\)\[i\]\(|(?<!\\)`x`")


# --- pictures ---------------------------------------------------------------------------------------------------------


def subsets(path: Path) -> None:
    results = {
        name: SubsetResult(name, 0.5, 0.5, {}, dict.fromkeys(NAMES, 0.5), "".join(NAMES), 10) for name in NAMES[:5]
    }
    subset_chart(path, results, title=ALL)


def curves(path: Path) -> None:
    history = [{"step": k, "loss": 1.0 / k, "parts": dict.fromkeys(NAMES, 0.5 / k), "lr": 1e-3} for k in range(1, 9)]
    training_curves(path, history, title=ALL)


def compared(path: Path) -> None:
    rows = tuple(Row(name, Path("x.yaml"), (job(name, 0, 0.6, 0.3, 0.5),)) for name in NAMES)
    comparison_dots(path, Comparison(ALL, (0,), COLUMNS, rows, tuple(NAMES)))


def sample(path: Path) -> None:
    classes = tuple(NAMES[: len(result().classes)])
    save(path, page(scene(result(), classes=classes), [], title=ALL, note=ALL * 100))


@pytest.mark.parametrize("draw", [subsets, curves, compared, sample])
def test_a_picture_shows_names_and_runs_no_formula(draw: Callable[[Path], None], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")  # of what no font has: an escape that was not spelt out
        draw(tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_name_is_drawn_letter_by_letter(tmp_path: Path) -> None:
    for name in NAMES:
        assert canvas.width_px(name, 12) > 0
        assert canvas.fitting(name * 10_000, 12, False, 100).endswith("…")


# --- a model card -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, ALL])
def test_a_model_card_holds_no_html_links_or_pictures_of_names(name: str) -> None:
    rig = RigConfig(camera_channels=(name,), lidar_channels=(f"{name}2",), radar_channels=(f"{name}3",))
    config = ModelConfig.model_validate({**dict(tiny_config()), "classes": (name, f"{name}b"), "rig": rig})
    card = ModelCard(name, name, name, (SubsetFigures(name, 0.5, None),), (name,)).markdown(config)
    assert harmless(card)
    assert not MARKDOWN_THAT_ACTS.search(card)
    assert not re.search(r"(?<!\\)\[|<", re.sub(r"```.*?```", "", card, flags=re.DOTALL))
    assert card.count("\n## ") == 5  # no name begins a section


# --- commands ---------------------------------------------------------------------------------------------------------

CLASS, CHANNEL = f"class{ALL}", f"radar{ALL}"
CAMERA, LIDAR = f"camera{ALL}", f"lidar{ALL}"
RENAMED = {
    "vehicle.car": f"category{ALL}", "vehicle.moving": f"attribute{ALL}", "scene-0": f"{ALL}0", "scene-1": f"{ALL}1",
    "CAM_FRONT": CAMERA, "LIDAR_TOP": LIDAR, "RADAR_FRONT": CHANNEL,
}  # fmt: skip


def renamed(value: Any) -> Any:
    """A table in which scenes, channels, categories and tokens of samples have hostile names."""
    if isinstance(value, dict):
        return {renamed(key): renamed(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [renamed(entry) for entry in value]
    if isinstance(value, str) and value.startswith("sample-"):
        return f"{ALL}{value}"
    return RENAMED.get(value, value) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def run(small_nuscenes: SmallNuScenes, tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """An untrained run on such data."""
    place = tmp_path_factory.mktemp("names")
    shutil.copytree(small_nuscenes.root, place / "data", ignore=shutil.ignore_patterns(".robustbev*"))
    for table in (place / "data" / VERSION).glob("*.json"):
        table.write_text(json.dumps(renamed(json.loads(table.read_text()))))
    nuscenes = {
        **small_nuscenes.config.model_dump(), "root": place / "data", "class_map": {RENAMED["vehicle.car"]: CLASS},
        "camera_channels": (CAMERA,), "radar_channels": (CHANNEL,), "lidar_channels": (LIDAR,), "reference_channel": LIDAR,
    }  # fmt: skip
    model = {**dict(tiny_config()), "classes": (CLASS,), "attributes": (RENAMED["vehicle.moving"],)}
    config = RunConfig.model_validate({
        "name": "run", "runs_dir": place / "runs", "model": model, "data": {"nuscenes": nuscenes, "workers": 0},
        "evaluation": {"score_threshold": 0.0, "processes": 1, "class_range_m": {CLASS: 20.0}, "subsets": ["radar"]},
        "runner": {"device": "cpu"}, "tracking": {"enabled": False}, "epochs": 1, "batch_size": 2,
    })  # fmt: skip
    (place / "run.yaml").write_text(to_yaml(config))
    return RunFiles(place / "runs" / "run")


def invoke(*words: object) -> Result:
    """A command that ends as commands end, and tells what it tells in letters."""
    ended = CliRunner().invoke(app, [str(word) for word in words])
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    assert harmless(ended.output), ended.output
    return ended


def written(folder: Path) -> None:
    """What lies in a folder is text that does nothing, and pictures."""
    for path in folder.rglob("*"):
        assert harmless(path.name)
        if path.suffix == ".md":
            text = path.read_text(encoding="utf-8")
            assert harmless(text)
            assert not MARKDOWN_THAT_ACTS.search(text), path
        elif path.suffix == ".csv":
            for row in csv.reader(path.read_text(encoding="utf-8").splitlines(keepends=True)):
                assert all(len(cell) < 2 or cell[0] not in "=+-@" or _is_number(cell) for cell in row), row
        elif path.suffix == ".html":
            assert "<script>x" not in path.read_text(encoding="utf-8")


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"-?[\d.e+-]+", cell) is not None


def test_every_command_shows_the_names_of_a_data_set_and_does_nothing_else(
    run: RunFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    place, config = run.root.parent.parent, run.root.parent.parent / "run.yaml"
    shutil.copy(config, tmp_path / "other.yaml")
    before = sorted(path.name for path in place.parent.iterdir())
    told = invoke("index", "--config", config)
    assert told.exit_code == 0, told.output
    assert "class=$\\bad$\\x1b[31m\\u202e[/red]<script>x" in told.output
    for words in (
        ("doctor", "--config", config), ("config", "--config", config), ("train", "--config", config),
        ("evaluate", "--checkpoint", run.root), ("show", "--checkpoint", run.root, "--out", tmp_path / "shown"),
        ("show", "--config", config, "--sample", f"{ALL}sample-1-1", "--out", tmp_path / "truth"),
        ("robustness", "--checkpoint", run.root, "jobs=0", "corruptions=[fog]", "severities=[1]", "limit=1"),
        ("export", "--checkpoint", run.root, "--format", "safetensors", "--out", tmp_path / "released"),
        ("compare", config, tmp_path / "other.yaml", "--jobs", "0", "--name", "both"),
        ("health", "--config", config, "--fit", "--scenes", "1", "--limit", "1", "--out", tmp_path / "health.json"),
        ("convert", place / "data", "--scene", f"{ALL}1", "--out", tmp_path / "drive.mcap"),
        ("inspect", tmp_path / "drive.mcap"),
        ("replay", tmp_path / "drive.mcap", "--checkpoint", tmp_path / "released", "--out", tmp_path / "seen.html",
         "--out", tmp_path / "seen.mcap", "--fault", "lidar: drop ..0.4s", "--summary", tmp_path / "seen.json"),
    ):  # fmt: skip
        ended = invoke(*words)
        assert ended.exit_code == 0, (words, ended.output)
    assert sorted(path.name for path in place.parent.iterdir()) == before
    written(run.root.parent)
    written(tmp_path)
    assert robustbev.load(tmp_path / "released").config.classes == (CLASS,)
    for wrong in (
        ("show", "--config", config, "--sample", f"{ALL}none", "--out", tmp_path / "shown"),
        ("evaluate", "--checkpoint", run.root, f"evaluation.class_range_m={{{json.dumps(ALL)}: 3}}"),
        ("evaluate", "--checkpoint", f"{ALL}"), ("index", "--config", config, f"{ALL}=3"),
        ("convert", place / "data", "--scene", ALL, "--out", tmp_path / "none.mcap"),
    ):  # fmt: skip
        assert invoke(*wrong).exit_code == 2, wrong


@pytest.mark.parametrize("table", ["scene", "sample", "category", "sensor"])
def test_half_a_letter_in_a_table_is_one_line(small_nuscenes: SmallNuScenes, tmp_path: Path, table: str) -> None:
    """JSON may hold halves of letters, which neither files nor terminals can."""
    shutil.copytree(small_nuscenes.root / VERSION, tmp_path / VERSION, ignore=shutil.ignore_patterns(".robustbev*"))
    path = tmp_path / VERSION / f"{table}.json"
    rows = json.loads(path.read_text())
    key = {"sample": "token", "sensor": "channel"}.get(table, "name")
    rows[0][key] = "\ud800"
    path.write_text(json.dumps(rows))
    (tmp_path / "run.yaml").write_text(f"data: {{nuscenes: {{root: {tmp_path}, version: {VERSION}}}}}\n")
    ended = invoke("index", "--config", tmp_path / "run.yaml")
    assert ended.exit_code == 2
    assert f"{table}.json" in ended.output
