"""`robustbev show` and `robustbev demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sensors.text import tell
from training.commands.options import ConfigFile, Settings, config_of, print_figures
from training.console.errors import INTERRUPTED, tells_errors


@tells_errors
def show(
    settings: Settings = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Whose boxes to show; default: the truth.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="What to look at; default: the run's own.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")] = Path("pictures"),
    sample: Annotated[str, typer.Option(help="A token, or a position in the split.")] = "0",
    split: Annotated[str | None, typer.Option(help="Default: the validation split.")] = None,
    subset: Annotated[str | None, typer.Option(help="Sensors to use, as camera+radar; default: all.")] = None,
    score: Annotated[float, typer.Option(help="Found boxes scored lower are not drawn.")] = 0.3,
    corruption: Annotated[str | None, typer.Option(help="What the sensors suffer, as fog-3; default: nothing.")] = None,
) -> None:
    """Draw a sample from above and in its cameras: truth, and what a model found."""
    from sensors.extras import require

    require("robustbev show", "data", "nuscenes", "simplejpeg")
    require("robustbev show", "train", "matplotlib")
    from training.runs.config import load_run_config
    from training.runs.show import show as draw

    if checkpoint is None and config is None:
        raise typer.BadParameter("give --config (what to look at), --checkpoint (what a model made of it), or both")
    if checkpoint is None:
        run_config = load_run_config(config, settings or [])
    else:
        checkpoint_config = config_of(checkpoint, config, settings or [])
        if checkpoint_config is None:
            raise typer.BadParameter(f"{checkpoint} lies in no run's folder: say with --config what to look at")
        run_config = checkpoint_config
    from sensors.corruptions import Corruption

    suffered = None if corruption is None else Corruption.parse(corruption)
    for path in draw(
        run_config,
        out,
        checkpoint=checkpoint,
        split=split,
        sample=sample,
        subset=subset,
        score=score,
        corruption=suffered,
    ):
        tell(path)


@tells_errors
def demo(
    settings: Settings = None,
    config: ConfigFile = Path("configs/tiny.yaml"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train and evaluate anew; drives that are there stay.")
    ] = False,
    scenes_train: Annotated[int | None, typer.Option(help="Scenes to train on.")] = None,
    scenes_val: Annotated[int | None, typer.Option(help="Scenes to evaluate on.")] = None,
) -> None:
    """Synthetic drives, training, evaluation of every sensor subset, pictures. What is complete is not done again."""
    from sensors.extras import require
    from training.runs.config import load_run_config

    require("robustbev demo", "data")
    require("robustbev demo", "train")
    from training.runs.demo import run_demo

    run = load_run_config(config, ["name=demo", *(settings or [])])
    scenes = {"scenes_train": scenes_train, "scenes_val": scenes_val}
    results = run_demo(run, {name: count for name, count in scenes.items() if count is not None}, fresh=fresh)
    if results is None:
        raise typer.Exit(INTERRUPTED)
    print_figures(results.subsets)
    tell("\n".join(results.places))
