"""The report of a robustness run: tables as CSV and Markdown, pictures, one HTML file that needs nothing else, MLflow."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from pathlib import Path

import robustbev
from sensors.extras import installed_version
from sensors.text import html_text, markdown
from training.files.atomic import write_json, write_text
from training.files.html_page import html_page, wide
from training.robustness import metrics as metrics
from training.robustness.pictures import pictures
from training.robustness.results import Robustness
from training.robustness.tables import case_table, tables
from training.tasks.detection.result import figure_of
from training.tracking.run import MLflowRun, git_commit
from training.tracking.sending import log_report

_VERSIONS = ("robustbev", "torch", "numpy", "nuscenes-devkit", "ray")
_FORMULAS = (
    (
        "RA, mRA",
        "resistance ability (MultiCorrupt): mean over severities of figure / clean figure; its mean over corruptions",
    ),
    ("kept", "share of the figure with all sensors on clean data"),
)


def write_robustness(out_dir: Path, robustness: Robustness) -> list[Path]:
    """Write tables, pictures, report.md, report.html and robustness.json; -> their paths."""
    shown = tables(robustness)
    paths = [out_dir / f"{table.name}.csv" for table in [*shown, case_table(robustness)]]
    for path, table in zip(paths, [*shown, case_table(robustness)], strict=True):
        write_text(path, table.csv())
    facts = provenance(robustness)
    drawn = pictures(out_dir, robustness)
    text = ["# Robustness", "", *(f"- {name}: {markdown(value)}" for name, value in facts.items()), ""]
    write_text(
        out_dir / "report.md",
        "\n".join(text) + "\n" + "\n".join(f"### {table.title}\n\n{table.markdown()}" for table in shown),
    )
    write_text(out_dir / "report.html", _html(robustness, facts, drawn))
    cases = {case.name: result.to_json() for case, result in robustness.figures.items()}
    write_json(out_dir / "robustness.json", {"what": facts, "summary": summary(robustness), "cases": cases})
    names = ("report.md", "report.html", "robustness.json")
    return [*paths, *drawn, *(out_dir / name for name in names)]


def summary(robustness: Robustness) -> dict[str, float | None]:
    """The single figures, under the names that MLflow shows; null where one is not defined."""
    figures: dict[str, float] = {}
    for name, metric in robustness.metrics.items():
        matrix, clean = robustness.matrix(metric), robustness.clean(metric)
        figures |= {
            f"robustness/clean_{name}": clean,
            f"robustness/mRA_{name}": metrics.mean_resistance_ability(matrix, clean),
        }
        figures |= {f"robustness/RA_{name}/{c}": metrics.resistance_ability(row, clean) for c, row in matrix.items()}
        for subset, result in robustness.subsets().items():
            figures[f"robustness/kept_{name}/{subset}"] = metrics.retention(figure_of(result, metric), clean)
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def provenance(robustness: Robustness) -> dict[str, str]:
    """What was run, for a reader who wants to run it again."""
    config, model = robustness.config, robustness.model
    facts = {"checkpoint": _place(model.checkpoint), "weights and settings": f"fingerprint {model.fingerprint[:16]}"}
    tracked = MLflowRun.open(model.files.mlflow, model.config.tracker)
    if tracked is not None:
        facts["MLflow run"] = tracked.run_id
    facts |= dict(robustness.data)
    facts |= {
        "seed of the corruptions": str(config.seed),
        "severities": ", ".join(map(str, config.severities)),
        "health": config.health,
    }
    if config.limit is not None:
        facts["limit"] = f"the first {config.limit} samples only"
    commit = git_commit(Path(robustbev.__file__).parent)
    if commit is not None:
        facts["commit"] = commit
    facts["versions"] = ", ".join(f"{name} {installed_version(name)}" for name in _VERSIONS)
    facts["time"] = (
        f"{robustness.measured} of {robustness.tasks} tasks were measured now, in {robustness.seconds:.0f} s"
    )
    return facts


def track_robustness(robustness: Robustness, files: Sequence[Path]) -> None:
    """Hand figures and files to the MLflow of the checkpoint's run, if it has one."""
    figures = {name: value for name, value in summary(robustness).items() if value is not None}
    model = robustness.model
    log_report(model.files.mlflow, model.config.tracker, model.checkpoint, figures, {"robustness": files})


def _html(robustness: Robustness, facts: dict[str, str], drawn: Sequence[Path]) -> str:
    """One page with everything in it: pictures are inlined, nothing is loaded from anywhere."""
    pictures_by_name = {path.name: base64.b64encode(path.read_bytes()).decode("ascii") for path in drawn}
    first = f"corruptions_{next(iter(robustness.metrics)).lower()}"
    place = {"subsets": ["subsets.png"], first: ["retention.png", "severity.png"]}
    who = "official nuScenes evaluation" if "NDS" in robustness.metrics else "nuScenes' formulas"
    samples = html_text(robustness.data.get("samples", "?"))
    parts = [f"<p class=note>One checkpoint, {who} on {samples} samples.</p>"]
    for table in tables(robustness):
        parts.append(f"<h2>{html_text(table.title)}</h2>\n{wide(table.html())}")
        for name in place.get(table.name, []):
            if name in pictures_by_name:
                parts.append(wide(f'<img alt="{name}" src="data:image/png;base64,{pictures_by_name[name]}">'))
    rows = "".join(f"<tr><td>{html_text(k)}</td><td><code>{html_text(v)}</code></td></tr>\n" for k, v in facts.items())
    meanings = "".join(f"<tr><td>{k}</td><td>{html_text(v)}</td></tr>\n" for k, v in _FORMULAS)
    every = case_table(robustness)
    parts += [
        f"<h2>Measures</h2>\n{wide(f'<table class=words><tbody>{meanings}</tbody></table>')}",
        f"<h2>What was run</h2>\n{wide(f'<table class=words><tbody>{rows}</tbody></table>')}",
        f"<details><summary>{every.title}: {len(every.rows)} rows</summary>\n{wide(every.html())}</details>",
    ]
    return html_page(f"Robustness of {robustness.model.config.name}", "\n".join(parts))


def _place(path: Path) -> str:
    """Relative to the working directory where it lies below it: a report says nothing of a machine's folders that it need not."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
