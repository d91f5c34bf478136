"""The MCAP files that a log can be written to: for Foxglove, and as a ROS 2 bag."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sensors.logs.foxglove.encode import foxglove_bytes
from sensors.logs.mcap.out import AtomicMcapWriter
from sensors.logs.messages import FrameTransforms, LogMessage
from sensors.logs.ros2.encode import ros2_bytes
from sensors.logs.ros2.types import typestore

_BAG_VERSION: Final = 8  # of rosbag2's metadata: read by Humble and later
_STATIC = "_static"
# Numbers of rmw's enumerations: keep last, reliable, transient local (latched) or volatile, automatic liveliness.
_LATCHED_DEPTH, _DEPTH, _TRANSIENT_LOCAL, _VOLATILE = 1, 10, 1, 2
_FOREVER = {"sec": 9223372036, "nsec": 854775807}


class Target(ABC):
    """Takes messages in order. What it writes lies under its final name only after `close`; `abort` leaves nothing behind.

    Errors as `AtomicMcapWriter`.
    """

    profile = ""  # of the MCAP file

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self._out = AtomicMcapWriter(path, profile=self.profile, overwrite=overwrite)
        self._channels: dict[tuple[str, str], int] = {}  # by topic and type

    @property
    def messages(self) -> int:
        """Written so far."""
        return self._out.messages

    @abstractmethod
    def write(self, message: LogMessage) -> None:
        """EncodeError for a message that the format cannot say; the others are not touched by it."""

    def add_metadata(self, name: str, values: Mapping[str, str]) -> None:
        """A metadata record."""
        self._out.add_metadata(name, values)

    def close(self) -> None:
        self._out.close()

    def abort(self) -> None:
        self._out.abort()


class FoxgloveTarget(Target):
    """An MCAP file with Foxglove's protobuf schemas."""

    def write(self, message: LogMessage) -> None:
        schema, data = foxglove_bytes(message.payload)
        key = (message.topic, schema.name)
        if key not in self._channels:
            self._channels[key] = self._out.add_channel(
                message.topic,
                encoding="protobuf",
                schema_name=schema.name,
                schema_encoding=schema.encoding,
                schema=schema.data,
            )
        self._out.write(self._channels[key], message.log_time_ns, data, publish_time_ns=message.publish_time_ns)


class Ros2McapTarget(Target):
    """A ROS 2 bag as one MCAP file: profile ros2, ros2msg schemas, QoS and type hash with each channel."""

    profile = "ros2"

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        super().__init__(path, overwrite=overwrite)
        self._counts: dict[tuple[str, str], int] = {}
        self._span_ns: tuple[int, int] | None = None

    def write(self, message: LogMessage) -> None:
        kind, data = ros2_bytes(message.payload)
        key = (ros2_topic(message), kind)
        if key not in self._channels:
            text, _ = typestore().generate_msgdef(kind, ros_version=2)
            self._channels[key] = self._out.add_channel(
                key[0],
                encoding="cdr",
                schema_name=kind,
                schema_encoding="ros2msg",
                schema=text.encode(),
                metadata={"offered_qos_profiles": _qos(key[0]), "topic_type_hash": typestore().hash_rihs01(kind)},
            )
        self._out.write(self._channels[key], message.log_time_ns, data, publish_time_ns=message.publish_time_ns)
        self._counts[key] = self._counts.get(key, 0) + 1
        first, last = self._span_ns or (message.log_time_ns, message.log_time_ns)
        self._span_ns = min(first, message.log_time_ns), max(last, message.log_time_ns)

    def close(self) -> None:
        self.add_metadata("rosbag2", {"serialized_metadata": json.dumps(self._metadata())})  # JSON is YAML
        super().close()

    def _metadata(self) -> dict[str, Any]:
        """What rosbag2 keeps in metadata.yaml, and in the file for a bag without it."""
        first, last = self._span_ns or (0, 0)
        start, duration = {"nanoseconds_since_epoch": first}, {"nanoseconds": last - first}
        whole = {"starting_time": start, "duration": duration, "message_count": self.messages}
        topics = [
            {
                "topic_metadata": {
                    "name": topic,
                    "type": kind,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": _qos(topic),
                    "type_description_hash": typestore().hash_rihs01(kind),
                },
                "message_count": count,
            }
            for (topic, kind), count in self._counts.items()
        ]
        return {
            "version": _BAG_VERSION,
            "storage_identifier": "mcap",
            "relative_file_paths": [self._out.path.name],
            **whole,
            "topics_with_message_count": topics,
            "compression_format": "",
            "compression_mode": "",
            "files": [{"path": self._out.path.name, **whole}],
            "custom_data": {},
            "ros_distro": "rosbags",
        }


def ros2_topic(message: LogMessage) -> str:
    """The topic; transforms that are static go to one that ends in _static, and others to one that does not, as tf2 listens."""
    if isinstance(message.payload, FrameTransforms):
        return dynamic_topic(message.topic) + _STATIC * message.payload.static
    return message.topic


def dynamic_topic(topic: str) -> str:
    """Where transforms that change over time go: /tf for /tf_static."""
    return topic.removesuffix(_STATIC)


def _qos(topic: str) -> str:
    """The profile that a topic is offered with, as rosbag2 writes it."""
    latched = topic.endswith(_STATIC)
    profile = {
        "history": 1,
        "depth": _LATCHED_DEPTH if latched else _DEPTH,
        "reliability": 1,
        "durability": _TRANSIENT_LOCAL if latched else _VOLATILE,
        "deadline": _FOREVER,
        "lifespan": _FOREVER,
        "liveliness": 1,
        "liveliness_lease_duration": _FOREVER,
        "avoid_ros_namespace_conventions": False,
    }
    return json.dumps([profile])
