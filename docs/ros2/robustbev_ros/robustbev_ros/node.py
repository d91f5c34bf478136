"""The ROS 2 node: parameters, subscriptions, a timer, publishers. What it does with them is in `robustbev_ros.perception`.

Messages are taken serialised, as they came, and decoded in the worker: the callbacks of the executor only put them into a queue.
"""

from __future__ import annotations

import sys
from functools import cache, partial
from importlib import import_module
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from robustbev.results.live_loop import LiveLoop
from robustbev.results.ros2.topics import Kind
from robustbev_ros.perception import OUTPUTS, open_perception, ros_fields
from robustbev_ros.settings import parameters, settings_from

_TIMER_PER_TICK = 10  # how finely a tick's time-out is noticed
_DEPTH = {Kind.SENSOR: 5, Kind.CALIBRATION: 5, Kind.TRANSFORMS: 100, Kind.STATIC_TRANSFORMS: 100}


class PerceptionNode(Node):
    """Listens to the mapping's topics and publishes detections, diagnostics, markers and what changed, once a tick.

    Raises:
        ValueError: a parameter, the mapping or the checkpoint makes no sense; the message says which and why.
    """

    _live: LiveLoop | None = None  # ROS destroys a node whose parameters are faulty before there is one

    def __init__(self) -> None:
        super().__init__("robustbev", automatically_declare_parameters_from_overrides=True)
        for name, default in parameters().items():
            if not self.has_parameter(name):
                self.declare_parameter(name, default)
        given = {name: parameter.value for name, parameter in self.get_parameters_by_prefix("").items()}
        perception = open_perception(settings_from(given))
        self._senders = {name: self.create_publisher(message_class(kind), name, 10) for name, kind in OUTPUTS.items()}
        self._live = perception.loop(make_message, self._send, self.get_name())
        for topic in perception.topics:
            self.create_subscription(
                message_class(topic.type), topic.name, partial(self._receive, topic.name), qos(topic.kind), raw=True
            )
        self.create_timer(1 / (perception.settings.tick_hz * _TIMER_PER_TICK), self._time_goes_on)
        self._live.start()
        channels = ", ".join(perception.channels.modalities())
        self.get_logger().info(f"listening to {channels} on {len(perception.topics)} topics")

    def destroy_node(self) -> None:
        """Let the worker end, then everything else."""
        if self._live is not None and not self._live.stop():
            self.get_logger().error("the model did not come back in time; its last tick is lost")
        super().destroy_node()

    def _receive(self, topic: str, data: bytes) -> None:
        self._live.receive(topic, data, self._now_ns())

    def _time_goes_on(self) -> None:
        if self._live.failure is not None:
            raise RuntimeError(f"the worker ended: {self._live.failure}") from self._live.failure
        self._live.time_goes_on(self._now_ns())

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _send(self, output: str, message: Any) -> None:
        self._senders[output].publish(message)


def qos(kind: Kind) -> QoSProfile:
    """Sensor data best effort, so that it fits any publisher and nothing old is sent again; transforms as tf2 asks for them."""
    sensors = kind in (Kind.SENSOR, Kind.CALIBRATION)
    latched = kind is Kind.STATIC_TRANSFORMS
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=_DEPTH[kind],
        reliability=ReliabilityPolicy.BEST_EFFORT if sensors else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


@cache
def message_class(type_name: str) -> Any:
    """The class of "sensor_msgs/msg/PointCloud2"."""
    package, _, name = type_name.partition("/msg/")
    return getattr(import_module(f"{package}.msg"), name)


def make_message(type_name: str, /, **fields: Any) -> Any:
    """A message of a type; fields that are not named have ROS' defaults."""
    return message_class(type_name)(**ros_fields(type_name, fields))


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to end. -> 0; 1 where its worker failed; 2 for faulty parameters."""
    rclpy.init(args=args)
    try:
        node = PerceptionNode()
    except (ValueError, ImportError) as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    code = 0
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return code
