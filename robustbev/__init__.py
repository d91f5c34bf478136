"""The model put together: configuration, `build`, `save`, `load` and `perceive`."""

from robustbev.assembly import build
from robustbev.config import (
    NUSCENES_ATTRIBUTES,
    NUSCENES_CLASSES,
    AlignmentConfig,
    BackboneConfig,
    CameraConfig,
    DecodeConfig,
    DepthConfig,
    FuserConfig,
    FuserKind,
    GridConfig,
    LidarConfig,
    ModelConfig,
    RadarConfig,
    StrictModel,
)
from robustbev.inference import perceive
from robustbev.model import Perception, PerceptionModel, TrainingOutputs
from robustbev.weights import FORMAT_VERSION, CheckpointError, gated_state, load, load_weights, save

__all__ = [
    "FORMAT_VERSION",
    "NUSCENES_ATTRIBUTES",
    "NUSCENES_CLASSES",
    "AlignmentConfig",
    "BackboneConfig",
    "CameraConfig",
    "CheckpointError",
    "DecodeConfig",
    "DepthConfig",
    "FuserConfig",
    "FuserKind",
    "GridConfig",
    "LidarConfig",
    "ModelConfig",
    "Perception",
    "PerceptionModel",
    "RadarConfig",
    "StrictModel",
    "TrainingOutputs",
    "build",
    "gated_state",
    "load",
    "load_weights",
    "perceive",
    "save",
]
