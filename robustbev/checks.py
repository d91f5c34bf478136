"""Whether a `SensorBatch` fits a model: looked at before anything is computed.

Letters: B samples, N cameras, L LiDARs, R radars, P points (padded), S azimuth sectors, E table entries, H and W pixels,
h and w feature pixels, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bev.lift.table import LiftTable
from robustbev.config import ModelConfig
from sensors.batch import CameraBatch, LidarBatch, RadarBatch, SensorBatch
from sensors.camera.config import CameraConfig

_TYPES = {"camera": CameraBatch, "lidar": LidarBatch, "radar": RadarBatch}  # by kind
_SINGULAR = 1e-6  # a determinant nearer to zero than this cannot be inverted


def check_batch(batch: SensorBatch, config: ModelConfig, device: torch.device) -> None:
    """What a `PerceptionModel` is given must fit its configuration and lie on its `device`.

    Shapes, dtypes and devices are looked at everywhere; numbers (counts, calibration, sectors) on a CPU alone, because a GPU
    would have to be waited for. What belongs to an absent sensor may hold anything. Nothing is looked at while torch makes a
    graph (torch.compile, torch.export).

    Raises:
        ValueError: something does not fit; says what was expected, what was found and what to do.
    """
    if torch.compiler.is_compiling():
        return
    if not isinstance(batch, SensorBatch):
        raise ValueError(
            f"batch: expected a sensors.batch.SensorBatch, got {type(batch).__name__}: make one of frames by "
            "model.batch(frames), or use model.perceive(frame)"
        )
    size: Any = batch.batch_size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"batch_size: expected an int of at least 1, got {size!r}: give the number of samples")
    if not isinstance(batch.parts, Mapping):
        raise ValueError(
            f"parts: expected a mapping from names of modalities to batches, got {type(batch.parts).__name__}"
        )
    for name, part in batch.parts.items():
        _check_modality(part, name, config)
        axes = _Axes(size, device)
        match part, config.modalities[name]:
            case CameraBatch(), CameraConfig() as camera:
                _check_cameras(name, part, config, camera, axes)
            case LidarBatch(), _:
                _check_lidar(name, part, axes)
            case RadarBatch(), _:
                _check_radar(name, part, axes)


def check_weights(model: nn.Module) -> None:
    """ValueError where a parameter is not float32: geometry and decoding are computed in it, and so is what is prepared."""
    if torch.compiler.is_compiling():
        return
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"weights: expected float32, got {_name(parameter.dtype)} ({name}): call model.float(); in less than float32 a "
                'model computes by robustbev.load(..., precision="bfloat16") or torch.autocast'
            )


def check_views(views: Sequence[Tensor], batch_size: int, modalities: Sequence[str]) -> None:
    """ValueError where a view does not say of each sample and modality whether the fuser may see it."""
    for view in views:
        if tuple(view.shape) != (batch_size, len(modalities)) or view.dtype != torch.bool:
            raise ValueError(
                f"views: expected bool [{batch_size}, {len(modalities)}] (samples; {', '.join(modalities)}), got "
                f"{_name(view.dtype)} {list(view.shape)}: draw one for each modality of the model, in this order"
            )


def _check_modality(part: Any, name: str, config: ModelConfig) -> None:
    if name not in config.modalities:
        raise ValueError(
            f"{name}: this model knows no {name}, its modalities are {', '.join(config.modalities)}: expected none, got "
            f"{type(part).__name__}: leave it out with batch.only(model.config.modalities)"
        )
    expected = _TYPES[config.modalities[name].kind]
    if not isinstance(part, expected):
        raise ValueError(
            f"{name}: expected a {expected.__name__}, or no such part where the modality is absent, got {type(part).__name__}: "
            f"make one of sensors.batch.{expected.__name__}"
        )


class _Axes:
    """One tensor after the other against what the model takes. Axes of one letter have one length, that of the first tensor."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.device = device
        self.length: dict[str, int] = {"B": batch_size}
        self.source: dict[str, str] = {"B": "batch_size"}

    def set(self, source: str, **lengths: int) -> None:
        """Lengths that are known beforehand, and from where."""
        self.length |= lengths
        self.source |= dict.fromkeys(lengths, source)

    def check(self, name: str, value: Any, dtype: torch.dtype, axes: str, action: str) -> None:
        """ValueError where `value` is no tensor of this dtype and these axes on the device; `action` is for a wrong shape."""
        letters = axes.split()
        if not isinstance(value, Tensor):
            raise ValueError(f"{self._expected(name, dtype, letters)}, got {type(value).__name__}: give a torch tensor")
        if value.dtype != dtype:
            action = f"convert it with .to({dtype})" + (", values 0 to 255" if dtype == torch.uint8 else "")
        elif value.device != self.device:
            raise ValueError(
                f"{name}: expected it on {self.device} as the model, got it on {value.device}: move the whole batch with "
                f"batch.to({str(self.device)!r}), or the model"
            )
        elif self._fits(name, value.shape, letters):
            return
        raise ValueError(
            f"{self._expected(name, dtype, letters)}, got {_name(value.dtype)} {list(value.shape)}: {action}"
        )

    def _fits(self, name: str, shape: torch.Size, letters: list[str]) -> bool:
        if len(shape) != len(letters):
            return False
        for letter, got in zip(letters, shape, strict=True):
            expected = int(letter) if letter.isdigit() else self.length.get(letter)
            if got != expected and (expected is not None or got < 1):
                return False
        for letter, got in zip(letters, shape, strict=True):
            if not letter.isdigit() and letter not in self.length:
                self.length[letter], self.source[letter] = got, name
        return True

    def _expected(self, name: str, dtype: torch.dtype, letters: list[str]) -> str:
        lengths = ", ".join(str(self.length.get(letter, letter)) for letter in letters)
        origin = "".join(
            f"; {letter} as in {self.source[letter]}" for letter in dict.fromkeys(letters) if letter in self.source
        )
        return f"{name}: expected {_name(dtype)} [{lengths}] ({', '.join(letters)}{origin})"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_cameras(name: str, cameras: CameraBatch, config: ModelConfig, camera: CameraConfig, axes: _Axes) -> None:
    height, width = camera.image_size
    grid = config.grid.bev().shape
    axes.set("model.config", H=height, W=width, X=grid[0], Y=grid[1])
    fit = "sensors.camera.images.fit_image cuts them and their intrinsics to it"
    size = f"the network takes pictures of {height} x {width} px: {fit}"
    axes.check(f"{name}.images", cameras.images, torch.uint8, "B N 3 H W", size)
    axes.check(f"{name}.present", cameras.present, torch.bool, "B N", "one entry for each camera of each sample")
    axes.check(f"{name}.intrinsics", cameras.intrinsics, torch.float32, "B N 3 3", "one 3 x 3 matrix for each camera")
    poses = cameras.reference_T_camera
    axes.check(f"{name}.reference_T_camera", poses, torch.float32, "B N 4 4", "one 4 x 4 pose for each camera")
    if cameras.lift is not None:
        _check_lift(f"{name}.lift", cameras.lift, camera, axes)
    if axes.device.type == "cpu":
        _check_invertible(f"{name}.intrinsics", cameras.intrinsics, cameras.present)
        _check_invertible(f"{name}.reference_T_camera", poses, cameras.present)


def _check_lift(where: str, table: Any, camera: CameraConfig, axes: _Axes) -> None:
    if not isinstance(table, LiftTable):
        raise ValueError(
            f"{where}: expected a bev.lift.table.LiftTable or None, got {type(table).__name__}: build_lift_table makes one"
        )
    anew = "the table is of another batch, grid or picture: build it with build_lift_table, or leave it None"
    length, stride = axes.length, camera.feature_stride_px
    pixels = length["B"] * length["N"] * (length["H"] // stride) * (length["W"] // stride)
    axes.check(f"{where}.visible", table.visible, torch.bool, "B N X Y", anew)
    bounds = length["B"] * length["X"] * length["Y"] + 1
    axes.check(f"{where}.offsets", table.offsets, torch.int32, f"{bounds}", anew)
    axes.check(f"{where}.pixel_offsets", table.pixel_offsets, torch.int32, f"{pixels + 1}", anew)
    entry: Any = table.entry
    if isinstance(entry, Tensor) and entry.ndim == 1:
        axes.set(f"{where}.entry", E=len(entry))  # cameras that look past the grid leave it empty
    for field in ("entry", "pixel_entry", "pixel_cell"):
        axes.check(f"{where}.{field}", getattr(table, field), torch.int32, "E", anew)


def _check_lidar(name: str, lidar: LidarBatch, axes: _Axes) -> None:
    columns = "the columns are x_m, y_m, z_m, intensity, age_s; no points are one row of padding with count 0"
    axes.check(f"{name}.points", lidar.points, torch.float32, "B P 5", columns)
    axes.check(f"{name}.present", lidar.present, torch.bool, "B L", "one entry for each LiDAR of each sample")
    axes.check(f"{name}.count", lidar.count, torch.int64, "B", "one entry for each sample")
    axes.check(f"{name}.sectors", lidar.sectors, torch.float32, "B L S", "one row of azimuth sectors for each LiDAR")
    if axes.device.type == "cpu":
        _check_count(name, lidar.count, lidar.present.any(1), lidar.points.shape[1])
        sound = ((lidar.sectors >= 0) & (lidar.sectors <= 1)).all(2) | ~lidar.present
        if not sound.all():
            b, k = divmod(int(sound.int().argmin()), sound.shape[1])
            raise ValueError(
                f"{name}.sectors: expected 0 (dead) to 1 (works), got {lidar.sectors[b, k].tolist()} in sample {b}, LiDAR {k}: "
                "give the share of each azimuth sector that it covers"
            )


def _check_radar(name: str, radar: RadarBatch, axes: _Axes) -> None:
    columns = (
        "the columns are x_m, y_m, z_m, rcs_dbsm, vx_mps, vy_mps, age_s; no points are one row of padding with count 0"
    )
    axes.check(f"{name}.points", radar.points, torch.float32, "B P 7", columns)
    axes.check(f"{name}.present", radar.present, torch.bool, "B R", "one entry for each radar of each sample")
    axes.check(f"{name}.count", radar.count, torch.int64, "B", "one entry for each sample")
    poses = radar.reference_T_radar
    axes.check(f"{name}.reference_T_radar", poses, torch.float32, "B R 4 4", "one 4 x 4 pose for each radar")
    if axes.device.type == "cpu":
        _check_count(name, radar.count, radar.present.any(1), radar.points.shape[1])
        _check_invertible(f"{name}.reference_T_radar", poses, radar.present)


def _check_count(name: str, count: Tensor, present: Tensor, most: int) -> None:
    """[B], [B]: of the samples that have the sensor."""
    sound = ((count >= 0) & (count <= most)) | ~present
    if not sound.all():
        b = int(sound.int().argmin())
        raise ValueError(
            f"{name}.count: expected 0 to {most} (P of {name}.points), got {int(count[b])} in sample {b}: count the rows that "
            "are points; those behind are padding"
        )


def _check_invertible(name: str, matrices: Tensor, present: Tensor) -> None:
    """[B, K, n, n], [B, K]: an affine map of each sensor that is there. It need not be rigid: augmentation mirrors and scales."""
    size = matrices.shape[-1]
    determinant = torch.linalg.det(matrices)
    last_row = torch.tensor([*[0.0] * (size - 1), 1.0])
    sound = (
        determinant.isfinite()
        & (determinant.abs() > _SINGULAR)
        & ((matrices[..., -1, :] - last_row).abs() < 1e-5).all(-1)
    )
    sound &= matrices.isfinite().flatten(2).all(2)
    sound |= ~present
    if not sound.all():
        b, k = divmod(int(sound.int().argmin()), sound.shape[1])
        row = " ".join(["0"] * (size - 1) + ["1"])
        raise ValueError(
            f"{name}: expected an invertible {size} x {size} matrix of finite numbers with a last row of {row}, got "
            f"{matrices[b, k].tolist()} in sample {b}, sensor {k}: correct the calibration, or mark the sensor absent"
        )
