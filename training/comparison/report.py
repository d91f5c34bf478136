"""Means and deviations over seeds, side by side: JSON, Markdown, CSV and the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.comparison.plan import JobResult
from training.files.atomic import write_json, write_text
from training.files.table import Column, Table
from training.tasks.detection.result import SubsetResult, figure_of, main_figures


@dataclass(frozen=True)
class Spread:
    """One figure over several seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """NaN without a value."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation, sqrt(sum((x - mean)^2) / (n - 1)); NaN with fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def text(self, digits: int = 3) -> str:
        """`0.643 ± 0.012`, without a deviation where there is none, "-" without a value."""
        if not self.values:
            return "-"
        mean = f"{self.mean:.{digits}f}"
        return mean if len(self.values) < 2 else f"{mean} ± {self.deviation:.{digits}f}"

    def to_json(self) -> dict[str, Any]:
        return {"mean": _none_if_nan(self.mean), "deviation": _none_if_nan(self.deviation)}


def pooled_deviation(first: Spread, second: Spread) -> float:
    """sqrt(((n1 - 1) s1^2 + (n2 - 1) s2^2) / (n1 + n2 - 2)), NaN where both have one value: nothing is known of the spread."""
    n1, n2 = len(first.values), len(second.values)
    if min(n1, n2) < 1 or n1 + n2 < 3:
        return math.nan
    squares = sum((n - 1) * s.deviation**2 for n, s in ((n1, first), (n2, second)) if n > 1)
    return math.sqrt(squares / (n1 + n2 - 2))


def leader(column: Mapping[str, Spread]) -> str | None:
    """The row whose mean is ahead of every other row's by more than the pooled deviation of the two; None: there is none."""
    known = {name: spread for name, spread in column.items() if spread.values}
    if len(known) < 2:
        return None
    best = max(known, key=lambda name: known[name].mean)
    # A comparison with NaN is false: without a deviation nobody leads.
    ahead = (known[best].mean - s.mean > pooled_deviation(known[best], s) for name, s in known.items() if name != best)
    return best if all(ahead) else None


@dataclass(frozen=True)
class Row:
    """One configuration and what its jobs brought, one result a seed, in the order of the seeds."""

    name: str
    file: Path
    results: tuple[JobResult, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)  # in which it differs from other rows

    @property
    def done(self) -> tuple[JobResult, ...]:
        return tuple(result for result in self.results if result.status == "done")

    def spread(self, column: str, field: str = "mean_ap") -> Spread:
        """Over the seeds that measured `column`; a model without its sensors has no figure there.

        `field` is one of `SubsetResult`'s.
        """
        values = [figure_of(result.figures.get(column), field) for result in self.done]
        return Spread(tuple(value for value in values if not math.isnan(value)))

    @property
    def step_ms(self) -> Spread:
        return Spread(tuple(result.step_ms for result in self.done if math.isfinite(result.step_ms)))

    @property
    def train_seconds(self) -> Spread:
        return Spread(tuple(result.train_seconds for result in self.done if math.isfinite(result.train_seconds)))

    @property
    def parameters(self) -> int | None:
        return self.done[0].parameters if self.done else None


@dataclass(frozen=True)
class Comparison:
    """All that the tables say."""

    name: str
    seeds: tuple[int, ...]
    columns: tuple[str, ...]  # sensor subsets, then corruptions
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()  # what a reader must know before comparing
    mlflow: Mapping[str, str] | None = None  # uri and run_id

    @property
    def kinds(self) -> dict[str, str]:
        """A column's figures by name, and their fields: see `main_figures`."""
        return main_figures(figure for row in self.rows for result in row.done for figure in result.figures.values())

    def leaders(self, field: str = "mean_ap") -> dict[str, str | None]:
        return {column: leader({row.name: row.spread(column, field) for row in self.rows}) for column in self.columns}


def caption(comparison: Comparison) -> list[str]:
    """What the figures hold for, and what stands against comparing them, one sentence a line."""
    figures: list[SubsetResult] = [f for row in comparison.rows for result in row.done for f in result.figures.values()]
    several = len(comparison.seeds) > 1
    lines = [
        "mAP, mean ± sample standard deviation over seeds; bold leads every other row by more than the pooled deviation"
        if several
        else "mAP of one seed: the spread between seeds is not known, so no value is marked as best"
    ]
    grounds = dict.fromkeys(
        f"nuScenes {'formulas' if f.nds is None else 'DetectionEval'} on {f.samples} samples, {f.ranges}"
        for f in figures
    )
    if grounds:
        lines.append("; ".join(grounds))
    if len(grounds) > 1:
        lines.append("warning: not all rows were measured over the same samples and ranges")
    lines.append("ms/step: median wall time of an optimiser step, with the wait for data and whatever ran beside it")
    lines += [f"warning: {note}" for note in comparison.notes]
    for row in comparison.rows:
        for result in row.results:
            if result.status == "failed":
                lines.append(f"failed: {result.name}: {result.message}")
    left = sum(result.status == "stopped" for row in comparison.rows for result in row.results)
    if left:
        jobs = len(comparison.rows) * len(comparison.seeds)
        lines.append(f"not complete: {left} of {jobs} jobs are still to be done")
    return lines


def comparison_table(comparison: Comparison) -> Table:
    """One row a configuration; bold: it leads its column."""
    names = [*(name.replace("+", " + ") for name in comparison.columns), "parameters", "ms/step", "training s", "seeds"]
    expected = len(comparison.seeds)
    rows = []
    for row in comparison.rows:
        figures = [row.spread(column).text() for column in comparison.columns]
        parameters = "-" if row.parameters is None else f"{row.parameters:,}"
        seeds = str(expected) if len(row.done) == expected else f"{len(row.done)} of {expected}"
        rows.append([row.name, *figures, parameters, row.step_ms.text(0), row.train_seconds.text(0), seeds])
    leaders = list(comparison.leaders().values())
    bold = [(i, j) for i, row in enumerate(comparison.rows) for j, name in enumerate(leaders, 1) if name == row.name]
    title = f"{comparison.name}: mAP by sensors and failures"
    columns = [Column("config"), *(Column(name, ">") for name in names)]
    return Table(title, columns, rows, "\n".join(f"{line}." for line in caption(comparison)), bold=bold)


def csv_table(comparison: Comparison) -> Table:
    """For machines: mean and deviation in columns of their own, of mAP, and NDS where it is defined."""
    figures = [(column, kind) for column in comparison.columns for kind in comparison.kinds.items()]
    columns = ["config", "file", "seeds", "parameters"]
    for name in ("step_ms", "train_seconds", *(f"{column} {kind}" for column, (kind, _) in figures)):
        columns += [f"{name} mean", f"{name} deviation"]
    rows = []
    for row in comparison.rows:
        seeds = " ".join(str(result.seed) for result in row.done)
        spreads = [row.step_ms, row.train_seconds, *(row.spread(column, field) for column, (_, field) in figures)]
        values = [value for spread in spreads for value in (spread.mean, spread.deviation)]
        rows.append([row.name, str(row.file), seeds, "" if row.parameters is None else row.parameters, *values])
    return Table("", [Column(name) for name in columns], rows)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, each seed's figures too; what is not defined is null."""
    leaders = {kind: comparison.leaders(field) for kind, field in comparison.kinds.items()}
    return {
        "name": comparison.name,
        "seeds": list(comparison.seeds),
        "columns": list(comparison.columns),
        "caption": caption(comparison),
        "mlflow": None if comparison.mlflow is None else dict(comparison.mlflow),
        "leaders": leaders,
        "configs": {row.name: _row_json(comparison, row) for row in comparison.rows},
    }


def _row_json(comparison: Comparison, row: Row) -> dict[str, Any]:
    return {
        "file": str(row.file),
        "settings": dict(row.settings),
        "parameters": row.parameters,
        "step_ms": row.step_ms.to_json(),
        "train_seconds": row.train_seconds.to_json(),
        "figures": {
            column: {kind: row.spread(column, field).to_json() for kind, field in comparison.kinds.items()}
            for column in comparison.columns
        },
        "runs": [
            {
                "seed": result.seed,
                "status": result.status,
                "message": result.message,
                "run_dir": str(result.run_dir),
                "step": result.step,
                "step_ms": _none_if_nan(result.step_ms),
                "train_seconds": _none_if_nan(result.train_seconds),
                "mlflow_run_id": result.mlflow_run_id,
                "figures": {column: figure.to_json() for column, figure in result.figures.items()},
            }
            for result in row.results
        ],
    }


def metrics(comparison: Comparison) -> dict[str, float]:
    """Means and deviations under the names that MLflow shows; what is not defined is left out."""
    figures: dict[str, float] = {}
    for row in comparison.rows:
        spreads = {
            f"{column}/{kind}": row.spread(column, field)
            for column in comparison.columns
            for kind, field in comparison.kinds.items()
        }
        spreads |= {"step_ms": row.step_ms, "train_seconds": row.train_seconds}
        for name, spread in spreads.items():
            figures |= {f"{row.name}/{name}": spread.mean, f"{row.name}/{name}/deviation": spread.deviation}
        if row.parameters is not None:
            figures[f"{row.name}/parameters"] = row.parameters
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def write_tables(directory: Path, comparison: Comparison) -> list[Path]:
    """Write comparison.json, comparison.md and comparison.csv into `directory`; returns their paths."""
    paths = [directory / f"comparison.{suffix}" for suffix in ("json", "md", "csv")]
    write_json(paths[0], to_json(comparison))
    write_text(paths[1], f"# {comparison.name}\n\n{comparison_table(comparison).markdown()}")
    write_text(paths[2], csv_table(comparison).csv())
    return paths


def job_line(result: JobResult, columns: Sequence[str]) -> str:
    """What a job found, on one line of the terminal."""
    if result.status == "failed":
        return f"{result.name}: failed: {result.message}"
    if result.status == "stopped":
        return f"{result.name}: stopped, the same command goes on"
    figures = [f"{column} {result.figures[column].mean_ap:.3f}" for column in columns if column in result.figures]
    return f"{result.name}: mAP {', '.join(figures)}; {result.step_ms:.0f} ms/step, {result.train_seconds:.0f} s of training"


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
