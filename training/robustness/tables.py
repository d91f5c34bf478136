"""The figures of a robustness run as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from training.files.table import Cell, Column, Table, show
from training.robustness import metrics as metrics
from training.robustness.results import Robustness
from training.tasks.detection.result import TP_ERRORS, SubsetResult, figure_of, task_figures

FIGURE, SHARE, CHANGE, COUNT = ".3f", ".1%", "+.1%", "d"


def summary_table(robustness: Robustness) -> Table:
    """One row a published measure, NDS (where it is defined) and mAP side by side."""

    def mean_ra(metric: str, *, baseline: bool = False) -> float:
        matrix, clean = robustness.matrix(metric, baseline=baseline), robustness.clean(metric, baseline=baseline)
        return metrics.mean_resistance_ability(matrix, clean)

    fields = robustness.metrics.values()
    measures = [
        ("all sensors, clean", FIGURE, [robustness.clean(m) for m in fields]),
        ("mRA", FIGURE, [mean_ra(m) for m in fields]),
        ("mRR", SHARE, [metrics.mean_resilience_rate(robustness.matrix(m), robustness.clean(m)) for m in fields]),
    ]
    if robustness.baseline is not None:
        pairs = [robustness.compared(m) for m in fields]
        measures += [
            ("baseline, all sensors, clean", FIGURE, [robustness.clean(m, baseline=True) for m in fields]),
            ("baseline mRA", FIGURE, [mean_ra(m, baseline=True) for m in fields]),
            ("mRRA against the baseline", CHANGE, [metrics.mean_relative_resistance_ability(*p) for p in pairs]),
            ("mCE against the baseline", SHARE, [metrics.mean_corruption_error(*p) for p in pairs]),
        ]
    severities = ", ".join(map(str, robustness.config.severities))
    return Table(
        "In short",
        [Column("measure"), *(Column(name, FIGURE) for name in robustness.metrics)],
        [[measure, *(show(figure, spec) for figure in figures)] for measure, spec, figures in measures],
        f"Means over {len(robustness.matrix('mean_ap'))} corruptions at severities {severities}. mRA, mRRA: MultiCorrupt; mCE, "
        "mRR: RoboBEV and Robo3D. The papers take NDS; an mCE below 100% and an mRRA above 0 are better than the baseline.",
        name="summary",
    )


def subset_table(robustness: Robustness) -> Table:
    """One row a subset of the sensors on clean data, beside its specialist and the baseline."""
    baseline = {} if robustness.baseline is None else robustness.subsets(baseline=True)
    specialists, names = robustness.specialists, list(reversed(robustness.metrics))
    fields = [robustness.metrics[name] for name in names]
    columns = [Column("sensors")]
    for name in names:
        columns += [Column(name, FIGURE), Column(f"{name} kept", SHARE)]
    for name in names if specialists else ():
        columns += [Column(f"specialist {name}", FIGURE), Column("gap" if name == "mAP" else f"gap {name}", CHANGE)]
    if robustness.baseline is not None:
        columns += [Column(f"baseline {name}", FIGURE) for name in names]
    rows = []
    for subset, result in robustness.subsets().items():
        row: list[Cell] = [subset.replace("+", " + ")]
        for field in fields:
            row += [figure_of(result, field), metrics.retention(figure_of(result, field), robustness.clean(field))]
        for field in fields if specialists else ():
            figure = figure_of(specialists.get(subset), field)
            row += [figure, metrics.specialist_gap(figure_of(result, field), figure)]
        if robustness.baseline is not None:
            row += [figure_of(baseline.get(subset), field) for field in fields]
        rows.append(row)
    caption = "kept: share of all sensors'." + (" gap: figure / specialist's - 1." if specialists else "")
    return Table("Subsets of the sensors, clean data", columns, rows, caption, name="subsets")


def corruption_table(robustness: Robustness, metric: str) -> Table:
    """One row a corruption: the figure at each severity, and its measures. `metric` is "NDS" or "mAP"."""
    field, severities = robustness.metrics[metric], robustness.config.severities
    clean = robustness.clean(field)
    columns = [Column("corruption"), *(Column(f"severity {s}", FIGURE) for s in severities)]
    columns += [Column("RA", FIGURE), Column("RR", SHARE)]
    caption = f"Clean: {show(clean, FIGURE)}. RA and RR: share of the clean {metric}, mean over severities"
    rows: list[list[Cell]] = [
        [
            name.replace("_", " "),
            *(figures.get(s, math.nan) for s in severities),
            metrics.resistance_ability(figures, clean),
            metrics.resilience_rate(figures, clean),
        ]
        for name, figures in robustness.matrix(field).items()
    ]
    if robustness.baseline is not None:
        columns += [Column("baseline RA", FIGURE), Column("RRA", CHANGE), Column("CE", SHARE)]
        caption += "; RRA and CE: against the baseline"
        ours, baseline = robustness.compared(field)
        baseline_clean = robustness.clean(field, baseline=True)
        for row, name in zip(rows, robustness.matrix(field), strict=True):
            if name in baseline:
                row.append(metrics.resistance_ability(baseline[name], baseline_clean))
                row.append(metrics.relative_resistance_ability(ours[name], baseline[name]))
                row.append(metrics.corruption_error(ours[name], baseline[name]))
            else:
                row += [math.nan] * 3
    title, name = f"Corruptions, {metric} of all sensors", f"corruptions_{metric.lower()}"
    return Table(title, columns, rows, f"{caption}.", name=name)


def case_table(robustness: Robustness) -> Table:
    """Everything that was measured, one row a model and case."""
    columns = [Column("model"), Column("sensors"), Column("corruption"), Column("severity", COUNT)]
    names = list(reversed(robustness.metrics))
    columns += [Column(name, FIGURE) for name in (*names, *TP_ERRORS.values())]
    columns += [Column(name, COUNT) for name in ("samples", "boxes", "no perception")]
    tasks = task_figures(
        [*robustness.figures.values(), *robustness.baseline_figures.values(), *robustness.specialists.values()]
    )
    columns += [Column(f"{task} {name}", FIGURE) for task, name in tasks]
    rows: list[list[Cell]] = []
    fields = [robustness.metrics[name] for name in names]
    groups = [(robustness.model, robustness.figures), (robustness.baseline, robustness.baseline_figures)]
    for subject, figures in groups:
        for case, result in figures.items():
            assert subject is not None
            subset = case.of(subject.modalities).subset
            rows.append([subject.name, subset, case.corruption, case.severity, *_figures(result, fields, tasks)])
    for subset, result in robustness.specialists.items():
        rows.append(["specialist", subset, "clean", 0, *_figures(result, fields, tasks)])
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
