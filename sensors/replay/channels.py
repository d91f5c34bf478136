"""The sensors of a replay: which channels the model knows, and where in the log each one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sensors.frames import KINDS
from sensors.logs.log import Log, LogError
from sensors.logs.mapping.mapping import CameraTopics, LidarTopics, LogMapping
from sensors.replay.config import ReplayConfig

_SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class Channels:
    """The channels of the model, cameras in its order. `reference` is the LiDAR whose measurements the ticks start at."""

    cameras: tuple[str, ...]
    lidars: tuple[str, ...]
    radars: tuple[str, ...]
    reference: str = "LIDAR_TOP"

    def __post_init__(self) -> None:
        names = [*self.cameras, *self.lidars, *self.radars]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not names:
            raise ValueError(f"channel {twice[0]} is named twice" if twice else "name at least one channel")

    def modalities(self) -> dict[str, str]:
        """Channel -> modality, in the order of `KINDS`."""
        groups = zip(KINDS, (self.cameras, self.lidars, self.radars), strict=True)
        return {channel: modality for modality, channels in groups for channel in channels}


@dataclass(frozen=True)
class Source:
    """One channel of the model in this log."""

    channel: str
    modality: str
    topic: str  # of pictures or points
    info_topic: str | None  # of a camera's calibration
    frame: str | None  # None: as the messages say
    offset_ns: int
    tolerance_ns: int
    sweeps: int  # measurements a tick may take, newest first
    fields: Mapping[str, str] = field(default_factory=dict)
    intensity_scale: float = 1.0
    time_field: str | None = None  # of a LiDAR's points, see `LidarTopics`
    time_scale_s: float = 1.0
    rectified: bool | None = None  # a camera's pictures; None: as `CameraTopics` tells


def sources(channels: Channels, mapping: LogMapping, config: ReplayConfig) -> dict[str, Source]:
    """Channel -> where it is, for the channels that the model knows and the mapping has.

    Raises:
        LogError: a channel is of another modality in the mapping, or a tolerance is set for one that is not there.
    """
    topics = mapping.by_channel
    mapped = {channel: kind for kind, of_kind in mapping.by_kind.items() for channel in of_kind}
    unknown = sorted(set(config.tolerance_of_channel_s) - set(channels.modalities()))
    if unknown:
        known = ", ".join(channels.modalities())
        raise LogError(
            f"tolerance_of_channel_s: {unknown[0]} is none of the model's channels {known}. Correct the name"
        )
    out = {}
    for channel, modality in channels.modalities().items():
        if channel not in topics:
            continue
        if mapped[channel] != modality:
            raise LogError(f"mapping: {channel} is a {mapped[channel]}, the model knows it as a {modality}")
        where = topics[channel]
        tolerance_s = config.tolerance_of_channel_s.get(channel, getattr(config.tolerance_s, modality))
        out[channel] = Source(
            channel=channel,
            modality=modality,
            topic=where.data,
            info_topic=where.info if isinstance(where, CameraTopics) else None,
            frame=where.frame,
            offset_ns=round(where.offset_s * _SECOND_NS),
            tolerance_ns=round(tolerance_s * _SECOND_NS),
            sweeps=getattr(config, f"{modality}_sweeps", 1),  # one picture
            fields={} if isinstance(where, CameraTopics) else where.fields,
            intensity_scale=where.intensity_scale if isinstance(where, LidarTopics) else 1.0,
            time_field=where.time_field if isinstance(where, LidarTopics) else None,
            time_scale_s=where.time_scale_s if isinstance(where, LidarTopics) else 1.0,
            rectified=where.rectified if isinstance(where, CameraTopics) else None,
        )
    return out


def wanted_topics(log: Log, found: Mapping[str, Source]) -> frozenset[str]:
    """Topics of the sources, and all that carry transforms."""
    sensors = {name for source in found.values() for name in (source.topic, source.info_topic) if name is not None}
    kinds = {topic.name: topic.type.lower() for topic in log.topics()}
    return frozenset(sensors | {name for name, kind in kinds.items() if "transform" in kind or "tfmessage" in kind})
