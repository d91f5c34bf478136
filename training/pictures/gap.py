"""The modality gap as JSON, Markdown and a picture.

Letters: N places, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from training.evaluation.gap import POOL, GapReport, PairGap, Places
from training.files.atomic import write_json, write_text
from training.pictures.drawing import FAINT, INK, modality_colour, new_figure, save_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DRAWN = 500  # places; more hide each other
_JOINED = 10


def write_gap(out_dir: Path, report: GapReport, objects: Places) -> list[Path]:
    """Write gap.json, gap.md and gap.png into `out_dir`; -> their paths."""
    paths = [out_dir / name for name in ("gap.json", "gap.md", "gap.png")]
    write_json(paths[0], to_json(report))
    write_text(paths[1], markdown(report))
    gap_picture(paths[2], report, objects)
    return paths


def to_json(report: GapReport) -> dict[str, Any]:
    """A JSON object; `figures` under the names that MLflow shows. What is not defined is null, because NaN is no JSON."""
    content = asdict(report)
    for where in ("objects", "cells"):
        for pair in content[where]:
            pair.update({k: None for k, v in pair.items() if isinstance(v, float) and math.isnan(v)})
    return {**content, "figures": report.figures()}


def describe(report: GapReport) -> str:
    """One line: which embeddings, of which samples."""
    what = "raw BEV features" if report.mode is None else f"projected embeddings, alignment {report.mode}"
    temperature = "" if report.temperature is None else f", temperature {report.temperature:.3f}"
    return f"{what}{temperature}; {report.samples} samples of {report.split}"


def markdown(report: GapReport) -> str:
    """The figures of both kinds of places as tables."""
    lines = ["# Modality gap", "", f"{report.checkpoint}: {describe(report)}.", ""]
    for title, pairs in (("At objects", report.objects), ("At random cells", report.cells)):
        lines += [
            f"## {title}",
            "",
            "| pair | bound in training | places | centroid distance | cosine of same | cosine of others | R@1 | R@5 | by lot |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_row(pair) for pair in pairs),
            "",
        ]
    lines += [
        "Centroid distance: between the means of the unit vectors, 0 to 2 (Liang et al., NeurIPS 2022). R@k: the "
        f"partner is among the k nearest of a pool of at most {POOL} places, mean of both directions; a tie is a miss. By lot: "
        "the R@1 of drawing one.",
        "",
    ]
    return "\n".join(lines)


def _row(pair: PairGap) -> str:
    figures = (
        pair.centroid_distance, pair.cosine_matching, pair.cosine_other, pair.recall_1, pair.recall_5, pair.chance_1,
    )  # fmt: skip
    shown = " | ".join("-" if math.isnan(value) else f"{value:.3f}" for value in figures)
    return f"| {pair.first} - {pair.second} | {'yes' if pair.trained else 'never'} | {pair.places} | {shown} |"


def principal_plane(rows: Tensor) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """[N, D] -> mean [D], plane [D, 2] of the largest variance (PCA by SVD), and its two axes' shares of the variance.

    The sign of each axis is such that its largest component is positive, so that the same rows give the same picture.
    """
    mean = rows.mean(0)
    _, values, directions = torch.linalg.svd((rows - mean).double(), full_matrices=False)
    plane = torch.zeros(rows.shape[1], 2, dtype=torch.float64)
    found = directions[:2].T
    plane[:, : found.shape[1]] = found * found.gather(0, found.abs().argmax(0, keepdim=True)).sign()
    variance = torch.zeros(2, dtype=torch.float64)
    variance[: found.shape[1]] = values[:2].square()
    shares = variance / values.square().sum().clamp(min=1e-12)
    return mean, plane.to(rows.dtype), (float(shares[0]), float(shares[1]))


def gap_picture(path: Path, report: GapReport, objects: Places) -> Path:
    """Objects in the plane of the largest variance of all modalities together; beside it, distances and recall by pair."""
    figure = new_figure(13.0, 6.4)
    _draw_plane(figure.add_axes((0.05, 0.09, 0.5, 0.74)), objects)
    _draw_bars(
        figure.add_axes((0.64, 0.55, 0.34, 0.28)), report, "centroid_distance", "distance of the centroids (0 to 2)"
    )
    recall = figure.add_axes((0.64, 0.11, 0.34, 0.28))
    _draw_bars(recall, report, "recall_1", "R@1: the partner is the nearest  (- : by lot)")
    figure.suptitle("The modality gap", x=0.05, ha="left", fontsize=14, fontweight="bold", color=INK)
    figure.text(0.05, 0.905, f"{Path(report.checkpoint).name}: {describe(report)}", fontsize=9, color="#555555")
    return save_figure(figure, path)


def _draw_plane(axes: Axes, objects: Places) -> None:
    names = list(objects.vectors)
    known = {name: objects.vectors[name][objects.covered[name]] for name in names}
    axes.set_title("objects, by principal components of all modalities together", fontsize=10, loc="left", color=INK)
    union = torch.cat(list(known.values()))
    if len(union) < 2:
        axes.text(0.5, 0.5, "no objects", ha="center", transform=axes.transAxes, color=INK)
        return
    mean, plane, shares = principal_plane(union)
    for k, name in enumerate(names):
        colour, points = modality_colour(name, k), (known[name] - mean) @ plane
        if not len(points):
            continue
        shown = points[:: -(-len(points) // _DRAWN)].numpy()
        axes.scatter(shown[:, 0], shown[:, 1], s=11, color=colour, alpha=0.45, linewidths=0, label=name)
    _join(axes, objects, mean, plane)
    for k, name in enumerate(names):
        if len(known[name]):
            x, y = ((known[name].mean(0) - mean) @ plane).tolist()
            axes.plot(
                x, y, "X", color=modality_colour(name, k), markersize=15, markeredgecolor="white", markeredgewidth=1.8
            )
    axes.plot([], [], "X", color=INK, markersize=9, linestyle="none", label="centroid")
    axes.plot([], [], color=INK, linewidth=0.9, label="same object")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0.0, 1.0), ncols=5, handletextpad=0.4)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.1 * (high - low))  # room for the legend
    axes.set_xlabel(f"first component ({100 * shares[0]:.0f}% of the variance)", fontsize=9, color=INK)
    axes.set_ylabel(f"second component ({100 * shares[1]:.0f}%)", fontsize=9, color=INK)
    tidy(axes, "both")


def _join(axes: Axes, objects: Places, mean: Tensor, plane: Tensor) -> None:
    """Lines between the modalities' points of a few objects that all modalities cover."""
    everywhere = torch.stack(list(objects.covered.values())).all(0).nonzero().flatten()
    chosen = everywhere[:: max(1, len(everywhere) // _JOINED)][:_JOINED]
    corners = torch.stack([(vectors[chosen] - mean) @ plane for vectors in objects.vectors.values()])  # [M, n, 2]
    closed = torch.cat([corners, corners[:1]]) if len(corners) > 2 else corners
    for i in range(len(chosen)):
        axes.plot(closed[:, i, 0].numpy(), closed[:, i, 1].numpy(), color=INK, linewidth=0.9, alpha=0.75, zorder=3)
        for k, name in enumerate(objects.vectors):
            x, y = corners[k, i].tolist()
            axes.plot(x, y, "o", color=modality_colour(name, k), markersize=5, markeredgecolor=INK, zorder=4)


def _draw_bars(axes: Axes, report: GapReport, figure: str, title: str) -> None:
    width = 0.38
    groups: tuple[tuple[str, Sequence[PairGap], str], ...] = (
        ("at objects", report.objects, "#0072B2"), ("at random cells", report.cells, "#9BB8CC"),
    )  # fmt: skip
    values = [float(getattr(p, figure)) for _, pairs, _ in groups for p in pairs]
    top = max([v for v in values if not math.isnan(v)], default=0.0)
    many = len(report.objects) > 3  # of more than three modalities: names one above the other, figures upright
    for g, (label, pairs, colour) in enumerate(groups):
        for i, pair in enumerate(pairs):
            at, value = i + (g - 0.5) * width, float(getattr(pair, figure))
            axes.bar(at, value, width * 0.94, color=colour, label=label if i == 0 else None)
            shown = "-" if math.isnan(value) else f"{value:.3f}"
            axes.text(
                at, (0.0 if math.isnan(value) else value) + 0.02 * top, shown, ha="center", va="bottom", fontsize=8.5,
                rotation=90 if many else 0,
            )  # fmt: skip
            if figure == "recall_1":
                axes.plot([at - 0.45 * width, at + 0.45 * width], [pair.chance_1] * 2, color=INK, linewidth=1.2)
    axes.set_ylim(0, max(0.1, top * (1.45 if many else 1.25)))  # recall by lot is no mountain range
    between, bound = ("\n" if many else " - "), {True: "", False: "\n(never)" if many else "\n(never bound)"}
    axes.set_xticks(
        range(len(report.objects)),
        [f"{p.first}{between}{p.second}{bound[p.trained]}" for p in report.objects],
    )
    axes.set_title(title, fontsize=10, loc="left", color=INK, pad=16)
    axes.legend(frameon=False, fontsize=8.5, ncols=2, loc="lower left", bbox_to_anchor=(-0.01, 0.95))
    axes.spines["left"].set_color(FAINT)
    tidy(axes)
