"""The model put together: configuration, `build`, `save`, `load`, and what it sees."""

from robustbev.assembly import build
from robustbev.card import ModelCard, SubsetFigures
from robustbev.checkpoints import CheckpointError
from robustbev.config import (
    BackboneConfig,
    FuserConfig,
    FuserKind,
    GridConfig,
    ModelConfig,
    RigConfig,
)
from robustbev.detections import Detection, Detections, NoPerceptionError
from robustbev.inference import decode_size, preparation
from robustbev.model import PerceptionModel, perceive_frame
from robustbev.perception import Perception, TrainingOutputs
from robustbev.precision import DeviceError, Precision, PrecisionWarning, choose_precision
from robustbev.tasks.detection import NUSCENES_ATTRIBUTES, NUSCENES_CLASSES, DetectionConfig
from robustbev.weights import FORMAT_VERSION, gated_state, load, load_weights, save, with_sensor, write_card
from sensors.camera.config import CameraConfig, DepthConfig
from sensors.lidar.config import LidarConfig
from sensors.points import SensorUse
from sensors.radar.config import RadarConfig
from sensors.settings import StrictModel

__all__ = [
    "FORMAT_VERSION",
    "NUSCENES_ATTRIBUTES",
    "NUSCENES_CLASSES",
    "BackboneConfig",
    "CameraConfig",
    "CheckpointError",
    "DepthConfig",
    "Detection",
    "DetectionConfig",
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
    "SensorUse",
    "StrictModel",
    "SubsetFigures",
    "TrainingOutputs",
    "build",
    "choose_precision",
    "decode_size",
    "gated_state",
    "load",
    "load_weights",
    "perceive_frame",
    "preparation",
    "save",
    "with_sensor",
    "write_card",
]
