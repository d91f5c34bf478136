"""What decides a model's architecture: one tree of settings, which travels beside the weights as config.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator
from torch import nn

from bev.grid import BEVGrid
from fusion import Absent
from sensors.camera.config import CameraConfig
from sensors.frames import KINDS
from sensors.lidar.config import LidarConfig
from sensors.radar.config import RadarConfig
from sensors.settings import Channels, Layers, Positive, StrictModel

MAX_CELLS = 4096  # along each axis of the grid
NUSCENES_CLASSES = (
    "car", "truck", "bus", "trailer", "construction_vehicle",
    "pedestrian", "motorcycle", "bicycle", "traffic_cone", "barrier",
)  # fmt: skip
NUSCENES_ATTRIBUTES = (
    "cycle.with_rider", "cycle.without_rider", "pedestrian.moving", "pedestrian.sitting_lying_down",
    "pedestrian.standing", "vehicle.moving", "vehicle.parked", "vehicle.stopped",
)  # fmt: skip
# The attributes that a class can have, as published with the detection challenge of CVPR 2019; a cone or a barrier has none.
NUSCENES_CLASS_ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    **dict.fromkeys(NUSCENES_CLASSES[:5], NUSCENES_ATTRIBUTES[5:]),
    "pedestrian": NUSCENES_ATTRIBUTES[2:5],
    **dict.fromkeys(("motorcycle", "bicycle"), NUSCENES_ATTRIBUTES[:2]),
    **dict.fromkeys(("traffic_cone", "barrier"), ()),
})  # fmt: skip


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

    kind: FuserKind | Literal["gated", "late"] = "cross_attention"
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
            raise ValueError("concat cannot mask an absent modality: choose absent null, null_cell or zeros")
        if self.kind == "gated" and not self.adds:
            raise ValueError("kind gated adds modalities to a base: name them in adds, as in adds: [radar]")
        if self.kind != "gated" and self.adds:
            raise ValueError(f"adds is of kind gated alone, and kind is {self.kind}")
        return self


class BackboneConfig(StrictModel):
    """The network on the fused grid."""

    blocks: Layers = 1
    widths: tuple[Positive, Positive] = (96, 128)


class DecodeConfig(StrictModel):
    """From heatmaps to boxes."""

    max_boxes: Positive = 200
    # A class without an entry: by its boxes' own size, see `bev.detection.suppression.near`. 0: no suppression.
    nms_radius_m: dict[str, Annotated[float, Field(ge=0)]] = Field(default={
        "car": 1.5, "truck": 2.0, "bus": 3.0, "trailer": 3.0, "construction_vehicle": 2.0, "pedestrian": 0.3,
        "motorcycle": 0.6, "bicycle": 0.6, "traffic_cone": 0.3, "barrier": 0.6,
    })  # fmt: skip
    # Of boxes of different classes whose footprints overlap by more, the best alone is shown, replayed and perceived; 1: all are.
    # Evaluations and exported graphs have them all. No two of 13,923 true boxes (323 keyframes of nuScenes mini) overlap so far.
    cross_class_iou: Annotated[float, Field(ge=0, le=1)] = 0.3
    # Class -> the attributes that it can have, where it is none of nuScenes' or has others; a class of neither can have any.
    class_attributes: dict[str, tuple[str, ...]] = Field(default={})


class AlignmentConfig(StrictModel):
    """Projections of the modalities onto one sphere, for the contrastive loss at objects; see `fusion.ObjectAlignment`."""

    mode: Literal["pairs", "anchor"] = "pairs"  # every two modalities, or each with the anchor alone
    anchor: str = "lidar"  # of mode anchor, a modality's name
    dim: Positive = 64


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
    decode: DecodeConfig = DecodeConfig()
    alignment: AlignmentConfig | None = None  # null: no contrastive loss, and no parameters for it
    rig: RigConfig | None = None  # whose data it was trained on; a training run fills it in from its data

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if not self.classes:
            raise ValueError("classes: expected at least one")
        if not self.modalities:
            raise ValueError("modalities: there is none, or every one is null: a model needs at least one")
        self._check_names()
        self._check_channels()
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
        self._check_decode(self.decode)
        if self.alignment is not None:
            self._check_alignment(self.alignment)
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

    def _check_names(self) -> None:
        for name in self.modalities:
            # `all` and `clean` are words of the robustness matrix, the others what torch calls its own.
            if name in ("all", "clean") or hasattr(nn.ModuleDict, name):
                raise ValueError(f"modalities: {name!r} has another meaning already: give this modality another name")

    def _check_channels(self) -> None:
        """Of each kind one modality at most takes what is left, and no sensor belongs to two."""
        for kind in self.kinds:
            mine = {name: modality.channels for name, modality in self.modalities.items() if modality.kind == kind}
            rest = [name for name, channels in mine.items() if channels is None]
            if len(rest) > 1:
                raise ValueError(
                    f"modalities: {' and '.join(rest)} are both of kind {kind} and name no channels: say with channels which "
                    f"sensors are whose, or leave one out ({rest[0]}: null)"
                )
            named = [channel for channels in mine.values() for channel in channels or ()]
            if twice := sorted({channel for channel in named if named.count(channel) > 1}):
                raise ValueError(f"modalities: channel {twice[0]} is named twice by modalities of kind {kind}")

    def _check_decode(self, decode: DecodeConfig) -> None:
        unknown = sorted(set(decode.nms_radius_m) - set(self.classes))
        if unknown and self.classes == NUSCENES_CLASSES:
            raise ValueError(f"decode.nms_radius_m names {unknown[0]!r}, which is not among the classes")
        for name, attributes in decode.class_attributes.items():
            if name not in self.classes:
                raise ValueError(f"decode.class_attributes names {name!r}, which is not among the classes")
            for attribute in attributes:
                if attribute not in self.attributes:
                    raise ValueError(
                        f"decode.class_attributes.{name} names {attribute!r}, which is not among the attributes"
                    )

    def _check_alignment(self, alignment: AlignmentConfig) -> None:
        mine = ", ".join(self.modalities)
        if len(self.modalities) < 2:
            raise ValueError(
                f"alignment needs at least two modalities, and the model has only {mine}: set alignment=null"
            )
        if alignment.mode == "anchor" and alignment.anchor not in self.modalities:
            raise ValueError(
                f"alignment.anchor: expected one of the model's modalities {mine}, got {alignment.anchor!r}"
            )

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

    def can_have(self, class_name: str, attribute: str) -> bool:
        """Whether boxes of a class can have an attribute: by `decode.class_attributes`, else as nuScenes has it.

        Of what nuScenes does not know, a class can have any attribute and an attribute any class.
        """
        if class_name in self.decode.class_attributes:
            return attribute in self.decode.class_attributes[class_name]
        if attribute not in NUSCENES_ATTRIBUTES or class_name not in NUSCENES_CLASS_ATTRIBUTES:
            return True
        return attribute in NUSCENES_CLASS_ATTRIBUTES[class_name]
