"""What goes into an exported graph and comes out of it: names, dtypes, shapes, units, frames.

Letters: B samples, N cameras, H and W pixels, T tokens of a picture, E groups of the lift, L LiDARs, P LiDAR points, Q radar
points, R radars, M modalities, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from bev.lift.groups import GROUP
from fusion import Fuser
from fusion.runtime import Symbol, TensorSpec
from robustbev.export.graphs import prefix, task_prefix
from robustbev.model import PerceptionModel
from robustbev.tasks.task import CELLS, REFERENCE
from sensors.camera.config import CameraConfig
from sensors.frames import SECTORS
from sensors.lidar.config import LidarConfig
from sensors.radar.config import RadarConfig

OWN_GRID = "cells of the one grid of all modalities; which way X and Y point is the user's"


class ExportError(ValueError):
    """A model cannot be exported, or what was exported does not compute what the model computes."""


_SYMBOLS = {
    "B": Symbol("samples", 1, 64),
    "P": Symbol("rows of the LiDAR points, padding included", 1, 2**22),
    "Q": Symbol("rows of the radar points, padding included", 1, 2**20),
    "E": Symbol(f"groups of {GROUP} entries of the lift", 0, 2**24),
}


_OWN = ("P", "Q", "E")  # of one modality


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of one graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def symbols(self) -> dict[str, Symbol]:
        """The symbols in the inputs' and outputs' shapes."""
        used = {size for spec in (*self.inputs, *self.outputs) for size in spec.shape if isinstance(size, str)}
        return {
            name: symbol
            for letter, symbol in _SYMBOLS.items()
            for name in sorted(used)
            if name.partition("_")[0] == letter
        }


def model_interface(model: PerceptionModel, counts: Mapping[str, int]) -> Interface:
    """Of `ModelGraph`, for so many sensors of each modality; ExportError where two tensors would have one name."""
    inputs = [spec for name, count in counts.items() for spec in _inputs(model, name, count)]
    inputs.append(_present(tuple(model.config.modalities)))
    outputs = tuple(_model_outputs(model))
    names = [spec.name for spec in (*inputs, *outputs)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ExportError(
            f"two tensors of the file would be called {twice[0]!r}, where each needs a name of its own: give the task or the "
            "modality after which one is named another name"
        )
    return Interface(tuple(inputs), outputs)


def _inputs(model: PerceptionModel, name: str, count: int) -> Iterator[TensorSpec]:
    modality = model.config.modalities[name]
    kind: str = modality.kind
    match modality:
        case CameraConfig():
            specs = _camera_inputs(model, modality, count)
        case LidarConfig():
            specs = _lidar_inputs(count)
        case RadarConfig():
            specs = _radar_inputs(count)
        case _:
            assert_never(modality)
    for spec in specs:
        # Lengths too are each modality's own: two LiDARs have not as many points.
        shape = tuple(f"{size}_{name}" if name != kind and size in _OWN else size for size in spec.shape)
        yield replace(spec, name=f"{prefix(name, kind)}{spec.name}", shape=shape)


def fuser_interface(
    fuser: Fuser, channels: dict[str, int], out_channels: int, grid: tuple[int, int], frame: str
) -> Interface:
    """Of `FuserGraph`; `channels` of each modality by name, `frame`: what is known of the grid's axes."""
    inputs = [spec for name, count in channels.items() for spec in _fuser_inputs(name, count, grid, frame)]
    features = TensorSpec(
        "features",
        "float32",
        ("B", out_channels, *grid),
        "",
        frame,
        "the fused grid; no perception where coverage is 0",
    )
    outputs = (features, *_fused(fuser.modalities, grid, frame))
    return Interface((*inputs, _present(fuser.modalities)), outputs)


def rig_interface(model: PerceptionModel, camera: CameraConfig, cameras: int) -> Interface:
    """Of `RigGraph`, for so many cameras."""
    intrinsics = TensorSpec(
        "intrinsics", "float32", ("B", cameras, 3, 3), "px", "picture of the network's size, centre of pixel (0, 0) at 0, 0",
        "camera matrix at the network's image size",
    )  # fmt: skip
    pose = TensorSpec(
        "reference_T_camera", "float32", ("B", cameras, 4, 4), "m", REFERENCE,
        "camera (z ahead, x right, y down) to reference, at the picture's time",
    )  # fmt: skip
    images, present, *tables = _camera_inputs(model, camera, cameras)
    del images
    return Interface((intrinsics, pose, present), tuple(tables))


def _camera_inputs(model: PerceptionModel, config: CameraConfig, cameras: int) -> tuple[TensorSpec, ...]:
    grid = model.grid.shape
    height, width = config.image_size
    tokens = (height // config.patch_px) * (width // config.patch_px)
    stride = config.feature_stride_px
    entries = f"[B, {cameras}, {height // stride}, {width // stride}, {config.depth_bins.count}]"
    present = TensorSpec("camera_present", "bool", ("B", cameras), "", "", "which cameras are there")
    rays = TensorSpec(
        "camera_rays", "float32", ("B", cameras, tokens, 6), "unit vector; 10 m", REFERENCE,
        "direction of each token's ray, and the camera's place; from the rig's graph",
    )  # fmt: skip
    groups = (
        TensorSpec(
            "lift_entry",
            "int64",
            ("E", GROUP),
            "",
            "",
            f"which depth bin of which feature pixel, flat in {entries}, -1 for none; from the rig's graph",
        ),
        TensorSpec(
            "lift_cell",
            "int64",
            ("E",),
            "",
            CELLS,
            "the cell of each group, b * X * Y + x * Y + y; from the rig's graph",
            ("B", *grid),
        ),
    )
    visible = TensorSpec(
        "camera_visible", "bool", ("B", cameras, *grid), "", CELLS, "which cells each camera sees; from the rig's graph"
    )
    images = TensorSpec(
        "images", "uint8", ("B", cameras, 3, height, width), "0 to 255", "", "RGB pictures at the network's size"
    )
    return images, present, rays, *groups, visible


def _lidar_inputs(lidars: int) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec(
            "lidar_points",
            "float32",
            ("B", "P", 5),
            "m, m, m, 0 to 1, s",
            REFERENCE,
            "x, y, z, intensity, age (0 is now); rows from lidar_count on may hold anything; none of absent LiDARs",
        ),
        TensorSpec("lidar_count", "int64", ("B",), "", "", "rows of lidar_points that are points"),
        TensorSpec("lidar_present", "bool", ("B", lidars), "", "", "which LiDARs are there"),
        TensorSpec(
            "lidar_sectors",
            "float32",
            ("B", lidars, SECTORS),
            "0 to 1",
            REFERENCE,
            "how much of each azimuth sector, seen from the reference's origin, each LiDAR covers; sector s starts at "
            f"-pi + s * 2 pi / {SECTORS}, from +x to +y",
        ),
    )


def _radar_inputs(radars: int) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec(
            "radar_points",
            "float32",
            ("B", "Q", 7),
            "m, m, m, dBsm, m/s, m/s, s",
            REFERENCE,
            "x, y, z, RCS, velocity over ground along x and y, age (0 is now); rows from radar_count on may hold anything; "
            "none of absent radars",
        ),
        TensorSpec("radar_count", "int64", ("B",), "", "", "rows of radar_points that are points"),
        TensorSpec("radar_present", "bool", ("B", radars), "", "", "which radars are there"),
        TensorSpec("reference_T_radar", "float32", ("B", radars, 4, 4), "m", REFERENCE, "radar (x ahead) to reference"),
    )


def _present(modalities: tuple[str, ...]) -> TensorSpec:
    return TensorSpec(
        "present",
        "bool",
        ("B", len(modalities)),
        "",
        "",
        f"False takes a whole modality away, whatever its inputs hold: {', '.join(modalities)}",
    )


def _fuser_inputs(name: str, channels: int, grid: tuple[int, int], frame: str) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}_features", "float32", ("B", channels, *grid), "", frame, f"what the {name} encoder says")
    yield TensorSpec(
        f"{name}_coverage",
        "float32",
        ("B", *grid),
        "0 to 1",
        frame,
        f"where {name} sees; features are not read where it is 0",
    )


def _fused(modalities: tuple[str, ...], grid: tuple[int, int], frame: str) -> tuple[TensorSpec, TensorSpec]:
    return (
        TensorSpec(
            "attention",
            "float32",
            ("B", len(modalities), *grid),
            "0 to 1",
            frame,
            f"share of each modality: {', '.join(modalities)}",
        ),
        TensorSpec("coverage", "float32", ("B", *grid), "0 to 1", frame, "0 where no sensor sees"),
    )


def _model_outputs(model: PerceptionModel) -> Iterator[TensorSpec]:
    for name in model.config.tasks:
        for spec in model.task(name).interface():
            yield replace(spec, name=f"{task_prefix(name)}{spec.name}")
    yield TensorSpec(
        "perceived", "bool", ("B",), "", "", "False: no sensor sees anything, which is not that nothing is there"
    )
    yield from _fused(tuple(model.config.modalities), model.grid.shape, CELLS)
