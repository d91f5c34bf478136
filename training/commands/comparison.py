"""`robustbev compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sensors.text import tell
from training.console.errors import INTERRUPTED, tells_errors


@tells_errors
def compare(
    configs: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG|key=value", help="YAML files, and settings over each of them."),
    ],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="So many seeds, from 0.")] = 1,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", help="A corruption to measure beyond the sensor subsets, as fog-3; again for more."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Default: compare-<folder of the files>.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="For the tables; default: beside the runs.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=0, help="At a time; 0: without Ray. Default: one a GPU or CPU core.")
    ] = None,
    address: Annotated[str | None, typer.Option("--address", help="Of a Ray cluster; default: this machine.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove what the runs wrote before and start over.")] = False,
) -> None:
    """Train and evaluate configurations with several seeds each, and put means and deviations side by side."""
    from training.comparison.plan import read_entries, split_words

    files, settings = split_words(configs)
    entries = tuple(read_entries(files, settings))
    from sensors.extras import require

    require("robustbev compare", "data", "nuscenes", "simplejpeg")
    require("robustbev compare", "train", "matplotlib")
    from training.comparison.run import Request, print_comparison
    from training.comparison.run import compare as run

    ended = run(Request(entries, tuple(range(seeds)), tuple(case or ()), name, out, jobs, address, fresh))
    print_comparison(ended)
    if ended.interrupted:
        tell("stopped; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if ended.failed:
        raise typer.Exit(1)
