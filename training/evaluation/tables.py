"""What an evaluation found, as a value, and its tables: JSON, Markdown, CSV and the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from training.files.atomic import NoteError, read_note, write_json, write_text
from training.files.table import Cell, Column, Table, show
from training.tasks.detection.result import TP_ERRORS, SubsetResult, figure_of, main_figures, task_figures

SHORT_CLASS = {
    "construction_vehicle": "constr.",
    "pedestrian": "pedest.",
    "motorcycle": "motorc.",
    "traffic_cone": "cone",
}


Results = Mapping[str, SubsetResult]


def write_subsets(path: Path, results: Results) -> None:
    """`subsets.json`: one object a subset, keyed "camera+lidar+radar" and so on."""
    write_json(path, {subset: result.to_json() for subset, result in results.items()})


def read_subsets(path: Path) -> dict[str, SubsetResult]:
    """Read `subsets.json`.

    Raises:
        ValueError: the file is missing or is not one of ours; the message names it.
    """
    try:
        content = read_note(path)
        return {subset: SubsetResult.from_json(subset, entry) for subset, entry in content.items()}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `robustbev evaluate --checkpoint DIR` writes it") from None
    except (NoteError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected {{"camera+lidar": {{"mAP": ...}}, ...}}, got {error!r}') from None


def all_sensors(results: Results) -> SubsetResult | None:
    """The subset that holds every other one, to which they are compared; None where there is none."""
    full = max(results.values(), key=lambda r: r.subset.count("+"), default=None)
    if full is None or any(not set(r.subset.split("+")) <= set(full.subset.split("+")) for r in results.values()):
        return None
    return full


def retention(result: SubsetResult, results: Results) -> float:
    """The mAP as a share of the mAP with all sensors; NaN where that is 0."""
    full = all_sensors(results)
    return result.mean_ap / full.mean_ap if full is not None and full.mean_ap > 0 else math.nan


def caption(results: Results) -> str:
    """What the figures hold for: ranges, samples, samples that nobody perceived, classes that are not there to be found."""
    if not results:
        return "nothing was evaluated"
    first = next(iter(results.values()))
    blind = {subset: len(r.no_perception) for subset, r in results.items() if r.no_perception}
    who = "nuScenes' formulas" if first.nds is None else "nuScenes DetectionEval (detection_cvpr_2019)"
    text = f"{who} on {first.samples} samples, {first.ranges}"
    if blind:
        text += "; no perception (all sensors of the subset absent): "
        text += ", ".join(f"{subset} {count} samples" for subset, count in blind.items())
    if first.classes_without_truth:
        text += f"; no truth of {', '.join(first.classes_without_truth)}, whose AP is 0; mean AP of the other classes: "
        text += ", ".join(f"{subset} {show(r.mean_ap_of_truth, '.3f')}" for subset, r in results.items())
    return text


def subset_table(results: Results, *, more: bool = True) -> Table:
    """One row a subset: the official figures and mAP relative to all sensors; with `more` other tasks', and AP of each class."""
    columns = [Column("sensors"), Column("mAP", ".3f"), Column("of all", ".0%")]
    columns += [Column("NDS", ".3f")] if _scored(results) else []
    columns += [Column(name, ".2f") for name in TP_ERRORS.values()]
    columns += [*_task_columns(results), *_class_columns(results)] if more else []
    rows: list[list[Cell]] = [
        [
            _spaced(subset),
            *_official(result, results),
            *([*_of_tasks(result, results), *result.class_ap.values()] if more else ()),
        ]
        for subset, result in results.items()
    ]
    return Table("Every subset of the sensors", columns, rows, f"{caption(results)}.")


def task_table(results: Results) -> Table:
    """The figures of tasks beside detection in every subset."""
    columns = [Column("sensors", wrap=True), *_task_columns(results)]
    rows: list[list[Cell]] = [[_spaced(subset), *_of_tasks(result, results)] for subset, result in results.items()]
    return Table("Other tasks", columns, rows)


def class_table(results: Results) -> Table:
    """AP of every class in every subset."""
    columns = [Column("sensors", wrap=True), *_class_columns(results)]
    rows: list[list[Cell]] = [[_spaced(subset), *result.class_ap.values()] for subset, result in results.items()]
    return Table("AP by class", columns, rows)


def terminal_tables(results: Results) -> list[Table]:
    """Every subset by the official figures, by those of other tasks where there are any, by the AP of every class."""
    tasks = [task_table(results)] if task_figures(results.values()) else []
    return [subset_table(results, more=False), *tasks, class_table(results)]


def csv_table(results: Results) -> Table:
    """The same for machines, ranges and samples in columns of their own."""
    names = ["sensors", "mAP", "of_all", *(["NDS"] if _scored(results) else []), *TP_ERRORS.values()]
    names += [f"{task}_{name}".replace(" ", "_") for task, name in task_figures(results.values())]
    names += [f"AP_{name}" for name in _classes(results)]
    names += ["ranges", "samples", "no_perception"]
    rows: list[list[Cell]] = [
        [
            subset,
            *_official(r, results),
            *_of_tasks(r, results),
            *r.class_ap.values(),
            r.ranges,
            r.samples,
            len(r.no_perception),
        ]
        for subset, r in results.items()
    ]
    return Table("", [Column(name) for name in names], rows)


def _classes(results: Results) -> list[str]:
    return list(next(iter(results.values())).class_ap) if results else []


def _class_columns(results: Results) -> list[Column]:
    return [Column(SHORT_CLASS.get(name, name), ".2f") for name in _classes(results)]


def _task_columns(results: Results) -> list[Column]:
    return [Column(f"{task} {name}", ".3f") for task, name in task_figures(results.values())]


def _official(result: SubsetResult, results: Results) -> list[float]:
    """mAP, its share of all sensors', NDS where it is defined, the errors."""
    errors = [result.errors.get(name, math.nan) for name in TP_ERRORS.values()]
    score = [figure_of(result, "nds")] if _scored(results) else []
    return [result.mean_ap, retention(result, results), *score, *errors]


def _scored(results: Results) -> bool:
    return "NDS" in main_figures(results.values())


def _of_tasks(result: SubsetResult, results: Results) -> list[float]:
    return [result.of_task(*figure) for figure in task_figures(results.values())]


def _spaced(subset: str) -> str:
    return subset.replace("+", " + ")


def write_report(directory: Path, results: Results) -> list[Path]:
    """Write subsets.json, table.md and table.csv into `directory`; returns their paths."""
    paths = [directory / "subsets.json", directory / "table.md", directory / "table.csv"]
    write_subsets(paths[0], results)
    write_text(paths[1], subset_table(results).markdown())
    write_text(paths[2], csv_table(results).csv())
    return paths
