"""The figures of a robustness run as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from training.files.table import Cell, Column, Table, show
from training.robustness import metrics as metrics
from training.robustness.results import Robustness
from training.tasks.detection.result import TP_ERRORS, SubsetResult, figure_of, task_figures

FIGURE, SHARE, COUNT = ".3f", ".1%", "d"


def summary_table(robustness: Robustness) -> Table:
    """What is left on average, NDS (where it is defined) and mAP side by side."""
    fields = robustness.metrics.values()
    clean = [robustness.clean(field) for field in fields]
    means = [metrics.mean_resistance_ability(robustness.matrix(field), robustness.clean(field)) for field in fields]
    severities = ", ".join(map(str, robustness.config.severities))
    return Table(
        "In short",
        [Column("measure"), *(Column(name, FIGURE) for name in robustness.metrics)],
        [["all sensors, clean", *clean], ["mRA", *means]],
        f"Means over {len(robustness.matrix('mean_ap'))} corruptions at severities {severities}. mRA: MultiCorrupt; RoboBEV and "
        "Robo3D call it mRR. The papers take NDS.",
        name="summary",
    )


def subset_table(robustness: Robustness) -> Table:
    """One row a subset of the sensors on clean data."""
    names = list(reversed(robustness.metrics))
    columns = [Column("sensors")]
    for name in names:
        columns += [Column(name, FIGURE), Column(f"{name} kept", SHARE)]
    rows = []
    for subset, result in robustness.subsets().items():
        row: list[Cell] = [subset.replace("+", " + ")]
        for field in (robustness.metrics[name] for name in names):
            row += [figure_of(result, field), metrics.retention(figure_of(result, field), robustness.clean(field))]
        rows.append(row)
    return Table("Subsets of the sensors, clean data", columns, rows, "kept: share of all sensors'.", name="subsets")


def corruption_table(robustness: Robustness, metric: str) -> Table:
    """One row a corruption: the figure at each severity, and their share of the clean one. `metric` is "NDS" or "mAP"."""
    field, severities = robustness.metrics[metric], robustness.config.severities
    clean = robustness.clean(field)
    columns = [Column("corruption"), *(Column(f"severity {s}", FIGURE) for s in severities), Column("RA", FIGURE)]
    caption = f"Clean: {show(clean, FIGURE)}. RA: share of the clean {metric}, mean over severities."
    rows: list[list[Cell]] = [
        [
            name.replace("_", " "),
            *(figures.get(s, math.nan) for s in severities),
            metrics.resistance_ability(figures, clean),
        ]
        for name, figures in robustness.matrix(field).items()
    ]
    return Table(f"Corruptions, {metric} of all sensors", columns, rows, caption, name=f"corruptions_{metric.lower()}")


def case_table(robustness: Robustness) -> Table:
    """Everything that was measured, one row a case."""
    columns = [Column("sensors"), Column("corruption"), Column("severity", COUNT)]
    names = list(reversed(robustness.metrics))
    columns += [Column(name, FIGURE) for name in (*names, *TP_ERRORS.values())]
    columns += [Column(name, COUNT) for name in ("samples", "boxes", "no perception")]
    tasks = task_figures(robustness.figures.values())
    columns += [Column(f"{task} {name}", FIGURE) for task, name in tasks]
    fields = [robustness.metrics[name] for name in names]
    rows: list[list[Cell]] = []
    for case, result in robustness.figures.items():
        subset = case.of(robustness.model.modalities).subset
        rows.append([subset, case.corruption, case.severity, *_figures(result, fields, tasks)])
    return Table("Every measurement", columns, rows, name="cases")


def _figures(result: SubsetResult, fields: Sequence[str], tasks: Sequence[tuple[str, str]]) -> list[float]:
    errors = [result.errors.get(name, math.nan) for name in TP_ERRORS.values()]
    of_tasks = [result.of_task(*figure) for figure in tasks]
    main = [figure_of(result, field) for field in fields]
    return [*main, *errors, result.samples, result.boxes, len(result.no_perception), *of_tasks]


def tables(robustness: Robustness) -> list[Table]:
    """All tables that people read, in the order of the report."""
    shown = [summary_table(robustness), subset_table(robustness)]
    if robustness.matrix("mean_ap"):
        shown += [corruption_table(robustness, metric) for metric in robustness.metrics]
    return shown
