"""`robustbev robustness`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sensors.text import tell
from training.commands.options import Settings
from training.console.errors import INTERRUPTED, tells_errors


@tells_errors
def robustness(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="A run's folder, or a checkpoint in it.")],
    settings: Settings = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="What to measure; default: the subsets and MultiCorrupt's ten.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: `robustness` in the run's folder.")] = None,
) -> None:
    """Measure what is left when sensors fail: corruption x severity, and every subset."""
    from sensors.extras import require

    require("robustbev robustness", "data", "nuscenes", "simplejpeg")
    require("robustbev robustness", "train", "matplotlib")
    from training.console.progress import Bars
    from training.files.config_file import load_config
    from training.files.table import print_tables
    from training.robustness.config import RobustnessConfig
    from training.robustness.run import run_robustness
    from training.robustness.tables import tables

    words = [*(settings or []), *([] if out is None else [f"out={out}"])]
    loaded = load_config(RobustnessConfig, config, words)
    try:
        with Bars() as bars:
            result = run_robustness(checkpoint, loaded, bars)
    except KeyboardInterrupt:
        tell("interrupted; what is measured is kept, the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    print_tables(*tables(result))
    tell(f"report: {result.out / 'report.html'}")
