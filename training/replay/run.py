"""`robustbev replay` put together: log, checkpoint, faults, writers, and the summary at the end."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from robustbev import PerceptionModel, RigConfig, decode_size, load
from robustbev.checkpoints import find_checkpoint
from robustbev.results.given import FrameNames
from robustbev.results.golden import GoldenComparison, GoldenWriter
from robustbev.results.result import ResultWriter, TickResult
from sensors.health.monitor import HealthMonitor
from sensors.logs.log import Log, LogError, LogWarning
from sensors.logs.mapping.file import check_mapping, load_mapping
from sensors.logs.mapping.mapping import LogMapping
from sensors.logs.mapping.propose import propose_mapping
from sensors.logs.messages import LogMessage, SceneBoxes
from sensors.logs.nuscenes.log import mapping_of_nuscenes
from sensors.nuscenes.config import DETECTION_CLASS_OF_CATEGORY, NuScenesConfig
from sensors.replay.channels import Channels, sources
from sensors.replay.clock import tick_rate_hz, window
from sensors.replay.config import ReplayConfig
from sensors.replay.faults.frames import FrameFaults
from sensors.replay.faults.kinds import FaultScript
from sensors.replay.faults.messages import Fault, alter_messages, check_faults, unused
from sensors.replay.faults.script import parse_faults, read_fault_scripts
from sensors.replay.tick import SensorState, Tick
from sensors.replay.ticks import MissingPoses, ticks
from training.console.progress import Bars
from training.data.dataset import DataConfig, preparation
from training.files.atomic import write_json
from training.files.table import print_tables
from training.replay.compare import write_comparison
from training.replay.log_source import LogSource, open_source
from training.replay.outputs import check_outputs, open_writers, with_script
from training.replay.play import HealthWatch, Latencies, Pace, Perceiver, drain, replay
from training.replay.request import AS_RECORDED, ReplayRequest
from training.replay.series import ReplaySeries, SeriesRecorder
from training.replay.summary import MessageCount, ReplaySummary, StateCount
from training.replay.truth import ReplayTruth, TruthScore, class_radius_m
from training.runs.config import load_run_config
from training.runs.files import run_of

_NAMED = 5  # topics that an error names
_STILL = "no transform in the log moves the ego"


@dataclass(frozen=True)
class ReplayEnd:
    """How it ended."""

    summaries: tuple[ReplaySummary, ...]  # one a script
    difference: str | None = None  # the first from the golden outputs
    pictures: tuple[Path, ...] = ()

    @property
    def damaged(self) -> bool:
        return any(summary.damage for summary in self.summaries)


@dataclass(frozen=True)
class _Setting:
    """What all scripts of a request share."""

    request: ReplayRequest
    source: LogSource
    mapping: LogMapping
    model: PerceptionModel
    data: DataConfig
    config: ReplayConfig
    monitor: HealthMonitor | None
    truth: ReplayTruth | None

    @property
    def log(self) -> Log:
        return self.source.log

    def names(self) -> FrameNames:
        """Of the frames, as in the log."""
        return FrameNames(self.mapping.global_frame or FrameNames.map, self.mapping.ego_frame)

    def rate_hz(self) -> float:
        """Ticks a second."""
        request, log = self.request, self.log
        found = sources(_channels(self.data), self.mapping, self.config)
        return tick_rate_hz(log, found, self.config, window(log, request.start_s, request.duration_s, request.order))


def run_replay(request: ReplayRequest, bars: Bars | None = None, say: Callable[[str], None] = print) -> ReplayEnd:
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
    check_outputs([with_script(path, name) for name in names for path in request.outputs], overwrite=request.overwrite)
    setting = _prepare(request, say)
    for script in scripts:
        check_faults(script.faults, setting.mapping, {topic.name for topic in setting.log.topics()})
    done = [_replay_script(setting, script, name, bars) for script, name in zip(scripts, names, strict=True)]
    summaries = tuple(one.summary for one in done)
    if request.summary is not None:
        write_json(request.summary, [summary.to_json() for summary in summaries])
    pictures: list[Path] = []
    if request.compared is not None:
        title = f"{request.log.name} {request.scene or ''} under {len(scripts)} scripts of faults".replace("  ", " ")
        pictures = write_comparison(request.compared, [one.series for one in done], title=title)
    difference = next((one.golden.difference for one in done if one.golden is not None), None)
    return ReplayEnd(summaries, difference, tuple(pictures))


def print_end(ended: ReplayEnd) -> None:
    """Tables and lines for a terminal."""
    for summary in ended.summaries:
        print_tables(*summary.tables())
        print(summary.headline())
        for line in (*summary.notes, *summary.trouble()):
            print(f"  {line}")
        for path in summary.outputs:
            print(f"  {path}")
    for path in ended.pictures:
        print(path)


@dataclass(frozen=True)
class _Done:
    """One script, replayed."""

    summary: ReplaySummary
    golden: GoldenComparison | None
    series: ReplaySeries


def _scripts(request: ReplayRequest) -> tuple[FaultScript, ...]:
    always = parse_faults(request.faults)
    if request.script is None:
        return (FaultScript(AS_RECORDED if not always else "; ".join(request.faults), always),)
    scripts = read_fault_scripts(request.script)
    return tuple(FaultScript(script.name, (*always, *script.faults)) for script in scripts)


def _prepare(request: ReplayRequest, say: Callable[[str], None]) -> _Setting:

    checkpoint = find_checkpoint(request.checkpoint)
    model = load(checkpoint, request.device)
    say(f"computing in {model.precision}")
    files = run_of(checkpoint)
    data = _data_of(model.config.rig) if files is None else load_run_config(files.config).data
    source = open_source(request.log, request.scene, data.nuscenes)
    mapping = _mapping(request, source, say)
    monitor = None if request.health == "off" else HealthMonitor.load(request.monitor)
    sweeps = {"lidar_sweeps": data.nuscenes.lidar_sweeps, "radar_sweeps": data.nuscenes.radar_sweeps}
    given = request.config.model_fields_set
    config = request.config.model_copy(update={name: n for name, n in sweeps.items() if name not in given})
    return _Setting(request, source, mapping, model, data, config, monitor, _truth(source, mapping, model))


def _data_of(rig: RigConfig | None) -> DataConfig:
    """What a checkpoint that lies in no run says of its sensors."""
    if rig is None:
        return DataConfig()
    channels = {f"{modality}_channels": names for modality, names in rig.channels().items()}
    usual = Channels.reference
    reference = rig.lidar_channels[0] if rig.lidar_channels and usual not in rig.lidar_channels else usual
    sweeps = {"lidar_sweeps": rig.lidar_sweeps, "radar_sweeps": rig.radar_sweeps}
    nuscenes = NuScenesConfig.model_validate({**channels, **sweeps, "reference_channel": reference})
    return DataConfig(nuscenes=nuscenes, lidar_min_range_m=rig.lidar_min_range_m)


def _mapping(request: ReplayRequest, source: LogSource, say: Callable[[str], None]) -> LogMapping:

    if request.mapping is not None:
        mapping = load_mapping(request.mapping)
    elif source.nuscenes is not None:
        mapping = mapping_of_nuscenes(source.nuscenes)
    else:
        proposal = propose_mapping(source.log)
        if proposal.mapping is None:
            why = "".join(f"\n{line}" for line in proposal.unread[:_NAMED])
            raise LogError(
                f"{source.log.path}: nothing in it that can be read looks like a camera, a LiDAR or a radar; `robustbev inspect` "
                f"shows its topics, --mapping says which of them is which sensor{why}"
            )
        mapping = proposal.mapping
        names = [*mapping.cameras, *mapping.lidars, *mapping.radars]
        say(f"mapping: as the topics look ({', '.join(names)}); `robustbev inspect` shows it, --mapping gives another")
        for line in proposal.unread:
            say(line)
        if mapping.global_frame is None:
            say(f"mapping: global_frame null, as {_STILL}: none is compensated")
    check_mapping(mapping, source.log)
    return mapping


def _truth(source: LogSource, mapping: LogMapping, model: PerceptionModel) -> ReplayTruth | None:
    """None where the log has no annotated boxes."""
    if mapping.truth is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogWarning)  # the replay itself will say it
        boxes = [m.payload for m in source.log.messages(topics=[mapping.truth]) if isinstance(m.payload, SceneBoxes)]
    if not boxes:
        return None
    grid = model.grid
    class_map = DETECTION_CLASS_OF_CATEGORY if source.nuscenes is None else source.nuscenes.class_map
    return ReplayTruth(
        boxes, classes=model.config.classes, grid=grid, class_map=class_map, radius_m=class_radius_m(grid)
    )


def _channels(data: DataConfig) -> Channels:
    nuscenes = data.nuscenes
    return Channels(
        cameras=nuscenes.camera_channels,
        lidars=nuscenes.lidar_channels,
        radars=nuscenes.radar_channels,
        reference=nuscenes.reference_channel,
    )


def _replay_script(setting: _Setting, script: FaultScript, suffix: str | None, bars: Bars | None) -> _Done:
    request, model = setting.request, setting.model
    counted, messages, latencies, poses = StateCount(), MessageCount(), Latencies(), MissingPoses()
    touched: Counter[Fault] = Counter()
    golden = None if request.golden is None else GoldenComparison(request.golden, request.tolerance, request.score)
    score = None if setting.truth is None else TruthScore(setting.truth, found_score=request.score)
    rate_hz = setting.rate_hz()
    opened = open_writers(request, setting.source, model, setting.truth, suffix, rate_hz, setting.names())
    series = SeriesRecorder(script.name, score, min_score=request.score)
    writers: list[ResultWriter] = [*opened.writers, counted, series]
    try:
        if not script.faults:
            writers.insert(0, _Placed(setting.log))  # its close comes before any file gets its name
        if request.write_golden is not None:
            writers.append(GoldenWriter(request.write_golden, replace=request.overwrite))
        if golden is not None:
            writers.append(golden)
    except BaseException:
        for writer in writers:
            writer.abort()
        raise
    if bars is not None:
        writers.append(_Progress(bars, script.name, setting))
    faults = FrameFaults(script.faults, setting.mapping, topics=_topics(setting.log), touched=touched)
    started = time.perf_counter()
    results = replay(
        _ticks(setting, script.faults, messages, touched, poses),
        Perceiver(model, replace(preparation(setting.data, model.config), depth_targets=False)),
        change=faults if faults else None,
        health=None if setting.monitor is None else HealthWatch(setting.monitor, request.health),
        latencies=latencies,
        pace=Pace(request.rate),
        begin_us=_begin_ns(setting.log) // 1000,
    )
    drain(results, writers, latencies)
    # A null of the user's own needs no telling.
    if setting.mapping.global_frame is None and setting.request.mapping is None:
        poses = MissingPoses(counted.ticks, _STILL)
    idle = [f"the fault {str(fault)!r} changed nothing" for fault in unused(script.faults, touched)]
    summary = ReplaySummary(
        script=script.name,
        log=request.log,
        counted=counted,
        messages=messages,
        damage=setting.log.damage,
        latencies=latencies,
        seconds=time.perf_counter() - started,
        score=None if score is None else score.score(),
        topic_of=_topic_of(setting.mapping),
        outputs=opened.paths,
        notes=tuple(idle),
        poses=poses,
    )
    return _Done(summary, golden, series.series())


def _topics(log: Log) -> set[str]:
    return {topic.name for topic in log.topics()}


def _topic_of(mapping: LogMapping) -> dict[str, str]:
    """Channel -> the topic of its pictures or points."""
    of = {name: camera.image for name, camera in mapping.cameras.items()}
    of |= {name: lidar.points for name, lidar in mapping.lidars.items()}
    return of | {name: radar.points for name, radar in mapping.radars.items()}


def _begin_ns(log: Log) -> int:
    span = log.span_ns()
    if span is None:
        raise LogError(f"{log.path}: there is no message in it; expected a drive log with at least one sensor")
    return span[0]


def _ticks(
    setting: _Setting, faults: Sequence[Fault], count: MessageCount, touched: Counter[Fault], poses: MissingPoses
) -> Iterator[Tick]:
    request, log, mapping = setting.request, setting.log, setting.mapping
    begin_ns = _begin_ns(log)

    def altered(messages: Iterator[LogMessage]) -> Iterator[LogMessage]:
        return count(
            alter_messages(
                messages, faults, mapping, begin_ns, order=request.order, topics=_topics(log), touched=touched
            )
        )

    return ticks(
        log,
        mapping,
        _channels(setting.data),
        setting.config,
        start_s=request.start_s,
        duration_s=request.duration_s,
        order=request.order,
        loop=request.loop,
        alter_messages=altered,
        decode=decode_size(setting.model.config),
        poses=poses,
    )


class _Placed:
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

    def abort(self) -> None:
        """Nothing to take back."""


class _Progress:
    """Shows how far the replay is, as one more `ResultWriter`."""

    def __init__(self, bars: Bars, name: str, setting: _Setting) -> None:
        self._bars, self._name = bars, name
        self._done = 0

    def write(self, result: TickResult) -> None:
        self._done += 1
        self._bars(self._name, self._done, None, f"{result.tick.time_us * 1e-6:.1f} s")

    def close(self) -> None:
        self._bars(self._name, self._done, self._done)

    def abort(self) -> None:
        """Nothing to take back."""
