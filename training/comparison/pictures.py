"""The chart of a comparison: a dot a configuration with its deviation, side by side for every subset of the sensors."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from training.comparison.report import Comparison, Row, caption
from training.pictures.drawing import FAINT, INK, literal, new_figure, save_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, its yellow darkened to be seen on white, and ink; with a marker each, for print without colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", INK)
_MARKERS = "osD^vP*X"
_GROUP_WIDTH = 0.78  # of the distance between two subsets


def comparison_dots(path: Path, comparison: Comparison) -> Path:
    """Draw the mAP of every row in every column.

    A large dot is the mean, its bar the sample standard deviation (none with one seed), a small dot one seed. Rows beyond the
    eighth repeat the colours with open dots.
    """
    rows, columns = comparison.rows, comparison.columns
    labels = [_label(column) for column in columns]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    width = max(8.5, 0.9 + len(columns) * max(0.9, 0.16 * len(rows) + 0.35, 0.085 * longest + 0.1))
    legend_columns = max(1, min(len(rows), int(width * 9 / (max(len(row.name) for row in rows) + 5))))
    legend_rows = -(-len(rows) // legend_columns)
    what = "dot: mean over seeds; bar: ± sample standard deviation; small dots: single seeds"
    lines = [
        what if len(comparison.seeds) > 1 else "one seed",
        *(line for line in caption(comparison)[1:] if not line.startswith("ms/step")),
    ]
    notes = [part for line in lines for part in textwrap.wrap(line, max(60, int(width * 14)))]
    top_in, bottom_in = 0.75 + 0.22 * legend_rows, 0.75 + 0.17 * len(notes)
    height = 4.2 + top_in + bottom_in
    figure = new_figure(width, height)
    axes = figure.add_axes((0.75 / width, bottom_in / height, 1 - 0.9 / width, 4.2 / height))
    for number, row in enumerate(rows):
        _dots(axes, comparison, row, number)
    for edge in range(1, len(columns)):
        axes.axvline(edge - 0.5, color=FAINT, linewidth=0.6)
    axes.set_xticks(range(len(columns)), labels)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("mAP", color=INK)
    tidy(axes)
    axes.tick_params(axis="x", length=0)
    left = 0.75 / width
    figure.suptitle(
        literal(comparison.name),
        x=left,
        y=1 - 0.12 / height,
        ha="left",
        va="top",
        fontsize=14,
        fontweight="bold",
        color=INK,
    )
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.01), ncols=legend_columns, frameon=False, fontsize=9)
    figure.text(left, 0.08 / height, literal("\n".join(notes)), fontsize=8, color="#555555", ha="left", va="bottom")
    return save_figure(figure, path)


def _dots(axes: Axes, comparison: Comparison, row: Row, number: int) -> None:
    count = len(comparison.rows)
    offset = 0.0 if count == 1 else _GROUP_WIDTH * (number / (count - 1) - 0.5) * min(1.0, (count - 1) / 3)
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    spreads = [row.spread(column) for column in comparison.columns]
    at = [x + offset for x, spread in enumerate(spreads) if spread.values]
    known = [spread for spread in spreads if spread.values]
    for x, spread in zip(at, known, strict=True):
        if len(spread.values) > 1:
            axes.plot([x] * len(spread.values), spread.values, ".", color=colour, alpha=0.35, markersize=4, zorder=2)
    deviations = [0.0 if math.isnan(spread.deviation) else spread.deviation for spread in known]
    axes.errorbar(
        at,
        [spread.mean for spread in known],
        yerr=deviations if any(deviations) else None,
        fmt=marker,
        color=colour,
        markersize=6,
        markerfacecolor=colour if number < len(_COLOURS) else "white",
        capsize=2.5,
        linewidth=1.1,
        label=literal(row.name if known else f"{row.name} (no result)"),
        zorder=3,
    )


def _label(column: str) -> str:
    """A column's name on short lines: "lidar+radar.single_camera_lost-3" takes four."""
    subset, dot, corruption = column.rpartition(".")
    if not dot and "-" not in column:  # a subset: names have no hyphen, corruptions have one before their severity
        subset, corruption = column, ""
    parts = subset.replace("+", "\n+ ").split("\n") + textwrap.wrap(corruption.replace("_", " "), 14)
    return literal("\n".join(part for part in parts if part))
