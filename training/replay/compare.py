"""The same drive replayed under several fault scripts, side by side: one picture over time, a CSV, a Markdown table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustbev.results.palette import ALARM, STATE_COLOURS
from sensors.palette import RGB, modality_rgb
from sensors.replay.tick import SensorState
from training.files.atomic import write_text
from training.files.table import Cell, Column, Table
from training.pictures.drawing import FAINT, INK, literal, new_figure, save_figure, tidy
from training.replay.series import ReplaySeries, check_comparable
from training.replay.truth import FOUND_M

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette ("Color Universal Design", 2008), its yellow darkened; dashes too, for print without colour.
_COLOURS = ("#222222", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#B8A000", "#56B4E9", "#882255")
_STYLES = ("-", "--", "-.", ":")
_LEGEND_COLUMNS = 4
_LANE_IN = 0.15  # height of one sensor in a band of states


def write_comparison(folder: Path, series: Sequence[ReplaySeries], *, title: str = "Replays") -> list[Path]:
    """Write replays.png, replays.csv and replays.md into the folder; -> their paths.

    Raises:
        ValueError: no replay, two of one name, or of different models.
    """
    check_comparable(series)
    picture = draw_comparison(folder / "replays.png", series, title=title)
    paths = [picture, folder / "replays.csv", folder / "replays.md"]
    write_text(paths[1], tick_table(series).csv())
    write_text(paths[2], replay_table(series).markdown())
    return paths


def tick_table(series: Sequence[ReplaySeries]) -> Table:
    """A row a replay and tick; NaN where the truth is not known."""
    check_comparable(series)
    modalities = series[0].modalities
    channels = list(dict.fromkeys(channel for one in series for channel in one.states))
    names = ["replay", "tick", "time_s", "perceived", "found", "there", "hits", "recall", "precision", "window_map"]
    names += [*(f"share_{name}" for name in modalities), *(f"state_{name}" for name in channels)]
    rows: list[list[Cell]] = []
    for one in series:
        window = np.searchsorted(one.window_s, one.time_s, side="right") - 1
        for n, time_s in enumerate(one.time_s.tolist()):
            figures = (one.there[n], one.hits[n], one.recall[n], one.precision[n], one.window_map[window[n]])
            shares = (one.shares[name][n] for name in modalities)
            states = (one.states[name][n] if name in one.states else "" for name in channels)
            counts = (n, f"{time_s:.6f}", int(one.perceived[n]), int(one.found[n]))
            rows.append([one.name, *counts, *map(float, (*figures, *shares)), *states])
    return Table("", [Column(name) for name in names], rows)


def replay_table(series: Sequence[ReplaySeries]) -> Table:
    """A row a replay: how much it found of what was there, and whom it trusted, over all its ticks."""
    check_comparable(series)
    modalities = series[0].modalities
    columns = [Column("replay"), Column("ticks", "d"), Column("no perception", "d"), Column("found a tick", ".1f")]
    columns += [Column(name, ".3f") for name in ("recall", "precision", "mAP")]
    columns += [*(Column(f"attention to {name}", ".0%") for name in modalities), Column("absent longest")]
    rows: list[list[Cell]] = []
    for one in series:
        known = ~np.isnan(one.there)
        recall = _ratio(one.hits[known].sum(), one.there[known].sum())
        precision = _ratio(one.hits[known].sum(), one.found[known].sum())
        figures = ("–" if math.isnan(figure) else figure for figure in (recall, precision, one.mean_ap))
        shares = [float(one.shares[name].mean()) for name in modalities]
        counts = (len(one.time_s), int((~one.perceived).sum()), float(one.found.mean()))
        rows.append([one.name, *counts, *figures, *shares, _absent_longest(one)])
    caption = (
        f"Found: score at least {series[0].min_score:g}. Recall and precision: the right class within {FOUND_M:g} m of the "
        "truth, all ticks together.\nmAP: nuScenes' matching and averaging over the whole grid, without the benchmark's ranges "
        "and filters."
    )
    return Table("", columns, rows, caption)


def _absent_longest(one: ReplaySeries) -> str:
    shares = {channel: one.given_share(channel) for channel in one.states}
    worst = [channel for channel, share in shares.items() if share < 1]
    if not worst:
        return "none"
    channel = min(worst, key=lambda name: (shares[name], name))
    return f"{channel}, {100 * (1 - shares[channel]):.0f}% of the ticks"


def draw_comparison(path: Path, series: Sequence[ReplaySeries], *, title: str = "Replays") -> Path:
    """One picture over time: found boxes, recall and mAP, the shares of attention and the sensors' states of each replay."""
    check_comparable(series)
    with_truth = any(not np.isnan(one.there).all() for one in series)
    heights = [1.7, *([1.5, 1.5] if with_truth else [])]
    gaps = [0.28] * len(heights)  # above each panel
    for one in series:
        heights += [0.95, max(0.3, _LANE_IN * len(one.states))]
        gaps += [0.42, 0.1]
    entries = len(series) + with_truth
    gaps[0] = 0.75 + 0.22 * -(-entries // _LEGEND_COLUMNS)  # the title and the legend
    height = sum(heights) + sum(gaps) + 0.95
    figure = new_figure(13.0, height)
    bottoms = np.cumsum([gap + panel for gap, panel in zip(gaps, heights, strict=True)])
    panels = [
        figure.add_axes((0.125, 1 - bottom / height, 0.855, panel / height))
        for bottom, panel in zip(bottoms.tolist(), heights, strict=True)
    ]
    end_s = max(float(_steps(one, one.found)[0][-1]) for one in series)
    rest = iter(panels)
    _draw_found(next(rest), series)
    if with_truth:
        _draw_recall(next(rest), series)
        _draw_map(next(rest), series)
    for one in series:
        _draw_shares(next(rest), one)
        _draw_states(next(rest), one)
    for axes in panels:
        axes.set_xlim(0.0, end_s)
        axes.tick_params(axis="x", labelbottom=axes is panels[-1])
    panels[-1].set_xlabel("time since the first tick (s)", color=INK, fontsize=9)
    figure.text(0.02, 1 - 0.4 / height, literal(title), fontsize=14, fontweight="bold", color=INK)
    panels[0].legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.02),
        ncols=_LEGEND_COLUMNS,
        frameon=False,
        fontsize=9,
        handlelength=2.6,
    )
    _explain(figure, series, height)
    return save_figure(figure, path)


def _explain(figure: Any, series: Sequence[ReplaySeries], height: float) -> None:
    """Below everything: the colours of modalities and of the states that occur."""
    from matplotlib.patches import Patch

    handles = [
        Patch(color=_hex(modality_rgb(name, k)), label=literal(f"attention: {name}"))
        for k, name in enumerate(series[0].modalities)
    ]
    occur = {state for one in series for states in one.states.values() for state in states}
    handles += [Patch(color=_hex(_lane_colour(state)), label=str(state)) for state in SensorState if state in occur]
    if any(not one.perceived.all() for one in series):
        handles.append(Patch(facecolor=_hex(ALARM), alpha=0.25, label="no perception"))
    figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.55, 0.12 / height), ncols=9, frameon=False, fontsize=8.5
    )


def _look(k: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[k % len(_COLOURS)],
        "linestyle": _STYLES[k % len(_STYLES)],
        "linewidth": 1.6,
        "drawstyle": "steps-post",
    }


def _draw_found(axes: Axes, series: Sequence[ReplaySeries]) -> None:
    tallest = max(series, key=lambda one: int((~np.isnan(one.there)).sum()))
    if not np.isnan(tallest.there).all():
        axes.fill_between(
            *_steps(tallest, tallest.there), color="#E8E8E8", step="post", label="there (truth)", zorder=0
        )
    for k, one in enumerate(series):
        axes.plot(*_steps(one, one.found), label=literal(one.name), **_look(k))
    _finish(axes, "found boxes")


def _draw_recall(axes: Axes, series: Sequence[ReplaySeries]) -> None:
    for k, one in enumerate(series):
        axes.plot(*_steps(one, one.recall), **_look(k))
    _finish(axes, f"recall\nwithin {FOUND_M:g} m", top=1.02)


def _draw_map(axes: Axes, series: Sequence[ReplaySeries]) -> None:
    """A step a window; the mean over all ticks stands at the right."""
    for k, one in enumerate(series):
        values = np.append(one.window_map, one.window_map[-1:])
        axes.plot(one.window_s, values, **_look(k))
    wide = series[0].window_s[1] - series[0].window_s[0]
    _finish(axes, f"mAP of\n{wide:g} s", top=None)


def _draw_shares(axes: Axes, one: ReplaySeries) -> None:
    bottom = np.zeros(len(one.time_s) + 1)
    for k, name in enumerate(one.modalities):
        time_s, share = _steps(one, one.shares[name])
        axes.fill_between(
            time_s, bottom, bottom + share, step="post", color=_hex(modality_rgb(name, k)), alpha=0.75, linewidth=0
        )
        bottom = bottom + share
    axes.set_title(literal(one.name), fontsize=10, color=INK, loc="left", fontweight="bold", pad=3)
    _finish(axes, "attention", top=1.0)
    _mark_no_perception(axes, one)


def _draw_states(axes: Axes, one: ReplaySeries) -> None:
    """A lane a sensor, coloured by its state."""
    from matplotlib.colors import ListedColormap

    channels, order = list(one.states), list(SensorState)
    edges, _ = _steps(one, one.found)
    codes = np.array([[order.index(state) for state in one.states[name]] for name in channels])
    colours = ListedColormap([_hex(_lane_colour(state)) for state in order])
    if len(channels):
        axes.pcolormesh(
            edges, np.arange(len(channels) + 1), codes, cmap=colours, vmin=-0.5, vmax=len(order) - 0.5, rasterized=True
        )
        for lane in range(1, len(channels)):
            axes.axhline(lane, color="white", linewidth=1.2)
    axes.set_ylim(len(channels), 0)
    axes.set_yticks(np.arange(len(channels)) + 0.5, [literal(name.replace("_", " ").lower()) for name in channels])
    tidy(axes, grid=None)
    axes.tick_params(axis="y", labelsize=7.5, length=0)


def _lane_colour(state: SensorState) -> RGB:
    """Pale where all is well, so that the eye goes to what is not."""
    red, green, blue = STATE_COLOURS[state]
    return (red, green, blue) if state is not SensorState.OK else (190, 221, 195)


def _mark_no_perception(axes: Axes, one: ReplaySeries) -> None:
    edges, _ = _steps(one, one.found)
    for start, end, perceived in zip(edges[:-1], edges[1:], one.perceived.tolist(), strict=True):
        if not perceived:
            axes.axvspan(start, end, color=_hex(ALARM), alpha=0.25, linewidth=0, zorder=4)


def _finish(axes: Axes, label: str, top: float | None = None) -> None:
    axes.set_ylim(0, top)
    axes.set_ylabel(label, fontsize=9, color=INK)
    tidy(axes)
    axes.spines["left"].set_color(FAINT)


def _step(one: ReplaySeries) -> float:
    """Seconds between ticks; a tick is drawn as long as that."""
    forward = np.diff(one.time_s)
    forward = forward[forward > 0]
    return float(np.median(forward)) if len(forward) else 1.0


def _steps(one: ReplaySeries, values: Any) -> tuple[Any, Any]:
    """[N + 1] times and values to draw as steps: the last value again, so that it is as wide as the others.

    Where the clock jumped back, time stands still, so that the picture keeps the order of the ticks.
    """
    time_s = np.maximum.accumulate(one.time_s)
    return np.append(time_s, time_s[-1] + _step(one)), np.append(values, values[-1])


def _hex(colour: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
