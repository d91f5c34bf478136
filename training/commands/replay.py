"""`robustbev replay`."""

from __future__ import annotations

import sys

import typer

from sensors.text import tell
from training.commands.logs import DAMAGED_LOG
from training.commands.options import options_of
from training.console.errors import tells_errors
from training.replay.request import ReplayRequest

DIFFERS = 5


@tells_errors
@options_of(ReplayRequest)
def replay(request: ReplayRequest) -> None:
    """Replay a drive log through a checkpoint as the car would have met it, kill sensors on the way, write what it saw."""
    from sensors.extras import require

    require("robustbev replay", "replay")
    from training.console.progress import Bars
    from training.replay.run import print_end, run_replay

    with Bars() as bars:
        ended = run_replay(request, bars)
    print_end(ended)
    if ended.difference is not None:
        tell(f"differs from {request.golden}: {ended.difference}", file=sys.stderr)
        raise typer.Exit(DIFFERS)
    if ended.damaged:
        raise typer.Exit(DAMAGED_LOG)
