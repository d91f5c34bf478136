"""Bytes of the sensor files: nuScenes' .pcd.bin, radar .pcd, JPEG and map mask."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from sensors.simulation.sensing.radar import DTYPE
from sensors.simulation.shapes.mesh import Array

_TYPES = {"f": "F", "i": "I"}


def write_lidar(path: Path, points: Array) -> None:
    """Points [N, 5] f32 of x, y, z, intensity, ring."""
    path.write_bytes(np.ascontiguousarray(points, dtype="<f4").tobytes())


def write_radar(path: Path, points: Array) -> None:
    """Points [N] of radar.DTYPE. Zeros follow them as in real files; the devkit needs at least one such byte."""
    names = DTYPE.names or ()
    kinds = [DTYPE[n] for n in names]
    header = "\n".join(
        [
            "# .PCD v0.7 - Point Cloud Data file format",
            "VERSION 0.7",
            "FIELDS " + " ".join(names),
            "SIZE " + " ".join(str(k.itemsize) for k in kinds),
            "TYPE " + " ".join(_TYPES[k.kind] for k in kinds),
            "COUNT " + " ".join("1" for _ in kinds),
            f"WIDTH {len(points)}",
            "HEIGHT 1",
            "VIEWPOINT 0 0 0 1 0 0 0",
            f"POINTS {len(points)}",
            "DATA binary",
            "",
        ]
    )
    path.write_bytes(header.encode() + points.tobytes() + bytes(50 * len(points)))


def write_image(path: Path, image: Array, *, quality: int) -> None:
    """Image [H, W, 3] u8 RGB as JPEG."""
    import simplejpeg

    path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorsubsampling="420"))


def write_mask(path: Path, mask: Array) -> None:
    """Mask [H, W] u8 as PNG."""
    ok, data = cv2.imencode(
        ".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    )
    assert ok
    path.write_bytes(data.tobytes())
