"""One frame of sensor data in, what the model sees out.

Letters: M modalities, T boxes, X and Y cells.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from robustbev.config import ModelConfig, RigConfig
from robustbev.detections import Detections
from sensors.absence import Absence, Lack
from sensors.collate import collate
from sensors.errors import SensorDataWarning
from sensors.frames import CameraImage, SensorFrame
from sensors.prepare import Preparation, prepare

if TYPE_CHECKING:
    from robustbev.model import Perception, PerceptionModel


def preparation(config: ModelConfig, rig: RigConfig | None = None) -> Preparation:
    """What a model wants its frames to be made into.

    Args:
        config: the model's.
        rig: the sensors that there are, where they are not those of `config.rig`. Sensors of modalities that the model does not
            have are passed over.

    Raises:
        ValueError: neither names the sensors.
    """
    rig = config.rig if rig is None else rig
    if rig is None:
        raise ValueError(
            "this model's config.json does not name its sensors (it has no rig): give rig=robustbev.RigConfig("
            'camera_channels=("CAM_FRONT", ...), lidar_channels=..., radar_channels=...)'
        )
    camera, mine = config.camera, rig.only(config.modalities)
    return Preparation(
        grid=config.grid.bev(),
        z_range_m=(config.grid.z_min_m, config.grid.z_max_m),
        image_size_px=None if camera is None else camera.image_size,
        camera_channels=mine.camera_channels,
        lidar_channels=mine.lidar_channels,
        radar_channels=mine.radar_channels,
        feature_stride_px=8 if camera is None else camera.feature_stride_px,
        lift_samples=(1, 1) if camera is None else camera.lift_samples,
        depth_bins=None if camera is None else camera.depth_bins.bins(),
        lidar_min_range_m=rig.lidar_min_range_m,
    )


@torch.inference_mode()
def perceive_frame(model: PerceptionModel, frame: SensorFrame, preparation: Preparation) -> Perception:
    """What the model sees in one frame, as tensors: B = 1, on the CPU but for the fused features, which stay where they are.

    A modality that is None costs nothing. On a GPU the answer is replayed, see `robustbev.cuda_graphs`.

    Args:
        model: in evaluation mode, on any device.
        frame: of any subset of the sensors, none included.
        preparation: what the model wants to be given; depth targets are not made.

    Raises:
        CalibrationError, ValueError: see `sensors.prepare.prepare`.
    """
    if model.training:
        raise ValueError("the model is in training mode, in which it answers at random: call model.eval() first")
    on_gpu = model.nms_radius_m.device.type == "cuda"
    # A GPU makes the lift table itself, in a fiftieth of the time.
    preparation = replace(preparation, depth_targets=False, depth_bins=None if on_gpu else preparation.depth_bins)
    prepared = prepare(frame, preparation)
    batch = collate([prepared], preparation)
    seen: Perception = model.graphs(model, batch) if on_gpu else model(batch.to(model.nms_radius_m.device))
    fused = replace(seen.fused, attention=seen.fused.attention.cpu(), coverage=seen.fused.coverage.cpu())
    return replace(
        seen, boxes=seen.boxes.to("cpu"), fused=fused, perceived=seen.perceived.cpu(), absent=prepared.absent
    )


def detect(model: PerceptionModel, frame: SensorFrame, rig: RigConfig | None, min_score: float) -> Detections:
    """`PerceptionModel.perceive`."""
    if not 0 <= min_score < 1:
        raise ValueError(f"min_score: expected 0 to less than 1, got {min_score}")
    wanted = preparation(model.config, rig)
    rig = model.config.rig if rig is None else rig
    assert rig is not None
    seen = perceive_frame(model, _on_rig(frame, rig), wanted)
    absent = seen.absent or {}
    _warn(absent)
    boxes = seen.shown(0)
    boxes = boxes[boxes.score >= min_score]
    return Detections(
        perceived=bool(seen.perceived[0]),
        classes=model.config.classes,
        attributes=model.config.attributes,
        center_m=boxes.center_m.numpy(),
        size_m=boxes.size_m.numpy(),
        yaw_rad=boxes.yaw_rad.numpy(),
        velocity_mps=boxes.velocity_mps.numpy(),
        label=boxes.label.numpy(),
        attribute=boxes.attribute.numpy(),
        score=boxes.score.numpy(),
        modalities=seen.modalities,
        attention=seen.fused.attention[0].float().numpy(),
        coverage=seen.fused.coverage[0].float().numpy(),
        absent={channel: absence.reason for channel, absence in absent.items()},
    )


def _warn(absent: Mapping[str, Absence]) -> None:
    """Of sensors that were given, without the counts: so Python shows each such warning once and not at every frame."""
    for channel, absence in absent.items():
        if absence.lack is not Lack.READING:
            message = f"{channel} counts as absent: {absence.lack} in this frame (Detections.absent has the counts)"
            warnings.warn(message, SensorDataWarning, stacklevel=4)  # where `perceive` was called


def _on_rig(frame: SensorFrame, rig: RigConfig) -> SensorFrame:
    """The frame with its cameras in the places of the rig's; ValueError for a sensor that the rig does not have."""
    _check_sweeps(frame.token, [s.channel for s in frame.lidar or ()], "LiDAR", rig.lidar_channels, rig.lidar_sweeps)
    _check_sweeps(frame.token, [s.channel for s in frame.radar or ()], "radar", rig.radar_channels, rig.radar_sweeps)
    if frame.cameras is None:
        return frame
    there = [camera for camera in frame.cameras if camera is not None]
    _check_sweeps(frame.token, [camera.channel for camera in there], "camera", rig.camera_channels, 1)
    by_channel: dict[str, CameraImage] = {camera.channel: camera for camera in there}
    return replace(frame, cameras=tuple(by_channel.get(channel) for channel in rig.camera_channels))


def _check_sweeps(token: str, channels: list[str], kind: str, known: tuple[str, ...], most: int) -> None:
    for channel, count in Counter(channels).items():
        if channel not in known:
            has = f"its {kind} channels are {', '.join(known)}" if known else f"it has no {kind}"
            raise ValueError(
                f"sample {token}: {kind} {channel} is not of this model's rig: {has}. Give the sensor the name that it had "
                "in training, or name your own sensors with rig="
            )
        if count > most:
            times = "one picture" if kind == "camera" else f"{most} sweep{'s' if most > 1 else ''}"
            raise ValueError(
                f"sample {token}: expected at most {times} of {kind} {channel}, as in training, got {count}: give the newest"
            )
