"""The commands of `robustbev`, a file a group. Libraries load inside them, so that `--help` answers at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from training.commands.comparison import compare
from training.commands.data import index, print_config, simulate
from training.commands.export import export_app
from training.commands.health import health
from training.commands.logs import convert, inspect
from training.commands.options import Settings
from training.commands.pictures import demo, show
from training.commands.replay import replay
from training.commands.robustness import robustness
from training.commands.runs import evaluate, train
from training.console.errors import DEBUG_VARIABLE, tells_errors

app = typer.Typer(
    help="Camera, LiDAR and radar fusion in bird's-eye view that keeps seeing when sensors fail.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for _command in (
    simulate,
    index,
    train,
    evaluate,
    robustness,
    compare,
    health,
    show,
    demo,
    inspect,
    convert,
    replay,
):
    app.command()(_command)
app.command("config")(print_config)
app.add_typer(export_app)


def _print_version(asked: bool) -> None:
    from importlib.metadata import PackageNotFoundError, version

    if asked:
        try:
            print(f"robustbev {version('robustbev')}")
        except PackageNotFoundError:
            print("robustbev, a checkout that is not installed")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of every error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


@app.command()
@tells_errors
def doctor(
    settings: Settings = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Say too whether this machine can run this configuration.")
    ] = None,
    rig: Annotated[
        Path | None, typer.Option("--rig", help="Draw here (.png) where the configuration's sensors stand and look.")
    ] = None,
) -> None:
    """Say what is installed, from where our packages come, and what this machine can run."""
    from training.doctor.examine import examine

    if config is None and (settings or rig):
        raise typer.BadParameter("say with --config which configuration the settings and --rig are of")
    if rig is not None and rig.suffix.lower() != ".png":
        raise typer.BadParameter(f"--rig: expected a file that ends in .png, got {rig.name}")
    raise typer.Exit(examine(config, settings or [], rig))
