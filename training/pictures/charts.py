"""Charts of an evaluation and of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.tables import Results, caption, retention
from training.pictures.drawing import INK, OTHER_COLOURS, literal, new_figure, save_figure, tidy
from training.tasks.detection.result import figure_of, main_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAP_BLUE, SCORE_ORANGE = "#0072B2", "#E69F00"


def _label(subset: str) -> str:
    return literal(subset).replace("+", "\n+ ")


def subset_chart(path: Path, results: Results, title: str = "Every subset of the sensors") -> Path:
    """Bars of the mAP, and the NDS where it is defined, of each subset, and a heat map of AP by class and subset."""
    from matplotlib.gridspec import GridSpec

    names = list(results)
    classes = list(results[names[0]].class_ap)
    figure = new_figure(max(11.0, 1.6 + 1.35 * len(names)), 9.2)
    layout = GridSpec(
        2, 1, figure, height_ratios=[1.0, 1.15], hspace=0.34, left=0.15, right=0.97, top=0.885, bottom=0.07
    )
    above = figure.add_subplot(layout[0])
    figures = main_figures(results.values())
    colours = {"mAP": MAP_BLUE, "NDS": SCORE_ORANGE}
    series = [(key, colours[key], [figure_of(results[n], field) for n in names]) for key, field in figures.items()]
    bars(above, series, names)
    for i, name in enumerate(names):
        share = retention(results[name], results)
        if not math.isnan(share):
            at = i - 0.4 + 0.4 / len(figures)
            above.text(at, 0.012, f"{100 * share:.0f}%", ha="center", va="bottom", fontsize=8, color="white")
    more = " and NDS" if "NDS" in figures else ""
    what = f"mAP (in its bar: share of the mAP with all sensors){more}"
    above.set_title(what, fontsize=10, loc="left", color=INK)
    heat = figure.add_subplot(layout[1])
    _heat(heat, np.array([[results[n].class_ap[c] for n in names] for c in classes]), classes, names)
    figure.suptitle(literal(title), x=0.15, ha="left", fontsize=14, fontweight="bold", color=INK)
    figure.text(0.15, 0.935, literal(caption(results)), fontsize=8.5, color="#555555")
    return save_figure(figure, path)


def bars(axes: Axes, series: Sequence[tuple[str, str, Sequence[float]]], names: Sequence[str]) -> None:
    """Groups of bars, one a name, with a bar for each of `series` (its label, colour and values); NaN is not known."""
    width = 0.8 / len(series)
    top = max((v for _, _, values in series for v in values if not math.isnan(v)), default=1.0)
    for k, (label, colour, values) in enumerate(series):
        at = np.arange(len(names)) + (k - (len(series) - 1) / 2) * width
        heights = np.nan_to_num(values)
        axes.bar(at, heights, width * 0.94, color=colour, label=label)
        for x, height, value in zip(at, heights, values, strict=True):
            text = "-" if math.isnan(value) else f"{value:.2f}"
            axes.text(x, height + 0.01 * top, text, ha="center", va="bottom", fontsize=8.5, color=INK)
    axes.set_xticks(range(len(names)), [_label(n) for n in names], fontsize=9)
    axes.set_ylim(0, max(0.05, 1.2 * top))
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9, ncols=len(series), loc="upper right")
    tidy(axes)


def _heat(axes: Axes, values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str]) -> None:
    shown = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), [_label(c) for c in columns], fontsize=9)
    axes.set_yticks(range(len(rows)), [literal(r.replace("_", " ")) for r in rows], fontsize=9)
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if value < 0.55 else "black"
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color=colour)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title("AP by class, mean over the matching distances", fontsize=10, loc="left", color=INK)
    bar = axes.figure.colorbar(shown, ax=axes, fraction=0.025, pad=0.015)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)


def training_curves(path: Path, history: Sequence[Mapping[str, Any]], title: str = "Training") -> Path:
    """The loss, its parts and the learning rate over the optimiser steps.

    Args:
        history: the steps as `training.loop.history.read_history` gives them: "step", "loss", "parts" and "lr" of each.

    Raises:
        ValueError: nothing was logged.
    """
    if not history:
        raise ValueError("training curves: the history is empty, nothing was trained yet")
    steps = np.array([row["step"] for row in history])
    figure = new_figure(11.5, 5.2)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    parts = list(dict.fromkeys(name for row in history for name in row.get("parts", {})))
    colours = [MAP_BLUE, "#D55E00", "#009E73", "#CC79A7", SCORE_ORANGE, "#56B4E9", *OTHER_COLOURS]
    for k, name in enumerate(parts):
        values = np.array([row.get("parts", {}).get(name, math.nan) for row in history])
        left.plot(
            steps,
            _smooth(values),
            color=colours[k % len(colours)],
            linewidth=1.3,
            label=literal(name.replace("_", " ")),
        )
    total = np.array([row["loss"] for row in history])
    left.plot(steps, total, color="#CCCCCC", linewidth=0.6, zorder=1)
    left.plot(steps, _smooth(total), color=INK, linewidth=2.0, label="total")
    left.set_yscale("log")
    left.set_title("loss and its parts, running mean, log scale", fontsize=10.5, loc="left", color=INK)
    left.legend(frameon=False, fontsize=8.5, ncols=2, loc="upper right")
    right.plot(steps, [row["lr"] for row in history], color=MAP_BLUE, linewidth=1.8)
    right.set_title("learning rate", fontsize=10.5, loc="left", color=INK)
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("optimiser step", fontsize=9, color=INK)
        tidy(axes, "both")
    figure.suptitle(literal(title), x=0.06, ha="left", fontsize=13, fontweight="bold", color=INK)
    figure.subplots_adjust(left=0.06, right=0.98, top=0.85, bottom=0.11, wspace=0.18)
    return save_figure(figure, path)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the steps around each, 2% of the run wide, without what is not finite."""
    half = max(1, len(values) // 100)
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), math.nan)
