"""Commands that train, evaluate and look at one run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sensors.text import tell
from training.commands.options import ConfigFile, Fresh, Settings, config_of, print_figures
from training.console.errors import INTERRUPTED, tells_errors


@tells_errors
def train(config: ConfigFile, settings: Settings = None, fresh: Fresh = False) -> None:
    """Train, or go on with, a run. Ctrl-C saves a checkpoint; the same command goes on from there."""
    from training.runs.config import load_run_config

    run = load_run_config(config, settings or [])
    from sensors.extras import require

    require("robustbev train", "data", "nuscenes", "simplejpeg")
    from training.console.progress import Bars
    from training.loop.best import best_of
    from training.runs.files import RunFiles
    from training.runs.run import run_training
    from training.tracking.sending import send_rest

    files = RunFiles(run.run_dir)
    if not fresh and files.is_complete(run):
        if run.tracking.enabled:
            send_rest(files.mlflow, run.tracker)
        tell(f"{run.run_dir} is complete: nothing to do. To train again: --fresh, or another name=...")
        return
    with Bars() as bars:
        outcome = run_training(run, bars, fresh=fresh)
    if outcome.interrupted:
        tell(
            f"stopped at step {outcome.step} of {outcome.total_steps}, saved in {outcome.checkpoint}; "
            "the same command goes on from there",
            file=sys.stderr,
        )
        raise typer.Exit(INTERRUPTED)
    tell(f"trained {outcome.step} steps; the model is in {outcome.checkpoint}")
    best = best_of(files.checkpoints)
    if best is not None:
        link, measured = best
        tell(f"the best one, {measured} ({', '.join(measured.subsets)}), is {link}")
    tell(f"evaluate it: robustbev evaluate --checkpoint {run.run_dir}")


@tells_errors
def evaluate(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="A checkpoint, or a run's folder.")],
    settings: Settings = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="What to evaluate on; default: the run's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: `evaluation` in the run's folder.")] = None,
) -> None:
    """Measure a model under every subset of its sensors by the official nuScenes evaluation, or its formulas."""
    from sensors.extras import require

    require("robustbev evaluate", "data", "nuscenes", "simplejpeg")
    require("robustbev evaluate", "train", "matplotlib")
    from training.console.progress import Bars
    from training.runs.evaluate import evaluate_checkpoint

    run_config = config_of(checkpoint, config, settings or [])
    with Bars() as bars:
        results = evaluate_checkpoint(checkpoint, run_config, out_dir=out, progress=bars)
    print_figures(results)
