"""The devkit's tables turned into the columns of the index, and checked on the way."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import QUATERNION_TOLERANCE, intrinsics_fault, pose_fault
from sensors.errors import DataRootError, SensorDataError
from sensors.extras import require
from sensors.nuscenes_config import NuScenesConfig
from sensors.nuscenes_index import OPTIONAL_TABLES, IndexArrays, check_root

# The devkit's evaluation takes its own splits only with the versions that they were made for.
_VERSION_OF_SPLIT = {
    "train": "trainval", "val": "trainval", "train_detect": "trainval", "train_track": "trainval",
    "test": "test", "mini_train": "mini", "mini_val": "mini",
}  # fmt: skip
_NO_INTRINSICS = np.full((3, 3), np.nan)


def columns(config: NuScenesConfig) -> tuple[IndexArrays, dict[str, Any]]:
    """The arrays and the short lists of meta.json, without `data_id`; errors as `build_index`."""
    devkit = _load(config)
    channels = sorted(devkit.sensor, key=lambda row: (row["modality"], row["channel"]))
    channel_of = {row["channel"]: i for i, row in enumerate(channels)}
    scene_of = {row["token"]: i for i, row in enumerate(devkit.scene)}
    sample_of = {row["token"]: i for i, row in enumerate(devkit.sample)}
    data = devkit.sample_data
    row_of = {row["token"]: i for i, row in enumerate(data)}
    calibration_of = {row["token"]: i for i, row in enumerate(devkit.calibrated_sensor)}

    keyframe = np.full((len(devkit.sample), len(channels)), -1, np.int32)
    for i, sample in enumerate(devkit.sample):
        for channel, token in sample["data"].items():
            keyframe[i, channel_of[channel]] = row_of[token]
    sample_scene = _array([scene_of[row["scene_token"]] for row in devkit.sample], np.int32)
    time_us = _array([row["timestamp"] for row in data], np.int64)
    channel_of_data = _array([channel_of[row["channel"]] for row in data], np.int16)
    scene_of_data = sample_scene[_array([sample_of[row["sample_token"]] for row in data], np.int64)]
    arrays = IndexArrays(
        sample_token=_bytes(row["token"] for row in devkit.sample),
        sample_time_us=_array([row["timestamp"] for row in devkit.sample], np.int64),
        sample_scene=sample_scene,
        keyframe=keyframe,
        data_token=_bytes(row["token"] for row in data),
        data_file=_bytes(row["filename"] for row in data),
        data_channel=channel_of_data,
        data_time_us=time_us,
        data_prev=_array([row_of.get(row["prev"], -1) for row in data], np.int32),
        data_calibration=_array([calibration_of[row["calibrated_sensor_token"]] for row in data], np.int32),
        data_ego_pose=_poses([devkit.get("ego_pose", row["ego_pose_token"]) for row in data]),
        data_size_px=_array([(row["height"] or 0, row["width"] or 0) for row in data], np.int32).reshape(-1, 2),
        scene_start=np.searchsorted(np.sort(scene_of_data), np.arange(len(scene_of) + 1)).astype(np.int64),
        scene_data=np.lexsort((channel_of_data, time_us, scene_of_data)).astype(np.int32),
        calibration_pose=_poses(devkit.calibrated_sensor),
        calibration_intrinsics=_intrinsics(devkit),
        **_box_columns(devkit),
    )
    _check_poses(config, arrays, data, devkit)
    meta = {
        "version": config.version,
        "channels": list(channel_of),
        "modalities": [row["modality"] for row in channels],
        "categories": [row["name"] for row in devkit.category],
        "attributes": [row["name"] for row in devkit.attribute],
        "scenes": [row["name"] for row in devkit.scene],
        "splits": _splits(config, devkit),
    }
    return arrays, meta


def open_devkit(root: Path, version: str) -> Any:
    """The devkit's `NuScenes`, without its console output, of tables with or without `log` and `map`.

    Raises:
        AssertionError, KeyError, ValueError, OSError: the devkit's own, where tables or map pictures are not whole.
        MissingExtraError: no devkit here; the message says whether this interpreter can have it.
    """
    require(f"reading the tables in {root / version}", "data", "nuscenes")
    from nuscenes.nuscenes import NuScenes

    class Tables(NuScenes):  # type: ignore[misc]
        """Reads what is there; the devkit insists on both tables, though it reads neither for sensors or boxes."""

        def __load_table__(self, table_name: str) -> Any:
            if table_name in OPTIONAL_TABLES and not (root / version / f"{table_name}.json").is_file():
                return []
            return super().__load_table__(table_name)

        def __make_reverse_index__(self, verbose: bool) -> None:
            if not self.map:
                self.map: list[Any] = [{"token": "", "log_tokens": [row["token"] for row in self.log]}]
            super().__make_reverse_index__(verbose)

    return Tables(version=version, dataroot=str(root), verbose=False)


def _load(config: NuScenesConfig) -> Any:
    tables = check_root(config)
    try:
        return open_devkit(config.root.expanduser(), config.version)
    except (AssertionError, KeyError, ValueError, OSError) as error:
        raise DataRootError(
            f"the nuScenes devkit cannot load {tables}: {type(error).__name__}: {error}. "
            "Unpack the metadata and map archives into the data root again"
        ) from error


def _box_columns(devkit: Any) -> dict[str, NDArray[Any]]:
    """The box_* arrays, boxes grouped by sample."""
    category_of = {row["name"]: i for i, row in enumerate(devkit.category)}
    attribute_of = {row["token"]: i for i, row in enumerate(devkit.attribute)}
    instance_of = {row["token"]: i for i, row in enumerate(devkit.instance)}
    rows = [devkit.get("sample_annotation", token) for sample in devkit.sample for token in sample["anns"]]
    for row in rows:
        if fault := _box_fault(row):
            raise SensorDataError(
                f"sample_annotation.json: box {row['token']} of sample {row['sample_token']}: {fault}. Correct or remove this row"
            )
    return {
        "box_start": np.cumsum([0, *(len(sample["anns"]) for sample in devkit.sample)], dtype=np.int64),
        "box_token": _bytes(row["token"] for row in rows),
        "box_instance": _array([instance_of[row["instance_token"]] for row in rows], np.int32),
        "instance_token": _bytes(instance_of),
        "box_pose": _poses(rows),
        "box_size_m": _array([row["size"] for row in rows], np.float64).reshape(-1, 3),
        "box_velocity_mps": _array([devkit.box_velocity(row["token"])[:2] for row in rows], np.float64).reshape(-1, 2),
        "box_category": _array([category_of[row["category_name"]] for row in rows], np.int16),
        "box_attribute": _array([attribute_of.get("".join(row["attribute_tokens"]), -1) for row in rows], np.int16),
        "box_lidar_points": _array([row["num_lidar_pts"] for row in rows], np.int32),
        "box_radar_points": _array([row["num_radar_pts"] for row in rows], np.int32),
    }


def _box_fault(row: dict[str, Any]) -> str | None:
    size = row["size"]
    if len(size) != 3 or not all(0 < side < 1e4 for side in size):  # also False for NaN
        return f"expected three sizes (width, length, height) > 0 m, got {size}"
    if len(row["attribute_tokens"]) > 1:
        return f"expected at most one attribute, as the official evaluation does, got {len(row['attribute_tokens'])}"
    return pose_fault([*row["translation"], *row["rotation"]])


def _check_poses(config: NuScenesConfig, arrays: IndexArrays, data: list[dict[str, Any]], devkit: Any) -> None:
    """SensorDataError for the first ego pose, sensor pose or intrinsic matrix that cannot be one."""
    folder = config.root / config.version
    bad = _unsound(arrays.data_ego_pose)
    if len(bad):
        row = data[bad[0]]
        raise SensorDataError(
            f"{folder / 'ego_pose.json'}: pose {row['ego_pose_token']} of {row['channel']} ({row['filename']}): "
            f"{pose_fault(arrays.data_ego_pose[bad[0]])}. Correct this row; {len(bad)} rows are like it"
        )
    used = {int(i) for i in np.unique(arrays.data_calibration)}
    for i, row in enumerate(devkit.calibrated_sensor):
        sensor = devkit.get("sensor", row["sensor_token"])
        fault = pose_fault(arrays.calibration_pose[i])
        if fault is None and sensor["modality"] == "camera":
            fault = intrinsics_fault(arrays.calibration_intrinsics[i])
        if fault and i in used:
            raise SensorDataError(
                f"{folder / 'calibrated_sensor.json'}: calibration {row['token']} of {sensor['channel']}: {fault}. "
                "Correct this row"
            )


def _unsound(poses: NDArray[Any]) -> NDArray[np.int64]:
    """Rows that `pose_fault` would reject, for millions at once."""
    norm = np.linalg.norm(poses[:, 3:], axis=1)
    return np.flatnonzero(~(np.isfinite(poses).all(axis=1) & (np.abs(norm - 1) <= QUATERNION_TOLERANCE)))


def _intrinsics(devkit: Any) -> NDArray[Any]:
    rows = [row["camera_intrinsic"] for row in devkit.calibrated_sensor]
    return np.stack([np.asarray(m, float) if np.shape(m) == (3, 3) else _NO_INTRINSICS for m in rows])


def _splits(config: NuScenesConfig, devkit: Any) -> dict[str, list[int]]:
    """The official splits that fit this version and the custom ones of splits.json, those with a scene in the tables."""
    from nuscenes.utils.splits import create_splits_scenes, get_scenes_of_custom_split

    names: dict[str, list[str]] = {
        split: scenes
        for split, scenes in create_splits_scenes().items()
        if config.version.endswith(_VERSION_OF_SPLIT.get(split, ""))
    }
    for split in _custom_split_names(config):
        if split not in _VERSION_OF_SPLIT:
            names[split] = get_scenes_of_custom_split(split, devkit)
    scene_of = {row["name"]: i for i, row in enumerate(devkit.scene)}
    found = {split: [scene_of[name] for name in scenes if name in scene_of] for split, scenes in names.items()}
    return {split: scenes for split, scenes in found.items() if scenes}


def _custom_split_names(config: NuScenesConfig) -> list[str]:
    import json

    path = config.root.expanduser() / config.version / "splits.json"
    if not path.exists():
        return []
    try:
        splits = json.loads(path.read_text("utf-8"))
        if isinstance(splits, dict) and all(isinstance(scenes, list) for scenes in splits.values()):
            return list(splits)
        got = "another structure"
    except ValueError as error:
        got = str(error)
    raise DataRootError(
        f'{path}: expected {{"split name": ["scene name", ...]}}, got {got}. Correct or remove the file'
    )


def _poses(rows: list[dict[str, Any]]) -> NDArray[np.float64]:
    return np.array([(*row["translation"], *row["rotation"]) for row in rows], np.float64).reshape(-1, 7)


def _bytes(texts: Iterable[str]) -> NDArray[Any]:
    encoded = [text.encode() for text in texts]
    return np.array(encoded, dtype=f"S{max((len(e) for e in encoded), default=1)}")


def _array(values: list[Any], dtype: Any) -> NDArray[Any]:
    return np.array(values, dtype=dtype)
