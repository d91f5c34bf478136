"""The commands for drive logs: `inspect`, `convert`, `replay`. Libraries load inside them, so that `--help` answers at once."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from training.cli import tells_errors

DAMAGED_LOG, DIFFERS = 4, 5

logs_app = typer.Typer()

LogPath = Annotated[
    Path,
    typer.Argument(metavar="LOG", help="An MCAP file, a ROS 2 bag, or a data set in nuScenes format (with --scene)."),
]
Scene = Annotated[str | None, typer.Option("--scene", help="Of a data set in nuScenes format.")]
Mapping = Annotated[
    Path | None, typer.Option("--mapping", help="YAML: which topic is which sensor; default: as `inspect` proposes.")
]


class LogFormat(StrEnum):
    """What `convert` writes."""

    FOXGLOVE = "foxglove"
    ROS2 = "ros2"
    ROS2_SQLITE = "ros2-sqlite"


class OrderChoice(StrEnum):
    """By which of their times messages come."""

    LOG = "log"
    PUBLISH = "publish"


class HealthChoice(StrEnum):
    """What the sensor health monitor may do in a replay."""

    OFF = "off"
    REPORT = "report"
    ACT = "act"


@logs_app.command()
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
    from sensors.logs.inspect import inspect_log
    from training.log_inspect import print_log_summary
    from training.log_source import open_source

    summary = inspect_log(open_source(log, scene).log)
    print_log_summary(summary)
    if write_mapping is not None:
        from sensors.logs.log import LogError
        from sensors.logs.mapping_file import dump_mapping
        from training.atomic import write_text

        if summary.proposal.mapping is None:
            raise LogError(f"{log}: nothing in it looks like a sensor, so there is no mapping to write")
        write_text(write_mapping, dump_mapping(summary.proposal.mapping))
        print(f"mapping: {write_mapping}")
    if summary.damage:
        raise typer.Exit(DAMAGED_LOG)


@logs_app.command()
@tells_errors
def convert(
    log: LogPath,
    out: Annotated[Path, typer.Option("--out", help="The file to write; for ros2-sqlite a folder.")],
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
    from training.log_source import open_source
    from training.progress import Bars

    source = open_source(log, scene)
    with Bars() as bars:
        count = write_log(
            source.log, out, format.value, overwrite=overwrite, progress=lambda done, of: bars("messages", done, of)
        )
    print(f"{count} messages in {out}")
    if source.log.damage:
        raise typer.Exit(DAMAGED_LOG)


@logs_app.command()
@tells_errors
def replay(
    log: LogPath,
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="A run's folder, or a checkpoint.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings of the replay, as tick_hz=10.")
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out",
            help="What to write, by its ending, again for more: .mcap (Foxglove), .ros2.mcap (ROS 2 bag), .rrd (Rerun), "
            ".mp4, .webm or .gif (film), .json (nuScenes submission).",
        ),
    ] = None,
    scene: Scene = None,
    mapping: Mapping = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file with settings of the replay.")] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault", help='What fails when, as "LIDAR_TOP: drop 5s..9s" or "camera: fog-3 2s.."; again for more.'
        ),
    ] = None,
    script: Annotated[
        Path | None,
        typer.Option("--script", help="YAML file with scripts of faults; each is replayed and all are compared."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", min=0.001, help="Times the drive's own speed; default: as fast as it goes."),
    ] = None,
    start: Annotated[float | None, typer.Option("--start", min=0, help="Seconds after the log's beginning.")] = None,
    duration: Annotated[float | None, typer.Option("--duration", min=0, help="Seconds to replay.")] = None,
    order: Annotated[
        OrderChoice, typer.Option("--order", help="Messages by log or by publish time.")
    ] = OrderChoice.LOG,
    loop: Annotated[int, typer.Option("--loop", min=1, help="Replay the log so many times, one after the other.")] = 1,
    health: Annotated[
        HealthChoice, typer.Option("--health", help="act: sick sensors count as absent.")
    ] = HealthChoice.OFF,
    monitor: Annotated[
        Path, typer.Option("--monitor", help="Of --health: what `robustbev health --fit` wrote.")
    ] = Path("runs/health.json"),
    score: Annotated[float, typer.Option(min=0, max=1, help="Found boxes scored lower are not drawn.")] = 0.3,
    stills: Annotated[
        int | None, typer.Option("--stills", min=1, help="Beside a video, a PNG of every so manyth tick.")
    ] = None,
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Compare with what lies here; exit code 5 where it differs.")
    ] = None,
    write_golden: Annotated[
        Path | None, typer.Option("--write-golden", help="Store outputs to compare with later.")
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0, help="Of --golden: 0 is bit for bit, else of scores, metres, radians, m/s."),
    ] = 0.0,
    summary: Annotated[Path | None, typer.Option("--summary", help="JSON file for the summary.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that are there.")] = False,
    compared: Annotated[
        Path | None, typer.Option("--compared", help="Folder for the scripts' comparison: picture, CSV, Markdown.")
    ] = None,
) -> None:
    """Replay a drive log through a checkpoint as the car would have met it, kill sensors on the way, write what it saw."""
    from sensors.extras import require

    require("robustbev replay", "replay")
    from sensors.replay.config import ReplayConfig
    from training.config_file import load_config
    from training.progress import Bars
    from training.replay_run import ReplayRequest, print_end, run_replay

    request = ReplayRequest(
        log=log,
        checkpoint=checkpoint,
        config=load_config(ReplayConfig, config, settings or []),
        outputs=tuple(out or ()),
        scene=scene,
        mapping=mapping,
        faults=tuple(fault or ()),
        script=script,
        rate=rate,
        start_s=start,
        duration_s=duration,
        order=order.value,
        loop=loop,
        health=health.value,
        monitor=monitor,
        score=score,
        stills_every=stills,
        golden=golden,
        write_golden=write_golden,
        tolerance=tolerance,
        summary=summary,
        overwrite=overwrite,
        compared=compared,
    )
    with Bars() as bars:
        ended = run_replay(request, bars)
    print_end(ended)
    if ended.difference is not None:
        print(f"differs from {golden}: {ended.difference}", file=sys.stderr)
        raise typer.Exit(DIFFERS)
    if ended.damaged:
        raise typer.Exit(DAMAGED_LOG)
