"""The figures of a robustness run as tables: for Markdown, CSV, HTML and the terminal."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from training.robustness import metrics as metrics
from training.tasks.detection.result import TP_ERRORS, SubsetResult, task_figures

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable

    from training.robustness.results import Robustness

Format = Literal["text", "figure", "share", "change", "whole"]
METRICS = {"NDS": "nds", "mAP": "mean_ap"}


@dataclass(frozen=True)
class Table:
    """Rows of texts and figures. Shares and changes are fractions; NaN is "not defined"."""

    name: str  # of the file
    title: str
    columns: Sequence[tuple[str, Format]]
    rows: Sequence[Sequence[str | float]]
    note: str = ""  # which formulas, in one sentence

    def shown(self) -> list[list[str]]:
        """As people read it; "-" is not defined."""
        return [[show(v, f) for v, (_, f) in zip(row, self.columns, strict=True)] for row in self.rows]

    def markdown(self) -> str:
        lines = [f"### {self.title}", ""]
        lines.append("| " + " | ".join(name for name, _ in self.columns) + " |")
        lines.append("|" + "|".join("---" if f == "text" else "---:" for _, f in self.columns) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in self.shown()]
        return "\n".join(lines) + (f"\n\n{self.note}\n" if self.note else "\n")

    def comma_separated(self) -> str:
        """With full precision; shares and changes as fractions, what is not defined empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([name for name, _ in self.columns])
        for row in self.rows:
            writer.writerow([v if isinstance(v, str) else "" if math.isnan(v) else f"{v:.6g}" for v in row])
        return out.getvalue()

    def html(self) -> str:
        head = "".join(
            f"<th{'' if f == 'text' else ' class=number'}>{html.escape(name)}</th>" for name, f in self.columns
        )
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{'' if f == 'text' else ' class=number'}>{html.escape(text)}</td>"
                for text, (_, f) in zip(row, self.columns, strict=True)
            )
            + "</tr>\n"
            for row in self.shown()
        )
        note = f"<p class=note>{html.escape(self.note)}</p>" if self.note else ""
        return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n{note}"

    def terminal(self) -> TerminalTable:
        from rich.table import Table as TerminalTable

        table = TerminalTable(title=self.title, caption=self.note, title_justify="left", caption_justify="left")
        for name, kind in self.columns:  # figures and words are never cut; long names of columns go over several lines
            width = max(6, *map(len, name.split()))
            table.add_column(
                name, justify="left" if kind == "text" else "right", no_wrap=kind == "text", min_width=width
            )
        for row in self.shown():
            table.add_row(*row)
        return table


def show(value: str | float, kind: Format) -> str:
    """One cell as people read it."""
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "-"
    match kind:
        case "share":
            return f"{100 * value:.1f}%"
        case "change":
            return f"{100 * value:+.1f}%"
        case "whole":
            return f"{value:.0f}"
        case _:
            return f"{value:.3f}"


def summary_table(found: Robustness) -> Table:
    """One row a published measure, NDS and mAP side by side."""
    rows: list[list[str | float]] = [
        ["all sensors, clean", *(show(found.clean(m), "figure") for m in METRICS.values())],
        ["mRA", *(_mean_ra(found, m) for m in METRICS.values())],
        [
            "mRR",
            *(show(metrics.mean_resilience_rate(found.matrix(m), found.clean(m)), "share") for m in METRICS.values()),
        ],
    ]
    if found.baseline is not None:
        rows += [
            [
                "baseline, all sensors, clean",
                *(show(found.clean(m, baseline=True), "figure") for m in METRICS.values()),
            ],
            ["baseline mRA", *(_mean_ra(found, m, baseline=True) for m in METRICS.values())],
        ]
        pairs = [found.compared(m) for m in METRICS.values()]
        rows += [
            [
                "mRRA against the baseline",
                *(show(metrics.mean_relative_resistance_ability(*p), "change") for p in pairs),
            ],
            ["mCE against the baseline", *(show(metrics.mean_corruption_error(*p), "share") for p in pairs)],
        ]
    severities = ", ".join(map(str, found.config.severities))
    return Table(
        "summary",
        "In short",
        [("measure", "text"), *((name, "figure") for name in METRICS)],
        rows,
        f"Means over {len(found.matrix('nds'))} corruptions at severities {severities}. mRA, mRRA: MultiCorrupt; mCE, mRR: "
        "RoboBEV and Robo3D. The papers take NDS; an mCE below 100% and an mRRA above 0 are better than the baseline.",
    )


def _mean_ra(found: Robustness, metric: str, *, baseline: bool = False) -> str:
    matrix, clean = found.matrix(metric, baseline=baseline), found.clean(metric, baseline=baseline)
    return show(metrics.mean_resistance_ability(matrix, clean), "figure")


def subset_table(found: Robustness) -> Table:
    """One row a subset of the sensors on clean data, beside its specialist and the baseline."""
    theirs = {} if found.baseline is None else found.subsets(baseline=True)
    clean = {metric: found.clean(metric) for metric in METRICS.values()}
    columns: list[tuple[str, Format]] = [
        ("sensors", "text"), ("mAP", "figure"), ("mAP kept", "share"), ("NDS", "figure"), ("NDS kept", "share"),
    ]  # fmt: skip
    if found.specialists:
        columns += [
            ("specialist mAP", "figure"),
            ("gap", "change"),
            ("specialist NDS", "figure"),
            ("gap NDS", "change"),
        ]
    if found.baseline is not None:
        columns += [("baseline mAP", "figure"), ("baseline NDS", "figure")]
    rows: list[list[str | float]] = []
    for subset, result in found.subsets().items():
        row: list[str | float] = [subset.replace("+", " + ")]
        for metric in ("mean_ap", "nds"):
            figure = getattr(result, metric)
            row += [figure, metrics.retention(figure, clean[metric])]
        if found.specialists:
            special = found.specialists.get(subset)
            for metric in ("mean_ap", "nds"):
                figure = math.nan if special is None else getattr(special, metric)
                row += [figure, metrics.specialist_gap(getattr(result, metric), figure)]
        if found.baseline is not None:
            other = theirs.get(subset)
            row += [math.nan if other is None else getattr(other, metric) for metric in ("mean_ap", "nds")]
        rows.append(row)
    gap = " gap: figure / specialist's - 1." if found.specialists else ""
    return Table("subsets", "Subsets of the sensors, clean data", columns, rows, f"kept: share of all sensors'.{gap}")


def corruption_table(found: Robustness, metric: str) -> Table:
    """One row a corruption: the figure at each severity, and its measures. `metric` is "NDS" or "mAP"."""
    field = METRICS[metric]
    matrix, clean = found.matrix(field), found.clean(field)
    columns: list[tuple[str, Format]] = [("corruption", "text")]
    columns += [(f"severity {s}", "figure") for s in found.config.severities]
    columns += [("RA", "figure"), ("RR", "share")]
    ours, theirs = ({}, {}) if found.baseline is None else found.compared(field)
    their_clean = math.nan if found.baseline is None else found.clean(field, baseline=True)
    if found.baseline is not None:
        columns += [("baseline RA", "figure"), ("RRA", "change"), ("CE", "share")]
    rows: list[list[str | float]] = []
    for name, row in matrix.items():
        cells: list[str | float] = [name.replace("_", " ")]
        cells += [row.get(s, math.nan) for s in found.config.severities]
        cells += [metrics.resistance_ability(row, clean), metrics.resilience_rate(row, clean)]
        if found.baseline is not None:
            other = theirs.get(name)
            cells += (
                [math.nan] * 3
                if other is None
                else [
                    metrics.resistance_ability(other, their_clean),
                    metrics.relative_resistance_ability(ours[name], other),
                    metrics.corruption_error(ours[name], other),
                ]
            )
        rows.append(cells)
    return Table(
        f"corruptions_{metric.lower()}",
        f"Corruptions, {metric} of all sensors",
        columns,
        rows,
        f"Clean: {show(clean, 'figure')}. RA and RR: share of the clean {metric}, mean over severities"
        + ("; RRA and CE: against the baseline." if found.baseline is not None else "."),
    )


def case_table(found: Robustness) -> Table:
    """Everything that was measured, one row a model and case."""
    columns: list[tuple[str, Format]] = [
        ("model", "text"),
        ("sensors", "text"),
        ("corruption", "text"),
        ("severity", "whole"),
    ]
    columns += [("mAP", "figure"), ("NDS", "figure"), *((name, "figure") for name in TP_ERRORS.values())]
    columns += [("samples", "whole"), ("boxes", "whole"), ("no perception", "whole")]
    tasks = task_figures([*found.figures.values(), *found.baseline_figures.values(), *found.specialists.values()])
    columns += [(f"{task} {name}", "figure") for task, name in tasks]
    rows: list[list[str | float]] = []
    groups = [(found.model, found.figures), (found.baseline, found.baseline_figures)]
    for subject, figures in groups:
        for case, result in figures.items():
            assert subject is not None
            of = case.of(subject.modalities)
            rows.append([subject.name, of.subset, case.corruption, float(case.severity), *_figures(result, tasks)])
    for subset, result in found.specialists.items():
        rows.append(["specialist", subset, "clean", 0.0, *_figures(result, tasks)])
    return Table("cases", "Every measurement", columns, rows)


def _figures(result: SubsetResult, tasks: Sequence[tuple[str, str]]) -> list[float]:
    errors = [result.errors.get(name, math.nan) for name in TP_ERRORS.values()]
    of_tasks = [result.of_task(*figure) for figure in tasks]
    return [result.mean_ap, result.nds, *errors, result.samples, result.boxes, len(result.no_perception), *of_tasks]


def tables(found: Robustness) -> list[Table]:
    """All tables that people read, in the order of the report."""
    shown = [summary_table(found), subset_table(found)]
    if found.matrix("nds"):
        shown += [corruption_table(found, metric) for metric in METRICS]
    return shown
