"""How well sick sensors are told from healthy ones: tables in Markdown, CSV and JSON, and a chart."""

from __future__ import annotations

import math
from dataclasses import asdict, astuple, fields
from pathlib import Path

from training.files.atomic import write_json, write_text
from training.files.table import Cell, Column, Table, show
from training.health.fit import FALSE_ALARMS, HealthFigure, HealthFigures
from training.health.samples import MOVING_M
from training.pictures.drawing import INK, MODALITY_COLOURS, new_figure, save_figure, tidy

COLUMNS = (
    Column("sensor"),
    Column("failure"),
    Column("severity", "d"),
    Column("told as"),
    Column("sick", "d"),
    *(Column(name, ".3f") for name in ("AUROC", "moving", "others", "acted", "named")),
)
TARGET = 0.95


def health_table(figures: HealthFigures) -> Table:
    """One row a failure, severity and kind of sensor, and the mean of each severity."""
    rows: list[list[Cell]] = [
        [f.kind, f.failure, f.severity, f.fault, f.sick, f.auroc, f.moving, f.others, f.acted, f.named]
        for f in figures.figures
    ]
    for severity in sorted({f.severity for f in figures.figures}):
        means = [figures.mean(severity, field) for field in ("auroc", "moving", "others", "acted", "named")]
        count = sum(f.sick for f in figures.figures if f.severity == severity)
        rows.append(["all", "mean", severity, "", count, *means])
    return Table("Sensor health", COLUMNS, rows, f"{caption(figures)}.")


def csv_table(figures: HealthFigures) -> Table:
    """The failures for machines."""
    names = [field.name for field in fields(HealthFigure)]
    return Table("", [Column(name) for name in names], [astuple(figure) for figure in figures.figures])


def caption(figures: HealthFigures) -> str:
    """What the columns mean, and what healthy sensors suffer."""
    alarms = ", ".join(f"{kind} {100 * v:.2f}% of {figures.clean[kind]}" for kind, v in figures.false_alarms.items())
    return (
        f"AUROC of sick sensors against the same kind in clean frames of {figures.split} ({figures.frames} frames); "
        f"moving: only where the vehicle moved {MOVING_M:g} m or more since the frame before; others: against sound sensors "
        "in the same failing frames; acted: share of the sick that `act` leaves out; named: share told with the right fault. "
        f"Healthy sensors left out in clean frames (threshold for {100 * FALSE_ALARMS:g}% on training drives): "
        f"{alarms or 'none looked at'}"
    )


def chart(path: Path, figures: HealthFigures) -> Path:
    """Bars of AUROC a failure, at the severity nearest to 3; a line where the mean shall be."""
    severity = min({f.severity for f in figures.figures}, key=lambda s: abs(s - 3))
    shown = sorted((f for f in figures.figures if f.severity == severity), key=_order)
    figure = new_figure(7.5, 1.2 + 0.27 * len(shown))
    axes = figure.add_subplot()
    values = [0.0 if math.isnan(f.auroc) else f.auroc for f in shown]
    axes.barh(range(len(shown)), values, color=[MODALITY_COLOURS[f.kind] for f in shown], height=0.7)
    for place, f in enumerate(shown):
        axes.plot([f.moving], [place], marker="|", color=INK, markersize=9)
        axes.text(1.004, place, show(f.auroc, ".3f"), va="center", fontsize=8, color=INK)
    axes.axvline(TARGET, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(shown)), [f.name for f in shown], fontsize=8)
    axes.set_xlim(0.45, 1.05)
    axes.set_xlabel(
        f"AUROC at severity {severity} (line: with a moving vehicle); mean {figures.mean(severity):.3f}", fontsize=9
    )
    tidy(axes, "x")
    figure.tight_layout()
    return save_figure(figure, path)


def write_report(directory: Path, figures: HealthFigures) -> list[Path]:
    """Write health.md, health.csv, health.json and health.png into `directory`; returns their paths."""
    paths = [directory / f"health.{suffix}" for suffix in ("md", "csv", "json", "png")]
    write_text(paths[0], health_table(figures).markdown())
    write_text(paths[1], csv_table(figures).csv())
    write_json(paths[2], _json(figures))
    chart(paths[3], figures)
    return paths


def _json(figures: HealthFigures) -> dict[str, object]:
    severities = sorted({f.severity for f in figures.figures})
    return {
        "split": figures.split,
        "frames": figures.frames,
        "false_alarms": dict(figures.false_alarms),
        "mean_auroc": {str(s): _number(figures.mean(s)) for s in severities},
        "mean_auroc_moving": {str(s): _number(figures.mean(s, "moving")) for s in severities},
        "failures": [
            {k: _number(v) if isinstance(v, float) else v for k, v in asdict(f).items()} for f in figures.figures
        ],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)  # JSON has no NaN


def _order(figure: HealthFigure) -> tuple[int, str]:
    return -list(MODALITY_COLOURS).index(figure.kind), figure.failure
