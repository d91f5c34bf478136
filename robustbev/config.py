"""What decides a model's architecture: one tree of settings, which travels beside the weights as config.json."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator
from torch import nn

from bev.grid import BEVGrid
from fusion import Absent
from robustbev.tasks.assembly import AnyTaskConfig
from robustbev.tasks.detection import NUSCENES_ATTRIBUTES, NUSCENES_CLASSES, DetectionConfig
from sensors.camera.config import CameraConfig
from sensors.frames import KINDS
from sensors.lidar.config import LidarConfig
from sensors.radar.config import RadarConfig
from sensors.settings import Channels, Layers, Positive, StrictModel

MAX_CELLS = 4096  # along each axis of the grid
_MOST_VALUES = 2**26  # of one map of features: 1024 x 1024 cells of 64 channels, 256 MiB
_LEAST_CHANNELS = 64  # what a cell costs at least, however few channels there are
DETECTION = "detection"  # the name of the task that every model has


class GridConfig(StrictModel):
    """The grid of features and detections, metres in the reference frame."""

    x_min_m: float = -25.6
    x_max_m: float = 25.6
    y_min_m: float = -25.6
    y_max_m: float = 25.6
    cell_m: Annotated[float, Field(gt=0)] = 0.8
    z_min_m: float = -2.0  # points and lifted pixels outside this height are not used
    z_max_m: float = 4.0

    @model_validator(mode="after")
    def _check(self) -> GridConfig:
        self.bev()
        if max(self.bev().shape) > MAX_CELLS:
            raise ValueError(
                f"expected at most {MAX_CELLS} cells along each axis, got {list(self.bev().shape)}: choose a longer cell_m"
            )
        if not self.z_min_m < self.z_max_m:
            raise ValueError(f"z_min_m must be < z_max_m, got {self.z_min_m} and {self.z_max_m}")
        return self

    def bev(self) -> BEVGrid:
        return BEVGrid(self.x_min_m, self.x_max_m, self.y_min_m, self.y_max_m, self.cell_m)


FuserKind = Literal["cross_attention", "concat", "mean", "channel_weights", "latent", "joint"]


class FuserConfig(StrictModel):
    """How modalities become one, and what stands for an absent one."""

    kind: FuserKind | Literal["gated"] = "cross_attention"
    absent: Absent = "null"
    neighbourhood: Literal[1, 3] = 1  # of cross_attention and gated
    heads: Positive = 4  # of those that attend
    latents: Positive = 8  # of each modality, of latent
    pool: Positive = 4  # cells along each axis that become one token, of latent and joint
    adds: tuple[str, ...] = ()  # modalities that gated adds to those of its base
    base: FuserKind = "cross_attention"  # of gated: the kind of the model that it adds to

    @model_validator(mode="after")
    def _check(self) -> FuserConfig:
        kind = self.base if self.kind == "gated" else self.kind
        if (kind, self.absent) == ("concat", "mask"):
            raise ValueError("concat cannot mask an absent modality: choose absent null or zeros")
        if self.kind == "gated" and not self.adds:
            raise ValueError("kind gated adds modalities to a base: name them in adds, as in adds: [radar]")
        if self.kind != "gated" and self.adds:
            raise ValueError(f"adds is of kind gated alone, and kind is {self.kind}")
        return self


class BackboneConfig(StrictModel):
    """The network on the fused grid."""

    blocks: Layers = 1
    widths: tuple[Positive, Positive] = (96, 128)


class RigConfig(StrictModel):
    """The sensors whose data a model is given, by the names of their channels, and how much of their past."""

    camera_channels: Channels = ()
    lidar_channels: Channels = ()
    radar_channels: Channels = ()
    lidar_sweeps: Annotated[int, Field(ge=1, le=1000)] = 1  # of each LiDAR: the newest and those before it
    radar_sweeps: Annotated[int, Field(ge=1, le=1000)] = 1
    lidar_min_range_m: Annotated[float, Field(ge=0)] = 1.0  # nearer points are the vehicle itself

    @model_validator(mode="after")
    def _check(self) -> RigConfig:
        channels = [name for names in self.channels().values() for name in names]
        twice = sorted({name for name in channels if channels.count(name) > 1})
        if twice:
            raise ValueError(f"channel {twice[0]} is named twice")
        return self

    def channels(self) -> dict[str, tuple[str, ...]]:
        """Kind of sensor -> its channels."""
        return {kind: getattr(self, f"{kind}_channels") for kind in KINDS}

    def only(self, kinds: Collection[str]) -> RigConfig:
        """The same rig without the sensors of other kinds."""
        left = {f"{kind}_channels": () for kind in self.channels() if kind not in kinds}
        return self.model_copy(update=left)


Modality = Annotated[CameraConfig | LidarConfig | RadarConfig, Field(discriminator="kind")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=40)]
Kind = TypeVar("Kind", CameraConfig, LidarConfig, RadarConfig)


def _tuples(value: Any) -> Any:
    """Lists as tuples, however deep: what a validator has looked at is no longer taken for JSON, which has no tuples."""
    if isinstance(value, Mapping):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class ModelConfig(StrictModel):
    """Everything that decides the network's architecture; it travels beside the weights as config.json."""

    classes: Annotated[tuple[str, ...], Field(max_length=1024)] = NUSCENES_CLASSES
    attributes: Annotated[tuple[str, ...], Field(max_length=1024)] = NUSCENES_ATTRIBUTES
    grid: GridConfig = GridConfig()
    channels: Positive = 64
    modalities: dict[Name, Modality] = Field(
        default={"camera": CameraConfig(), "lidar": LidarConfig(), "radar": RadarConfig()}
    )
    """By names of the user's choice. Several may be of one kind, each with its own encoder, null embedding and dropout. `kind`
    may be left out where the name is one. A modality that is null is not there; where nothing but nulls is given, they are taken
    from camera, lidar and radar."""
    fuser: FuserConfig = FuserConfig()
    backbone: BackboneConfig = BackboneConfig()
    tasks: dict[Name, AnyTaskConfig] = Field(default={DETECTION: DetectionConfig()})
    """What is asked of the fused grid, by names of the user's choice; `kind` may be left out where the name is one. Detection is
    asked of every model, and is called so."""
    rig: RigConfig | None = None  # whose data it was trained on; a training run fills it in from its data

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if not self.classes:
            raise ValueError("classes: expected at least one")
        if not self.modalities:
            raise ValueError("modalities: there is none, or every one is null: a model needs at least one")
        if not any(modality.senses for modality in self.modalities.values()):
            raise ValueError(
                f"modalities: expected at least one that senses, got senses: false of {', '.join(self.modalities)}: nothing "
                "would ever be perceived"
            )
        self._check_names()
        self._check_channels()
        cells, width = math.prod(self.grid.bev().shape), max(_LEAST_CHANNELS, self.channels, *self.backbone.widths)
        if cells * width > _MOST_VALUES:
            raise ValueError(
                f"expected at most {_MOST_VALUES} cells x channels (the most of channels and backbone.widths, or "
                f"{_LEAST_CHANNELS}), got {cells} x {width}: choose a longer grid.cell_m, a smaller range or fewer channels"
            )
        if self.channels % self.fuser.heads or self.channels % 4:
            raise ValueError(
                f"channels must be a multiple of 4 and of fuser.heads ({self.fuser.heads}), got {self.channels}"
            )
        strangers = [name for name in self.fuser.adds if name not in self.modalities]
        if strangers or (self.fuser.adds and set(self.fuser.adds) == set(self.modalities)):
            raise ValueError(
                f"fuser.adds: expected some of the model's modalities ({', '.join(self.modalities)}), not all of them, "
                f"got {', '.join(self.fuser.adds)}"
            )
        for name, task in self.tasks.items():
            try:
                task.check(self.classes, self.attributes)
            except ValueError as error:
                raise ValueError(f"tasks.{name}.{error}") from None
        if self.rig is not None:
            if self.rig.only(self.kinds) != self.rig:
                raise ValueError(f"rig: expected channels of {', '.join(self.kinds)} alone, which the model has")
            for name in self.modalities:
                if missing := self.missing_channels(name, self.rig):
                    raise ValueError(f"modalities.{name}.channels: {missing}")
        return self

    @field_validator("modalities", mode="before")
    @classmethod
    def _with_kinds(cls, modalities: Any) -> Any:
        if not isinstance(modalities, Mapping):
            return modalities
        if modalities and all(modality is None for modality in modalities.values()):
            modalities = {kind: {} for kind in KINDS} | dict(modalities)
        named = {name: modality for name, modality in modalities.items() if modality is not None}
        for name, modality in named.items():
            if isinstance(modality, Mapping) and "kind" not in modality and name in KINDS:
                named[name] = {"kind": name, **modality}
        return _tuples(named)

    @field_validator("tasks", mode="before")
    @classmethod
    def _with_detection(cls, tasks: Any) -> Any:
        if not isinstance(tasks, Mapping):
            return tasks
        if tasks.get(DETECTION, {}) is None:
            raise ValueError("detection: it is asked of every model, and cannot be null")
        named = {DETECTION: {}, **{name: task for name, task in tasks.items() if task is not None}}
        return _tuples(
            {
                name: {"kind": name, **task} if isinstance(task, Mapping) and "kind" not in task else task
                for name, task in named.items()
            }
        )

    def _check_names(self) -> None:
        module = nn.ModuleDict()  # an instance: `training` is no attribute of the class
        for name in self.modalities:
            # `all` and `clean` are words of the robustness matrix, the others what torch calls its own.
            if name in ("all", "clean") or hasattr(module, name):
                raise ValueError(f"modalities: {name!r} has another meaning already: give this modality another name")
        for name in self.tasks:
            if hasattr(module, name):
                raise ValueError(f"tasks: {name!r} has another meaning already: give this task another name")
        boxes = [name for name, task in self.tasks.items() if str(task.kind) == DETECTION]
        if boxes != [DETECTION]:
            raise ValueError(
                f"tasks: expected one of kind {DETECTION}, by the name of {DETECTION}, got {', '.join(boxes) or 'none'}: every "
                "model is asked for its boxes, and asked once"
            )

    def _check_channels(self) -> None:
        """Of each kind one modality at most takes what is left, and no sensor belongs to two."""
        for kind in self.kinds:
            channels_of = {
                name: modality.channels for name, modality in self.modalities.items() if modality.kind == kind
            }
            rest = [name for name, channels in channels_of.items() if channels is None]
            if len(rest) > 1:
                raise ValueError(
                    f"modalities: {' and '.join(rest)} are both of kind {kind} and name no channels: say with channels which "
                    f"sensors are whose, or leave one out ({rest[0]}: null)"
                )
            named = [channel for channels in channels_of.values() for channel in channels or ()]
            if twice := sorted({channel for channel in named if named.count(channel) > 1}):
                raise ValueError(f"modalities: channel {twice[0]} is named twice by modalities of kind {kind}")

    @property
    def detection(self) -> DetectionConfig:
        """The settings of the task that every model has."""
        task = self.tasks[DETECTION]
        assert isinstance(task, DetectionConfig)
        return task

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of sensors that the model has, in the order of `sensors.frames.KINDS`."""
        return tuple(kind for kind in KINDS if any(modality.kind == kind for modality in self.modalities.values()))

    def dense(self) -> ModelConfig:
        """The same model with sparse stages, if any, in plain torch: it computes the same and needs nothing installed."""
        dense = {
            name: lidar.model_copy(update={"backend": "dense"}) for name, lidar in self.of_kind(LidarConfig).items()
        }
        return self.model_copy(update={"modalities": {**self.modalities, **dense}})

    def of_kind(self, kind: type[Kind]) -> dict[str, Kind]:
        """The modalities of one kind, by name."""
        return {name: modality for name, modality in self.modalities.items() if isinstance(modality, kind)}

    def channels_of(self, name: str, rig: RigConfig) -> tuple[str, ...]:
        """The channels of a rig that are a modality's, in the rig's order."""
        modality = self.modalities[name]
        there = rig.channels()[modality.kind]
        if modality.channels is None:
            others = {
                c for other in self.modalities.values() if other.kind == modality.kind for c in other.channels or ()
            }
            return tuple(channel for channel in there if channel not in others)
        return tuple(channel for channel in there if channel in modality.channels)

    def missing_channels(self, name: str, rig: RigConfig) -> str:
        """Which channel that a modality names is not the rig's, in words; "" where all are."""
        modality = self.modalities[name]
        there = rig.channels()[modality.kind]
        missing = [channel for channel in modality.channels or () if channel not in there]
        if not missing:
            return ""
        return f"the rig has no {modality.kind} {missing[0]}, its {modality.kind} channels are {', '.join(there) or 'none'}"
