"""`robustbev inspect` and `robustbev convert`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from sensors.text import tell
from training.console.errors import tells_errors
from training.replay.request import LogPath, Scene

DAMAGED_LOG = 4


class LogFormat(StrEnum):
    """What `convert` writes."""

    FOXGLOVE = "foxglove"
    ROS2 = "ros2"
    NUSCENES = "nuscenes"


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
        tell(f"mapping: {write_mapping}")
    if summary.damage:
        raise typer.Exit(DAMAGED_LOG)


@tells_errors
def convert(
    log: LogPath,
    out: Annotated[Path, typer.Option("--out", help="The file to write; the folder, of a data set.")],
    scene: Scene = None,
    format: Annotated[
        LogFormat,
        typer.Option("--format", help="foxglove: MCAP that opens in Foxglove; nuscenes: a data set to train on."),
    ] = LogFormat.FOXGLOVE,
    mapping: Annotated[
        Path | None,
        typer.Option("--mapping", help="Which topic is which sensor, for a data set; default: as they look."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a drive log, or a scene of a data set, as MCAP for Foxglove, as a ROS 2 bag or as a data set in nuScenes format."""
    from sensors.extras import require

    require("robustbev convert", "replay")
    from sensors.logs.write import write_log
    from training.console.progress import Bars
    from training.replay.log_source import open_source

    source = open_source(log, scene)
    if format is LogFormat.NUSCENES:
        from training.replay.data_set import write_data_set

        if overwrite:
            raise typer.BadParameter("a data set is not written over: name a folder that is not there")
        write_data_set(source, mapping, out, tell)
        raise typer.Exit(DAMAGED_LOG if source.log.damage else 0)
    if mapping is not None:
        raise typer.BadParameter("--mapping is for --format nuscenes alone")
    with Bars() as bars:
        kind: Literal["foxglove", "ros2"] = "ros2" if format is LogFormat.ROS2 else "foxglove"
        count = write_log(
            source.log, out, kind, overwrite=overwrite, progress=lambda done, of: bars("messages", done, of)
        )
    tell(f"{count} messages in {out}")
    if source.log.damage:
        raise typer.Exit(DAMAGED_LOG)
