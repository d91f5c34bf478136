"""A robustness run from end to end: every figure once, gone on with after a stop."""

import csv
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import robustbev
import training.robustness.report
import training.tracking.sending
from tests.small_nuscenes import SmallNuScenes
from tests.tiny_model import tiny_config
from tests.tracked import figures, kept, tracked
from training.commands.app import app
from training.console.progress import Bars
from training.files.config_file import ConfigError, load_config, to_yaml
from training.robustness.cases import Case
from training.robustness.config import RobustnessConfig
from training.robustness.results import Robustness
from training.robustness.run import run_robustness
from training.robustness.tables import case_table
from training.robustness.tasks import RobustnessError
from training.runs.config import RunConfig, load_run_config
from training.runs.files import RunFiles
from training.tasks.detection.result import SubsetResult

SMALL = {
    "corruptions": ("points_reducing",), "severities": (3, 5), "subsets": ("camera+lidar+radar", "lidar"), "jobs": 0,
    "device": "cpu", "tracking": False,
}  # fmt: skip


def write_run(place: Path, small: SmallNuScenes, seed: int = 0, **nuscenes: object) -> RunFiles:
    """A run that kept one checkpoint of an untrained model."""
    config = RunConfig.model_validate(
        {
            "name": place.name, "runs_dir": place.parent, "model": tiny_config(),
            "data": {"nuscenes": {**small.config.model_dump(), **nuscenes}, "workers": 0},
            "evaluation": {"score_threshold": 0.0, "processes": 1}, "runner": {"device": "cpu"},
        }
    )  # fmt: skip
    files = RunFiles(place)
    torch.manual_seed(seed)
    checkpoint = robustbev.save(robustbev.build(config.model), files.checkpoints / "step-00000001")
    (checkpoint / "training_state.json").write_text("{}")  # marks it as complete
    files.config.write_text(to_yaml(config))
    return files


@pytest.fixture
def run(small_nuscenes: SmallNuScenes, tmp_path: Path) -> RunFiles:
    return write_run(tmp_path / "runs" / "one", small_nuscenes)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test does not look at them."""
    monkeypatch.setattr(training.robustness.report, "pictures", lambda out_dir, found: [])


def measure(run: RunFiles, **changes: object) -> Robustness:
    with Bars() as bars:
        return run_robustness(run.root, RobustnessConfig.model_validate({**SMALL, **changes}), bars)


def test_one_command_leaves_a_whole_report_and_measures_nothing_twice(
    run: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.tracking.sending, "send_now", lambda run: None)
    with tracked(run) as outbox:
        found = measure(run, tracking=True)
        logged, copied = figures(outbox), kept(outbox)
    assert (found.measured, found.tasks) == (3, 3)
    out = run.root / "robustness"
    names = {path.name for path in out.iterdir() if path.is_file()}
    assert names == {
        "summary.csv", "subsets.csv", "corruptions_nds.csv", "corruptions_map.csv", "cases.csv", "report.md", "report.html",
        "robustness.json", "config.yaml", "subsets.png", "retention.png", "severity.png",
    }  # fmt: skip
    rows = list(csv.DictReader((out / "cases.csv").read_text().splitlines()))
    assert len(rows) == len({(r["sensors"], r["corruption"], r["severity"]) for r in rows}) == 4
    first, *_ = found.figures
    counted = replace(found.figures[first], tasks={"counts": {"error": 0.5}})
    table = case_table(replace(found, figures={**found.figures, first: counted}))
    shown = list(csv.DictReader(table.csv().splitlines()))
    assert [row.pop("counts error") for row in shown] == ["0.5", *[""] * 3]
    assert shown == rows
    _check_page(found)
    assert "robustness/clean_NDS" in logged
    assert all(math.isfinite(value) for value in logged.values())
    assert names - {"config.yaml"} <= set(copied["robustness"])
    run.config.write_text(to_yaml(load_run_config(run.config, ["tracking.enabled=false"])))
    with tracked(run) as outbox:
        again = measure(run, tracking=True)
        assert list(outbox.rows()) == []
    assert again.measured == 0
    assert plain(again.figures) == plain(found.figures)
    assert measure(run, seed=1, severities=(3,)).measured == 2  # another seed is another measurement


def _check_page(found: Robustness) -> None:
    """The page needs nothing but itself, and says what was run."""
    page = (found.out / "report.html").read_text()
    assert not re.search(r"(https?:)?//[a-z]|<link|<script|url\(", re.sub(r'"data:image/png;base64,[^"]*"', "", page))
    assert page.count('src="data:image/png;base64,') == page.count("<div class=wide><img") == 3
    assert page.count("<div class=wide><table") == page.count("<table") > 3  # on a phone each scrolls by itself
    assert '<meta name="viewport" content="width=device-width' in page
    for word in (
        "mRA",
        "points reducing",
        "data id",
        "seed of the corruptions",
        found.model.fingerprint[:16],
        "torch 2",
    ):
        assert word in page
    facts = json.loads((found.out / "robustness.json").read_text())["what"]
    assert (facts["samples"], facts["split"]) == ("3", "small_val")


def plain(figures: Mapping[Case, SubsetResult]) -> dict[str, object]:
    """As JSON, in which NaN is null and equals itself."""
    return {case.name: result.to_json() for case, result in figures.items()}


class _StopAfter(Bars):
    """Ctrl-C once so many tasks are done."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self._left = tasks

    def __call__(self, what: str, done: int, total: int | None, note: str = "") -> None:
        if what == "robustness" and done >= self._left:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("no_pictures")
def test_a_stopped_run_goes_on_and_gives_what_a_whole_one_gives(run: RunFiles, tmp_path: Path) -> None:
    config = RobustnessConfig.model_validate(SMALL)
    with pytest.raises(KeyboardInterrupt):
        run_robustness(run.root, config, _StopAfter(2))
    rest = measure(run)
    (run.evaluation / "tasks").rename(tmp_path / "stopped")
    whole = measure(run)
    assert (rest.tasks, rest.measured, whole.measured) == (3, 1, 3)
    assert plain(rest.figures) == plain(whole.figures)


def test_a_model_without_a_run_says_what_is_missing(run: RunFiles, tmp_path: Path) -> None:
    robustbev.save(robustbev.load(run.checkpoints / "step-00000001"), tmp_path / "loose")
    with Bars() as bars, pytest.raises(RobustnessError, match=r"lies in no run's folder.*expected runs/<name>"):
        run_robustness(tmp_path / "loose", RobustnessConfig.model_validate(SMALL), bars)


@pytest.mark.usefixtures("no_pictures")
def test_other_data_can_be_measured_on(run: RunFiles) -> None:
    found = measure(run, data={"nuscenes": {"val_split": "small_train"}}, corruptions=(), limit=2)
    assert (found.data["split"], found.data["samples"]) == ("small_train", "2")
    summary = (found.out / "summary.csv").read_text()
    assert "mRA,,\n" in summary  # no corruption, no mean over corruptions


def test_the_config_names_what_is_wrong_and_the_file_in_the_house_is_the_default() -> None:
    assert load_config(RobustnessConfig, Path("configs/robustness.yaml")) == RobustnessConfig()
    with pytest.raises(ConfigError, match="unknown corruption 'fogg', expected one of bright, dark"):
        load_config(RobustnessConfig, None, ["corruptions=[fogg]"])
    with pytest.raises(ConfigError, match="severities") as raised:
        load_config(RobustnessConfig, None, ["severities=[6]"])
    assert len(raised.value.faults) == 1
    assert load_config(RobustnessConfig, None, ["health=off"]).health == "off"
    config = load_config(RobustnessConfig, None, ["severities=[3, 1, 3]", "subsets=[radar+camera]"])
    assert (config.severities, config.subsets) == ((1, 3), ("radar+camera",))


@pytest.mark.usefixtures("no_pictures")
def test_the_command_prints_the_tables(run: RunFiles) -> None:
    words = [
        "robustness",
        "--checkpoint",
        str(run.root),
        "corruptions=[dark]",
        "severities=[3]",
        "jobs=0",
        "tracking=false",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    for word in ("mRA", "Subsets of the sensors", "camera + lidar + radar", "dark", "report.html"):
        assert word in result.stdout
    assert "…" not in result.stdout
    bad = CliRunner().invoke(app, [*words[:3], "corruptions=[fogg]"])
    assert bad.exit_code == 2
    assert "expected one of bright" in bad.stderr
