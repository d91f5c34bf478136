"""What a replay writes, by the ending of each output's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustbev import PerceptionModel
from robustbev.results.foxglove import FoxgloveResults
from robustbev.results.given import FrameNames
from robustbev.results.rerun import RerunResults
from robustbev.results.result import ResultWriter
from robustbev.results.ros2.bag import Ros2Results
from sensors.logs.log import LogError
from training.pictures.film import TruthAt, VideoResults
from training.replay.log_source import LogSource
from training.replay.submission import SubmissionWriter, scene_samples
from training.replay.truth import ReplayTruth

if TYPE_CHECKING:
    from training.replay.request import ReplayRequest

ENDINGS = {
    ".ros2.mcap": "a ROS 2 bag",
    ".mcap": "an MCAP file for Foxglove",
    ".rrd": "a Rerun recording",
    ".mp4": "a film",
    ".json": "a nuScenes submission",
}


_LIFETIME_TICKS = 2  # boxes outlive their tick by one, so that they do not blink


@dataclass(frozen=True)
class Opened:
    """Writers, and the files that they will have written."""

    writers: tuple[ResultWriter, ...]
    paths: tuple[Path, ...]


def ending(path: Path) -> str:
    """The longest ending that is known; ValueError for a name that has none."""
    for known in ENDINGS:
        if path.name.endswith(known) and path.name != known:
            return known
    raise ValueError(
        f"--out {path}: expected a name that ends in "
        + ", ".join(f"{known} ({what})" for known, what in ENDINGS.items())
    )


def with_script(path: Path, script: str | None) -> Path:
    """drive.ros2.mcap under the script "no lidar" -> drive_no-lidar.ros2.mcap."""
    if script is None:
        return path
    known = ending(path)
    word = "".join(c if c.isalnum() or c in "-_." else "-" for c in script)
    return path.with_name(f"{path.name.removesuffix(known)}_{word}{known}")


def check_outputs(outputs: Sequence[Path], *, overwrite: bool) -> None:
    """Before anything is computed: ValueError for a name without a known ending or given twice, LogError for one taken."""
    for path in outputs:
        ending(path)
        if outputs.count(path) > 1:
            raise ValueError(f"--out {path} is given twice")
        if path.exists() and not overwrite:
            raise LogError(f"{path} is there already; give another name, or --overwrite")


def open_writers(
    request: ReplayRequest,
    source: LogSource,
    model: PerceptionModel,
    truth: ReplayTruth | None,
    script: str | None,
    fps: float,
    names: FrameNames,
) -> Opened:
    """A writer for each output. Those opened before one that cannot be are taken back.

    Args:
        request: what to write, and how.
        source: the log, for what its format alone can answer.
        model: whose grid the results lie on.
        truth: drawn into films, where it is known.
        script: of the faults, where there are several; it goes into the files' names.
        fps: ticks a second.
        names: of the frames, as in the log.
    """
    paths = tuple(with_script(path, script) for path in request.outputs)
    writers: list[ResultWriter] = []
    try:
        for path in paths:
            writers.append(
                _open(path, request, source, model, truth, fps, names, script or request.scene or request.log.stem)
            )
    except BaseException:
        for writer in writers:
            writer.abort()
        raise
    return Opened(tuple(writers), paths)


def _open(
    path: Path,
    request: ReplayRequest,
    source: LogSource,
    model: PerceptionModel,
    truth: ReplayTruth | None,
    fps: float,
    names: FrameNames,
    title: str,
) -> ResultWriter:
    match ending(path):
        case ".ros2.mcap":
            return Ros2Results(
                path, model.grid, min_score=request.score, inputs=request.inputs, names=names,
                overwrite=request.overwrite,
            )  # fmt: skip
        case ".mcap":
            return FoxgloveResults(
                path, model.grid, min_score=request.score, inputs=request.inputs, lifetime_s=_LIFETIME_TICKS / fps,
                names=names, overwrite=request.overwrite,
            )  # fmt: skip
        case ".rrd":
            return RerunResults(path, model.grid, min_score=request.score, overwrite=request.overwrite)
        case ".json":
            if source.nuscenes is None or request.scene is None:
                raise ValueError(
                    f"--out {path}: a nuScenes submission answers samples, which only a scene of a data set in nuScenes format "
                    "has, and this is another log; leave it out"
                )
            return SubmissionWriter(path, scene_samples(source.nuscenes, request.scene))
        case _:
            stills = None if request.stills_every is None else path.with_name(f"{path.stem}_stills")
            return VideoResults(
                path, model.config, fps=fps, title=title, truth_at=truth_at(truth), min_score=request.score,
                stills=stills, stills_every=request.stills_every or 1, overwrite=request.overwrite,
            )  # fmt: skip


def truth_at(truth: ReplayTruth | None) -> TruthAt | None:
    """What was really there at the tick of a result, for those who draw and count."""
    if truth is None:
        return None
    return lambda result: truth.at(result.tick.time_us, result.tick.frame.global_T_reference)
