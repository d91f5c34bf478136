"""As much of ROS 2 as a node of rclpy needs, without ROS: message classes that refuse what ROS' own refuse, a clock set by hand.

Message classes are made from the definitions of rosbags' Jazzy. Their fields check what is assigned as rosidl's generated
classes do: `byte` is bytes of length 1, a float is a float and no int, a nested message is of its own class.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from rosbags.interfaces import Nodetype

from sensors.logs.ros2.types import typestore

_FLOATS = {"float32": np.float32, "float64": np.float64}
_ZERO = {"string": "", "bool": False, "byte": b"\x00", "float32": 0.0, "float64": 0.0}


class FakeMessage:
    """Base of the message classes; `type_name` and the fields are set by `message_class`."""

    type_name = ""
    layout: ClassVar[dict[str, Any]] = {}

    def __init__(self, **fields: Any) -> None:
        unknown = sorted(set(fields) - set(self.layout))
        assert not unknown, f"{self.type_name}: invalid arguments {', '.join(unknown)}"
        for name, kind in self.layout.items():
            setattr(self, name, fields.get(name, _default(kind)) if name in fields else _default(kind))

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self.layout, f"{self.type_name} has no field {name!r}"
        assert _fits(self.layout[name], value), f"The {name!r} field of {self.type_name} cannot be {value!r}"
        super().__setattr__(name, value)


@cache
def message_class(type_name: str) -> type[FakeMessage]:
    _, fields = typestore().fielddefs[type_name]
    return type(type_name.rpartition("/")[2], (FakeMessage,), {"type_name": type_name, "layout": dict(fields)})


def _default(kind: Any) -> Any:
    node, what = kind
    if node is Nodetype.BASE:
        return _ZERO.get(what[0], 0)
    if node is Nodetype.NAME:
        return message_class(what)()
    return np.zeros(what[1]) if node is Nodetype.ARRAY else []


def _fits(kind: Any, value: Any) -> bool:
    node, what = kind
    if node is Nodetype.BASE:
        return _base_fits(what[0], value)
    if node is Nodetype.NAME:
        return isinstance(value, message_class(what))
    if isinstance(value, np.ndarray):
        (inner, base), count = what
        return inner is Nodetype.BASE and value.dtype == np.dtype(base[0]) and (not count or value.size == count)
    return isinstance(value, list | tuple) and all(_fits(what[0], one) for one in value)


def _base_fits(name: str, value: Any) -> bool:
    match name:
        case "string":
            return isinstance(value, str)
        case "bool":
            return isinstance(value, bool)
        case "byte":
            return isinstance(value, bytes) and len(value) == 1
        case "float32" | "float64":
            return isinstance(value, float)
        case _:
            limits = np.iinfo(name)
            return isinstance(value, int) and not isinstance(value, bool) and limits.min <= value <= limits.max


class ExternalShutdown(Exception):  # noqa: N818 as rclpy's ExternalShutdownException
    pass


@dataclass
class FakeRos:
    """What the node did, and what it is to meet."""

    overrides: dict[str, Any] = field(default_factory=dict)  # parameters as a parameter file gives them
    now_ns: int = 0
    nodes: list[Any] = field(default_factory=list)
    spin: Callable[[Any], None] = lambda node: None
    shut_down: int = 0
    said: list[str] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make `import rclpy` and the message packages give this."""
        rclpy = ModuleType("rclpy")
        rclpy.init = lambda args=None: None  # type: ignore[attr-defined]
        rclpy.spin = lambda node: self.spin(node)  # type: ignore[attr-defined]
        rclpy.try_shutdown = self._shutdown  # type: ignore[attr-defined]
        parts: dict[str, dict[str, Any]] = {
            "rclpy.node": {"Node": self._node_class()},
            "rclpy.executors": {"ExternalShutdownException": ExternalShutdown},
            "rclpy.qos": {
                "QoSProfile": SimpleNamespace,
                "HistoryPolicy": SimpleNamespace(KEEP_LAST="keep last"),
                "ReliabilityPolicy": SimpleNamespace(BEST_EFFORT="best effort", RELIABLE="reliable"),
                "DurabilityPolicy": SimpleNamespace(VOLATILE="volatile", TRANSIENT_LOCAL="transient local"),
            },
        }
        for name in typestore().fielddefs:
            package, _, kind = name.partition("/msg/")
            parts.setdefault(package, {})
            parts.setdefault(f"{package}.msg", {})[kind] = message_class(name)
        monkeypatch.setitem(sys.modules, "rclpy", rclpy)
        for name, content in parts.items():
            module = ModuleType(name)
            module.__dict__.update(content)
            monkeypatch.setitem(sys.modules, name, module)

    def _shutdown(self) -> None:
        """As rclpy of Kilted: nodes that are left are destroyed, also half-made ones."""
        self.shut_down += 1
        for node in self.nodes:
            if not node.destroyed:
                node.destroy_node()

    def _node_class(self) -> type:
        ros = self

        class Node:
            """rclpy.node.Node, as far as the node uses it."""

            def __init__(self, name: str, *, automatically_declare_parameters_from_overrides: bool = False) -> None:
                assert automatically_declare_parameters_from_overrides
                self.name, self.destroyed = name, False
                self.declared = {"use_sim_time": False, **ros.overrides}
                self.subscriptions_made: dict[str, SimpleNamespace] = {}
                self.published: dict[str, list[Any]] = {}
                self.timers_made: list[tuple[float, Callable[[], None]]] = []
                ros.nodes.append(self)

            def has_parameter(self, name: str) -> bool:
                return name in self.declared

            def declare_parameter(self, name: str, value: Any) -> None:
                assert name not in self.declared
                self.declared[name] = value

            def get_parameters_by_prefix(self, prefix: str) -> dict[str, Any]:
                assert prefix == ""
                return {name: SimpleNamespace(value=value) for name, value in self.declared.items()}

            def create_publisher(self, kind: type[FakeMessage], topic: str, depth: int) -> Any:
                sent = self.published.setdefault(topic, [])

                def publish(message: Any) -> None:
                    assert isinstance(message, kind)
                    assert not self.destroyed, "a destroyed node publishes nothing"
                    sent.append(message)

                return SimpleNamespace(publish=publish)

            def create_subscription(self, kind: Any, topic: str, callback: Any, qos: Any, *, raw: bool) -> None:
                self.subscriptions_made[topic] = SimpleNamespace(kind=kind, callback=callback, qos=qos, raw=raw)

            def create_timer(self, period_s: float, callback: Callable[[], None]) -> None:
                self.timers_made.append((period_s, callback))

            def get_clock(self) -> Any:
                return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=ros.now_ns))

            def get_logger(self) -> Any:
                return SimpleNamespace(info=ros.said.append, error=ros.said.append)

            def get_name(self) -> str:
                return self.name

            def destroy_node(self) -> None:
                self.destroyed = True

        return Node
