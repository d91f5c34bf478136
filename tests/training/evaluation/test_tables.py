"""Tables say the same in every form, and what their figures hold for."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from training.evaluation.tables import (
    Results,
    all_sensors,
    class_table,
    csv_table,
    read_subsets,
    retention,
    subset_table,
    terminal_tables,
    write_report,
)
from training.files.atomic import replacing, write_json
from training.runs.evaluate import figures_of
from training.tasks.detection.result import TP_ERRORS, SubsetResult

RANGES = "ranges: min(official, 25.6 m)"


def _result(subset: str, mean_ap: float, blind: tuple[str, ...] = ()) -> SubsetResult:
    errors = dict.fromkeys(TP_ERRORS.values(), 0.25) | {"mAVE": math.nan}
    return SubsetResult(
        subset, mean_ap, mean_ap + 0.05, errors, {"car": mean_ap, "traffic_cone": 0.5}, RANGES, 40, 100, blind
    )


@pytest.fixture
def results() -> dict[str, SubsetResult]:
    return {
        r.subset: r for r in (_result("camera+lidar+radar", 0.6), _result("lidar+radar", 0.45), _result("radar", 0.0))
    }


def markdown(results: Results) -> str:
    return subset_table(results).markdown()


def test_every_table_has_every_subset_and_names_the_ranges(results: dict[str, SubsetResult]) -> None:
    text = markdown(results)
    for figure in ("| camera + lidar + radar | 0.600 |", "| 75% |", "0.650", f"40 samples, {RANGES}.", "| cone |"):
        assert figure in text
    assert "nan" not in text
    assert [column.name for column in class_table(results).columns] == ["sensors", "car", "cone"]
    assert "cone" not in subset_table(results, more=False).markdown()
    rows = list(csv.DictReader(io.StringIO(csv_table(results).csv())))
    assert [row["sensors"] for row in rows] == list(results)
    assert float(rows[1]["of_all"]) == pytest.approx(0.75)
    assert all(row["ranges"] == RANGES for row in rows)
    assert rows[0]["mAVE"] == ""


def test_figures_of_other_tasks_stand_under_their_names_and_in_a_table_of_their_own(
    results: dict[str, SubsetResult], tmp_path: Path
) -> None:
    """Whatever else a subset has or lacks: one without perception may have no figures at all."""
    lidar, radar = (
        {"counts": {"error": 1.5}},
        {"lanes": {"IoU left": math.inf}, "counts": {"error": 2.5, "bias": 0.125}},
    )
    results["lidar+radar"] = replace(results["lidar+radar"], tasks=lidar)
    results["radar"] = replace(results["radar"], tasks=radar)
    _, tasks, _ = terminal_tables(results)
    assert [column.name for column in tasks.columns] == ["sensors", "counts error", "lanes IoU left", "counts bias"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tasks.markdown().splitlines()[-3:]]
    assert cells == [
        ["camera + lidar + radar", "-", "-", "-"], ["lidar + radar", "1.500", "-", "-"], ["radar", "2.500", "inf", "0.125"]
    ]  # fmt: skip
    assert markdown(results).splitlines()[0].endswith("| counts error | lanes IoU left | counts bias | car | cone |")
    rows = list(csv.DictReader(io.StringIO(csv_table(results).csv())))
    assert [float(row["counts_error"] or "nan") for row in rows[1:]] == [1.5, 2.5]
    assert [float(row["AP_car"]) for row in rows] == [0.6, 0.45, 0.0]
    kept = read_subsets(write_report(tmp_path, results)[0])
    assert kept["lidar+radar"].tasks == lidar
    assert math.isnan(kept["radar"].of_task("lanes", "IoU left"))  # infinity is no JSON
    assert figures_of(kept)["val/counts/bias/radar"] == 0.125
    assert "val/lanes/IoU left/radar" not in figures_of(kept)


def test_retention_needs_a_row_that_holds_all_the_others(results: dict[str, SubsetResult]) -> None:
    assert retention(results["lidar+radar"], results) == pytest.approx(0.75)
    apart = {name: _result(name, 0.5) for name in ("camera", "lidar")}
    assert all_sensors(apart) is None
    assert math.isnan(retention(apart["camera"], apart))
    assert all_sensors({}) is None
    assert "nothing was evaluated" in markdown({})


def test_samples_without_perception_are_in_the_caption() -> None:
    assert "no perception" in markdown({"radar": _result("radar", 0.1, ("token",))})
    assert "radar 1 samples" in markdown({"radar": _result("radar", 0.1, ("token",))})


def test_classes_of_which_there_is_no_truth_are_named_and_left_out_of_a_mean_beside_the_official_one() -> None:
    some = replace(_result("radar", 0.1), classes_without_truth=("traffic_cone",))
    assert some.mean_ap_of_truth == pytest.approx(0.1)
    text = markdown({"radar": some})
    assert "no truth of traffic_cone, whose AP is 0; mean AP of the other classes: radar 0.100" in text
    assert "no truth" not in markdown({"radar": _result("radar", 0.1)})
    assert math.isnan(replace(some, classes_without_truth=("car", "traffic_cone")).mean_ap_of_truth)
    assert SubsetResult.from_json("radar", some.to_json()).classes_without_truth == ("traffic_cone",)


def test_subsets_json_is_strict_json_and_reads_back(results: dict[str, SubsetResult], tmp_path: Path) -> None:
    paths = write_report(tmp_path / "new" / "folder", results)
    assert [path.name for path in paths] == ["subsets.json", "table.md", "table.csv"]

    def no_constant(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    content = json.loads(paths[0].read_text(), parse_constant=no_constant)
    assert content["lidar+radar"]["mAP"] == 0.45
    assert content["lidar+radar"]["NDS"] == pytest.approx(0.5)
    assert content["radar"]["mAVE"] is None
    back = read_subsets(paths[0])
    assert markdown(back) == markdown(results)


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"lidar": {"NDS": 1}}', '{"lidar": 3}'])
def test_a_file_that_is_no_subsets_json_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "subsets.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"subsets\.json: expected"):
        read_subsets(path)
    with pytest.raises(ValueError, match="robustbev evaluate"):
        read_subsets(tmp_path / "absent.json")


def _fail_half_way(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half of")
        raise OSError("disk full")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(OSError, match="disk full"):
        _fail_half_way(path)
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/figures\.json'"),
        replacing(path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as writing to a file tells it
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
