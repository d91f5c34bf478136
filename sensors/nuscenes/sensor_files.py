"""Bytes of the sensor files, as they are written: nuScenes' .pcd.bin, radar .pcd, JPEG and map mask.

Letters: N points, H and W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RADAR_POINT = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("dyn_prop", "i1"), ("id", "<i2"), ("rcs", "<f4"), ("vx", "<f4"), ("vy", "<f4"),
     ("vx_comp", "<f4"), ("vy_comp", "<f4"), ("is_quality_valid", "i1"), ("ambig_state", "i1"), ("x_rms", "i1"), ("y_rms", "i1"),
     ("invalid_state", "i1"), ("pdh0", "i1"), ("vx_rms", "i1"), ("vy_rms", "i1")]
)  # fmt: skip
"""One nuScenes radar point: 43 bytes."""
_TYPES = {"f": "F", "i": "I"}


def write_lidar(path: Path, points: NDArray[Any]) -> None:
    """Points [N, 5] f32 of x, y, z, intensity, ring."""
    path.write_bytes(np.ascontiguousarray(points, dtype="<f4").tobytes())


def write_radar(path: Path, points: NDArray[Any]) -> None:
    """Points [N] of RADAR_POINT. Zeros follow them as in real files; the devkit needs at least one such byte."""
    names = RADAR_POINT.names or ()
    kinds = [RADAR_POINT[n] for n in names]
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


def write_image(path: Path, image: NDArray[Any], *, quality: int) -> None:
    """Image [H, W, 3] u8 RGB as JPEG."""
    import simplejpeg

    path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorsubsampling="420"))


def write_mask(path: Path, mask: NDArray[Any]) -> None:
    """Mask [H, W] u8 as PNG."""
    import cv2

    ok, data = cv2.imencode(
        ".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    )
    assert ok
    path.write_bytes(data.tobytes())
