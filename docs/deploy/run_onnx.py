"""Run a whole model on a robot with onnxruntime and numpy alone.

    cp -r fusion/runtime docs/deploy/run_onnx.py robot/ && cd robot
    python run_onnx.py robust.onnx --threads 2 --sha256 ...

`robust.rig.onnx`, where the model has cameras, lies beside it: from calibration to the tables that the model looks up. Sensors
are made up here; where yours come in stands `your ...`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from runtime import Artifact, load

Arrays = dict[str, Any]
POINTS = 2000  # rows of padded points; any number, in each call another if need be


def blank(artifact: Artifact, samples: int = 1) -> Arrays:
    """Every input of an artifact, all zero: what absent sensors look like, since nobody reads them."""
    sizes = {"B": samples, "P": POINTS, "Q": POINTS, "E": 0}
    return {
        spec.name: np.zeros([size if isinstance(size, int) else sizes[size] for size in spec.shape], spec.dtype)
        for spec in artifact.inputs
    }


def calibration(rig: Artifact, width_px: int, height_px: int) -> Arrays:
    """Your intrinsics [B, N, 3, 3] at the network's image size and poses [B, N, 4, 4]; here cameras all around, 1.6 m high."""
    inputs = blank(rig)
    cameras = inputs["camera_present"].shape[1]
    inputs["camera_present"][:] = True
    focal_px = width_px / 2 / np.tan(np.radians(35))
    inputs["intrinsics"][:] = np.array([[focal_px, 0, width_px / 2], [0, focal_px, height_px / 2], [0, 0, 1]])
    for n in range(cameras):
        yaw = 2 * np.pi * n / cameras
        ahead, left = np.array([np.cos(yaw), np.sin(yaw), 0]), np.array([-np.sin(yaw), np.cos(yaw), 0])
        inputs["reference_T_camera"][:, n, :3, :3] = np.stack(
            [-left, [0, 0, -1], ahead], axis=1
        )  # x right, y down, z ahead
        inputs["reference_T_camera"][:, n, :, 3] = [*(1.2 * ahead[:2]), 1.6, 1]
    return inputs


def sense(model: Artifact, tables: Arrays) -> Arrays:
    """One instant with every sensor there: your pictures and points; here noise."""
    random = np.random.default_rng(0)
    inputs = blank(model) | tables
    if "images" in inputs:
        inputs["images"] = random.integers(0, 256, inputs["images"].shape, np.uint8)
    for name in ("lidar", "radar"):
        if f"{name}_points" in inputs:
            inputs[f"{name}_points"] = random.normal(0, 8, inputs[f"{name}_points"].shape).astype(np.float32)
            inputs[f"{name}_count"][:] = POINTS // 2  # the rows behind are padding
    if "reference_T_radar" in inputs:
        inputs["reference_T_radar"][:] = np.eye(4)
    if "lidar_sectors" in inputs:
        inputs["lidar_sectors"][:] = 1
    for name in ("camera_present", "lidar_present", "radar_present", "present"):
        if name in inputs:
            inputs[name][:] = True
    return inputs


def tell(model: Artifact, inputs: Arrays, what: str) -> None:
    """Run, and print boxes, trust and time."""
    outputs = model(inputs)  # once, since the first calls are slower
    took_ms = []
    for _ in range(10):
        started = time.perf_counter()
        outputs = model(inputs)
        took_ms.append(1000 * (time.perf_counter() - started))
    names = model.manifest["modalities"]
    shares = (outputs["attention"] * outputs["coverage"][:, None]).mean(axis=(0, 2, 3))
    trusts = ", ".join(f"{name} {share:.2f}" for name, share in zip(names, shares, strict=True))
    perceived = bool(outputs["perceived"][0])  # False: blind, which is not an empty road
    print(f"{what}: perceived {perceived}; attention {trusts}; median {np.median(took_ms):.1f} ms")
    for i in np.flatnonzero(outputs["score"][0] > 0.3)[:5] if perceived else ():
        name, score = model.manifest["classes"][outputs["label"][0, i]], outputs["score"][0, i]
        x, y, _ = outputs["center_m"][0, i]
        print(f"  {name} at {x:.1f} m, {y:.1f} m, score {score:.2f}")


def main() -> None:
    """Say what goes in, then run with all sensors and without each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sha256", help="of the model, as noted where it was exported")
    options = parser.parse_args()
    model = load(options.model, sha256=options.sha256, threads=options.threads)
    for spec in model.inputs:
        print(f"{spec.name:<18} {spec!s:<32} {spec.unit:<22} {spec.meaning}")
    tables: Arrays = {}
    shapes = {spec.name: spec.shape for spec in model.inputs}
    if "images" in shapes:
        rig = load(options.model.with_name(options.model.name.replace(".onnx", ".rig.onnx")), threads=options.threads)
        height_px, width_px = (int(size) for size in shapes["images"][-2:])
        tables = rig(calibration(rig, width_px, height_px))  # once, and again when a camera is recalibrated
    inputs = sense(model, tables)
    tell(model, inputs, "all")
    for i, name in enumerate(model.manifest["modalities"]):
        lost = inputs["present"].copy()
        lost[:, i] = False
        tell(model, inputs | {"present": lost}, f"without {name}")


if __name__ == "__main__":
    main()
