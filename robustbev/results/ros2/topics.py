"""What a ROS 2 node listens to for a mapping, and what the serialised messages that come there say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from sensors.logs.decode import ChannelInfo
from sensors.logs.decoder import Decoder
from sensors.logs.log import LogError
from sensors.logs.mapping.mapping import CameraTopics, LogMapping
from sensors.logs.messages import LogMessage
from sensors.logs.ros2.types import typestore
from sensors.replay.channels import Channels

ImageType = Literal["auto", "compressed", "raw"]
TF, TF_STATIC = "/tf", "/tf_static"
MOST_TRANSFORMS = 1000  # messages of transforms that may wait: they are small, and a static one comes only once


class Kind(Enum):
    """What a topic carries; it decides the quality of service that is asked for."""

    SENSOR = "sensor"  # pictures and points: best effort, the newest count
    CALIBRATION = "calibration"  # CameraInfo, sent with every picture: as its pictures
    TRANSFORMS = "transforms"  # reliable
    STATIC_TRANSFORMS = "static transforms"  # reliable, and also those sent before the node was there


@dataclass(frozen=True)
class ListenedTopic:
    """A topic to subscribe to."""

    name: str
    type: str  # "sensor_msgs/msg/PointCloud2"
    kind: Kind


def listened_topics(
    mapping: LogMapping, channels: Channels, image_type: ImageType = "auto"
) -> tuple[ListenedTopic, ...]:
    """The topics of the model's channels, then the transforms.

    `image_type` says what pictures are: CompressedImage, Image, or by each topic's name: what ends in "compressed" is so.

    Raises:
        LogError: a topic is to be two things at once.
    """
    listened: list[tuple[str, ListenedTopic]] = []
    of_channel = mapping.by_channel
    for channel in channels.modalities():
        where = of_channel.get(channel)
        if where is None:
            continue
        if isinstance(where, CameraTopics):
            packed = image_type == "compressed" or (image_type == "auto" and where.image.endswith("compressed"))
            picture = "sensor_msgs/msg/CompressedImage" if packed else "sensor_msgs/msg/Image"
            listened.append((channel, ListenedTopic(where.image, picture, Kind.SENSOR)))
            listened.append((channel, ListenedTopic(where.info, "sensor_msgs/msg/CameraInfo", Kind.CALIBRATION)))
        else:
            listened.append((channel, ListenedTopic(where.points, "sensor_msgs/msg/PointCloud2", Kind.SENSOR)))
    listened.append(("transforms", ListenedTopic(TF, "tf2_msgs/msg/TFMessage", Kind.TRANSFORMS)))
    listened.append(("transforms", ListenedTopic(TF_STATIC, "tf2_msgs/msg/TFMessage", Kind.STATIC_TRANSFORMS)))
    by_name: dict[str, tuple[str, ListenedTopic]] = {}
    for channel, topic in listened:
        other, before = by_name.setdefault(topic.name, (channel, topic))
        if before != topic:
            raise LogError(
                f"mapping: {topic.name} is to carry {before.type} for {other} and {topic.type} for {channel}; "
                "a topic has one type. Correct the mapping"
            )
    return tuple(topic for _, topic in by_name.values())


def most_waiting(topics: Sequence[ListenedTopic], queue_messages: int) -> dict[str, int]:
    """Topic -> messages of it that may wait for the worker."""
    sensors = (Kind.SENSOR, Kind.CALIBRATION)
    return {topic.name: queue_messages if topic.kind in sensors else MOST_TRANSFORMS for topic in topics}


class Ros2Decoder:
    """Decodes messages as a bag or a raw subscription has them (CDR).

    Raises:
        MissingExtraError: rosbags is not installed.
    """

    def __init__(self, topics: Sequence[ListenedTopic]) -> None:
        typestore()  # a missing library is to be told now, not at the first message
        self._number: Mapping[str, int] = {topic.name: number for number, topic in enumerate(topics)}
        self._decoder = Decoder({n: ChannelInfo(topic.name, topic.type, "cdr") for n, topic in enumerate(topics)})

    def __call__(self, topic: str, data: bytes, now_ns: int) -> LogMessage:
        """What came on a topic at a time (ns); `Malformed` where it makes no sense."""
        return LogMessage(topic, now_ns, now_ns, self._decoder.decode(self._number[topic], data, now_ns))
