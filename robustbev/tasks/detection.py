"""Detection: upright boxes with class, velocity and attribute, after CenterPoint (Yin et al., CVPR 2021).

Letters: B samples, C channels, K classes, A attributes, T boxes, D detectors, X and Y cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bev.detection.boxes import Boxes
from bev.detection.head import DetectionHead, DetectionLogits, decode
from fusion.runtime import TensorSpec
from robustbev.tasks.task import REFERENCE, Question, Task, TaskConfig
from sensors.settings import Positive

NUSCENES_CLASSES = (
    "car", "truck", "bus", "trailer", "construction_vehicle",
    "pedestrian", "motorcycle", "bicycle", "traffic_cone", "barrier",
)  # fmt: skip
NUSCENES_ATTRIBUTES = (
    "cycle.with_rider", "cycle.without_rider", "pedestrian.moving", "pedestrian.sitting_lying_down",
    "pedestrian.standing", "vehicle.moving", "vehicle.parked", "vehicle.stopped",
)  # fmt: skip
# The attributes that a class can have, as published with the detection challenge of CVPR 2019; a cone or a barrier has none.
NUSCENES_CLASS_ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(NUSCENES_CLASSES[:5], NUSCENES_ATTRIBUTES[5:]),
        "pedestrian": NUSCENES_ATTRIBUTES[2:5],
        **dict.fromkeys(("motorcycle", "bicycle"), NUSCENES_ATTRIBUTES[:2]),
        **dict.fromkeys(("traffic_cone", "barrier"), ()),
    }
)


class DetectionConfig(TaskConfig):
    """Boxes: from heatmaps to what is found."""

    kind: Literal["detection"] = "detection"
    max_boxes: Positive = 200
    # A class without an entry: by its boxes' own size, see `bev.detection.suppression.near`. 0: no suppression.
    nms_radius_m: dict[str, Annotated[float, Field(ge=0)]] = Field(default={
        "car": 1.5, "truck": 2.0, "bus": 3.0, "trailer": 3.0, "construction_vehicle": 2.0, "pedestrian": 0.3,
        "motorcycle": 0.6, "bicycle": 0.6, "traffic_cone": 0.3, "barrier": 0.6,
    })  # fmt: skip
    # Of boxes of different classes whose footprints overlap by more, the best alone is shown, replayed and perceived; 1: all are.
    # Evaluations and exported graphs have them all. No two of 13,923 true boxes (323 keyframes of nuScenes mini) overlap so far.
    cross_class_iou: Annotated[float, Field(ge=0, le=1)] = 0.3
    # Class -> the attributes that it can have, where it is none of nuScenes' or has others; a class of neither can have any.
    class_attributes: dict[str, tuple[str, ...]] = Field(default={})

    def check(self, classes: tuple[str, ...], attributes: tuple[str, ...]) -> None:
        """See `TaskConfig.check`."""
        unknown = sorted(set(self.nms_radius_m) - set(classes))
        if unknown and classes == NUSCENES_CLASSES:
            raise ValueError(f"nms_radius_m names {unknown[0]!r}, which is not among the classes")
        for name, own in self.class_attributes.items():
            if name not in classes:
                raise ValueError(f"class_attributes names {name!r}, which is not among the classes")
            for attribute in own:
                if attribute not in attributes:
                    raise ValueError(f"class_attributes.{name} names {attribute!r}, which is not among the attributes")

    def can_have(self, class_name: str, attribute: str) -> bool:
        """Whether boxes of a class can have an attribute: by `class_attributes`, else as nuScenes has it.

        Of what nuScenes does not know, a class can have any attribute and an attribute any class.
        """
        if class_name in self.class_attributes:
            return attribute in self.class_attributes[class_name]
        if attribute not in NUSCENES_ATTRIBUTES or class_name not in NUSCENES_CLASS_ATTRIBUTES:
            return True
        return attribute in NUSCENES_CLASS_ATTRIBUTES[class_name]


class Detection(Task):
    """The boxes of every class, see `bev.detection`."""

    nms_radius_m: Tensor  # [K], NaN: by the boxes' own size
    allowed: Tensor  # [K, A] bool, which attributes a class can have

    def __init__(self, config: DetectionConfig, question: Question) -> None:
        super().__init__()
        self.config, self.grid = config, question.grid
        classes, attributes = question.classes, question.attributes
        self.head = DetectionHead(question.channels, len(classes), len(attributes), question.motion_channels)
        radius = [config.nms_radius_m.get(name, math.nan) for name in classes]
        self.register_buffer("nms_radius_m", torch.tensor(radius), persistent=False)
        allowed = [config.can_have(name, attribute) for name in classes for attribute in attributes]
        allowed_map = torch.tensor(allowed, dtype=torch.bool).view(len(classes), len(attributes))
        self.register_buffer("allowed", allowed_map, persistent=False)

    def forward(self, features: Tensor, motion: Tensor) -> DetectionLogits:
        logits: DetectionLogits = self.head(features, motion)
        return logits

    def decode(self, logits: DetectionLogits, coverage: Tensor) -> Boxes:
        boxes = decode(
            logits, self.grid, max_boxes=self.config.max_boxes, nms_radius_m=self.nms_radius_m, allowed=self.allowed
        )
        perceived = coverage.flatten(1).amax(1) > 0
        return replace(boxes, score=torch.where(perceived[:, None], boxes.score, 0.0))

    def interface(self) -> tuple[TensorSpec, ...]:
        box = ("B", self._count())
        return (
            TensorSpec("center_m", "float32", (*box, 3), "m", REFERENCE, "centres of the boxes, by falling score"),
            TensorSpec("size_m", "float32", (*box, 3), "m", "", "width, length, height; length lies along the heading"),
            TensorSpec("yaw_rad", "float32", box, "rad", REFERENCE, "heading, from +x to +y"),
            TensorSpec("velocity_mps", "float32", (*box, 2), "m/s", REFERENCE, "over ground, along x and y"),
            TensorSpec("label", "int64", box, "", "", "index in classes"),
            TensorSpec("attribute", "int64", box, "", "", "index in attributes, -1 for none"),
            TensorSpec("score", "float32", box, "0 to 1", "", "0 is no box"),
        )

    def _count(self) -> int:
        """T: how many boxes there are, blank ones included."""
        return min(self.config.max_boxes, self.nms_radius_m.shape[0] * self.grid.num_cells)
