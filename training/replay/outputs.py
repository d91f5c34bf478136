"""What a replay writes, by the ending of each output's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from robustbev.results.foxglove.results import FoxgloveResults
from robustbev.results.given import FrameNames
from robustbev.results.rerun import RerunResults
from robustbev.results.result import ResultWriter, TruthAt
from robustbev.results.ros2.bag import Ros2Results
from sensors.logs.log import LogError
from sensors.replay.faults.kinds import FaultScript
from training.pictures.film import VideoResults
from training.pictures.film_page import PageResults
from training.replay.submission import SubmissionWriter, scene_samples
from training.replay.truth import ReplayTruth

if TYPE_CHECKING:
    from training.replay.setup import ReplaySetup

ENDINGS = {
    ".ros2.mcap": "a ROS 2 bag",
    ".mcap": "an MCAP file for Foxglove",
    ".rrd": "a Rerun recording",
    ".mp4": "a film",
    ".html": "a page with a film and a slider",
    ".json": "a nuScenes submission",
}


_LIFETIME_TICKS = 2  # boxes outlive their tick by one, so that they do not blink


class _Common(TypedDict):
    min_score: float
    overwrite: bool


class _Recorded(TypedDict):
    inputs: bool
    lifetime_s: float
    names: FrameNames
    metadata: Mapping[str, str]


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


def open_writers(setup: ReplaySetup, script: FaultScript, suffix: str | None) -> Opened:
    """A writer for each output of the request. Those opened before one that cannot be are taken back.

    Args:
        setup: the request, and what it is answered with.
        script: what fails on the way.
        suffix: the script's name, where there are several; it goes into the files' names.
    """
    rate_hz = setup.rate_hz()
    paths = tuple(with_script(path, suffix) for path in setup.request.outputs or ())
    writers: list[ResultWriter] = []
    try:
        for path in paths:
            writers.append(_open(path, setup, script, suffix, rate_hz))
    except BaseException:
        for writer in writers:
            writer.abort()
        raise
    return Opened(tuple(writers), paths)


def _open(path: Path, setup: ReplaySetup, script: FaultScript, suffix: str | None, rate_hz: float) -> ResultWriter:
    request, model, lifetime_s = setup.request, setup.model, _LIFETIME_TICKS / rate_hz
    title = suffix or request.scene or request.log.stem
    common: _Common = {"min_score": request.score, "overwrite": request.overwrite}
    match ending(path):
        case ".ros2.mcap":
            return Ros2Results(path, model.grid, **_recorded(setup, script, lifetime_s), **common)
        case ".mcap":
            truth = truth_at(setup.truth)
            return FoxgloveResults(path, model.grid, truth_at=truth, **_recorded(setup, script, lifetime_s), **common)
        case ".rrd":
            return RerunResults(path, model.grid, **common)
        case ".json":
            if setup.source.nuscenes is None or request.scene is None:
                raise ValueError(
                    f"--out {path}: a nuScenes submission answers samples, which only a scene of a data set in nuScenes format "
                    "has, and this is another log; leave it out"
                )
            return SubmissionWriter(path, scene_samples(setup.source.nuscenes, request.scene))
        case ".html":
            truth, about = truth_at(setup.truth), setup.origin(script)
            return PageResults(path, model.config, fps=rate_hz, title=title, truth_at=truth, about=about, **common)
        case _:
            return VideoResults(
                path,
                model.config,
                fps=rate_hz,
                title=title,
                truth_at=truth_at(setup.truth),
                stills=None if request.stills_every is None else path.with_name(f"{path.stem}_stills"),
                stills_every=request.stills_every or 1,
                **common,
            )


def truth_at(truth: ReplayTruth | None) -> TruthAt | None:
    """What was really there at the tick of a result, for those who draw and count."""
    if truth is None:
        return None
    return lambda result: truth.at(result.tick.time_us, result.tick.frame.global_T_reference)


def _recorded(setup: ReplaySetup, script: FaultScript, lifetime_s: float) -> _Recorded:
    """Of a log that a viewer opens by itself."""
    return {"inputs": True, "lifetime_s": lifetime_s, "names": setup.frame_names(), "metadata": setup.origin(script)}
