"""One frame of sensor data in, what the model sees out."""

from __future__ import annotations

from dataclasses import replace

import torch

from robustbev.model import Perception, PerceptionModel
from sensors.collate import collate
from sensors.frames import SensorFrame
from sensors.prepare import Preparation, prepare


@torch.inference_mode()
def perceive(model: PerceptionModel, frame: SensorFrame, preparation: Preparation) -> Perception:
    """What the model sees in one frame: B = 1, on the CPU. A modality that is None costs nothing and is a null to the fuser.

    Args:
        model: in evaluation mode, on any device.
        frame: of any subset of the sensors, none included.
        preparation: what the model wants to be given; depth targets are not made.

    Raises:
        CalibrationError, ValueError: see `sensors.prepare.prepare`.
    """
    batch = collate([prepare(frame, replace(preparation, depth_targets=False))], preparation)
    device = next(model.parameters()).device
    seen = model(batch.to(device))
    fused = replace(
        seen.fused,
        features=seen.fused.features.cpu(),
        attention=seen.fused.attention.cpu(),
        coverage=seen.fused.coverage.cpu(),
    )
    return Perception(seen.boxes.to("cpu"), fused, seen.modalities, seen.perceived.cpu())
