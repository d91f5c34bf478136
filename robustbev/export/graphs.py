"""The parts of a model as modules from tensors to tensors, for export: the whole model, its fuser, its look-up tables.

Letters: B samples, N cameras, H and W pixels, T tokens of a picture, E groups of the lift, L LiDARs, P LiDAR points, Q radar
points, R radars, S azimuth sectors, M modalities, C channels, K boxes, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import robustbev
from bev.lift.groups import LiftGroups, groups_of, lift_groups
from fusion import BEVFeatures, Fuser
from robustbev.model import PerceptionModel
from sensors.batch import LidarBatch, RadarBatch, SensorBatch
from sensors.camera.encoder import CameraEncoder

BOX_FIELDS = ("center_m", "size_m", "yaw_rad", "velocity_mps", "label", "attribute", "score")


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
        self.modalities = model.config.modalities
        self.inputs = (*(name for m in self.modalities for name in _INPUTS[m]), "present")
        self.outputs = (*BOX_FIELDS, "perceived", "attention", "coverage")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, tensors, strict=True))
        features: dict[str, BEVFeatures | None] = {}
        for i, name in enumerate(self.modalities):
            here = given["present"][:, i]
            match name:
                case "camera":
                    features[name] = self._camera(given, here)
                case "lidar":
                    features[name] = self._lidar(given, here)
                case _:
                    features[name] = self._radar(given, here)
        seen = self.model.perceive_features(features, given["present"].shape[0])
        boxes = tuple(getattr(seen.boxes, field) for field in BOX_FIELDS)
        return (*boxes, seen.perceived, seen.fused.attention, seen.fused.coverage)

    def _camera(self, given: Mapping[str, Tensor], here: Tensor) -> BEVFeatures:
        assert self.model.camera is not None
        present = given["camera_present"] & here[:, None]
        rays = torch.where(present[:, :, None, None], given["camera_rays"], 0.0)
        table = LiftGroups(given["lift_entry"], given["lift_cell"], given["camera_visible"])
        return self.model.camera.look(given["images"], rays, present, table).bev

    def _lidar(self, given: Mapping[str, Tensor], here: Tensor) -> BEVFeatures:
        assert self.model.lidar is not None
        present = given["lidar_present"] & here[:, None]
        return self.model.lidar(
            LidarBatch(given["lidar_points"], given["lidar_count"], present, given["lidar_sectors"])
        )

    def _radar(self, given: Mapping[str, Tensor], here: Tensor) -> BEVFeatures:
        assert self.model.radar is not None
        present = given["radar_present"] & here[:, None]
        return self.model.radar(
            RadarBatch(given["radar_points"], given["radar_count"], present, given["reference_T_radar"])
        )


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
            intrinsics, reference_T_camera, camera_present, image_size=camera.image_size, stride=camera.stride_px,
            bins=camera.bins, grid=camera.grid, z_range_m=camera.z_range_m, samples=camera.lift_samples,
        )  # fmt: skip
        return camera.rays(intrinsics, reference_T_camera), table.entry, table.cell, table.visible


_INPUTS = {
    "camera": ("images", "camera_present", "camera_rays", "lift_entry", "lift_cell", "camera_visible"),
    "lidar": ("lidar_points", "lidar_count", "lidar_present", "lidar_sectors"),
    "radar": ("radar_points", "radar_count", "radar_present", "reference_T_radar"),
}


def model_inputs(model: PerceptionModel, batch: SensorBatch) -> dict[str, Tensor]:
    """A batch as the inputs of the model's graph, by name. Modalities that the batch has are present.

    Raises:
        ValueError: the batch lacks a modality of the model; give its tensors and say in `present` that it is not there.
    """
    given: dict[str, Tensor] = {}
    for name in model.config.modalities:
        part = {"camera": batch.cameras, "lidar": batch.lidar, "radar": batch.radar}[name]
        if part is None:
            raise ValueError(
                f"the batch has no {name}: expected tensors of every modality of the model; set present to False instead"
            )
    if model.camera is not None and batch.cameras is not None:
        given |= _camera_inputs(model.camera, batch)
    if model.lidar is not None and batch.lidar is not None:
        lidar = batch.lidar
        given |= dict(zip(_INPUTS["lidar"], (lidar.points, lidar.count, lidar.present, lidar.sectors), strict=True))
    if model.radar is not None and batch.radar is not None:
        radar = batch.radar
        given |= dict(
            zip(_INPUTS["radar"], (radar.points, radar.count, radar.present, radar.reference_T_radar), strict=True)
        )
    given["present"] = torch.ones(batch.batch_size, len(model.config.modalities), dtype=torch.bool)
    return given


@torch.no_grad()
def _camera_inputs(camera: CameraEncoder, batch: SensorBatch) -> dict[str, Tensor]:
    cameras = batch.cameras
    assert cameras is not None
    matrix = cameras.present[:, :, None, None]
    intrinsics = torch.where(matrix, cameras.intrinsics, torch.eye(3))
    reference_T_camera = torch.where(matrix, cameras.reference_T_camera, torch.eye(4))
    table = cameras.lift if cameras.lift is not None else camera.table(intrinsics, reference_T_camera, cameras.present)
    groups = groups_of(table)
    rays = camera.rays(intrinsics, reference_T_camera)
    tensors = (cameras.images, cameras.present, rays, groups.entry, groups.cell, groups.visible)
    return dict(zip(_INPUTS["camera"], tensors, strict=True))


def own_copy(model: PerceptionModel) -> PerceptionModel:
    """The model on the CPU, in evaluation mode, of what inference needs alone; its sparse stages, if any, in plain torch."""
    config = model.config
    if config.lidar is not None and config.lidar.backend != "dense":
        config = config.model_copy(update={"lidar": config.lidar.model_copy(update={"backend": "dense"})})
    copy = robustbev.build(config)
    copy.auxiliary, copy.image_head, copy.alignment = nn.ModuleDict(), None, None
    state = model.state_dict()
    copy.load_state_dict({name: state[name] for name in copy.state_dict()})
    return copy.eval().requires_grad_(False)
