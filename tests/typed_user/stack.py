"""A robot's own code around a whole model and an exported one. Checked by strict type checkers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import robustbev
from fusion.runtime import Artifact, ArtifactError, load
from sensors.frames import CameraImage, LidarSweep, SensorFrame


def frame_of(
    picture: NDArray[np.uint8] | None, intrinsics: NDArray[np.float64], points: NDArray[np.float32], now_us: int
) -> SensorFrame:
    pose = np.eye(4)
    front = None if picture is None else CameraImage("FRONT", picture, intrinsics, pose, now_us)
    roof = LidarSweep("ROOF", points, pose, now_us)
    return SensorFrame("now", now_us, cameras=(front,), lidar=(roof,), radar=None, global_T_reference=pose)


def people_near(model: robustbev.PerceptionModel, frame: SensorFrame, radius_m: float) -> int | None:
    """None where nothing was perceived."""
    seen: robustbev.Detections = model.perceive(frame, min_score=0.2)
    if not seen.perceived:
        return None
    near: NDArray[np.bool_] = np.hypot(seen.center_m[:, 0], seen.center_m[:, 1]) < radius_m
    named = [box for box, close in zip(seen, near, strict=True) if bool(close) and box.name == "pedestrian"]
    trusted: dict[str, float] = seen.trust
    return len(named) if max(trusted.values()) > 0 else 0


def model_for(folder: Path, roof_only: bool) -> tuple[robustbev.PerceptionModel, robustbev.RigConfig | None]:
    model = robustbev.load(folder, device="cpu")
    rig = robustbev.RigConfig(lidar_channels=("ROOF",), lidar_sweeps=2) if roof_only else model.config.rig
    return model, rig


def artifact_for(file: Path, pinned: str) -> Artifact | str:
    try:
        artifact = load(file, sha256=pinned, threads=2)
    except ArtifactError as error:
        return str(error)
    sizes: dict[str, tuple[int | str, ...]] = {spec.name: spec.shape for spec in artifact.inputs}
    return artifact if "present" in sizes else "no mask"
