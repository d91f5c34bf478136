"""What an index of a nuScenes data set holds, and the folder that it is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sensors.errors import DataRootError
from sensors.nuscenes.config import NuScenesConfig

TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "sample", "sample_annotation", "sample_data",
    "scene", "sensor", "visibility",
)  # fmt: skip


OPTIONAL_TABLES = ("log", "map")  # not every data set in this format has them, and nothing here needs them


@dataclass(frozen=True)
class IndexArrays:
    """One .npy file a field. Tokens and file names are fixed-width UTF-8 bytes; -1 stands for "none"."""

    sample_token: NDArray[Any]  # [S] bytes
    sample_time_us: NDArray[Any]  # [S] int64
    sample_scene: NDArray[Any]  # [S] int32
    keyframe: NDArray[Any]  # [S, C] int32 row of sample_data
    data_token: NDArray[Any]  # [D] bytes
    data_file: NDArray[Any]  # [D] bytes, relative to the data root
    data_channel: NDArray[Any]  # [D] int16
    data_time_us: NDArray[Any]  # [D] int64
    data_prev: NDArray[Any]  # [D] int32 row of the sweep before
    data_calibration: NDArray[Any]  # [D] int32
    data_ego_pose: NDArray[Any]  # [D, 7] float64 global_T_ego
    data_size_px: NDArray[Any]  # [D, 2] int32 height, width; 0 for point clouds
    scene_start: NDArray[
        Any
    ]  # [Q + 1] int64: the readings of scene q are scene_data[scene_start[q]:scene_start[q + 1]]
    scene_data: NDArray[Any]  # [D] int32 rows of sample_data by scene, time and channel
    calibration_pose: NDArray[Any]  # [K, 7] float64 ego_T_sensor
    calibration_intrinsics: NDArray[Any]  # [K, 3, 3] float64, NaN for point clouds
    calibration_distortion: NDArray[Any]  # [K, J] float64, 0 behind the last coefficient; J is 0 in most data sets
    calibration_distortion_model: NDArray[Any]  # [K] bytes, a name of `sensors.camera.rectification`; [0] where J is 0
    box_start: NDArray[Any]  # [S + 1] int64: the boxes of sample i are rows box_start[i]..box_start[i + 1]
    box_token: NDArray[Any]  # [N] bytes
    box_instance: NDArray[Any]  # [N] int32 row of the instance table: equal for one object over time
    instance_token: NDArray[Any]  # [I] bytes
    box_pose: NDArray[Any]  # [N, 7] float64 global_T_box
    box_size_m: NDArray[Any]  # [N, 3] float64 width, length, height
    box_velocity_mps: NDArray[Any]  # [N, 2] float64 global frame, NaN where unknown
    box_category: NDArray[Any]  # [N] int16
    box_attribute: NDArray[Any]  # [N] int16, the first of a box
    box_more_attributes: NDArray[Any]  # [N, A] int16, those after it; A is 0 in most data sets
    box_lidar_points: NDArray[Any]  # [N] int32, -1 where they were not counted
    box_radar_points: NDArray[Any]  # [N] int32, as these


@dataclass(frozen=True)
class IndexMeta:
    """The short lists, meta.json."""

    version: str
    channels: tuple[str, ...]  # C
    modalities: tuple[str, ...]  # C, "camera", "lidar" or "radar"
    categories: tuple[str, ...]
    attributes: tuple[str, ...]
    scenes: tuple[str, ...]  # Q names
    splits: dict[str, list[int]]  # split name -> scenes that are in these tables; only splits that have one
    notes: tuple[str, ...]  # what was found in the tables and is no fault, a line each
    data_id: str  # SHA-256 of the arrays: equal tables, equal id


def check_root(config: NuScenesConfig) -> Path:
    """The folder of tables; DataRootError with what to do where it is not whole."""
    root = config.root.expanduser()
    if not root.is_dir():
        raise DataRootError(
            f"data root {root} (data.nuscenes.root) does not exist. Correct the path, or get the data. For nuScenes register at "
            "https://www.nuscenes.org/nuscenes, download the archives of the full data set (or of mini) and unpack them all "
            "into that folder, so that it holds samples/, sweeps/, maps/ and v1.0-trainval/ (or v1.0-mini/). "
            "`make demo` needs no download: it writes synthetic drives"
        )
    tables = root / config.version
    if not tables.is_dir():
        versions = sorted(path.parent.name for path in root.glob("*/sample_data.json"))
        raise DataRootError(
            f"data root {root} has no version {config.version!r} (data.nuscenes.version); versions there: "
            f"{', '.join(versions) or 'none'}. A version is a folder of JSON tables, from the metadata archive (*_meta.tgz)"
        )
    missing = [name for name in TABLES if not (tables / f"{name}.json").is_file()]
    if missing:
        raise DataRootError(
            f"{tables} lacks {', '.join(f'{m}.json' for m in missing)}: unpack the metadata archive again"
        )
    return tables
