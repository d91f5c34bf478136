"""The node without ROS: settings to a model that listens, reports to messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from robustbev import ModelConfig, PerceptionModel, RigConfig, decode_size, load, perceive_frame, preparation
from robustbev.results.content import ChangeLog
from robustbev.results.live_loop import LiveLoop, LiveReport
from robustbev.results.result import TickResult
from robustbev.results.ros2.messages import Make, detection_array, diagnostic_array, log_messages, marker_array
from robustbev.results.ros2.topics import ListenedTopic, Ros2Decoder, listened_topics, most_waiting
from robustbev.results.ticks import tick_result
from robustbev_ros.settings import NodeSettings
from sensors.logs.log import LogError
from sensors.logs.mapping.file import load_mapping
from sensors.logs.mapping.mapping import LogMapping
from sensors.modality import Preparation
from sensors.replay.channels import Channels
from sensors.replay.live import LivePlayback
from sensors.replay.tick import Tick

Send: TypeAlias = Callable[[str, Any], None]  # output, message

# Output -> its type. The names are relative to the node, but for the diagnostics, which all nodes share.
OUTPUTS = {
    "~/detections": "vision_msgs/msg/Detection3DArray",
    "~/markers": "visualization_msgs/msg/MarkerArray",
    "~/log": "rcl_interfaces/msg/Log",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
}
_MARKER_TICKS = 3  # markers vanish when so many ticks have passed without new ones


def channels_of(mapping: LogMapping, model: ModelConfig) -> Channels:
    """The mapping's channels, in its order, of the modalities that the model has. Ticks start at LIDAR_TOP, else the first LiDAR.

    Raises:
        LogError: there is none.
    """
    cameras = tuple(mapping.cameras) if "camera" in model.kinds else ()
    lidars = tuple(mapping.lidars) if "lidar" in model.kinds else ()
    radars = tuple(mapping.radars) if "radar" in model.kinds else ()
    if not (cameras or lidars or radars):
        raise LogError(f"mapping: expected a sensor of the model's modalities {', '.join(model.modalities)}, got none")
    reference = Channels.reference if Channels.reference in lidars or not lidars else lidars[0]
    return Channels(cameras, lidars, radars, reference)


def rig_of(channels: Channels, lidar_min_range_m: float) -> RigConfig:
    """The model's rig, of these channels."""
    return RigConfig(
        camera_channels=channels.cameras,
        lidar_channels=channels.lidars,
        radar_channels=channels.radars,
        lidar_min_range_m=lidar_min_range_m,
    )


@dataclass(frozen=True)
class Looker:
    """Asks the model what it sees at a tick."""

    model: PerceptionModel
    preparation: Preparation

    def __call__(self, tick: Tick) -> TickResult:
        seen = perceive_frame(self.model, tick.frame, self.preparation)
        return tick_result(tick, seen, self.model.config)


@dataclass(frozen=True)
class Reporter:
    """Publishes what became of a tick.

    Args:
        make: a message of a type with some of its fields, as `robustbev.results.ros2.messages` wants it.
        send: publishes a message as one of `OUTPUTS`.
        name: of the node, before the names in the diagnostics.
    """

    settings: NodeSettings
    ego_frame: str
    make: Make
    send: Send
    name: str
    changes: ChangeLog = field(default_factory=ChangeLog)

    def __call__(self, report: LiveReport) -> None:
        """Diagnostics and markers at every tick; detections only where something was perceived; what changed, in words.

        An empty array of detections says that nothing is there. Without perception nobody may say that, so none is sent.
        """
        tick, settings = report.tick, self.settings
        if report.result is not None and report.perceived:
            boxes = detection_array(self.make, report.result, self.ego_frame, settings.min_score)
            self.send("~/detections", boxes)
        found = report.diagnoses()
        diagnostics = diagnostic_array(self.make, found, tick.time_us, self.ego_frame, f"{self.name}: ")
        self.send("/diagnostics", diagnostics)
        markers = marker_array(
            self.make, report.result, time_us=tick.time_us, frame_id=self.ego_frame,
            lifetime_s=_MARKER_TICKS / settings.tick_hz, min_score=settings.marker_score,
        )  # fmt: skip
        self.send("~/markers", markers)
        for message in log_messages(self.make, report.changes(self.changes), tick.time_us, self.name):
            self.send("~/log", message)


@dataclass(frozen=True)
class Perception:
    """The model on its device, and where its sensors are. Made by `open_perception`."""

    settings: NodeSettings
    mapping: LogMapping
    channels: Channels
    model: PerceptionModel
    topics: tuple[ListenedTopic, ...] = field(init=False)  # to subscribe to

    def __post_init__(self) -> None:
        topics = listened_topics(self.mapping, self.channels, self.settings.image_type)
        object.__setattr__(self, "topics", topics)

    def loop(self, make: Make, send: Send, name: str) -> LiveLoop:
        """What takes messages and publishes; see `Reporter`. It is not started yet."""
        settings, config = self.settings, self.model.config
        return LiveLoop(
            playback=LivePlayback(self.mapping, self.channels, settings, decode=decode_size(config)),
            decode=Ros2Decoder(self.topics),
            look=Looker(self.model, preparation(config, rig_of(self.channels, settings.lidar_min_range_m))),
            publish=Reporter(settings, self.mapping.ego_frame, make, send, name),
            most=most_waiting(self.topics, settings.queue_messages),
            max_age_s=settings.max_age_s,
        )


def open_perception(settings: NodeSettings) -> Perception:
    """Read the mapping and load the model.

    Raises:
        LogError: the mapping cannot be read, or has no sensor of the model's.
        CheckpointError: the checkpoint cannot be read.
        ValueError: there is no such device.
    """
    mapping = load_mapping(Path(settings.mapping))
    try:
        device = torch.device(settings.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"parameter device: expected one of this machine, got {settings.device!r} ({reason})"
        ) from error
    model = load(settings.checkpoint, device)
    return Perception(settings, mapping, channels_of(mapping, model.config), model)


def ros_fields(type_name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as rclpy's message classes want them: a `byte` is bytes of length 1."""
    if type_name == "diagnostic_msgs/msg/DiagnosticStatus" and "level" in fields:
        return {**fields, "level": bytes([fields["level"]])}
    return dict(fields)
