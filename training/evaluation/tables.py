"""What an evaluation found, as a value, and its tables: JSON, Markdown, CSV and the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from training.files.atomic import write_json, write_text
from training.tasks.detection.result import TP_ERRORS, SubsetResult, task_figures

if TYPE_CHECKING:
    from rich.table import Table

SHORT_CLASS = {
    "construction_vehicle": "constr.",
    "pedestrian": "pedest.",
    "motorcycle": "motorc.",
    "traffic_cone": "cone",
}


Results = Mapping[str, SubsetResult]
_SUMMARY = ("sensors", "mAP", "of all", "NDS", *TP_ERRORS.values())  # after them tasks beside detection, then classes


def write_subsets(path: Path, results: Results) -> None:
    """`subsets.json`: one object a subset, keyed "camera+lidar+radar" and so on."""
    write_json(path, {subset: result.to_json() for subset, result in results.items()})


def read_subsets(path: Path) -> dict[str, SubsetResult]:
    """Read `subsets.json`.

    Raises:
        ValueError: the file is missing or is not one of ours; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {subset: SubsetResult.from_json(subset, entry) for subset, entry in content.items()}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `robustbev evaluate --checkpoint DIR` writes it") from None
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: expected {{"camera+lidar": {{"mAP": ..., "NDS": ...}}, ...}}, got {error!r}'
        ) from None


def all_sensors(results: Results) -> SubsetResult | None:
    """The subset that holds every other one, to which they are compared; None where there is none."""
    full = max(results.values(), key=lambda r: r.subset.count("+"), default=None)
    if full is None or any(not set(r.subset.split("+")) <= set(full.subset.split("+")) for r in results.values()):
        return None
    return full


def retention(result: SubsetResult, results: Results) -> float:
    """The mAP as a share of the mAP with all sensors; NaN where that is 0."""
    full = all_sensors(results)
    return result.mean_ap / full.mean_ap if full is not None and full.mean_ap > 0 else math.nan


def caption(results: Results) -> str:
    """What the figures hold for: ranges, samples, samples that nobody perceived, classes that are not there to be found."""
    if not results:
        return "nothing was evaluated"
    first = next(iter(results.values()))
    blind = {subset: len(r.no_perception) for subset, r in results.items() if r.no_perception}
    text = f"nuScenes DetectionEval (detection_cvpr_2019) on {first.samples} samples, {first.ranges}"
    if blind:
        text += "; no perception (all sensors of the subset absent): "
        text += ", ".join(f"{subset} {count} samples" for subset, count in blind.items())
    if first.classes_without_truth:
        text += f"; no truth of {', '.join(first.classes_without_truth)}, whose AP is 0; mean AP of the other classes: "
        text += ", ".join(f"{subset} {_figure(r.mean_ap_of_truth, 3)}" for subset, r in results.items())
    return text


def header(results: Results) -> list[str]:
    """The columns of every table."""
    classes = list(next(iter(results.values())).class_ap) if results else []
    tasks = (f"{task} {name}" for task, name in task_figures(results.values()))
    return [*_SUMMARY, *tasks, *(SHORT_CLASS.get(name, name) for name in classes)]


def rows(results: Results) -> list[list[str]]:
    """One row a subset, formatted; "-" is not defined."""
    table = []
    for subset, result in results.items():
        share = retention(result, results)
        table.append(
            [
                subset.replace("+", " + "),
                f"{result.mean_ap:.3f}",
                "-" if math.isnan(share) else f"{100 * share:.0f}%",
                f"{result.nds:.3f}",
                *(_figure(result.errors.get(name, math.nan)) for name in TP_ERRORS.values()),
                *(_figure(result.of_task(*figure), 3) for figure in task_figures(results.values())),
                *(_figure(value) for value in result.class_ap.values()),
            ]
        )
    return table


def _figure(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def markdown(results: Results) -> str:
    """The table in Markdown, its caption under it."""
    names = header(results)
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(results)]
    return "\n".join(lines) + f"\n\n{caption(results)}.\n"


def comma_separated(results: Results) -> str:
    """The same in CSV with full precision, ranges and samples in columns of their own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    classes = list(next(iter(results.values())).class_ap) if results else []
    writer.writerow(
        [*(name.replace(" ", "_") for name in header(results)[: -len(classes) or None]),
         *(f"AP_{name}" for name in classes), "ranges", "samples", "no_perception"]
    )  # fmt: skip
    for subset, result in results.items():
        figures = [result.mean_ap, retention(result, results), result.nds]
        figures += [result.errors.get(name, math.nan) for name in TP_ERRORS.values()]
        figures += [result.of_task(*figure) for figure in task_figures(results.values())]
        figures += result.class_ap.values()
        writer.writerow(
            [subset, *(f"{v:.6f}" for v in figures), result.ranges, result.samples, len(result.no_perception)]
        )
    return out.getvalue()


def terminal_tables(results: Results) -> list[Table]:
    """Rich tables for the terminal: every subset by the official figures, by those of other tasks, by the AP of every class."""
    from rich.table import Table

    tasks, classes = len(_SUMMARY), len(_SUMMARY) + len(task_figures(results.values()))
    parts = {
        "Every subset of the sensors": slice(1, tasks),
        "Other tasks": slice(tasks, classes),
        "AP by class": slice(classes, None),
    }
    tables: list[Table] = []
    for title, part in parts.items():
        if names := header(results)[part]:
            text = None if tables else caption(results)
            table = Table(title=title, caption=text, title_justify="left", caption_justify="left")
            table.add_column("sensors")  # many names wrap before figures are cut
            for name in names:
                table.add_column(name, justify="right", no_wrap=True)
            for row in rows(results):
                table.add_row(row[0], *row[part])
            tables.append(table)
    return tables


def write_report(directory: Path, results: Results) -> list[Path]:
    """Write subsets.json, table.md and table.csv into `directory`; returns their paths."""
    paths = [directory / "subsets.json", directory / "table.md", directory / "table.csv"]
    write_subsets(paths[0], results)
    write_text(paths[1], markdown(results))
    write_text(paths[2], comma_separated(results))
    return paths


def compare(robust: Results, plain: Results, names: tuple[str, str] = ("robust", "plain")) -> str:
    """Markdown: the mAP of two models side by side for the subsets that both were measured on."""
    lines = [
        f"| sensors | mAP {names[0]} | mAP {names[1]} | difference | NDS {names[0]} | NDS {names[1]} |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for subset in (s for s in robust if s in plain):
        a, b = robust[subset], plain[subset]
        lines.append(
            f"| {subset.replace('+', ' + ')} | {a.mean_ap:.3f} | {b.mean_ap:.3f} | {a.mean_ap - b.mean_ap:+.3f} "
            f"| {a.nds:.3f} | {b.nds:.3f} |"
        )
    captions = f"{names[0]}: {caption(robust)}; {names[1]}: {caption(plain)}"
    return "\n".join(lines) + f"\n\n{caption(robust) if caption(robust) == caption(plain) else captions}.\n"
