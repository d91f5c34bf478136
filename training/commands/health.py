"""`robustbev health`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sensors.text import tell
from training.commands.options import ConfigFile, Settings
from training.console.errors import tells_errors


@tells_errors
def health(
    config: ConfigFile,
    settings: Settings = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit a monitor on the training drives, then judge it.")] = False,
    monitor: Annotated[
        Path | None, typer.Option("--monitor", help="A fitted monitor to judge; default: health.json in runs_dir.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --fit the monitor's file, without the folder for the report.")
    ] = None,
    severity: Annotated[
        list[int] | None, typer.Option("--severity", min=1, max=5, help="Of the failures; again for more; default: 3.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Samples with failures to judge on; 0: all.")] = 64,
    scenes: Annotated[int, typer.Option(min=1, help="Training drives with failures to fit on.")] = 28,
) -> None:
    """Tell sick sensors from healthy ones: fit the monitor, and report AUROC a failure on drives it has not seen."""
    from sensors.extras import require

    require("robustbev health", "data", "nuscenes", "simplejpeg", "cv2", "scipy")
    require("robustbev health", "train", "matplotlib")
    from training.console.progress import Bars
    from training.files.table import print_tables
    from training.health.report import health_table
    from training.health.run import run_health
    from training.runs.config import load_run_config

    run = load_run_config(config, settings or [])
    if fit and monitor is not None:
        raise typer.BadParameter("--fit makes a monitor, --monitor names one that is there: give one of them")
    with Bars() as bars:
        done = run_health(
            run,
            fit=fit,
            monitor=monitor,
            out=out,
            severities=severity or [3],
            limit=limit,
            scenes=scenes,
            progress=bars,
        )
    print_tables(health_table(done.figures))
    tell("\n".join(map(str, done.paths)))
