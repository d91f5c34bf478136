"""From a configuration to the modules that it names."""

from __future__ import annotations

import math

import torch
from torch import nn

from bev.backbone import BEVBackbone
from bev.detection.head import HeatmapHead
from bev.grid import BEVGrid
from bev.motion import MOTION_CHANNELS
from fusion import (
    ChannelWeightFusion,
    ConcatFusion,
    CrossAttentionFusion,
    Fuser,
    GatedFusion,
    JointFusion,
    LatentFusion,
    MeanFusion,
)
from robustbev.config import DETECTION, FuserConfig, FuserKind, Modality, ModelConfig
from robustbev.model import PerceptionModel
from robustbev.network import MEASURE_MOTION
from robustbev.tasks.assembly import build_task
from robustbev.tasks.task import Question
from sensors.camera.config import CameraConfig
from sensors.camera.encoder import CameraEncoder
from sensors.camera.vit import VisionTransformer
from sensors.lidar.config import LidarConfig
from sensors.lidar.encoder import LidarEncoder
from sensors.lidar.sparse_pillars import DenseStages, SparseStages
from sensors.radar.config import RadarConfig
from sensors.radar.encoder import RadarEncoder


def build(config: ModelConfig) -> PerceptionModel:
    """The model that `config` describes, with fresh weights from torch's global random state.

    Convolution weights lie channels-last, which is how the grid's features lie.
    """
    grid, z_range_m = config.grid.bev(), (config.grid.z_min_m, config.grid.z_max_m)
    channels, classes = config.channels, len(config.classes)
    # Whether it has sensors of motion or not: one may be added later, to a head that has learned.
    question = Question(channels, len(MEASURE_MOTION) * MOTION_CHANNELS, grid, config.classes, config.attributes)
    model = PerceptionModel(
        config,
        encoders={
            name: _build_encoder(modality, grid, z_range_m, channels) for name, modality in config.modalities.items()
        },
        fuser=_build_fuser(config),
        backbone=BEVBackbone(channels, blocks=config.backbone.blocks, widths=config.backbone.widths),
        heads={DETECTION: build_task(config.detection, question)},
        auxiliary={name: HeatmapHead(channels, classes) for name in config.modalities},
        image_heads={
            name: HeatmapHead(camera.feature_channels, classes) for name, camera in config.of_kind(CameraConfig).items()
        },
    )
    for name, task in config.tasks.items():
        if name != DETECTION:
            model.heads[name] = build_task(task, question)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _build_encoder(config: Modality, grid: BEVGrid, z_range_m: tuple[float, float], channels: int) -> nn.Module:
    match config:
        case CameraConfig():
            return _build_camera(config, grid, z_range_m, channels)
        case LidarConfig():
            return _build_lidar(config, grid, z_range_m, channels)
        case RadarConfig():
            return RadarEncoder(
                grid=grid,
                z_range_m=z_range_m,
                width=config.width,
                channels=channels,
                blocks=config.blocks,
                half_view_rad=math.radians(config.half_view_deg),
            )


def _build_camera(config: CameraConfig, grid: BEVGrid, z_range_m: tuple[float, float], channels: int) -> CameraEncoder:
    vit = VisionTransformer(
        image_size=config.image_size,
        stem=config.stem,
        patch_px=config.patch_px,
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        layer_scale=config.layer_scale,
        feature_stride_px=config.feature_stride_px,
        out_channels=config.feature_channels,
    )
    return CameraEncoder(
        vit,
        image_size=config.image_size,
        patch_px=config.patch_px,
        stride_px=config.feature_stride_px,
        vit_channels=config.feature_channels,
        dim=config.dim,
        bins=config.depth_bins.bins(),
        grid=grid,
        z_range_m=z_range_m,
        context_channels=config.context_channels,
        channels=channels,
        bev_blocks=config.bev_blocks,
        lift_samples=config.lift_samples,
    )


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
        grid=grid,
        z_range_m=z_range_m,
        pillar_channels=config.pillar_channels,
        channels=channels,
        blocks=config.blocks,
        stages=stages,
    )


def _build_fuser(config: ModelConfig) -> Fuser:
    inputs = dict.fromkeys(config.modalities, config.channels)
    fuser = config.fuser
    match fuser.kind:
        case "gated":
            added = {name: inputs[name] for name in config.modalities if name in fuser.adds}
            of_base = {name: count for name, count in inputs.items() if name not in added}
            return GatedFusion(
                _build_simple_fuser(fuser.base, fuser, of_base, config.channels),
                added,
                config.channels,
                modalities=tuple(config.modalities),
                heads=fuser.heads,
                neighbourhood=fuser.neighbourhood,
            )
        case kind:
            return _build_simple_fuser(kind, fuser, inputs, config.channels)


def _build_simple_fuser(kind: FuserKind, config: FuserConfig, inputs: dict[str, int], channels: int) -> Fuser:
    absent, heads = config.absent, config.heads
    match kind:
        case "cross_attention":
            return CrossAttentionFusion(
                inputs, channels, heads=heads, neighbourhood=config.neighbourhood, absent=absent
            )
        case "concat":
            return ConcatFusion(inputs, channels, absent=absent)
        case "mean":
            return MeanFusion(inputs, channels, absent=absent)
        case "channel_weights":
            return ChannelWeightFusion(inputs, channels, absent=absent)
        case "latent":
            return LatentFusion(inputs, channels, heads=heads, latents=config.latents, pool=config.pool, absent=absent)
        case "joint":
            return JointFusion(inputs, channels, heads=heads, pool=config.pool, absent=absent)
