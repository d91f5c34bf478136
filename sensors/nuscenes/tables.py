"""The devkit's tables turned into the columns of the index, and checked on the way."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import QUATERNION_TOLERANCE, CalibrationError, intrinsics_fault, pose_fault
from sensors.camera.rectification import MOST_COEFFICIENTS, Lens, distortion_doubt, distortion_fault, model_of
from sensors.documents import check_memory, read_json
from sensors.errors import DataRootError, SensorDataError
from sensors.extras import require
from sensors.nuscenes.arrays import OPTIONAL_TABLES, IndexArrays, check_root
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.schema import SCHEMA, Row, check_links, check_rows, is_matrix, row_fault

# The devkit's evaluation takes its own splits only with the versions that they were made for.
_VERSION_OF_SPLIT = {
    "train": "trainval", "val": "trainval", "train_detect": "trainval", "train_track": "trainval",
    "test": "test", "mini_train": "mini", "mini_val": "mini",
}  # fmt: skip
MAX_SPEED_MPS = 60.0  # nothing that drives is faster: a track that is has another object's box in it, or a wrong time
_VELOCITY_WITHIN_S = 1.5  # the devkit's `box_velocity`: between boxes further apart it is unknown
_LEAST_GAP_US = 5_000.0  # between the keyframes of a scene; 0.5 s told in milliseconds are 500
_LATEST_US = 10**17  # the year 5138; a time of today in nanoseconds is 10**18
_KEYFRAME_WITHIN_S, _SWEEP_WITHIN_S = 5.0, 60.0  # of the time of their sample


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
    sample_of_data = _array([sample_of[row["sample_token"]] for row in data], np.int64)
    scene_of_data = sample_scene[sample_of_data]
    sample_time_us = _array([row["timestamp"] for row in devkit.sample], np.int64)
    _check_times(config, devkit, sample_time_us, sample_scene, time_us - sample_time_us[sample_of_data])
    boxes, notes = _box_columns(config, devkit, sample_time_us)
    arrays = IndexArrays(
        sample_token=_bytes(row["token"] for row in devkit.sample),
        sample_time_us=sample_time_us,
        sample_scene=sample_scene,
        keyframe=keyframe,
        data_token=_bytes(row["token"] for row in data),
        data_file=_bytes(row["filename"] for row in data),
        data_channel=channel_of_data,
        data_time_us=time_us,
        data_prev=_array([row_of.get(row["prev"], -1) for row in data], np.int32),
        data_calibration=_array([calibration_of[row["calibrated_sensor_token"]] for row in data], np.int32),
        data_ego_pose=_poses([devkit.get("ego_pose", row["ego_pose_token"]) for row in data]),
        data_size_px=_array([(row["height"], row["width"]) for row in data], np.int32).reshape(-1, 2),
        scene_start=np.searchsorted(np.sort(scene_of_data), np.arange(len(scene_of) + 1)).astype(np.int64),
        scene_data=np.lexsort((channel_of_data, time_us, scene_of_data)).astype(np.int32),
        calibration_pose=_poses(devkit.calibrated_sensor),
        calibration_intrinsics=_intrinsics(devkit),
        **_distortion(devkit),
        **boxes,
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
        "notes": [*devkit.notes, *_lens_notes(config, devkit), *notes],
    }
    return arrays, meta


def open_devkit(root: Path, version: str) -> Any:
    """The devkit's `NuScenes`, without its console output, of tables that are checked and with what absent keys mean filled in.

    `log` and `map`, which say nothing of sensors or boxes, are not read. `notes` are what was found and is no fault.

    Raises:
        DataRootError: a table cannot be read.
        SensorDataError: a row lacks a key, holds a value that cannot be one, or names a row that is not there.
        AssertionError, KeyError, ValueError, OSError: the devkit's own, where more tables than these are not whole.
        MissingExtraError: no devkit here; the message says whether this interpreter can have it.
    """
    require(f"reading the tables in {root / version}", "data", "nuscenes")
    from nuscenes.nuscenes import NuScenes

    class Tables(NuScenes):  # type: ignore[misc]
        """Checks what it reads; the devkit would stumble over a row that is not whole, or not notice."""

        def __load_table__(self, table_name: str) -> Any:
            if table_name in OPTIONAL_TABLES:
                return []
            return check_rows(root / version / f"{table_name}.json", _read(root / version / f"{table_name}.json"))

        def __make_reverse_index__(self, verbose: bool) -> None:
            self.notes = check_links(root / version, {name: getattr(self, name) for name in SCHEMA})
            self.map: list[Any] = [{"token": "", "log_tokens": []}]
            super().__make_reverse_index__(verbose)

        def box_velocity(self, sample_annotation_token: str, max_time_diff: float = _VELOCITY_WITHIN_S) -> Any:
            with np.errstate(divide="ignore", invalid="ignore"):  # two boxes of one time
                velocity = super().box_velocity(sample_annotation_token, max_time_diff)
            return velocity if np.hypot(*velocity[:2]) <= MAX_SPEED_MPS else np.full(3, np.nan)

    return Tables(version=version, dataroot=str(root), verbose=False)


def _read(path: Path) -> Any:
    try:
        if not path.is_file():
            raise OSError("a folder, a pipe or a device")
        data = path.read_bytes()
        check_memory(data)
        return json.loads(data)
    except (ValueError, OSError, RecursionError, MemoryError) as error:
        raise DataRootError(
            f"cannot load {path}: {type(error).__name__}: {error}. Unpack the metadata archive into the data root again"
        ) from error


def _load(config: NuScenesConfig) -> Any:
    tables = check_root(config)
    try:
        return open_devkit(config.root.expanduser(), config.version)
    except (DataRootError, SensorDataError):
        raise
    except (AssertionError, KeyError, ValueError, OSError) as error:
        raise DataRootError(
            f"the nuScenes devkit cannot load {tables}: {type(error).__name__}: {error}. "
            "Unpack the metadata archive into the data root again"
        ) from error


def _check_times(
    config: NuScenesConfig,
    devkit: Any,
    sample_time_us: NDArray[np.int64],
    sample_scene: NDArray[np.int32],
    after_sample_us: NDArray[np.int64],
) -> None:
    """SensorDataError where times are not in microseconds, or a reading is of another time than its sample."""
    order = np.lexsort((sample_time_us, sample_scene))
    gaps_us = np.diff(sample_time_us[order])[np.diff(sample_scene[order]) == 0]
    typical_us = float(np.median(gaps_us)) if len(gaps_us) else np.inf
    samples, data = _path(config, "sample"), _path(config, "sample_data")
    if typical_us < _LEAST_GAP_US or (len(order) and sample_time_us.max() > _LATEST_US):
        got = f"{devkit.sample[order[-1]]['timestamp']}, and {typical_us:g} between keyframes (median): another unit"
        raise row_fault(
            samples, devkit.sample[order[-1]], "timestamp", "microseconds, as in all tables", got, len(order)
        )
    is_key = _array([bool(row["is_key_frame"]) for row in devkit.sample_data], bool)
    off_s = np.abs(after_sample_us * 1e-6)
    bad = np.flatnonzero(off_s > np.where(is_key, _KEYFRAME_WITHIN_S, _SWEEP_WITHIN_S))
    if len(bad):
        row = devkit.sample_data[bad[0]]
        raise row_fault(
            data,
            row,
            "timestamp",
            f"microseconds near those of its sample {row['sample_token']} in {samples.name}",
            f"{row['timestamp']}, which is {off_s[bad[0]]:.6g} s off",
            len(bad),
        )


def _box_columns(
    config: NuScenesConfig, devkit: Any, sample_time_us: NDArray[np.int64]
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """The box_* arrays, boxes grouped by sample, and what is to be told of them."""
    category_of = {row["name"]: i for i, row in enumerate(devkit.category)}
    attribute_of = {row["token"]: i for i, row in enumerate(devkit.attribute)}
    instance_of = {row["token"]: i for i, row in enumerate(devkit.instance)}
    rows = [devkit.get("sample_annotation", token) for sample in devkit.sample for token in sample["anns"]]
    start = np.cumsum([0, *(len(sample["anns"]) for sample in devkit.sample)], dtype=np.int64)
    poses, sizes_m = _poses(rows), _array([row["size"] for row in rows], np.float64).reshape(-1, 3)
    _check_boxes(config, rows, poses, sizes_m)
    path, notes = _path(config, "sample_annotation"), []
    velocity_mps = _velocities(rows, poses, np.repeat(sample_time_us, np.diff(start)))
    fast = np.flatnonzero(~(np.hypot(*velocity_mps.T) <= MAX_SPEED_MPS) & ~np.isnan(velocity_mps).any(axis=1))
    if len(fast):
        speed_mps = np.hypot(*velocity_mps[fast[0]])
        velocity_mps[fast] = np.nan
        notes.append(
            f"{path}: row {rows[fast[0]]['token']}: prev and next give {speed_mps:.4g} m/s; so {len(fast)} of {len(rows)} boxes "
            f"move faster than {MAX_SPEED_MPS:g} m/s, and their velocity counts as unknown"
        )
    attributes = [[attribute_of[token] for token in row["attribute_tokens"]] for row in rows]
    most = max([1, *map(len, attributes)])
    if most > 1:
        several = [i for i, each in enumerate(attributes) if len(each) > 1]
        notes.append(
            f"{path}: row {rows[several[0]]['token']}: attribute_tokens: {len(several)} of {len(rows)} boxes have more than one "
            "attribute: the first that the model knows counts, none where it knows none"
        )
    table = _array([each + [-1] * (most - len(each)) for each in attributes], np.int16).reshape(-1, most)
    columns = {
        "box_start": start,
        "box_token": _bytes(row["token"] for row in rows),
        "box_instance": _array([instance_of[row["instance_token"]] for row in rows], np.int32),
        "instance_token": _bytes(instance_of),
        "box_pose": poses,
        "box_size_m": sizes_m,
        "box_velocity_mps": velocity_mps,
        "box_category": _array([category_of[row["category_name"]] for row in rows], np.int16),
        "box_attribute": np.ascontiguousarray(table[:, 0]),
        "box_more_attributes": table[:, 1:],
        "box_lidar_points": _array([row["num_lidar_pts"] for row in rows], np.int32),
        "box_radar_points": _array([row["num_radar_pts"] for row in rows], np.int32),
    }
    return columns, notes


def _velocities(rows: list[Row], poses: NDArray[np.float64], time_us: NDArray[np.int64]) -> NDArray[np.float64]:
    """[N, 2] m/s as the devkit's `box_velocity` has them; NaN too between boxes of one time or in the wrong order."""
    row_of = {row["token"]: i for i, row in enumerate(rows)}
    own = np.arange(len(rows))
    first = _array([row_of.get(row["prev"], i) for i, row in enumerate(rows)], np.int64)
    last = _array([row_of.get(row["next"], i) for i, row in enumerate(rows)], np.int64)
    time_s = 1e-6 * time_us
    apart_s = time_s[last] - time_s[first]
    known = (apart_s > 0) & (apart_s <= _VELOCITY_WITHIN_S * np.where((first != own) & (last != own), 2, 1))
    apart_s[~known] = np.nan
    velocity: NDArray[np.float64] = (poses[last, :2] - poses[first, :2]) / apart_s[:, None]
    return velocity


def _check_boxes(
    config: NuScenesConfig, rows: list[Row], poses: NDArray[np.float64], sizes_m: NDArray[np.float64]
) -> None:
    """SensorDataError for the first box of a size or a pose that cannot be one."""
    path = _path(config, "sample_annotation")
    wrong = np.flatnonzero(~((sizes_m > 0) & (sizes_m < 1e4)).all(axis=1))  # also of NaN
    for bad, key in ((wrong, "size"), (_unsound(poses), "translation, rotation")):
        if not len(bad):
            continue
        row = rows[bad[0]]
        expected, got = _said(pose_fault(poses[bad[0]]))
        if key == "size":
            expected, got = "three sizes (width, length, height) > 0 m and < 10 km", f"{row['size']}"
        raise row_fault(path, row, key, expected, f"{got} (a box of sample {row['sample_token']})", len(bad))


def _said(fault: str | None) -> tuple[str, str]:
    """What was expected and what is there, of a fault as `sensors.calibration` words it."""
    expected, _, got = str(fault).removeprefix("expected ").partition(", got ")
    return expected, got


def _check_poses(config: NuScenesConfig, arrays: IndexArrays, data: list[Row], devkit: Any) -> None:
    """SensorDataError for the first ego pose, sensor pose, intrinsic matrix or distortion that cannot be one."""
    bad = _unsound(arrays.data_ego_pose)
    if len(bad):
        row = data[bad[0]]
        expected, got = _said(pose_fault(arrays.data_ego_pose[bad[0]]))
        raise row_fault(
            _path(config, "ego_pose"),
            devkit.get("ego_pose", row["ego_pose_token"]),
            "translation, rotation",
            expected,
            f"{got} (of {row['channel']}, {row['filename']})",
            len(bad),
        )
    used = {int(i) for i in np.unique(arrays.data_calibration)}
    sizes_px = _sizes_px(arrays)
    for i, row in enumerate(devkit.calibrated_sensor):
        sensor = devkit.get("sensor", row["sensor_token"])
        key, fault = "translation, rotation", pose_fault(arrays.calibration_pose[i])
        if fault is None and sensor["modality"] == "camera":
            key, fault = "camera_intrinsic", intrinsics_fault(arrays.calibration_intrinsics[i])
        if fault is None and sensor["modality"] == "camera":
            key = "camera_distortion, camera_distortion_model"
            fault = _lens_fault(row, arrays.calibration_intrinsics[i], sizes_px.get(i, set()) if i in used else set())
        if fault and i in used:
            expected, got = _said(fault)
            raise row_fault(_path(config, "calibrated_sensor"), row, key, expected, f"{got} (of {sensor['channel']})")


def _sizes_px(arrays: IndexArrays) -> dict[int, set[tuple[int, int]]]:
    """Calibration -> the sizes (height, width) of its pictures, as far as the tables tell."""
    known = arrays.data_size_px.min(axis=1) > 0
    rows = np.unique(np.column_stack([arrays.data_calibration, arrays.data_size_px])[known], axis=0)
    sizes: dict[int, set[tuple[int, int]]] = {}
    for calibration, height, width in rows.tolist():
        sizes.setdefault(calibration, set()).add((height, width))
    return sizes


def _lens_fault(row: Row, K: NDArray[np.float64], sizes_px: set[tuple[int, int]]) -> str | None:
    """What is wrong with a camera's distortion, or with what it leaves of pictures of these sizes."""
    model, coefficients = row["camera_distortion_model"], row["camera_distortion"]
    if fault := distortion_fault(model, coefficients):
        return fault
    try:
        for size_px in sorted(sizes_px):
            Lens.of(model, coefficients, K, size_px)
    except CalibrationError as error:
        return str(error)
    return None


def _path(config: NuScenesConfig, table: str) -> Path:
    return config.root / config.version / f"{table}.json"


def _unsound(poses: NDArray[Any]) -> NDArray[np.int64]:
    """Rows that `pose_fault` would reject, for millions at once."""
    norm = np.linalg.norm(poses[:, 3:], axis=1)
    return np.flatnonzero(~(np.isfinite(poses).all(axis=1) & (np.abs(norm - 1) <= QUATERNION_TOLERANCE)))


def _intrinsics(devkit: Any) -> NDArray[Any]:
    matrices = np.full((len(devkit.calibrated_sensor), 3, 3), np.nan)
    for matrix, row in zip(matrices, devkit.calibrated_sensor, strict=True):
        if is_matrix(row["camera_intrinsic"]):
            matrix[:] = row["camera_intrinsic"]
    return matrices


def _distortion(devkit: Any) -> dict[str, NDArray[Any]]:
    """The calibration_distortion* arrays: what is told of lenses that are cameras' and do distort."""
    rows = [
        row["camera_distortion"] if devkit.get("sensor", row["sensor_token"])["modality"] == "camera" else []
        for row in devkit.calibrated_sensor
    ]
    coefficients = np.zeros((len(rows), MOST_COEFFICIENTS if any(map(any, rows)) else 0))
    for values, row in zip(coefficients, rows, strict=True):
        values[: len(row)] = row[: len(values)]
    models = _bytes(map(_distortion_model, devkit.calibrated_sensor))
    return {
        "calibration_distortion": coefficients,
        "calibration_distortion_model": models if coefficients.size else models[:0],
    }


def _lens_notes(config: NuScenesConfig, devkit: Any) -> list[str]:
    path = _path(config, "calibrated_sensor")
    doubts = [
        f"{path}: row {row['token']}: camera_distortion: {doubt}"
        for row in devkit.calibrated_sensor
        if devkit.get("sensor", row["sensor_token"])["modality"] == "camera"
        and (doubt := distortion_doubt(row["camera_distortion_model"], row["camera_distortion"]))
    ]
    return [f"{doubts[0]}; so in {len(doubts)} rows"] if doubts else []


def _distortion_model(row: Row) -> str:
    return model_of(row["camera_distortion_model"], row["camera_distortion"])


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
    scenes_of = {split: [scene_of[name] for name in scenes if name in scene_of] for split, scenes in names.items()}
    return {split: scenes for split, scenes in scenes_of.items() if scenes}


def _custom_split_names(config: NuScenesConfig) -> list[str]:
    path = config.root.expanduser() / config.version / "splits.json"
    if not path.exists():
        return []
    try:
        splits = read_json(path)
        if isinstance(splits, dict) and all(
            isinstance(scenes, list) and all(isinstance(scene, str) for scene in scenes) for scenes in splits.values()
        ):
            return list(splits)
        got = "another structure"
    except (ValueError, OSError) as error:
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
