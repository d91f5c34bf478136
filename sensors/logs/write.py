"""Any log written as an MCAP for Foxglove or as a ROS 2 bag in MCAP."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from sensors.logs.encode import EncodeError
from sensors.logs.log import Log, LogError, LogWarning
from sensors.logs.mapping.targets import FoxgloveTarget, Ros2McapTarget, Target, dynamic_topic
from sensors.logs.messages import FrameTransform, FrameTransforms, LogMessage, Malformed

LogFormat = Literal["foxglove", "ros2"]
_Edges: TypeAlias = "dict[tuple[str, str], FrameTransform]"  # by parent and child: a frame may have several parents
_Held: TypeAlias = "dict[str, _Edges]"  # by topic
Progress = Callable[[int, int], None]  # messages of the source so far, and how many there are

_REPEAT_NS = 250_000_000  # between repeats of transforms that hold for all times


def write_log(
    log: Log,
    path: Path,
    format: LogFormat,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Writes a log and says how many messages the file holds. It appears whole or not at all.

    "foxglove": an MCAP file with Foxglove's schemas, in which static transforms are repeated on /tf, four times a second.
    "ros2": an MCAP file that is a ROS 2 bag; ROS tells its kind by the ending .mcap.

    What the format cannot say, and messages that were malformed already, are left out with one LogWarning a topic.

    Raises:
        LogError: the target exists and `overwrite` is not set, or nothing could be written.
        MissingLogLibraryError: a library is not installed.
    """
    # Before the reading proper, which `log.damage` is to tell of.
    known = _static_transforms(log) if format == "foxglove" else []
    messages = _counted(log, progress)
    target: Target
    match format:
        case "foxglove":
            target = FoxgloveTarget(path, overwrite=overwrite)
            messages = repeat_static(messages, known)
        case "ros2":
            target = Ros2McapTarget(path, overwrite=overwrite)
        case _:
            raise LogError(f"no format {format!r} for logs. There are {', '.join(get_args(LogFormat))}")
    try:
        left_out = _copy(messages, target)
        if not target.messages:
            reason = "".join(f". {topic}: {why}" for topic, (_, why) in sorted(left_out.items())[:1])
            raise LogError(f"{log.path}: no message to write to {path}{reason}")
        target.close()
    except BaseException:
        target.abort()
        raise
    for topic, (count, reason) in sorted(left_out.items()):
        warnings.warn(
            LogWarning(f"{log.path}: {topic}: {count} messages left out of {path}. The first: {reason}"), stacklevel=2
        )
    return target.messages


def _counted(log: Log, progress: Progress | None) -> Iterator[LogMessage]:
    """The messages, each told to `progress` when the next is asked for."""
    total = sum(topic.count for topic in log.topics())
    for done, message in enumerate(log.messages(), start=1):
        yield message
        if progress is not None:
            progress(done, total)


def _copy(messages: Iterator[LogMessage], target: Target) -> dict[str, tuple[int, str]]:
    """Topic -> how many of its messages were left out, and why the first was."""
    left_out: dict[str, tuple[int, str]] = {}
    for message in messages:
        try:
            if isinstance(message.payload, Malformed):
                raise EncodeError(message.payload.reason)
            target.write(message)
        except EncodeError as error:
            count, reason = left_out.get(message.topic, (0, str(error)))
            left_out[message.topic] = (count + 1, reason)
    return left_out


def _static_transforms(log: Log) -> list[LogMessage]:
    """The messages of topics that ROS keeps static transforms in: Foxglove needs them before anything else."""
    names = [topic.name for topic in log.topics() if topic.name != dynamic_topic(topic.name)]
    return list(log.messages(topics=names)) if names else []


def repeat_static(messages: Iterator[LogMessage], known: Collection[LogMessage] = ()) -> Iterator[LogMessage]:
    """Static transforms taken out, and sent as ordinary ones at the beginning and four times a second from then on.

    They go to the topic without _static, with the stamp of the message that they come before. `known` are sent from the
    beginning, however late they come in `messages`.
    """
    held: _Held = {}
    for message in known:
        if isinstance(message.payload, FrameTransforms) and message.payload.static:
            edges = held.setdefault(dynamic_topic(message.topic), {})
            for transform in message.payload.transforms:
                edges.setdefault((transform.parent, transform.child), transform)
    last_ns: int | None = None
    for message in messages:
        static = isinstance(message.payload, FrameTransforms) and message.payload.static
        changed = static and _hold(held, message)
        if changed or last_ns is None or not 0 <= message.log_time_ns - last_ns < _REPEAT_NS:
            last_ns = message.log_time_ns
            for topic, edges in held.items():
                yield _again(message, topic, edges)
        if not static:
            yield message


def _hold(held: _Held, message: LogMessage) -> bool:
    """Takes static transforms in; True where they say something new."""
    assert isinstance(message.payload, FrameTransforms)
    edges = held.setdefault(dynamic_topic(message.topic), {})
    changed = False
    for transform in message.payload.transforms:
        old = edges.get(key := (transform.parent, transform.child))
        changed |= old is None or dataclasses.replace(old, stamp_ns=transform.stamp_ns) != transform
        edges[key] = transform
    return changed


def _again(message: LogMessage, topic: str, edges: _Edges) -> LogMessage:
    stamp_ns = _stamp_ns(message)
    transforms = tuple(dataclasses.replace(transform, stamp_ns=stamp_ns) for transform in edges.values())
    return LogMessage(topic, message.log_time_ns, message.publish_time_ns, FrameTransforms(transforms, static=False))


def _stamp_ns(message: LogMessage) -> int:
    """When it was measured; when it was recorded where the message does not say."""
    payload = message.payload
    if isinstance(payload, FrameTransforms):
        stamps = [transform.stamp_ns for transform in payload.transforms]
    else:
        stamps = [getattr(payload, "stamp_ns", 0)]
    return stamps[0] if stamps and stamps[0] > 0 else message.log_time_ns
