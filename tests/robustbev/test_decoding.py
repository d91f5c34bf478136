"""A model's boxes promise: attributes that their class can have, one box an object, one class a place for those who look."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from nuscenes.eval.detection.utils import detection_name_to_rel_attributes
from pydantic import ValidationError
from torch import nn

from bev.detection.boxes import Boxes
from robustbev import NUSCENES_ATTRIBUTES, NUSCENES_CLASSES, ModelConfig, PerceptionModel, RigConfig
from robustbev.results.ticks import tick_result
from tests.small_replay import CAMERA_CHANNELS, RADAR_CHANNELS, noise_frame, noise_tick
from tests.tiny_model import random_sensors, tiny_config, tiny_model

OWN: dict[str, Any] = {"classes": ("car", "animal", "post"), "attributes": (*NUSCENES_ATTRIBUTES, "asleep")}
RIG = RigConfig(camera_channels=CAMERA_CHANNELS, lidar_channels=("LIDAR_TOP",), radar_channels=RADAR_CHANNELS)


def undecided(**changes: Any) -> PerceptionModel:
    """A model whose every class peaks where the others do; its boxes are some 6 m large, on cells of 1.6 m."""
    model = tiny_model(rig=RIG.model_dump(), **changes)
    heatmap, boxes = model.detection.head.heatmap[-1], model.detection.head.boxes[-1]
    assert isinstance(heatmap, nn.Conv2d)
    assert isinstance(boxes, nn.Conv2d)
    assert boxes.bias is not None
    with torch.no_grad():
        heatmap.weight[:] = heatmap.weight[:1].clone()
        boxes.bias[3:6] = math.log(6.0)
    return model.requires_grad_(False)


def test_nuscenes_classes_have_the_attributes_of_its_evaluation() -> None:
    config = ModelConfig()
    for name in NUSCENES_CLASSES:
        assert [a for a in NUSCENES_ATTRIBUTES if config.detection.can_have(name, a)] == sorted(
            detection_name_to_rel_attributes(name)
        )


def test_classes_of_ones_own_have_those_that_the_configuration_names_else_any() -> None:
    config = tiny_config(
        **OWN, tasks={"detection": {"class_attributes": {"post": [], "animal": ["asleep", "pedestrian.moving"]}}}
    )
    found = {name: {a for a in config.attributes if config.detection.can_have(name, a)} for name in config.classes}
    vehicle = {"vehicle.moving", "vehicle.parked", "vehicle.stopped"}
    assert found == {"car": vehicle | {"asleep"}, "animal": {"asleep", "pedestrian.moving"}, "post": set()}
    unnamed = tiny_config(**OWN)
    assert all(unnamed.detection.can_have("animal", attribute) for attribute in unnamed.attributes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_attributes": {"cat": []}}, "class_attributes names 'cat', which is not among the classes"),
        (
            {"class_attributes": {"car": ["red"]}},
            r"class_attributes\.car names 'red', which is not among the attributes",
        ),
        ({"cross_class_iou": 1.5}, "cross_class_iou"),
    ],
)
def test_what_a_configuration_cannot_say_of_boxes_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny_config(tasks={"detection": changes})


def test_no_box_has_an_attribute_that_its_class_cannot_have() -> None:
    model = undecided(tasks={"detection": {"max_boxes": 100}})
    boxes = model(random_sensors()).boxes
    assert len(boxes.label[boxes.score > 0].unique()) == 10
    for label, attribute in zip(boxes.label.flatten().tolist(), boxes.attribute.flatten().tolist(), strict=True):
        can = detection_name_to_rel_attributes(NUSCENES_CLASSES[label])
        assert NUSCENES_ATTRIBUTES[attribute] in can if attribute >= 0 else not can
    for detection in model.perceive(noise_frame(3), min_score=0):
        can = detection_name_to_rel_attributes(detection.name)
        assert detection.attribute in can if can else detection.attribute is None


def test_those_who_look_get_one_class_a_place_and_evaluations_all() -> None:
    plain, model = (undecided(tasks={"detection": {"max_boxes": 60, "cross_class_iou": iou}}) for iou in (1, 0.3))
    batch = random_sensors()
    for part in fields(Boxes):  # what a submission and an export are made of
        assert torch.equal(getattr(model(batch).boxes, part.name), getattr(plain(batch).boxes, part.name))
    seen = model(batch)
    found, shown = seen.found(0), seen.shown(0)
    assert 0 < len(shown) < len(found)
    assert len(plain(batch).shown(0)) == len(found)
    every, one = (m.perceive(noise_frame(3), min_score=0) for m in (plain, model))
    assert 0 < len(one) < len(every)
    result = tick_result(noise_tick(3), seen, model.config)
    assert (len(result.boxes), len(result.candidates)) == (len(shown), len(found))


def test_a_class_of_ones_own_is_suppressed_too() -> None:
    radii: list[dict[str, float]] = [{"animal": 0.0}, {}, {"animal": 30.0}]
    models = [
        undecided(classes=("animal",), tasks={"detection": {"max_boxes": 60, "nms_radius_m": radius}})
        for radius in radii
    ]
    never, by_size, wide = (len(model(random_sensors()).found(0)) for model in models)
    assert never > by_size > wide
