"""What the scripts of one replay share: the log and its mapping, the model, the settings, the truth."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from robustbev import PerceptionModel, RigConfig, decode_size, load
from robustbev.checkpoints import find_checkpoint, step_of
from robustbev.results.given import FrameNames
from sensors.extras import installed_version
from sensors.health.monitor import HealthMonitor
from sensors.logs.log import Log, LogError, LogWarning
from sensors.logs.mapping.file import check_mapping, load_mapping
from sensors.logs.mapping.mapping import LogMapping
from sensors.logs.mapping.propose import propose_mapping
from sensors.logs.messages import SceneBoxes
from sensors.logs.nuscenes.log import mapping_of_nuscenes
from sensors.nuscenes.config import DETECTION_CLASS_OF_CATEGORY, NuScenesConfig
from sensors.replay.channels import Channels, sources
from sensors.replay.clock import tick_rate_hz, window
from sensors.replay.config import ReplayConfig
from sensors.replay.faults.kinds import FaultScript
from sensors.replay.playback import AlterMessages
from sensors.replay.tick import Tick
from sensors.replay.ticks import MissingPoses, ticks
from training.data.dataset import DataConfig
from training.files.config_file import load_config
from training.replay.log_source import LogSource, open_source
from training.replay.request import HealthChoice, ReplayRequest
from training.replay.truth import ReplayTruth, class_radius_m
from training.runs.config import load_run_config
from training.runs.files import run_of

STILL = "no transform in the log moves the ego"
_NAMED = 5  # topics that an error names


@dataclass(frozen=True)
class ReplaySetup:
    """What all scripts of a request share."""

    request: ReplayRequest
    checkpoint: Path
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

    @property
    def topics(self) -> set[str]:
        """All of the log."""
        return {topic.name for topic in self.log.topics()}

    @property
    def topic_of(self) -> dict[str, str]:
        """Channel -> the topic of its pictures or points."""
        return {channel: where.data for channel, where in self.mapping.by_channel.items()}

    @property
    def begin_ns(self) -> int:
        """LogError for a log without a message."""
        span = self.log.span_ns()
        if span is None:
            raise LogError(f"{self.log.path}: there is no message in it; expected a drive log with at least one sensor")
        return span[0]

    @property
    def sensors(self) -> dict[str, str]:
        """Channel -> kind of sensor, of those that the model listens to."""
        return self._channels().modalities()

    def origin(self, script: FaultScript) -> dict[str, str]:
        """What results under a script came of, for the record in their files. The speed of the replay is no part of it."""
        run, step = run_of(self.checkpoint), step_of(self.checkpoint)
        return {
            "robustbev": installed_version("robustbev"),
            "checkpoint": self.checkpoint.name if run is None else f"{run.root.name}/{self.checkpoint.name}",
            "step": "unknown" if step is None else str(step),
            "model_sha256": self._model_sha256,
            "log": self.request.log.name,
            "scene": self.request.scene or "",
            "faults": "\n".join(map(str, script.faults)),
            "health": self.request.health.value,
            "settings": self.config.model_dump_json(),
        }

    @cached_property
    def _model_sha256(self) -> str:
        path = self.checkpoint / "model.safetensors" if self.checkpoint.is_dir() else self.checkpoint
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def frame_names(self) -> FrameNames:
        """As in the log."""
        return FrameNames(self.mapping.global_frame or FrameNames.map, self.mapping.ego_frame)

    def rate_hz(self) -> float:
        """Ticks a second."""
        request, log = self.request, self.log
        part = window(log, request.start_s, request.duration_s)
        return tick_rate_hz(log, sources(self._channels(), self.mapping, self.config), self.config, part)

    def ticks(self, alter_messages: AlterMessages, poses: MissingPoses) -> Iterator[Tick]:
        """Of all passes through the log, its messages altered on their way."""
        request = self.request
        return ticks(
            self.log,
            self.mapping,
            self._channels(),
            self.config,
            start_s=request.start_s,
            duration_s=request.duration_s,
            loop=request.loop,
            alter_messages=alter_messages,
            decode=decode_size(self.model.config),
            poses=poses,
        )

    def _channels(self) -> Channels:
        nuscenes = self.data.nuscenes
        return Channels(
            cameras=nuscenes.camera_channels,
            lidars=nuscenes.lidar_channels,
            radars=nuscenes.radar_channels,
            reference=nuscenes.reference_channel,
        )


def prepare_replay(request: ReplayRequest, say: Callable[[str], None]) -> ReplaySetup:
    """Open and load all that the request names; `say` is told how the model computes and which mapping was proposed."""
    checkpoint = find_checkpoint(request.checkpoint)
    model = load(checkpoint)
    say(f"computing in {model.precision}")
    files = run_of(checkpoint)
    data = _data_of(model.config.rig) if files is None else load_run_config(files.config).data
    source = open_source(request.log, request.scene, data.nuscenes)
    mapping = mapping_of(request.mapping, source, say)
    monitor = None if request.health is HealthChoice.OFF else HealthMonitor.load(request.monitor)
    config = load_config(ReplayConfig, request.config, request.settings or [])
    sweeps = {"lidar_sweeps": data.nuscenes.lidar_sweeps, "radar_sweeps": data.nuscenes.radar_sweeps}
    config = config.model_copy(update={k: n for k, n in sweeps.items() if k not in config.model_fields_set})
    return ReplaySetup(
        request, checkpoint, source, mapping, model, data, config, monitor, _truth(source, mapping, model)
    )


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


def mapping_of(file: Path | None, source: LogSource, say: Callable[[str], None]) -> LogMapping:
    """The file's, that of a data set, or what the log's topics look like; LogError where it does not fit, or nothing does."""
    if file is not None:
        mapping = load_mapping(file)
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
        names = ", ".join(mapping.by_channel)
        say(f"mapping: as the topics look ({names}); `robustbev inspect` shows it, --mapping gives another")
        for line in proposal.unread:
            say(line)
        if mapping.global_frame is None:
            say(f"mapping: global_frame null, as {STILL}: none is compensated")
    check_mapping(mapping, source.log)
    return mapping


def boxes_of(log: Log, mapping: LogMapping) -> list[SceneBoxes]:
    """The annotated boxes of a log; none where it has none."""
    if mapping.truth is None:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogWarning)  # the replay itself will say it
        return [m.payload for m in log.messages(topics=[mapping.truth]) if isinstance(m.payload, SceneBoxes)]


def _truth(source: LogSource, mapping: LogMapping, model: PerceptionModel) -> ReplayTruth | None:
    """None where the log has no annotated boxes."""
    boxes = boxes_of(source.log, mapping)
    if not boxes:
        return None
    grid = model.grid
    class_map = DETECTION_CLASS_OF_CATEGORY if source.nuscenes is None else source.nuscenes.class_map
    return ReplayTruth(
        boxes, classes=model.config.classes, grid=grid, class_map=class_map, radius_m=class_radius_m(grid)
    )
