"""`robustbev inspect` and `robustbev convert`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from training.console.errors import tells_errors
from training.replay.request import LogPath, Scene

DAMAGED_LOG = 4


class LogFormat(StrEnum):
    """What `convert` writes."""

    FOXGLOVE = "foxglove"
    ROS2 = "ros2"


@tells_errors
def inspect(
    log: LogPath,
    scene: Scene = None,
    write_mapping: Annotated[
        Path | None, typer.Option("--write-mapping", help="Write the proposed mapping here, to be corrected by hand.")
    ] = None,
) -> None:
    """Say what a drive log holds: topics, types, counts, rates, gaps, damage, and which topic looks like which sensor."""
    from sensors.extras import require

    require("robustbev inspect", "replay")
    from sensors.logs.mapping.inspect import inspect_log
    from training.replay.log_inspect import print_log_summary
    from training.replay.log_source import open_source

    summary = inspect_log(open_source(log, scene).log)
    print_log_summary(summary)
    if write_mapping is not None:
        from sensors.logs.log import LogError
        from sensors.logs.mapping.file import dump_mapping
        from training.files.atomic import write_text

        if summary.proposal.mapping is None:
            raise LogError(f"{log}: nothing in it looks like a sensor, so there is no mapping to write")
        write_text(write_mapping, dump_mapping(summary.proposal.mapping))
        print(f"mapping: {write_mapping}")
    if summary.damage:
        raise typer.Exit(DAMAGED_LOG)


@tells_errors
def convert(
    log: LogPath,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    scene: Scene = None,
    format: Annotated[
        LogFormat, typer.Option("--format", help="foxglove: MCAP that opens in Foxglove.")
    ] = LogFormat.FOXGLOVE,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a drive log, or a scene of a data set in nuScenes format, as MCAP for Foxglove or as a ROS 2 bag."""
    from sensors.extras import require

    require("robustbev convert", "replay")
    from sensors.logs.write import write_log
    from training.console.progress import Bars
    from training.replay.log_source import open_source

    source = open_source(log, scene)
    with Bars() as bars:
        count = write_log(
            source.log, out, format.value, overwrite=overwrite, progress=lambda done, of: bars("messages", done, of)
        )
    print(f"{count} messages in {out}")
    if source.log.damage:
        raise typer.Exit(DAMAGED_LOG)
