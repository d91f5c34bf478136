"""What `robustbev replay` is asked for: every field is an option of the command, see `training.commands.options.options_of`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

LogPath = Annotated[
    Path, Argument(metavar="LOG", help="An MCAP file, a ROS 2 bag, or a data set in nuScenes format (with --scene).")
]
Scene = Annotated[str | None, Option("--scene", help="Of a data set in nuScenes format.")]
Outputs = Annotated[
    list[Path] | None,
    Option(
        "--out",
        help="What to write, by its ending, again for more: .mcap (Foxglove), .ros2.mcap (ROS 2 bag), .rrd (Rerun), "
        ".mp4 (film), .html (page with film and slider), .json (nuScenes submission).",
    ),
]
Faults = Annotated[
    list[str] | None,
    Option("--fault", help='What fails when, as "LIDAR_TOP: drop 5s..9s" or "camera: fog-3 2s.."; again for more.'),
]


class HealthChoice(StrEnum):
    """What the sensor health monitor may do in a replay."""

    OFF = "off"
    REPORT = "report"
    ACT = "act"


@dataclass(frozen=True)
class ReplayRequest:
    """What to replay, with what, and what to write of it."""

    log: LogPath
    checkpoint: Annotated[Path, Option("--checkpoint", help="A run's folder, or a checkpoint.")]
    settings: Annotated[
        list[str] | None, Argument(metavar="[key=value]...", help="Settings of the replay, as tick_hz=10.")
    ] = None
    outputs: Outputs = None
    scene: Scene = None
    mapping: Annotated[
        Path | None, Option("--mapping", help="YAML: which topic is which sensor; default: as `inspect` proposes.")
    ] = None
    config: Annotated[Path | None, Option("--config", help="YAML file with settings of the replay.")] = None
    faults: Faults = None
    script: Annotated[Path | None, Option("--script", help="YAML file with scripts of faults; each is replayed.")] = (
        None
    )
    rate: Annotated[
        float | None, Option("--rate", min=0.001, help="Times the drive's own speed; default: as fast as it goes.")
    ] = None
    start_s: Annotated[float | None, Option("--start", min=0, help="Seconds after the log's beginning.")] = None
    duration_s: Annotated[float | None, Option("--duration", min=0, help="Seconds to replay.")] = None
    loop: Annotated[int, Option("--loop", min=1, help="Replay the log so many times, one after the other.")] = 1
    health: Annotated[HealthChoice, Option("--health", help="act: sick sensors count as absent.")] = HealthChoice.OFF
    monitor: Annotated[Path, Option("--monitor", help="Of --health: what `robustbev health --fit` wrote.")] = Path(
        "runs/health.json"
    )
    score: Annotated[float, Option("--score", min=0, max=1, help="Found boxes scored lower are not drawn.")] = 0.3
    stills_every: Annotated[
        int | None, Option("--stills", min=1, help="Beside a film, a PNG of every so manyth tick.")
    ] = None
    golden: Annotated[
        Path | None, Option("--golden", help="Compare with what lies here; exit code 5 where it differs.")
    ] = None
    write_golden: Annotated[Path | None, Option("--write-golden", help="Store outputs to compare with later.")] = None
    tolerance: Annotated[
        float, Option("--tolerance", min=0, help="Of --golden: 0 is bit for bit, else of scores, metres, radians, m/s.")
    ] = 0.0
    summary: Annotated[Path | None, Option("--summary", help="JSON file for the summary.")] = None
    layout: Annotated[
        Path | None,
        Option("--layout", help="JSON file for Foxglove's layout of these sensors; import it beside a .mcap."),
    ] = None
    overwrite: Annotated[bool, Option("--overwrite", help="Replace outputs that are there.")] = False
