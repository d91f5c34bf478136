"""The parts of a model as modules from tensors to tensors, for export: the whole model, its fuser, its look-up tables.

Letters: B samples, N cameras, H and W pixels, T tokens of a picture, E groups of the lift, L LiDARs, P LiDAR points, Q radar
points, R radars, S azimuth sectors, M modalities, C channels, K boxes, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

import robustbev
from bev.detection.boxes import Boxes
from bev.lift.groups import LiftGroups, groups_of, lift_groups
from fusion import BEVFeatures, Fuser
from robustbev.config import DETECTION
from robustbev.model import PerceptionModel
from robustbev.perception import Perception
from sensors.batch import CameraBatch, LidarBatch, RadarBatch, SensorBatch
from sensors.camera.encoder import CameraEncoder

BOX_FIELDS = tuple(field.name for field in fields(Boxes))


class Graph(nn.Module):
    """Tensors in, tensors out, both named and in the order of these names."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class ModelGraph(Graph):
    """From tensors of the sensors and look-up tables to boxes.

    Every encoder runs whoever is there. `present` [B, M] takes whole modalities away, as the inputs of a sensor take it away:
    coverage is 0 then, and whatever the other inputs hold, NaN too, is not read.
    """

    def __init__(self, model: PerceptionModel) -> None:
        super().__init__()
        self.model = model
        self.kinds = {name: modality.kind for name, modality in model.config.modalities.items()}
        self.inputs = (
            *(f"{prefix(m, kind)}{name}" for m, kind in self.kinds.items() for name in _INPUTS[kind]),
            "present",
        )
        answers = (
            f"{task_prefix(task)}{spec.name}" for task in model.config.tasks for spec in model.task(task).interface()
        )
        self.outputs = (*answers, "perceived", "attention", "coverage")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = dict(zip(self.inputs, tensors, strict=True))
        features: dict[str, BEVFeatures | None] = {}
        for i, (name, kind) in enumerate(self.kinds.items()):
            sensor_inputs = {what: inputs[f"{prefix(name, kind)}{what}"] for what in _INPUTS[kind]}
            encode = {"camera": _encode_cameras, "lidar": _encode_lidar, "radar": _encode_radar}[kind]
            features[name] = encode(self.model.encoder(name), sensor_inputs, inputs["present"][:, i])
        seen = self.model.perceive_features(features, inputs["present"].shape[0])
        outputs = perception_outputs(seen)
        return tuple(outputs[name] for name in self.outputs)


def perception_outputs(seen: Perception) -> dict[str, Tensor]:
    """What the model sees, named as the outputs of its graph."""
    answers = {
        f"{task_prefix(task)}{field.name}": getattr(output, field.name)
        for task, output in seen.outputs.items()
        for field in fields(output)
    }
    return answers | {"perceived": seen.perceived, "attention": seen.fused.attention, "coverage": seen.fused.coverage}


def _encode_cameras(encoder: Any, given: Mapping[str, Tensor], here: Tensor) -> BEVFeatures:
    present = given["camera_present"] & here[:, None]
    rays = torch.where(present[:, :, None, None], given["camera_rays"], 0.0)
    table = LiftGroups(given["lift_entry"], given["lift_cell"], given["camera_visible"])
    bev: BEVFeatures = encoder.look(given["images"], rays, present, table).bev
    return bev


def _encode_lidar(encoder: Any, given: Mapping[str, Tensor], here: Tensor) -> BEVFeatures:
    present = given["lidar_present"] & here[:, None]
    bev: BEVFeatures = encoder(LidarBatch(given["lidar_points"], given["lidar_count"], present, given["lidar_sectors"]))
    return bev


def _encode_radar(encoder: Any, given: Mapping[str, Tensor], here: Tensor) -> BEVFeatures:
    present = given["radar_present"] & here[:, None]
    bev: BEVFeatures = encoder(
        RadarBatch(given["radar_points"], given["radar_count"], present, given["reference_T_radar"])
    )
    return bev


class FuserGraph(Graph):
    """A fuser from each modality's grid and coverage to the fused grid; `present` [B, M] takes modalities away."""

    def __init__(self, fuser: Fuser) -> None:
        super().__init__()
        self.fuser = fuser
        names = (f"{name}_{what}" for name in fuser.modalities for what in ("features", "coverage"))
        self.inputs = (*names, "present")
        self.outputs = ("features", "attention", "coverage")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        present = tensors[-1]
        features = {}
        for i, name in enumerate(self.fuser.modalities):
            coverage = torch.where(present[:, i, None, None], tensors[2 * i + 1], 0.0)
            features[name] = BEVFeatures(tensors[2 * i], coverage)
        fused = self.fuser(features)
        return fused.features, fused.attention, fused.coverage


class RigGraph(Graph):
    """From calibration to what the model's graph looks up. It depends on the calibration alone: run it once per rig."""

    inputs = ("intrinsics", "reference_T_camera", "camera_present")
    outputs = ("camera_rays", "lift_entry", "lift_cell", "camera_visible")

    def __init__(self, camera: CameraEncoder) -> None:
        super().__init__()
        self._camera = (camera,)  # in a tuple, so that its weights, which nothing here reads, stay out of the file

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        intrinsics, reference_T_camera, camera_present = tensors
        matrix, camera = camera_present[:, :, None, None], self._camera[0]
        intrinsics = torch.where(matrix, intrinsics, torch.eye(3))
        reference_T_camera = torch.where(matrix, reference_T_camera, torch.eye(4))
        table = lift_groups(
            intrinsics,
            reference_T_camera,
            camera_present,
            image_size=camera.image_size,
            stride=camera.stride_px,
            bins=camera.bins,
            grid=camera.grid,
            z_range_m=camera.z_range_m,
            samples=camera.lift_samples,
        )
        return camera.rays(intrinsics, reference_T_camera), table.entry, table.cell, table.visible


_INPUTS = {
    "camera": ("images", "camera_present", "camera_rays", "lift_entry", "lift_cell", "camera_visible"),
    "lidar": ("lidar_points", "lidar_count", "lidar_present", "lidar_sectors"),
    "radar": ("radar_points", "radar_count", "radar_present", "reference_T_radar"),
}


def prefix(name: str, kind: str) -> str:
    """Before the names of a modality's inputs; empty of one that is called as its kind."""
    return "" if name == kind else f"{name}_"


def task_prefix(task: str) -> str:
    """Before the names of a task's outputs; empty of detection."""
    return "" if task == DETECTION else f"{task}_"


def model_inputs(model: PerceptionModel, batch: SensorBatch) -> dict[str, Tensor]:
    """A batch as the inputs of the model's graph, by name. Modalities that the batch has are present.

    Raises:
        ValueError: the batch lacks a modality of the model; give its tensors and say in `present` that it is not there.
    """
    graph_inputs: dict[str, Tensor] = {}
    for name, modality in model.config.modalities.items():
        match batch.part(name):
            case None:
                raise ValueError(
                    f"the batch has no {name}: expected tensors of every modality of the model; set present to False instead"
                )
            case CameraBatch() as cameras:
                tensors = _camera_inputs(model.encoder(name), cameras)
            case LidarBatch() as lidar:
                tensors = (lidar.points, lidar.count, lidar.present, lidar.sectors)
            case RadarBatch() as radar:
                tensors = (radar.points, radar.count, radar.present, radar.reference_T_radar)
            case other:
                raise ValueError(f"{name}: expected the batch of a modality, got {type(other).__name__}")
        inputs = (f"{prefix(name, modality.kind)}{what}" for what in _INPUTS[modality.kind])
        graph_inputs |= dict(zip(inputs, tensors, strict=True))
    graph_inputs["present"] = torch.ones(batch.batch_size, len(model.config.modalities), dtype=torch.bool)
    return graph_inputs


@torch.no_grad()
def _camera_inputs(camera: CameraEncoder, cameras: CameraBatch) -> tuple[Tensor, ...]:
    matrix = cameras.present[:, :, None, None]
    intrinsics = torch.where(matrix, cameras.intrinsics, torch.eye(3))
    reference_T_camera = torch.where(matrix, cameras.reference_T_camera, torch.eye(4))
    table = cameras.lift if cameras.lift is not None else camera.table(intrinsics, reference_T_camera, cameras.present)
    groups = groups_of(table)
    rays = camera.rays(intrinsics, reference_T_camera)
    return cameras.images, cameras.present, rays, groups.entry, groups.cell, groups.visible


def own_copy(model: PerceptionModel) -> PerceptionModel:
    """The model on the CPU, in evaluation mode, of what inference needs alone; its sparse stages, if any, in plain torch."""
    copy = robustbev.build(model.config.dense())
    copy.auxiliary, copy.image_heads = nn.ModuleDict(), nn.ModuleDict()
    state = model.state_dict()
    copy.load_state_dict({name: state[name] for name in copy.state_dict()})
    return copy.eval().requires_grad_(False)
