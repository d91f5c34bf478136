"""The model put together: configuration, `build`, `save`, `load`, and what it sees."""

from robustbev.assembly import build
from robustbev.card import ModelCard, SubsetFigures
from robustbev.checkpoints import CheckpointError
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
    RigConfig,
    StrictModel,
)
from robustbev.detections import Detection, Detections, NoPerceptionError
from robustbev.inference import preparation
from robustbev.model import PerceptionModel, perceive_frame
from robustbev.perception import Perception, TrainingOutputs
from robustbev.precision import DeviceError, Precision, PrecisionWarning, choose_precision
from robustbev.weights import FORMAT_VERSION, gated_state, load, load_weights, save, write_card

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
    "Detection",
    "Detections",
    "DeviceError",
    "FuserConfig",
    "FuserKind",
    "GridConfig",
    "LidarConfig",
    "ModelCard",
    "ModelConfig",
    "NoPerceptionError",
    "Perception",
    "PerceptionModel",
    "Precision",
    "PrecisionWarning",
    "RadarConfig",
    "RigConfig",
    "StrictModel",
    "SubsetFigures",
    "TrainingOutputs",
    "build",
    "choose_precision",
    "gated_state",
    "load",
    "load_weights",
    "perceive_frame",
    "preparation",
    "save",
    "write_card",
]
