"""The model put together: configuration, `build`, `save` and `load`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from bev.backbone import BEVBackbone
from bev.boxes import Boxes
from bev.grid import BEVGrid
from bev.heads import DetectionHead, DetectionLogits, HeatmapHead, decode
from bev.lift import DepthBins
from fusion import BEVFeatures, ConcatFusion, CrossAttentionFusion, FusedBEV, MeanFusion
from sensors.batch import MODALITIES, SensorBatch
from sensors.camera_encoder import CameraEncoder
from sensors.lidar_encoder import LidarEncoder
from sensors.radar_encoder import RadarEncoder
from sensors.sparse_pillars import DenseStages, SparseStages
from sensors.vit import VisionTransformer

FORMAT_VERSION = 1
Positive = Annotated[int, Field(gt=0)]
NUSCENES_CLASSES = (
    "car", "truck", "bus", "trailer", "construction_vehicle",
    "pedestrian", "motorcycle", "bicycle", "traffic_cone", "barrier",
)  # fmt: skip
NUSCENES_ATTRIBUTES = (
    "cycle.with_rider", "cycle.without_rider", "pedestrian.moving", "pedestrian.sitting_lying_down",
    "pedestrian.standing", "vehicle.moving", "vehicle.parked", "vehicle.stopped",
)  # fmt: skip


class CheckpointError(ValueError):
    """Weights or their configuration are missing, damaged or of another architecture."""


class StrictModel(BaseModel):
    """Base of every configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GridConfig(StrictModel):
    """The grid of features and detections, metres in the reference frame."""

    x_min_m: float = -25.6
    x_max_m: float = 25.6
    y_min_m: float = -25.6
    y_max_m: float = 25.6
    cell_m: Annotated[float, Field(gt=0)] = 0.8
    z_min_m: float = -2.0  # points and lifted pixels outside this height are not used
    z_max_m: float = 4.0

    @model_validator(mode="after")
    def _check(self) -> GridConfig:
        self.bev()
        if not self.z_min_m < self.z_max_m:
            raise ValueError(f"z_min_m must be < z_max_m, got {self.z_min_m} and {self.z_max_m}")
        return self

    def bev(self) -> BEVGrid:
        return BEVGrid(self.x_min_m, self.x_max_m, self.y_min_m, self.y_max_m, self.cell_m)


class DepthConfig(StrictModel):
    """Depth bins of the lift, metres along the camera's z axis."""

    min_m: float = 1.0
    max_m: float = 33.0
    count: Positive = 32

    @model_validator(mode="after")
    def _check(self) -> DepthConfig:
        self.bins()
        return self

    def bins(self) -> DepthBins:
        return DepthBins(self.min_m, self.max_m, self.count)


class CameraConfig(StrictModel):
    """ViT image encoder, neck, depth and lift."""

    image_height_px: Positive = 64
    image_width_px: Positive = 176
    stem: Literal["patch", "conv"] = "conv"
    patch_px: Positive = 16
    dim: Positive = 128
    depth: Positive = 3
    heads: Positive = 4
    layer_scale: bool = False
    feature_stride_px: Positive = 8
    feature_channels: Positive = 96
    context_channels: Positive = 64  # of what is lifted
    lift_samples: tuple[Positive, Positive] = (2, 2)  # points across and along each depth bin of each feature pixel
    bev_blocks: Annotated[int, Field(ge=0)] = 0  # residual blocks on the lifted grid
    depth_bins: DepthConfig = DepthConfig()

    @model_validator(mode="after")
    def _check(self) -> CameraConfig:
        for name, size in (("image_height_px", self.image_height_px), ("image_width_px", self.image_width_px)):
            if size % self.patch_px:
                raise ValueError(f"{name} must be a multiple of patch_px ({self.patch_px}), got {size}")
        if self.stem == "conv" and (self.patch_px, self.feature_stride_px) != (16, 8):
            raise ValueError("stem conv needs patch_px 16 and feature_stride_px 8; choose stem patch for other strides")
        if self.patch_px % self.feature_stride_px:
            raise ValueError(f"feature_stride_px must divide patch_px ({self.patch_px}), got {self.feature_stride_px}")
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads ({self.heads}), got {self.dim}")
        return self

    @property
    def image_size(self) -> tuple[int, int]:
        return self.image_height_px, self.image_width_px


class LidarConfig(StrictModel):
    """Pillars on half the grid's cell length, sparse stages, 2D blocks."""

    pillar_channels: Positive = 32
    blocks: Annotated[int, Field(ge=0)] = 1
    sparse_blocks: Annotated[int, Field(ge=0)] = 0  # submanifold stages before the dense canvas
    backend: Literal["dense", "spconv"] = "dense"  # what computes the sparse stages

    @model_validator(mode="after")
    def _check(self) -> LidarConfig:
        if self.backend == "spconv" and self.sparse_blocks == 0:
            raise ValueError("backend spconv needs sparse_blocks >= 1: without them there is nothing for it to compute")
        return self


class RadarConfig(StrictModel):
    """Pillars with Doppler, 2D blocks, field of view."""

    width: Positive = 32
    blocks: Annotated[int, Field(ge=0)] = 1
    half_view_deg: Annotated[float, Field(gt=0, le=180)] = 75.0  # azimuth to either side that one radar covers


class FuserConfig(StrictModel):
    """How modalities become one, and what stands for an absent one."""

    kind: Literal["cross_attention", "concat", "mean"] = "cross_attention"
    absent: Literal["null", "zeros", "mask"] = "null"
    neighbourhood: Literal[1, 3] = 1  # of cross_attention
    heads: Positive = 4  # of cross_attention

    @model_validator(mode="after")
    def _check(self) -> FuserConfig:
        if (self.kind, self.absent) == ("concat", "mask"):
            raise ValueError("concat cannot mask an absent modality: choose absent null or zeros")
        return self


class BackboneConfig(StrictModel):
    """The network on the fused grid."""

    blocks: Positive = 1
    widths: tuple[Positive, Positive] = (96, 128)


class DecodeConfig(StrictModel):
    """From heatmaps to boxes."""

    max_boxes: Positive = 200
    nms_radius_m: dict[str, Annotated[float, Field(ge=0)]] = {
        "car": 1.5, "truck": 2.0, "bus": 3.0, "trailer": 3.0, "construction_vehicle": 2.0, "pedestrian": 0.3,
        "motorcycle": 0.6, "bicycle": 0.6, "traffic_cone": 0.3, "barrier": 0.6,
    }  # fmt: skip


class ModelConfig(StrictModel):
    """Everything that decides the network's architecture; it travels beside the weights as config.json."""

    classes: tuple[str, ...] = NUSCENES_CLASSES
    attributes: tuple[str, ...] = NUSCENES_ATTRIBUTES
    grid: GridConfig = GridConfig()
    channels: Positive = 64
    camera: CameraConfig | None = CameraConfig()
    lidar: LidarConfig | None = LidarConfig()
    radar: RadarConfig | None = RadarConfig()
    fuser: FuserConfig = FuserConfig()
    backbone: BackboneConfig = BackboneConfig()
    decode: DecodeConfig = DecodeConfig()

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if not self.classes:
            raise ValueError("classes: expected at least one")
        if self.camera is None and self.lidar is None and self.radar is None:
            raise ValueError("every modality is null: a model needs at least one of camera, lidar, radar")
        if self.channels % self.fuser.heads or self.channels % 4:
            raise ValueError(
                f"channels must be a multiple of 4 and of fuser.heads ({self.fuser.heads}), got {self.channels}"
            )
        unknown = sorted(set(self.decode.nms_radius_m) - set(self.classes))
        if unknown and self.classes == NUSCENES_CLASSES:
            raise ValueError(f"decode.nms_radius_m names {unknown[0]!r}, which is not among the classes")
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the model has, in the order of `sensors.batch.MODALITIES`."""
        return tuple(name for name in MODALITIES if getattr(self, name) is not None)


@dataclass(frozen=True)
class Perception:
    """What the model sees.

    `perceived` is False for a sample of which no sensor covers any cell: its boxes have score 0 and mean "no perception",
    not "nothing there".
    """

    boxes: Boxes  # [B, T], sorted by score, reference frame
    fused: FusedBEV  # attention [B, M, X, Y]
    modalities: tuple[str, ...]  # M names, in the order of the attention
    perceived: Tensor  # [B] bool


@dataclass(frozen=True)
class TrainingOutputs:
    """The logits that the losses are made of."""

    detection: DetectionLogits
    auxiliary: dict[str, Tensor]  # heatmap logits [B, K, X, Y] by modality
    depth_logits: Tensor | None  # [B, N, h, w, D]
    image: Tensor | None  # [B, N, K, h, w] heatmap logits of objects in the pictures


class PerceptionModel(nn.Module):
    """Encoders, fuser, backbone and head, handed in built; `build` makes them from a `ModelConfig`.

    Letters: B samples, C channels, M modalities, K classes, T boxes, X and Y cells.
    """

    nms_radius_m: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        camera: CameraEncoder | None,
        lidar: LidarEncoder | None,
        radar: RadarEncoder | None,
        fuser: CrossAttentionFusion | ConcatFusion | MeanFusion,
        backbone: BEVBackbone,
        head: DetectionHead,
        auxiliary: dict[str, HeatmapHead],
        image_head: HeatmapHead | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.grid = config.grid.bev()
        self.camera, self.lidar, self.radar = camera, lidar, radar
        self.fuser, self.backbone, self.head = fuser, backbone, head
        self.auxiliary, self.image_head = nn.ModuleDict(auxiliary), image_head
        radius = [config.decode.nms_radius_m.get(name, 0.0) for name in config.classes]
        self.register_buffer("nms_radius_m", torch.tensor(radius), persistent=False)

    def forward(self, batch: SensorBatch) -> Perception:
        return self.perceive_features(self.encode(batch), batch.batch_size)

    def encode(self, batch: SensorBatch) -> dict[str, BEVFeatures | None]:
        """Each modality's grid [B, C, X, Y]; None where the batch or the model has no such modality (nothing is computed)."""
        features: dict[str, BEVFeatures | None] = dict.fromkeys(self.config.modalities)
        if self.camera is not None and batch.cameras is not None:
            features["camera"] = self.camera(batch.cameras).bev
        if self.lidar is not None and batch.lidar is not None:
            features["lidar"] = self.lidar(batch.lidar)
        if self.radar is not None and batch.radar is not None:
            features["radar"] = self.radar(batch.radar)
        return features

    def perceive_features(self, features: Mapping[str, BEVFeatures | None], batch_size: int) -> Perception:
        """Fuse, detect and decode: `features` as `encode` gives them, any of them None. One encoding serves every subset."""
        fused = self.fuser(features, grid_shape=self.grid.shape, batch_size=batch_size)
        logits = self.head(self.backbone(fused.features))
        perceived = fused.coverage.flatten(1).amax(1) > 0
        boxes = decode(logits, self.grid, max_boxes=self.config.decode.max_boxes, nms_radius_m=self.nms_radius_m)
        boxes = replace(boxes, score=torch.where(perceived[:, None], boxes.score, 0.0))
        return Perception(boxes, fused, self.config.modalities, perceived)

    def training_outputs(self, batch: SensorBatch, kept: Tensor | None = None) -> TrainingOutputs:
        """Logits of the head, of each modality's auxiliary head, of the depth bins and of objects in the pictures.

        `kept` [B, M] bool: modalities that the fuser may see (modality dropout). What it may not see has coverage 0, exactly
        as if it were absent, while its encoder goes on learning through its auxiliary head.
        """
        features: dict[str, BEVFeatures | None] = dict.fromkeys(self.config.modalities)
        depth_logits = image = None
        if self.camera is not None and batch.cameras is not None:
            output = self.camera(batch.cameras)
            features["camera"], depth_logits = output.bev, output.depth_logits
            assert self.image_head is not None
            image = self.image_head(output.features).unflatten(0, batch.cameras.present.shape)
        if self.lidar is not None and batch.lidar is not None:
            features["lidar"] = self.lidar(batch.lidar)
        if self.radar is not None and batch.radar is not None:
            features["radar"] = self.radar(batch.radar)
        seen = features
        if kept is not None:
            seen = {
                name: None if f is None else replace(f, coverage=f.coverage * kept[:, i, None, None])
                for i, (name, f) in enumerate(features.items())
            }
        fused = self.fuser(seen, grid_shape=self.grid.shape, batch_size=batch.batch_size)
        auxiliary = {
            name: head(features[name].features)  # type: ignore[union-attr]
            for name, head in self.auxiliary.items()
            if features[name] is not None
        }
        return TrainingOutputs(self.head(self.backbone(fused.features)), auxiliary, depth_logits, image)


def build(config: ModelConfig) -> PerceptionModel:
    """The model that `config` describes, with fresh weights from torch's global random state.

    Convolution weights lie channels-last, which is how the grid's features lie.
    """
    grid, z_range_m = config.grid.bev(), (config.grid.z_min_m, config.grid.z_max_m)
    channels, classes = config.channels, len(config.classes)
    camera = lidar = radar = None
    if config.camera is not None:
        camera = _build_camera(config.camera, grid, z_range_m, channels)
    if config.lidar is not None:
        lidar = _build_lidar(config.lidar, grid, z_range_m, channels)
    if config.radar is not None:
        radar = RadarEncoder(
            grid=grid, z_range_m=z_range_m, width=config.radar.width, channels=channels, blocks=config.radar.blocks,
            half_view_rad=math.radians(config.radar.half_view_deg),
        )  # fmt: skip
    model = PerceptionModel(
        config,
        camera=camera,
        lidar=lidar,
        radar=radar,
        fuser=_build_fuser(config),
        backbone=BEVBackbone(channels, blocks=config.backbone.blocks, widths=config.backbone.widths),
        head=DetectionHead(channels, classes, len(config.attributes)),
        auxiliary={name: HeatmapHead(channels, classes) for name in config.modalities},
        image_head=None if config.camera is None else HeatmapHead(config.camera.feature_channels, classes),
    )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _build_camera(config: CameraConfig, grid: BEVGrid, z_range_m: tuple[float, float], channels: int) -> CameraEncoder:
    vit = VisionTransformer(
        image_size=config.image_size, stem=config.stem, patch_px=config.patch_px, dim=config.dim, depth=config.depth,
        heads=config.heads, layer_scale=config.layer_scale, feature_stride_px=config.feature_stride_px,
        out_channels=config.feature_channels,
    )  # fmt: skip
    return CameraEncoder(
        vit, image_size=config.image_size, patch_px=config.patch_px, stride_px=config.feature_stride_px,
        vit_channels=config.feature_channels, dim=config.dim, bins=config.depth_bins.bins(), grid=grid,
        z_range_m=z_range_m, context_channels=config.context_channels, channels=channels,
        bev_blocks=config.bev_blocks, lift_samples=config.lift_samples,
    )  # fmt: skip


def _build_lidar(config: LidarConfig, grid: BEVGrid, z_range_m: tuple[float, float], channels: int) -> LidarEncoder:
    stages: nn.Module | None = None
    if config.sparse_blocks:
        fine_shape = (2 * grid.shape[0], 2 * grid.shape[1])
        match config.backend:
            case "dense":
                stages = DenseStages(config.pillar_channels, config.sparse_blocks, fine_shape)
            case "spconv":
                stages = SparseStages(config.pillar_channels, config.sparse_blocks, fine_shape)
    return LidarEncoder(
        grid=grid, z_range_m=z_range_m, pillar_channels=config.pillar_channels, channels=channels,
        blocks=config.blocks, stages=stages,
    )  # fmt: skip


def _build_fuser(config: ModelConfig) -> CrossAttentionFusion | ConcatFusion | MeanFusion:
    inputs = dict.fromkeys(config.modalities, config.channels)
    fuser = config.fuser
    match fuser.kind:
        case "cross_attention":
            return CrossAttentionFusion(
                inputs, config.channels, heads=fuser.heads, neighbourhood=fuser.neighbourhood, absent=fuser.absent
            )
        case "concat":
            return ConcatFusion(inputs, config.channels, absent=fuser.absent)
        case "mean":
            return MeanFusion(inputs, config.channels, absent=fuser.absent)


def save(model: PerceptionModel, directory: str | Path) -> Path:
    """Write `model.safetensors` and `config.json` into `directory`, each file whole or not at all; -> the directory."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {"format": "robustbev", "format_version": str(FORMAT_VERSION)}
    _write_whole(directory / "model.safetensors", safetensors.torch.save(state, metadata=header))
    _write_whole(directory / "config.json", model.config.model_dump_json(indent=2).encode())
    return directory


def load(path: str | Path, device: str | torch.device = "cpu") -> PerceptionModel:
    """A saved model in evaluation mode. Nothing in the files is executed and no class is named in them.

    Args:
        path: a directory written by `save`, or its `model.safetensors`; `config.json` lies beside it.

    Raises:
        CheckpointError: a file is missing or damaged, or weights and configuration do not belong together.
    """
    path = Path(path)
    directory = path if path.is_dir() else path.parent
    weights = directory / "model.safetensors" if path.is_dir() else path
    config_file = directory / "config.json"
    for file in (weights, config_file):
        if not file.is_file():
            raise CheckpointError(f"{file}: not found; expected a directory with model.safetensors and config.json")
    try:
        config = ModelConfig.model_validate_json(config_file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{config_file}: no valid model configuration: {key}: {first['msg']}") from error
    try:
        state = safetensors.torch.load_file(weights)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights}: no readable safetensors file ({error}); was it copied whole?") from error
    with torch.device("meta"):
        outline = build(config)  # shapes alone: a config that is not of these weights must not fill the memory first
    _check_fit(outline.state_dict(), state, source=str(weights))
    model = build(config)
    load_weights(model, state, source=str(weights))
    return model.to(device).eval()


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Strictly load `state`; CheckpointError naming the tensors that do not fit, before anything is changed."""
    _check_fit(model.state_dict(), state, source=source)
    model.load_state_dict(dict(state))


def _check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, source: str) -> None:
    faults = [f"missing {name} {list(own[name].shape)}" for name in own if name not in state]
    faults += [f"unexpected {name} {list(state[name].shape)}" for name in state if name not in own]
    faults += [
        f"{name}: expected {list(own[name].shape)}, got {list(state[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if faults:
        shown = "; ".join(faults[:4]) + (f"; and {len(faults) - 4} more" if len(faults) > 4 else "")
        raise CheckpointError(
            f"{source}: weights of another architecture: {shown}. Use the config that they were trained with"
        )


def _write_whole(path: Path, data: bytes) -> None:
    """Write to a temporary file beside `path`, then rename: readers see the old file or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
