"""The node's parameters: what there is, by default, and whether what was given makes sense. No ROS in here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from robustbev.results.ros2.topics import ImageType
from sensors.replay.live import LiveConfig

Score = Annotated[float, Field(ge=0, le=1)]

# Parameters that every node of rclpy may have; they are ROS' own business.
_OF_ROS = ("use_sim_time", "start_type_description_service", "qos_overrides")
_OF_CHANNELS = "tolerance_of_channel_s"


class NodeSettings(LiveConfig):
    """Parameters of the node: those of `sensors.replay.live.LiveConfig`, and these."""

    checkpoint: Annotated[str, Field(min_length=1)]  # directory with model.safetensors and config.json
    mapping: Annotated[str, Field(min_length=1)]  # YAML file: which topic is which sensor
    device: str = "cpu"
    image_type: ImageType = "auto"
    lidar_min_range_m: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0  # nearer points are the vehicle itself
    min_score: Score = 0.1  # of the boxes in the detections
    marker_score: Score = 0.3  # of the boxes that are drawn


def parameters() -> dict[str, Any]:
    """ROS parameter -> its default; "" for those that must be given. Nested settings have dotted names."""
    return _flat(NodeSettings)


def settings_from(given: Mapping[str, Any]) -> NodeSettings:
    """The settings that all parameters of a node make.

    Raises:
        ValueError: one line for each parameter that is unknown, missing, or of no possible value.
    """
    known = parameters()
    nested: dict[str, Any] = {}
    faults = []
    for name, value in given.items():
        if name.partition(".")[0] in _OF_ROS:
            continue
        if name not in known and not name.startswith(f"{_OF_CHANNELS}."):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(known)}"
            faults.append(f"parameter {name}: unknown. {hint}")
            continue
        if known.get(name) == "" and value == "":
            continue
        group, _, key = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[key] = value
    try:
        settings = NodeSettings.model_validate(nested)
    except ValidationError as error:
        faults += [_fault(one) for one in error.errors()]
    else:
        if not faults:
            return settings
    raise ValueError("\n".join(faults))


def _flat(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name == _OF_CHANNELS:  # any channel may be under it, and none is by default
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            out |= _flat(field.annotation, f"{prefix}{name}.")
        else:
            out[prefix + name] = "" if field.is_required() else field.default
    return out


def _fault(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"parameter {name}: expected a path, got none. Set it in the parameter file or at launch"
    text = error["msg"].removeprefix("Value error, ")
    return text if not name else f"parameter {name}: {text[:1].lower()}{text[1:]}, got {error['input']!r:.80}"
