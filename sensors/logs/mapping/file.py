"""Mappings as YAML files, and whether a mapping fits a log."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sensors.documents import DocumentError, read_yaml, short
from sensors.logs.decode import BOX_TYPES, CAMERA_INFO_TYPES, IMAGE_TYPES, POINT_TYPES, VIDEO_TYPES, unread
from sensors.logs.log import Log, LogError
from sensors.logs.mapping.mapping import CameraTopics, LidarTopics, LogMapping, PointTopics, RadarTopics
from sensors.settings import StrictModel

# What a topic of a mapping may carry: by the log's type, or in a nuScenes log by the payload's name.
IMAGES = IMAGE_TYPES | VIDEO_TYPES | {"EncodedImage", "RawImage"}
INFOS = CAMERA_INFO_TYPES | {"CameraInfo"}
POINTS = POINT_TYPES | {"PointCloud"}
BOXES = BOX_TYPES | {"SceneBoxes"}


def load_mapping(path: Path) -> LogMapping:
    """The mapping in a YAML file.

    Raises:
        LogError: missing, no YAML, or not a mapping; one line for each fault, with the key that it is in.
    """
    try:
        content = read_yaml(path)
    except OSError as error:
        raise LogError(f"{path}: expected a mapping of topics, got none: {error.strerror}") from error
    except DocumentError as error:
        raise LogError(f"{path}: expected YAML with a mapping of topics: {error}") from error
    if not isinstance(content, dict):
        raise LogError(f"{path}: expected keys such as cameras, lidars and radars, got {short(content)}")
    try:
        return LogMapping.model_validate(content)
    except ValidationError as error:
        raise LogError("\n".join(f"{path}: {_fault(one)}" for one in error.errors())) from error


def dump_mapping(mapping: LogMapping) -> str:
    """The mapping as YAML; what is as by default is left out, but for the frames."""
    import yaml

    content = mapping.model_dump(exclude_defaults=True)
    content |= {"ego_frame": mapping.ego_frame, "global_frame": mapping.global_frame}
    in_order = {name: content[name] for name in LogMapping.model_fields if name in content}
    return yaml.safe_dump(in_order, sort_keys=False)


def check_mapping(mapping: LogMapping, log: Log) -> None:
    """LogError where the mapping names a topic that the log has not, or one of another type, or none whose encoding is read.

    A topic without a message passes: its sensor is absent. So does a film, or an encoding that is not read, beside others: its
    sensor is malformed at every tick.
    """
    topics, faults = {topic.name: topic for topic in log.topics()}, []
    for key, name, types in mapped_topics(mapping):
        if name not in topics:
            close = difflib.get_close_matches(name, topics, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise LogError(
                f"{key}: no topic {name!r} in {log.path}. {hint}There are: {', '.join(sorted(topics)) or 'none at all'}"
            )
        if topics[name].type not in types:
            fitting = sorted(topic.name for topic in topics.values() if topic.type in types)
            raise LogError(
                f"{key}: expected the topic {name} in {log.path} to be of type {' or '.join(sorted(types))}, "
                f"got {topics[name].type or 'an unknown one'}. Topics of such a type: {', '.join(fitting) or 'none'}"
            )
        if not key.endswith((".info", "truth")):
            why = unread(topics[name].type, topics[name].encoding)
            faults.append(f"{key}: the topic {name} in {log.path} cannot be read: {why}" if why else "")
    if all(faults):
        raise LogError(faults[0])


def mapped_topics(mapping: LogMapping) -> Iterator[tuple[str, str, frozenset[str]]]:
    """(key in the YAML, topic, types that it may have) of every topic that a mapping names."""
    for channel, camera in mapping.cameras.items():
        yield f"cameras.{channel}.image", camera.image, IMAGES
        yield f"cameras.{channel}.info", camera.info, INFOS
    for kind, of_kind in mapping.by_kind.items():
        for channel, where in of_kind.items():
            if isinstance(where, PointTopics):
                yield f"{kind}s.{channel}.points", where.points, POINTS
    if mapping.truth is not None:
        yield "truth", mapping.truth, BOXES


def _fault(error: Any) -> str:
    """One fault that pydantic found, in a line."""
    where = ".".join(str(part) for part in error["loc"])
    prefix = f"{where}: " if where else ""
    if error["type"] == "extra_forbidden":
        known = _keys_at(error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"{prefix}unknown key. {f'Did you mean {close[0]}? ' if close else ''}There are: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{prefix}expected a value, got none"
    return f"{prefix}{error['msg'].removeprefix('Value error, ')} (got {short(error['input'])})"


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    models: dict[str, type[StrictModel]] = {"cameras": CameraTopics, "lidars": LidarTopics, "radars": RadarTopics}
    model = models.get(str(place[0]), LogMapping) if place else LogMapping
    return list(model.model_fields)
