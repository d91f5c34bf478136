"""A layout of Foxglove, and of Lichtblick, for what `FoxgloveResults` writes of a rig: Layout, Import from file.

The scene in 3D at the left; the cameras with boxes, the diagnostics and the log, the curves of shares and states at the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sensors.palette import MODALITY_COLOURS, RGB, modality_rgb

Panel: TypeAlias = str | dict[str, Any]  # a panel's id, or two parts of a split
_IN_A_ROW = 3  # cameras
_CAMERA = {  # what the panels of Foxglove expect to find
    "perspective": True, "fovy": 45, "near": 0.5, "far": 5000,
    "target": [0, 0, 0], "targetOffset": [0, 0, 0], "targetOrientation": [0, 0, 0, 1],
}  # fmt: skip


def foxglove_layout(
    sensors: Mapping[str, str], modalities: Sequence[str], *, ego_frame: str = "base_link"
) -> dict[str, Any]:
    """What Foxglove imports, as JSON.

    Args:
        sensors: channel -> "camera", "lidar" or "radar"; cameras are shown three in a row in this order.
        modalities: of the model, in the order of its attention.
        ego_frame: what the log calls the vehicle's frame.
    """
    cameras = [name for name, kind in sensors.items() if kind == "camera"]
    clouds = {f"/given/{name.lower()}": kind for name, kind in sensors.items() if kind != "camera"}
    panels: dict[str, Any] = {
        "3D!scene": _scene(sensors, clouds, modalities, ego_frame),
        "DiagnosticSummary!sensors": {
            "minLevel": 0, "pinnedIds": [], "hardwareIdFilter": "", "topicToRender": "/diagnostics", "sortByLevel": True,
        },
        "RosOut!log": {"searchTerms": [], "minLogLevel": 1, "topicToRender": "/log"},
        "Plot!shares": _shares(modalities),
        "StateTransitions!states": _states(sensors),
    }  # fmt: skip
    pictures = {f"Image!{name.lower()}": _picture(name.lower(), clouds) for name in cameras}
    names = list(pictures)
    rows = [_split(names[k : k + _IN_A_ROW], "row") for k in range(0, len(names), _IN_A_ROW)]
    words = _split(["DiagnosticSummary!sensors", "RosOut!log"], "row")
    curves = _split(["Plot!shares", "StateTransitions!states"], "row")
    right = _split([*rows, words, curves], "column")
    return {
        "configById": panels | pictures,
        "globalVariables": {},
        "userNodes": {},
        "playbackConfig": {"speed": 1},
        "layout": _split(["3D!scene", right], "row"),
    }


def _split(parts: Sequence[Panel], direction: str) -> Panel:
    """The parts side by side ("row") or one above the other ("column"), all of one size."""
    if len(parts) == 1:
        return parts[0]
    rest, share = _split(parts[1:], direction), round(100 / len(parts))
    return {"first": parts[0], "second": rest, "direction": direction, "splitPercentage": share}


def _scene(
    sensors: Mapping[str, str], clouds: Mapping[str, str], modalities: Sequence[str], ego_frame: str
) -> dict[str, Any]:
    looks: dict[str, dict[str, Any]] = {
        "lidar": {"pointSize": 2, "colorMode": "colormap", "colorField": "z", "colorMap": "turbo"},
        "radar": {"pointSize": 6, "colorMode": "flat", "flatColor": _hex(MODALITY_COLOURS["radar"])},
    }
    topics: dict[str, dict[str, Any]] = {name: {"visible": True} for name in ("/detections", "/truth", "/perceived")}
    topics |= {topic: {"visible": True, **looks[kind]} for topic, kind in clouds.items()}
    topics |= {f"/attention/{name}": {"visible": False, **_map("share")} for name in modalities}
    topics["/bev/score"] = {"visible": True, **_map("score")}
    ground = {
        "visible": True, "frameLocked": True, "label": "Grid", "instanceId": "ground", "layerId": "foxglove.Grid",
        "size": 60, "divisions": 12, "lineWidth": 1, "color": "#248eff55", "position": [0, 0, 0], "rotation": [0, 0, 0],
    }  # fmt: skip
    return {
        "cameraState": {**_CAMERA, "distance": 60, "phi": 45, "thetaOffset": 90},
        "followMode": "follow-pose",
        "followTf": ego_frame,
        "scene": {
            "labelScaleFactor": 0.6,
            "backgroundColor": "#101418",
            "transforms": {"showLabel": False, "axisScale": 1, "lineWidth": 0},
        },
        "transforms": {f"frame:given/{name}": {"visible": False} for name in sensors},
        "topics": topics,
        "layers": {"ground": ground},
        "publish": {},
        "imageMode": {},
    }


def _map(field: str) -> dict[str, Any]:
    return {"colorMode": "colormap", "colorField": field, "colorMap": "turbo", "minValue": 0, "maxValue": 1}


def _picture(name: str, clouds: Mapping[str, str]) -> dict[str, Any]:
    topics = {topic: {"visible": True} for topic in ("/detections", "/truth")}
    return {
        "cameraState": {**_CAMERA, "distance": 20, "phi": 60, "thetaOffset": 45},
        "followMode": "follow-pose",
        "scene": {},
        "transforms": {},
        "topics": topics | {topic: {"visible": False} for topic in clouds},
        "layers": {},
        "publish": {},
        "imageMode": {
            "imageTopic": f"/given/{name}/image_rect_compressed",
            "calibrationTopic": f"/given/{name}/camera_info",
        },
    }


def _shares(modalities: Sequence[str]) -> dict[str, Any]:
    lines = {f"/replay/tick.shares.{name}": (name, modality_rgb(name, k)) for k, name in enumerate(modalities)}
    lines["/replay/tick.shares_null"] = ("nulls", (160, 160, 160))
    return {
        "paths": [
            {"value": path, "label": label, "color": _hex(rgb), "enabled": True, "timestampMethod": "receiveTime"}
            for path, (label, rgb) in lines.items()
        ],
        "minYValue": 0, "maxYValue": 1, "showXAxisLabels": True, "showYAxisLabels": True, "showLegend": True,
        "legendDisplay": "floating", "showPlotValuesInLegend": False, "isSynced": True, "xAxisVal": "timestamp",
        "sidebarDimension": 240,
    }  # fmt: skip


def _states(sensors: Mapping[str, str]) -> dict[str, Any]:
    """By number: of words, Foxglove gives several states one colour ("missing" that of "ok")."""
    paths = [
        {"value": f"/replay/tick.state_numbers.{name}", "label": name, "timestampMethod": "receiveTime"}
        for name in sensors
    ]
    return {"paths": paths, "isSynced": True}


def _hex(rgb: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
