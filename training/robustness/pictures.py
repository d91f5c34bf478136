"""Pictures of a robustness run: what corruptions leave as a heat map, how it falls with severity, what subsets are worth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.pictures.charts import bars
from training.pictures.drawing import INK, new_figure, save_figure, tidy
from training.robustness import metrics as metrics
from training.robustness.results import Robustness
from training.tasks.detection.result import figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODEL = "#0072B2"
_COLUMNS = 5  # of the small charts


def pictures(out_dir: Path, robustness: Robustness) -> list[Path]:
    """Draw all that there are figures for; -> their paths."""
    drawn = [subset_bars(out_dir / "subsets.png", robustness)]
    if robustness.matrix("mean_ap"):
        drawn += [
            heat_map(out_dir / "retention.png", robustness),
            severity_curves(out_dir / "severity.png", robustness),
        ]
    return drawn


def heat_map(path: Path, robustness: Robustness) -> Path:
    """Corruption x severity: the share of the clean NDS (where it is defined) and mAP that is left, absolute figures beneath."""
    severities, names = robustness.config.severities, list(robustness.matrix("mean_ap"))
    maps = robustness.metrics
    columns = len(severities) + 1
    figure = new_figure(3.7 + len(maps) * (0.95 * columns + 0.5), 1.75 + 0.47 * len(names))
    for k, (title, metric) in enumerate(maps.items()):
        axes = figure.add_subplot(1, len(maps), k + 1)
        _draw_map(axes, robustness, title, metric)
        axes.set_xticks(range(columns), [*(f"severity {s}" for s in severities), "RA"], fontsize=8.5)
        axes.set_yticks(range(len(names)), [n.replace("_", " ") for n in names] if k == 0 else [], fontsize=9.5)
    figure.suptitle(
        "What corruptions leave of the clean figure, all sensors",
        x=0.012,
        ha="left",
        fontsize=13,
        fontweight="bold",
        color=INK,
    )
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=1.95 / width, right=1 - 0.15 / width, top=1 - 0.85 / height, bottom=0.35 / height, wspace=0.05
    )
    return save_figure(figure, path)


def _draw_map(axes: Axes, robustness: Robustness, title: str, metric: str) -> None:
    """One figure's corruptions x severities, and their means at the right."""
    severities, matrix, clean = robustness.config.severities, robustness.matrix(metric), robustness.clean(metric)
    kept = [[metrics.retention(row.get(s, math.nan), clean) for s in severities] for row in matrix.values()]
    mean = [[metrics.resistance_ability(row, clean)] for row in matrix.values()]
    shown, figures = np.concatenate([kept, mean], axis=1), list(matrix.values())
    axes.imshow(shown, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(shown):
        style: dict[str, Any] = {"ha": "center", "va": "center", "color": "black" if value >= 0.45 else "white"}
        axes.text(j, i - 0.12, "-" if math.isnan(value) else f"{100 * value:.0f}%", fontsize=9.5, **style)
        if j < len(severities):
            axes.text(j, i + 0.27, f"{figures[i].get(severities[j], math.nan):.3f}", fontsize=6.5, **style)
    axes.axvline(len(severities) - 0.5, color="white", linewidth=4)
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    mra = metrics.mean_resistance_ability(matrix, clean)
    axes.set_title(f"{title}: clean {clean:.3f}, mRA {mra:.3f}", fontsize=10.5, loc="left", color=INK)


def severity_curves(path: Path, robustness: Robustness) -> Path:
    """One small chart a corruption: mAP over severity; severity 0 is clean."""
    matrix, clean = robustness.matrix("mean_ap"), robustness.clean("mean_ap")
    columns = min(_COLUMNS, len(matrix))
    rows = -(-len(matrix) // columns)
    figure = new_figure(max(5.0, 2.5 * columns + 0.6), 2.15 * rows + 1.0)
    width, height = figure.get_size_inches()
    values = [clean, *(value for row in matrix.values() for value in row.values())]
    top = max(0.05, 1.08 * max((v for v in values if not math.isnan(v)), default=1.0))
    for k, (name, row) in enumerate(matrix.items()):
        axes = figure.add_subplot(rows, columns, k + 1)
        axes.plot([0, *row], [clean, *row.values()], color=MODEL, marker="o", markersize=3.5, linewidth=1.6)
        axes.set_title(name.replace("_", " "), fontsize=9.5, loc="left", color=INK)
        axes.set_ylim(0, top)
        axes.set_xticks([0, *robustness.config.severities])
        tidy(axes)
        axes.tick_params(labelsize=8)
        if k % columns:
            axes.set_yticklabels([])
    figure.suptitle(
        "mAP of all sensors over severity (0 is clean)",
        x=0.5 / width,
        ha="left",
        fontsize=12.5,
        fontweight="bold",
        color=INK,
    )
    figure.subplots_adjust(
        left=0.5 / width, right=1 - 0.15 / width, top=1 - 0.75 / height, bottom=0.35 / height, hspace=0.5, wspace=0.1
    )
    return save_figure(figure, path)


def subset_bars(path: Path, robustness: Robustness) -> Path:
    """Bars of mAP, and NDS where it is defined, of every subset on clean data."""
    model = robustness.subsets()
    names = list(model)
    more = max([0, *(name.count("+") - 2 for name in names)])  # lines of the labels, beyond those of three modalities
    figure = new_figure(max(7.0, 1.4 + 1.45 * len(names)), 6.4 + 0.4 * more)
    charts = list(reversed(robustness.metrics.items()))
    for k, (title, metric) in enumerate(charts):
        axes = figure.add_subplot(len(charts), 1, k + 1)
        bars(axes, [("model", MODEL, [figure_of(model[n], metric) for n in names])], names)
        axes.set_title(title, fontsize=10.5, loc="left", color=INK)
    figure.suptitle(
        "Every subset of the sensors, clean data", x=0.06, ha="left", fontsize=13, fontweight="bold", color=INK
    )
    figure.subplots_adjust(left=0.06, right=0.985, top=0.89, bottom=0.09 + 0.03 * more, hspace=0.42 + 0.08 * more)
    return save_figure(figure, path)
