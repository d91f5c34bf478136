"""`robustbev replay`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from training.commands.logs import DAMAGED_LOG, LogPath, Scene
from training.console.errors import tells_errors

DIFFERS = 5

Mapping = Annotated[
    Path | None, typer.Option("--mapping", help="YAML: which topic is which sensor; default: as `inspect` proposes.")
]


class OrderChoice(StrEnum):
    """By which of their times messages come."""

    LOG = "log"
    PUBLISH = "publish"


class HealthChoice(StrEnum):
    """What the sensor health monitor may do in a replay."""

    OFF = "off"
    REPORT = "report"
    ACT = "act"


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
            ".mp4 (film), .json (nuScenes submission).",
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
        int | None, typer.Option("--stills", min=1, help="Beside a film, a PNG of every so manyth tick.")
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
    from training.console.progress import Bars
    from training.files.config_file import load_config
    from training.replay.request import ReplayRequest
    from training.replay.run import print_end, run_replay

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
