"""A monitor is fitted and judged on measured samples, and what comes out is said plainly."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("typer")

from typer.testing import CliRunner

from sensors.corruptions import CORRUPTIONS, Corruption
from sensors.health.fault_model import HEALTHY
from tests.sensors.health.health_world import World
from tests.small_nuscenes import write_small_nuscenes
from training.commands.app import app
from training.data.dataset import DataConfig
from training.health.fit import HealthAlter, auroc, fit_monitor, fit_samples, judge_monitor, judge_samples
from training.health.report import caption, health_table, write_report
from training.health.run import run_health
from training.health.samples import FAULT_OF, HealthSample, changed_sensors, draw_corruptions, fault_of
from training.runs.config import RunConfig


def made_up(shift: float, count: int = 60) -> list[HealthSample]:
    """LiDARs of ten drives: healthy ones whose figure lies about 0, noisy ones about 5, late ones about `shift`."""
    random = np.random.default_rng(0)
    samples = []
    for corruption, fault, middle in (
        ("", HEALTHY, 0.0),
        ("lidar_noise", "noisy", 5.0),
        ("lidar_lagging", "delayed", shift),
    ):
        for n in range(count):
            values = random.normal((middle, 0 if fault == "noisy" else middle), 1)
            samples.append(
                HealthSample(
                    "lidar", fault, corruption, 3 if corruption else 0, f"scene-{n % 10}", 2.0 if n % 3 else 0.0,
                    {"one": float(values[0]), "two": float(values[1])}, "lidar",
                )
            )  # fmt: skip
    return samples


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    sick, sound = np.array([0.9, 0.4, 0.4, 0.2] * 3), np.array([0.1, 0.4, 0.3, 0.8, 0.8] * 2)
    # of 5 sound ones lie below 0.9: 5, below 0.4: 2 and a tie, below 0.2: 1 -> (5 + 2.5 + 2.5 + 1) / 20
    assert auroc(sick, sound) == pytest.approx(11 / 20)
    assert math.isnan(auroc(sick[:9], sound))


def test_every_failure_has_a_corruption_and_a_fault() -> None:
    assert set(FAULT_OF) <= set(CORRUPTIONS)
    assert fault_of("motion_blur", "camera") == "blurred"
    assert fault_of("motion_blur", "lidar") == "noisy"


def test_failures_are_drawn_by_seed_and_token() -> None:
    names = tuple(FAULT_OF)
    drawn = draw_corruptions("token", names, 8, seed=1)
    assert drawn == draw_corruptions("token", names, 8, seed=1)
    assert len({case.name for case in drawn}) == 8
    assert drawn != draw_corruptions("other", names, 8, seed=1) != draw_corruptions("other", names, 8, seed=2)


def test_a_sensor_counts_as_sick_where_its_data_or_its_claims_changed() -> None:
    world = World(0)
    frame = world.frame(1)
    assert changed_sensors(frame, replace(frame)) == set()
    assert changed_sensors(frame, Corruption("lidar_misaligned", 1)(frame, world.history(1))) == {"LIDAR_TOP"}
    assert len(changed_sensors(frame, Corruption("camera_black", 2)(frame, world.history(1)))) == 2
    gone = replace(frame, cameras=(None, *(frame.cameras or ())[1:]))
    assert changed_sensors(frame, gone) == set()  # absent, and so nothing that could be scored


def test_what_can_be_told_apart_is_told_apart() -> None:
    samples = made_up(shift=8.0)
    monitor = fit_samples(samples, {})
    figures = judge_samples(monitor, samples, 60, "train")
    assert [(f.failure, f.fault, f.sick) for f in figures.figures] == [
        ("lidar_lagging", "delayed", 60), ("lidar_noise", "noisy", 60),
    ]  # fmt: skip
    assert figures.mean(3) > 0.98
    assert min(f.named for f in figures.figures) > 0.9
    late, noisy = figures.figures
    assert late.acted > 0.8  # late data are wrong, noisy ones are kept
    assert noisy.acted < 0.1
    assert figures.false_alarms["lidar"] <= 1 / 60
    assert math.isnan(figures.mean(5))


def test_what_cannot_be_told_apart_is_not_acted_on() -> None:
    figures = judge_samples(monitor := fit_samples(made_up(shift=0.0), {}), made_up(shift=0.0), 60, "train")
    late = figures.figures[0]
    assert 0.3 < late.auroc < 0.7
    assert late.acted <= 0.1
    assert monitor.thresholds["lidar"] >= 0.5


def test_the_report_is_written_in_four_forms(tmp_path: Path) -> None:
    samples = made_up(shift=8.0)
    figures = judge_samples(fit_samples(samples, {}), samples, 60, "here")
    paths = write_report(tmp_path, figures)
    assert [path.name for path in paths] == ["health.md", "health.csv", "health.json", "health.png"]
    assert "| all | mean | 3 |" in health_table(figures).markdown()
    assert "clean frames of here" in caption(figures)
    rows = list(csv.DictReader(paths[1].read_text().splitlines()))
    assert float(rows[0]["auroc"]) == pytest.approx(figures.figures[0].auroc, abs=1e-6)
    content = json.loads(paths[2].read_text())
    assert content["mean_auroc"]["3"] == pytest.approx(figures.mean(3), abs=1e-6)
    assert content["failures"][0]["others"] is None  # no other LiDAR in these frames
    assert paths[3].read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    data = write_small_nuscenes(tmp_path_factory.mktemp("data")).config
    return RunConfig(data=DataConfig(nuscenes=data))


def test_a_monitor_comes_from_drives_and_goes_to_drives(small: RunConfig, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    done = run_health(
        small, fit=True, out=tmp_path / "m.json", severities=(2,), limit=2, scenes=1, progress=lambda *a: told.append(a)
    )
    assert done.paths[0] == tmp_path / "m.json"
    assert all(path.is_file() for path in done.paths)
    assert {what for what, _, _ in told} == {"measure", "fit", "judge"}
    assert {f.severity for f in done.figures.figures} == {2}
    assert {f.kind for f in done.figures.figures} == {"camera", "lidar", "radar"}
    again = run_health(small, monitor=tmp_path / "m.json", severities=(2,), limit=2)
    assert again.figures.figures == done.figures.figures
    reader_free: Sequence[str] = [figure.failure for figure in again.figures.figures]
    assert set(reader_free) <= set(FAULT_OF)


def test_faulty_requests_say_what_to_do(small: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ending in \.json"):
        run_health(small, fit=True, out=tmp_path / "folder")
    with pytest.raises(FileNotFoundError, match="robustbev health --fit"):
        run_health(small, monitor=tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="robustbev health --fit"):
        HealthAlter(tmp_path / "none.json")
    monitor = fit_samples(made_up(5.0), {})
    with pytest.raises(ValueError, match=r"unknown failure 'rust', expected one of camera_frozen"):
        judge_monitor(monitor, small, failures=("rust",))
    empty = small.model_copy(
        update={"data": small.data.model_copy(
            update={"nuscenes": small.data.nuscenes.model_copy(update={"train_split": "nothing"})})}
    )  # fmt: skip
    with pytest.raises(ValueError, match="nothing"):
        fit_monitor(empty)


def test_the_command_takes_one_monitor(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: small\n")
    result = CliRunner().invoke(app, ["health", "--config", str(path), "--fit", "--monitor", "x.json"])
    assert result.exit_code == 2
    assert "give one of them" in result.output.replace("\n", " ")
