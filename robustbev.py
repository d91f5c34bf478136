"""The model put together: configuration, `build`, `save` and `load`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
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
from bev.merge import merge_boxes, no_boxes
from fusion import (
    Absent,
    BEVFeatures,
    ChannelWeightFusion,
    ConcatFusion,
    CrossAttentionFusion,
    FusedBEV,
    Fuser,
    GatedFusion,
    JointFusion,
    LateFusion,
    LatentFusion,
    MeanFusion,
    ObjectAlignment,
)
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


FuserKind = Literal["cross_attention", "concat", "mean", "channel_weights", "latent", "joint"]


class FuserConfig(StrictModel):
    """How modalities become one, and what stands for an absent one."""

    kind: FuserKind | Literal["gated", "late"] = "cross_attention"
    absent: Absent = "null"
    neighbourhood: Literal[1, 3] = 1  # of cross_attention and gated
    heads: Positive = 4  # of those that attend
    latents: Positive = 8  # of each modality, of latent
    pool: Positive = 4  # cells along each axis that become one token, of latent and joint
    adds: tuple[str, ...] = ()  # modalities that gated adds to those of its base
    base: FuserKind = "cross_attention"  # of gated: the kind of the model that it adds to

    @model_validator(mode="after")
    def _check(self) -> FuserConfig:
        kind = self.base if self.kind == "gated" else self.kind
        if (kind, self.absent) == ("concat", "mask"):
            raise ValueError("concat cannot mask an absent modality: choose absent null, null_cell or zeros")
        if self.kind == "gated" and not self.adds:
            raise ValueError("kind gated adds modalities to a base: name them in adds, as in adds: [radar]")
        if self.kind != "gated" and self.adds:
            raise ValueError(f"adds is of kind gated alone, and kind is {self.kind}")
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


class AlignmentConfig(StrictModel):
    """Projections of the modalities onto one sphere, for the contrastive loss at objects; see `fusion.ObjectAlignment`."""

    mode: Literal["pairs", "anchor"] = "pairs"  # every two modalities, or each with the anchor alone
    anchor: Literal["camera", "lidar", "radar"] = "lidar"  # of mode anchor
    dim: Positive = 64


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
    alignment: AlignmentConfig | None = None  # null: no contrastive loss, and no parameters for it

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
        strangers = [name for name in self.fuser.adds if name not in self.modalities]
        if strangers or (self.fuser.adds and set(self.fuser.adds) == set(self.modalities)):
            raise ValueError(
                f"fuser.adds: expected some of the model's modalities ({', '.join(self.modalities)}), not all of them, "
                f"got {', '.join(self.fuser.adds)}"
            )
        unknown = sorted(set(self.decode.nms_radius_m) - set(self.classes))
        if unknown and self.classes == NUSCENES_CLASSES:
            raise ValueError(f"decode.nms_radius_m names {unknown[0]!r}, which is not among the classes")
        if self.alignment is not None:
            self._check_alignment(self.alignment)
        return self

    def _check_alignment(self, alignment: AlignmentConfig) -> None:
        mine = ", ".join(self.modalities)
        if len(self.modalities) < 2:
            raise ValueError(
                f"alignment needs at least two modalities, and the model has only {mine}: set alignment=null"
            )
        if alignment.mode == "anchor" and alignment.anchor not in self.modalities:
            raise ValueError(
                f"alignment.anchor: expected one of the model's modalities {mine}, got {alignment.anchor!r}"
            )

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

    detection: tuple[DetectionLogits, ...]  # one a view of the batch, see `PerceptionModel.training_outputs`
    features: dict[str, BEVFeatures | None]  # of each modality, before anything was hidden from the fuser
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
        fuser: Fuser,
        backbone: BEVBackbone,
        head: DetectionHead,
        auxiliary: dict[str, HeatmapHead],
        image_head: HeatmapHead | None,
        alignment: ObjectAlignment | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.frozen: tuple[str, ...] = ()
        self.grid = config.grid.bev()
        self.camera, self.lidar, self.radar = camera, lidar, radar
        self.fuser, self.backbone, self.head = fuser, backbone, head
        self.auxiliary, self.image_head = nn.ModuleDict(auxiliary), image_head
        self.alignment = alignment
        radius = [config.decode.nms_radius_m.get(name, 0.0) for name in config.classes]
        self.register_buffer("nms_radius_m", torch.tensor(radius), persistent=False)

    def freeze(self, prefixes: Sequence[str]) -> None:
        """Let the parameters whose names start with one of `prefixes` learn no more, and their batch statistics stand still.

        Raises:
            ValueError: a prefix fits no parameter.
        """
        names = [name for name, _ in self.named_parameters()]
        for prefix in prefixes:
            if not any(_under(name, prefix) for name in names):
                parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
                raise ValueError(f"freeze: no parameter lies under {prefix!r}; the model's parts are {parts}")
        self.frozen = tuple(prefixes)
        for name, parameter in self.named_parameters():
            if any(_under(name, prefix) for prefix in self.frozen):
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> PerceptionModel:
        """As of every module, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for name, module in self.named_modules():
            if any(_under(name, prefix) for prefix in self.frozen):
                module.eval()
        return self

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
        perceived = fused.coverage.flatten(1).amax(1) > 0
        if isinstance(self.fuser, LateFusion):
            boxes = self._merged_boxes(self.fuser, features, batch_size)
        else:
            boxes = self._detect(fused.features, perceived)
        return Perception(boxes, fused, self.config.modalities, perceived)

    def _detect(self, grids: Tensor, perceived: Tensor) -> Boxes:
        logits = self.head(self.backbone(grids))
        boxes = decode(logits, self.grid, max_boxes=self.config.decode.max_boxes, nms_radius_m=self.nms_radius_m)
        return replace(boxes, score=torch.where(perceived[:, None], boxes.score, 0.0))

    def _merged_boxes(self, fuser: LateFusion, features: Mapping[str, BEVFeatures | None], batch_size: int) -> Boxes:
        """Late fusion: the boxes of each sensor that is there, from its own grid alone, merged."""
        grids = fuser.separate(features, grid_shape=self.grid.shape, batch_size=batch_size)
        present = [g for g, name in zip(grids, fuser.modalities, strict=True) if features.get(name) is not None]
        max_boxes = self.config.decode.max_boxes
        if not present:
            count = min(max_boxes, len(self.config.classes) * self.grid.num_cells)
            return no_boxes(batch_size, count, self.nms_radius_m.device)
        # One after the other: in one batch a convolution's last bits could depend on how many sensors there are.
        boxes = [self._detect(g.features, g.coverage.flatten(1).amax(1) > 0) for g in present]
        coverage = [g.coverage for g in present]
        return merge_boxes(boxes, coverage, self.grid, radius_m=self.nms_radius_m, max_boxes=max_boxes)

    def training_outputs(self, batch: SensorBatch, views: Sequence[Tensor] | None = ()) -> TrainingOutputs:
        """Logits of the head, of each modality's auxiliary head, of the depth bins and of objects in the pictures.

        `views`: each [B, M] bool of modalities that the fuser may see (modality dropout); () is one view of everything, None
        does without fuser, backbone and head (the encoders learn through their auxiliary heads alone). What a
        view hides has coverage 0, exactly as if it were absent, while its encoder goes on learning through its auxiliary head
        and the other views. The encoders run once, however many views there are.
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
        auxiliary = {
            name: head(features[name].features)  # type: ignore[union-attr]
            for name, head in self.auxiliary.items()
            if features[name] is not None
        }
        detection = () if views is None else self._detect_views(features, views, batch.batch_size)
        return TrainingOutputs(detection, features, auxiliary, depth_logits, image)

    def _detect_views(
        self, features: Mapping[str, BEVFeatures | None], views: Sequence[Tensor], batch_size: int
    ) -> tuple[DetectionLogits, ...]:
        if isinstance(self.fuser, LateFusion):
            return self._detect_each(self.fuser, features, batch_size)
        seen = [_hide(features, kept) for kept in views] or [dict(features)]
        fused = [self.fuser(view, grid_shape=self.grid.shape, batch_size=batch_size).features for view in seen]
        # All views at once: they share the batch statistics, too.
        return self.head(self.backbone(torch.cat(fused))).chunk(len(seen))

    def _detect_each(
        self, fuser: LateFusion, features: Mapping[str, BEVFeatures | None], batch_size: int
    ) -> tuple[DetectionLogits, ...]:
        """Late fusion: the logits of each sensor's own detector. It always sees its sensor, and nothing else to lose.

        What a detector says of a sample without its sensor passes no gradient: there it had nothing to see.
        """
        grids = fuser.separate(features, grid_shape=self.grid.shape, batch_size=batch_size)
        logits = self.head(self.backbone(torch.cat([g.features for g in grids]))).chunk(len(grids))
        return tuple(
            DetectionLogits(
                *(
                    torch.where(grid.coverage.amax((1, 2))[:, None, None, None] > 0, part, part.detach())
                    for part in (of_one.heatmap, of_one.regression, of_one.attributes)
                )
            )
            for of_one, grid in zip(logits, grids, strict=True)
        )


def _under(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


def _hide(features: Mapping[str, BEVFeatures | None], kept: Tensor) -> dict[str, BEVFeatures | None]:
    """The same features with coverage 0 where `kept` [B, M] is False."""
    return {
        name: None if f is None else replace(f, coverage=f.coverage * kept[:, i, None, None])
        for i, (name, f) in enumerate(features.items())
    }


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
        alignment=_build_alignment(config),  # last: the weights of all else are drawn the same with it and without
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


def _build_alignment(config: ModelConfig) -> ObjectAlignment | None:
    if config.alignment is None:
        return None
    inputs = dict.fromkeys(config.modalities, config.channels)
    return ObjectAlignment(inputs, config.alignment.dim, mode=config.alignment.mode, anchor=config.alignment.anchor)


def _build_fuser(config: ModelConfig) -> Fuser:
    inputs = dict.fromkeys(config.modalities, config.channels)
    fuser, grid_shape = config.fuser, config.grid.bev().shape
    match fuser.kind:
        case "late":
            return LateFusion(inputs, config.channels, absent=fuser.absent, grid_shape=grid_shape)
        case "gated":
            added = {name: inputs[name] for name in config.modalities if name in fuser.adds}
            of_base = {name: count for name, count in inputs.items() if name not in added}
            return GatedFusion(
                _build_simple_fuser(fuser.base, fuser, of_base, config.channels, grid_shape), added, config.channels,
                modalities=config.modalities, heads=fuser.heads, neighbourhood=fuser.neighbourhood,
            )  # fmt: skip
        case kind:
            return _build_simple_fuser(kind, fuser, inputs, config.channels, grid_shape)


def _build_simple_fuser(
    kind: FuserKind, config: FuserConfig, inputs: dict[str, int], channels: int, grid_shape: tuple[int, int]
) -> Fuser:
    absent, heads = config.absent, config.heads
    match kind:
        case "cross_attention":
            return CrossAttentionFusion(
                inputs, channels, heads=heads, neighbourhood=config.neighbourhood, absent=absent, grid_shape=grid_shape
            )
        case "concat":
            return ConcatFusion(inputs, channels, absent=absent, grid_shape=grid_shape)
        case "mean":
            return MeanFusion(inputs, channels, absent=absent, grid_shape=grid_shape)
        case "channel_weights":
            return ChannelWeightFusion(inputs, channels, absent=absent, grid_shape=grid_shape)
        case "latent":
            return LatentFusion(
                inputs, channels, heads=heads, latents=config.latents, pool=config.pool, absent=absent,
                grid_shape=grid_shape,
            )  # fmt: skip
        case "joint":
            return JointFusion(inputs, channels, heads=heads, pool=config.pool, absent=absent, grid_shape=grid_shape)


def gated_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model as those of the same model with a `gated` fuser around its own: `fuser.X` is `fuser.base.X`.

    Weights that are of a gated model already come back as they are.
    """
    if any(name.startswith("fuser.base.") for name in state):
        return dict(state)
    return {_moved(name): tensor for name, tensor in state.items()}


def _moved(name: str) -> str:
    return name.replace("fuser.", "fuser.base.", 1) if name.startswith("fuser.") else name


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


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str, may_lack: Sequence[str] = ()) -> None:
    """Strictly load `state`; CheckpointError naming the tensors that do not fit, before anything is changed.

    Parts of the model that start with one of `may_lack` keep their fresh weights where `state` has none for them.
    """
    own = model.state_dict()
    fresh = {n: t for n, t in own.items() if n not in state and any(_under(n, prefix) for prefix in may_lack)}
    _check_fit(own, {**state, **fresh}, source=source)
    model.load_state_dict({**state, **fresh})


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
