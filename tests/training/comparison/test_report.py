"""Means, deviations and who leads, computed by hand; the same figures in every form."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from training.comparison.pictures import comparison_dots
from training.comparison.plan import JobResult
from training.comparison.report import (
    Comparison,
    Row,
    Spread,
    caption,
    comparison_table,
    csv_table,
    job_line,
    leader,
    metrics,
    pooled_deviation,
    write_tables,
)
from training.tasks.detection.result import SubsetResult

COLUMNS = ("camera+lidar+radar", "radar", "fog-3")


def figure(name: str, mean_ap: float, samples: int = 40) -> SubsetResult:
    return SubsetResult(name, mean_ap, mean_ap + 0.1, {}, {}, "ranges: official", samples)


def job(entry: str, seed: int, *mean_aps: float, columns: tuple[str, ...] = COLUMNS) -> JobResult:
    figures = {name: figure(name, value) for name, value in zip(columns, mean_aps, strict=True)}
    return JobResult(
        entry, seed, Path("runs") / f"{entry}-seed{seed}", "done", figures=figures, parameters=1_200_000,
        step_ms=500 + 10 * seed, train_seconds=60.0, step=330, mlflow_run_id=f"id-{entry}-{seed}",
    )  # fmt: skip


@pytest.fixture
def comparison() -> Comparison:
    null = Row("null", Path("null.yaml"), (job("null", 0, 0.60, 0.30, 0.50), job("null", 1, 0.64, 0.34, 0.50)))
    zeros = Row("zeros", Path("zeros.yaml"), (job("zeros", 0, 0.61, 0.20, 0.40), job("zeros", 1, 0.61, 0.20, 0.42)))
    return Comparison("nulls", (0, 1), COLUMNS, (null, zeros), ("not the same budget: epochs",))


def markdown(comparison: Comparison) -> str:
    return comparison_table(comparison).markdown()


def test_deviation_is_the_sample_deviation() -> None:
    # 1, 2, 3, 4: mean 2.5, squares 2.25 + 0.25 + 0.25 + 2.25 = 5, by n - 1 = 3
    spread = Spread((1.0, 2.0, 3.0, 4.0))
    assert spread.mean == 2.5
    assert spread.deviation == pytest.approx(math.sqrt(5 / 3))
    assert Spread((0.5,)).text() == "0.500"
    assert math.isnan(Spread((0.5,)).deviation)
    assert Spread(()).text() == "-"
    assert Spread((0.1, 0.3)).text() == "0.200 ± 0.141"


def test_pooled_deviation_weighs_by_degrees_of_freedom() -> None:
    # variances 2 (1 degree of freedom) and 5/3 (3): (2 + 5) / 4
    assert pooled_deviation(Spread((1.0, 3.0)), Spread((1.0, 2.0, 3.0, 4.0))) == pytest.approx(math.sqrt(7 / 4))
    assert pooled_deviation(Spread((1.0, 3.0)), Spread((9.0,))) == pytest.approx(math.sqrt(2))
    assert math.isnan(pooled_deviation(Spread((1.0,)), Spread((2.0,))))
    assert math.isnan(pooled_deviation(Spread(()), Spread((2.0, 3.0))))


def test_a_row_leads_only_beyond_the_pooled_deviation_of_every_other() -> None:
    ahead, near, far = Spread((0.50, 0.52)), Spread((0.49, 0.51)), Spread((0.30, 0.32))  # deviations 0.014
    assert leader({"ahead": ahead, "far": far}) == "ahead"
    assert leader({"ahead": ahead, "far": far, "near": near}) is None
    assert leader({"ahead": Spread((0.9,)), "far": Spread((0.1,))}) is None  # one seed says nothing of the spread
    assert leader({"ahead": Spread((0.9,)), "far": far}) == "ahead"
    assert leader({"alone": ahead, "nothing": Spread(())}) is None


def test_tables_show_mean_deviation_and_leader(comparison: Comparison) -> None:
    null, zeros = markdown(comparison).splitlines()[2:4]
    # all sensors: 0.62 against 0.61, pooled sqrt((0.0008 + 0) / 2) = 0.02: nobody leads; radar: 0.32 against 0.20
    assert null == (
        "| null | 0.620 ± 0.028 | **0.320 ± 0.028** | **0.500 ± 0.000** | 1,200,000 | 505 ± 7 | 60 ± 0 | 2 |"
    )
    assert zeros == "| zeros | 0.610 ± 0.000 | 0.200 ± 0.000 | 0.410 ± 0.014 | 1,200,000 | 505 ± 7 | 60 ± 0 | 2 |"
    assert "warning: not the same budget: epochs" in markdown(comparison)
    assert "40 samples, ranges: official" in markdown(comparison)


def test_csv_json_and_mlflow_have_every_figure(comparison: Comparison, tmp_path: Path) -> None:
    (row, _) = csv.DictReader(io.StringIO(csv_table(comparison).csv()))
    assert float(row["fog-3 mAP mean"]) == pytest.approx(0.5)
    assert float(row["radar NDS mean"]) == pytest.approx(0.42)
    assert float(row["radar mAP deviation"]) == pytest.approx(0.028284, abs=1e-6)
    assert row["seeds"] == "0 1"
    paths = write_tables(tmp_path / "out", comparison)
    assert [path.name for path in paths] == ["comparison.json", "comparison.md", "comparison.csv"]

    def no_constant(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    content = json.loads(paths[0].read_text(), parse_constant=no_constant)
    assert content["leaders"]["mAP"] == {"camera+lidar+radar": None, "radar": "null", "fog-3": "null"}
    run = content["configs"]["null"]["runs"][1]
    assert (run["seed"], run["step"], run["mlflow_run_id"]) == (1, 330, "id-null-1")
    assert run["figures"]["radar"]["mAP"] == 0.34
    assert metrics(comparison)["null/radar/mAP"] == pytest.approx(0.32)
    assert metrics(comparison)["null/radar/mAP/deviation"] == pytest.approx(0.028284, abs=1e-6)


def test_what_failed_is_missing_in_the_table_and_named_below(comparison: Comparison, tmp_path: Path) -> None:
    null, zeros = comparison.rows
    failed = JobResult("zeros", 1, Path("runs/zeros-seed1"), "failed", "step 3: the loss is [not] finite")
    stopped = JobResult("zeros", 0, Path("runs/zeros-seed0"), "stopped")
    partly = replace(comparison, rows=(null, replace(zeros, results=(zeros.results[0], failed))))
    assert "| 0.610 | 0.200 | 0.400 | 1,200,000 | 500 | 60 | 1 of 2 |" in markdown(partly)
    assert "failed: zeros-seed1: step 3: the loss is \\[not] finite" in markdown(partly)
    gone = replace(comparison, rows=(null, replace(zeros, results=(stopped, failed))))
    assert "| zeros | - | - | - | - | - | - | 0 of 2 |" in markdown(gone)
    assert "not complete: 1 of 4 jobs are still to be done" in caption(gone)
    assert "zeros" in csv_table(gone).csv()
    assert "nan" not in markdown(gone) + csv_table(gone).csv() + json.dumps(metrics(gone))
    assert comparison_dots(tmp_path / "c.png", gone).is_file()
    assert job_line(failed, COLUMNS) == "zeros-seed1: failed: step 3: the loss is [not] finite"
    assert job_line(null.results[0], COLUMNS).startswith("null-seed0: mAP camera+lidar+radar 0.600, radar 0.300")


def test_a_model_without_a_sensor_has_no_figure_there(comparison: Comparison) -> None:
    lone = Row("camera", Path("camera.yaml"), (job("camera", 0, 0.3, columns=("camera",)),))
    table = replace(comparison, columns=(*COLUMNS, "camera"), rows=(*comparison.rows, lone))
    assert "| camera | - | - | - | 0.300 |" in markdown(table)


def test_one_seed_marks_nobody_and_says_so(comparison: Comparison) -> None:
    rows = tuple(replace(row, results=row.results[:1]) for row in comparison.rows)
    table = replace(comparison, seeds=(0,), rows=rows)
    assert "**" not in markdown(table)
    assert "mAP of one seed" in caption(table)[0]


def test_figures_over_other_samples_are_told(comparison: Comparison) -> None:
    null, zeros = comparison.rows
    other = replace(zeros.results[0], figures={"radar": figure("radar", 0.2, samples=8)})
    mixed = replace(comparison, rows=(null, replace(zeros, results=(other,))))
    assert "warning: not all rows were measured over the same samples and ranges" in caption(mixed)


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_a_chart_of_any_number_of_rows(comparison: Comparison, tmp_path: Path, rows: int) -> None:
    many = tuple(replace(comparison.rows[0], name=f"row-{i}") for i in range(rows))
    path = comparison_dots(tmp_path / "chart.png", replace(comparison, rows=many))
    assert path.stat().st_size > 10_000
