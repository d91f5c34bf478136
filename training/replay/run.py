"""`robustbev replay` put together: a log once for every script of faults, its writers, and the summary at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from robustbev.results.foxglove.layout import foxglove_layout
from robustbev.results.golden import GoldenComparison, GoldenWriter
from robustbev.results.result import ResultWriter, TickResult
from sensors.logs.log import Log, LogError
from sensors.logs.messages import LogMessage
from sensors.replay.faults.frames import FrameFaults
from sensors.replay.faults.kinds import FaultScript
from sensors.replay.faults.messages import Fault, alter_messages, check_faults, unused
from sensors.replay.faults.script import parse_faults, read_fault_scripts
from sensors.replay.tick import SensorState
from sensors.replay.ticks import MissingPoses
from sensors.text import tell
from training.console.progress import Bars
from training.data.dataset import preparation
from training.files.atomic import write_json
from training.files.table import print_tables
from training.replay.outputs import check_outputs, open_writers, with_script
from training.replay.play import HealthWatch, Latencies, Pace, Perceiver, drain, replay
from training.replay.request import ReplayRequest
from training.replay.setup import STILL, ReplaySetup, prepare_replay
from training.replay.summary import MessageCount, ReplaySummary, StateCount
from training.replay.truth import TruthScore

_AS_RECORDED = "as recorded"


@dataclass(frozen=True)
class ReplayEnd:
    """How it ended."""

    summaries: tuple[ReplaySummary, ...]  # one a script
    difference: str | None = None  # the first from the golden outputs

    @property
    def damaged(self) -> bool:
        return any(summary.damage for summary in self.summaries)


def run_replay(request: ReplayRequest, bars: Bars | None = None, say: Callable[[str], None] = tell) -> ReplayEnd:
    """Replay a log once for every script of faults, one after the other.

    Raises:
        LogError, DataRootError: the log or its mapping cannot be used.
        FaultError, GoldenError, CheckpointError, FileNotFoundError, ValueError: faults, golden outputs, checkpoint, monitor or
            outputs cannot.
    """
    scripts = _scripts(request)
    several = len(scripts) > 1
    if several and (request.golden or request.write_golden):
        raise ValueError("golden outputs are of one script: give --golden and --write-golden a single one")
    names = [script.name if several else None for script in scripts]
    check_outputs(
        [with_script(path, name) for name in names for path in request.outputs or ()], overwrite=request.overwrite
    )
    setup = prepare_replay(request, say)
    if request.layout is not None:
        modalities, ego_frame = setup.model.config.modalities, setup.mapping.ego_frame
        write_json(request.layout, foxglove_layout(setup.sensors, tuple(modalities), ego_frame=ego_frame))
    for script in scripts:
        check_faults(script.faults, setup.mapping, setup.topics)
    replayed = [_replay_script(setup, script, name, bars) for script, name in zip(scripts, names, strict=True)]
    summaries = tuple(summary for summary, _ in replayed)
    if request.summary is not None:
        write_json(request.summary, [summary.to_json() for summary in summaries])
    difference = next((golden.difference for _, golden in replayed if golden is not None), None)
    return ReplayEnd(summaries, difference)


def print_end(ended: ReplayEnd) -> None:
    """Tables and lines for a terminal."""
    for summary in ended.summaries:
        print_tables(*summary.tables())
        tell(summary.headline())
        for line in (*summary.notes, *summary.trouble()):
            tell(f"  {line}")
        for path in summary.outputs:
            tell(f"  {path}")


def _scripts(request: ReplayRequest) -> tuple[FaultScript, ...]:
    lines = request.faults or []
    always = parse_faults(lines)
    if request.script is None:
        return (FaultScript(_AS_RECORDED if not always else "; ".join(lines), always),)
    scripts = read_fault_scripts(request.script)
    return tuple(FaultScript(script.name, (*always, *script.faults)) for script in scripts)


@dataclass
class _Record:
    """What is kept of a replay while it runs, beside its outputs."""

    counted: StateCount = field(default_factory=StateCount)
    messages: MessageCount = field(default_factory=MessageCount)
    latencies: Latencies = field(default_factory=Latencies)
    poses: MissingPoses = field(default_factory=MissingPoses)
    touched: Counter[Fault] = field(default_factory=Counter)  # how often each fault changed something


def _replay_script(
    setup: ReplaySetup, script: FaultScript, suffix: str | None, bars: Bars | None
) -> tuple[ReplaySummary, GoldenComparison | None]:
    request, record = setup.request, _Record()
    golden = None if request.golden is None else GoldenComparison(request.golden, request.tolerance, request.score)
    score = None if setup.truth is None else TruthScore(setup.truth)
    opened = open_writers(setup, script, suffix)
    writers = [*opened.writers, record.counted, *([] if score is None else [score])]
    try:
        if not script.faults:
            writers.insert(0, _Placed(setup.log))  # its close comes before any file gets its name
        if request.write_golden is not None:
            writers.append(GoldenWriter(request.write_golden, replace=request.overwrite))
    except BaseException:
        for writer in writers:
            writer.abort()
        raise
    writers += [] if golden is None else [golden]
    writers += [] if bars is None else [_Progress(bars, script.name)]
    started = time.perf_counter()
    drain(_results(setup, script, record), writers, record.latencies)
    seconds = time.perf_counter() - started
    idle = [f"the fault {str(fault)!r} changed nothing" for fault in unused(script.faults, record.touched)]
    summary = ReplaySummary(
        script=script.name,
        log=request.log,
        counted=record.counted,
        messages=record.messages,
        damage=setup.log.damage,
        latencies=record.latencies,
        seconds=seconds,
        score=None if score is None else score.score(),
        topic_of=setup.topic_of,
        outputs=opened.paths,
        notes=tuple(idle),
        poses=_missing_poses(setup, record),
    )
    return summary, golden


def _results(setup: ReplaySetup, script: FaultScript, record: _Record) -> Iterator[TickResult]:
    request, mapping, topics, begin_ns = setup.request, setup.mapping, setup.topics, setup.begin_ns
    touched = record.touched

    def altered(messages: Iterator[LogMessage]) -> Iterator[LogMessage]:
        return record.messages(
            alter_messages(messages, script.faults, mapping, begin_ns, topics=topics, touched=touched)
        )

    faults = FrameFaults(script.faults, mapping, topics=topics, touched=touched)
    return replay(
        setup.ticks(altered, record.poses),
        Perceiver(setup.model, replace(preparation(setup.data, setup.model.config), depth_targets=False)),
        change=faults if faults else None,
        health=None if setup.monitor is None else HealthWatch(setup.monitor, request.health.value),
        latencies=record.latencies,
        pace=Pace(request.rate),
        begin_us=begin_ns // 1000,
    )


def _missing_poses(setup: ReplaySetup, record: _Record) -> MissingPoses:
    """A null of the user's own needs no telling, one that was proposed does."""
    if setup.mapping.global_frame is None and setup.request.mapping is None:
        return MissingPoses(record.counted.ticks, STILL)
    return record.poses


class _Placed(ResultWriter):
    """A `ResultWriter` that refuses, at the end, a log in which no sensor could be placed at any tick."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._given = False
        self._reasons: dict[str, str] = {}  # channel -> why it could not be placed

    def write(self, result: TickResult) -> None:
        for channel, status in result.tick.sensors.items():
            self._given |= status.given
            if status.state is SensorState.UNCALIBRATED:
                self._reasons.setdefault(channel, status.detail)

    def close(self) -> None:
        if self._reasons and not self._given:
            channel, reason = next(iter(self._reasons.items()))
            raise LogError(
                f"{self._log.path}: no sensor could be placed at any tick. {channel}: {reason}. Record the calibration "
                "(/tf_static, camera_info) with the drive, or name the right frames in --mapping"
            )


class _Progress(ResultWriter):
    """Shows how far the replay is, as one more `ResultWriter`."""

    def __init__(self, bars: Bars, name: str) -> None:
        self._bars, self._name = bars, name
        self._done = 0

    def write(self, result: TickResult) -> None:
        self._done += 1
        self._bars(self._name, self._done, None, f"{result.tick.time_us * 1e-6:.1f} s")

    def close(self) -> None:
        self._bars(self._name, self._done, self._done)
