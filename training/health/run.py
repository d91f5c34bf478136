"""The command `robustbev health`: fits a monitor, judges it, writes what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sensors.health.monitor import HealthMonitor
from training.files.atomic import write_json
from training.health.fit import HealthFigures, Progress, fit_monitor, judge_monitor
from training.health.report import write_report
from training.runs.config import RunConfig

MONITOR_FILE = "health.json"


@dataclass(frozen=True)
class HealthRun:
    """What the command shows."""

    figures: HealthFigures
    paths: tuple[Path, ...]  # written: the monitor where it was fitted, the report


def run_health(
    config: RunConfig,
    *,
    fit: bool = False,
    monitor: Path | None = None,
    out: Path | None = None,
    severities: Sequence[int] = (3,),
    limit: int = 64,
    scenes: int = 28,
    progress: Progress | None = None,
) -> HealthRun:
    """Fit on `config`'s training split if asked to, judge on its validation split, write the report.

    Args:
        config: data and sensors; its seed decides the failures.
        fit: make a monitor; otherwise one is read.
        monitor: the file of the one to read; None: `health.json` in `runs_dir`.
        out: with `fit` the monitor's file, without it the report's folder; None: `health.json`, and `health` beside it.
        severities: of the failures to judge by.
        limit: samples with failures to judge on, 0 for all.
        scenes: training drives with failures to fit on; twice as many more are measured without any.
        progress: told of "measure", "fit" and "judge".

    Raises:
        FileNotFoundError: there is no monitor to read.
        ValueError: `out` does not fit, or see `fit_monitor`, `judge_monitor` and `HealthMonitor.load`.
    """
    default = config.runs_dir / MONITOR_FILE
    written: list[Path]
    if fit:
        path = out or default
        if path.suffix != ".json":
            raise ValueError(f"--out {path}: with --fit expected the name of the monitor's file, ending in .json")
        fitted = fit_monitor(config, scenes=scenes, clean_scenes=2 * scenes, seed=config.seed, progress=progress)
        write_json(path, fitted.to_json(), indent=None)
        written, folder = [path], path.with_suffix("")
    else:
        path = monitor or default
        fitted = HealthMonitor.load(path)
        written, folder = [], out or path.with_suffix("")
    figures = judge_monitor(
        fitted, config, severities=severities, limit=limit or None, seed=config.seed, progress=progress
    )
    report = write_report(folder, figures)
    return HealthRun(figures, (*written, *report))
