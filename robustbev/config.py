"""What decides a model's architecture: one tree of settings, which travels beside the weights as config.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bev.grid import BEVGrid
from bev.lift.table import DepthBins
from fusion import Absent
from sensors.batch import MODALITIES

# Bounds beyond any use, so that a configuration from elsewhere cannot ask for a network that fills the memory or never ends.
Positive = Annotated[int, Field(gt=0, le=2**24)]
Layers = Annotated[int, Field(gt=0, le=64)]
LayersOrNone = Annotated[int, Field(ge=0, le=64)]
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


class StrictModel(BaseModel):
    """Base of every configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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


class DepthConfig(StrictModel):
    """Depth bins of the lift, metres along the camera's z axis."""

    min_m: float = 1.0
    max_m: float = 33.0
    count: Positive = 32

    @model_validator(mode="after")
    def _check(self) -> DepthConfig:
        self.bins()
        return self

    def bins(self) -> DepthBins:
        return DepthBins(self.min_m, self.max_m, self.count)


class CameraConfig(StrictModel):
    """ViT image encoder, neck, depth and lift."""

    image_height_px: Positive = 64
    image_width_px: Positive = 176
    stem: Literal["patch", "conv"] = "conv"
    patch_px: Positive = 16
    dim: Positive = 128
    depth: Layers = 3
    heads: Positive = 4
    layer_scale: bool = False
    feature_stride_px: Positive = 8
    feature_channels: Positive = 96
    context_channels: Positive = 64  # of what is lifted
    lift_samples: tuple[Layers, Layers] = (2, 2)  # points across and along each depth bin of each feature pixel
    bev_blocks: LayersOrNone = 0  # residual blocks on the lifted grid
    depth_bins: DepthConfig = DepthConfig()

    @model_validator(mode="after")
    def _check(self) -> CameraConfig:
        for name, size in (("image_height_px", self.image_height_px), ("image_width_px", self.image_width_px)):
            if size % self.patch_px:
                raise ValueError(f"{name} must be a multiple of patch_px ({self.patch_px}), got {size}")
        if self.stem == "conv" and (self.patch_px, self.feature_stride_px) != (16, 8):
            raise ValueError("stem conv needs patch_px 16 and feature_stride_px 8; choose stem patch for other strides")
        if self.patch_px % self.feature_stride_px:
            raise ValueError(f"feature_stride_px must divide patch_px ({self.patch_px}), got {self.feature_stride_px}")
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads ({self.heads}), got {self.dim}")
        return self

    @property
    def image_size(self) -> tuple[int, int]:
        return self.image_height_px, self.image_width_px


class LidarConfig(StrictModel):
    """Pillars on half the grid's cell length, sparse stages, 2D blocks."""

    pillar_channels: Positive = 32
    blocks: LayersOrNone = 1
    sparse_blocks: LayersOrNone = 0  # submanifold stages before the dense canvas
    backend: Literal["dense", "spconv"] = "dense"  # what computes the sparse stages

    @model_validator(mode="after")
    def _check(self) -> LidarConfig:
        if self.backend == "spconv" and self.sparse_blocks == 0:
            raise ValueError("backend spconv needs sparse_blocks >= 1: without them there is nothing for it to compute")
        return self


class RadarConfig(StrictModel):
    """Pillars with Doppler, 2D blocks, field of view."""

    width: Positive = 32
    blocks: LayersOrNone = 1
    half_view_deg: Annotated[float, Field(gt=0, le=180)] = 75.0  # azimuth to either side that one radar covers


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
    nms_radius_m: dict[str, Annotated[float, Field(ge=0)]] = {
        "car": 1.5, "truck": 2.0, "bus": 3.0, "trailer": 3.0, "construction_vehicle": 2.0, "pedestrian": 0.3,
        "motorcycle": 0.6, "bicycle": 0.6, "traffic_cone": 0.3, "barrier": 0.6,
    }  # fmt: skip
    # Of boxes of different classes whose footprints overlap by more, the best alone is shown, replayed and perceived; 1: all are.
    # Evaluations and exported graphs have them all. No two of 13,923 true boxes (323 keyframes of nuScenes mini) overlap so far.
    cross_class_iou: Annotated[float, Field(ge=0, le=1)] = 0.3
    # Class -> the attributes that it can have, where it is none of nuScenes' or has others; a class of neither can have any.
    class_attributes: dict[str, tuple[str, ...]] = {}


class AlignmentConfig(StrictModel):
    """Projections of the modalities onto one sphere, for the contrastive loss at objects; see `fusion.ObjectAlignment`."""

    mode: Literal["pairs", "anchor"] = "pairs"  # every two modalities, or each with the anchor alone
    anchor: Literal["camera", "lidar", "radar"] = "lidar"  # of mode anchor
    dim: Positive = 64


Channels = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=100)], ...], Field(max_length=64)]


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
        """Modality -> its channels."""
        return {"camera": self.camera_channels, "lidar": self.lidar_channels, "radar": self.radar_channels}

    def only(self, modalities: Collection[str]) -> RigConfig:
        """The same rig without the sensors of other modalities."""
        left = {f"{name}_channels": () for name in self.channels() if name not in modalities}
        return self.model_copy(update=left)


class ModelConfig(StrictModel):
    """Everything that decides the network's architecture; it travels beside the weights as config.json."""

    classes: Annotated[tuple[str, ...], Field(max_length=1024)] = NUSCENES_CLASSES
    attributes: Annotated[tuple[str, ...], Field(max_length=1024)] = NUSCENES_ATTRIBUTES
    grid: GridConfig = GridConfig()
    channels: Positive = 64
    camera: CameraConfig | None = CameraConfig()
    lidar: LidarConfig | None = LidarConfig()
    radar: RadarConfig | None = RadarConfig()
    fuser: FuserConfig = FuserConfig()
    backbone: BackboneConfig = BackboneConfig()
    decode: DecodeConfig = DecodeConfig()
    alignment: AlignmentConfig | None = None  # null: no contrastive loss, and no parameters for it
    rig: RigConfig | None = None  # whose data it was trained on; a training run fills it in from its data

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if not self.classes:
            raise ValueError("classes: expected at least one")
        if self.camera is None and self.lidar is None and self.radar is None:
            raise ValueError("every modality is null: a model needs at least one of camera, lidar, radar")
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
        if self.rig is not None and self.rig.only(self.modalities) != self.rig:
            raise ValueError(f"rig: expected channels of {', '.join(self.modalities)} alone, which the model has")
        return self

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
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the model has, in the order of `sensors.batch.MODALITIES`."""
        return tuple(name for name in MODALITIES if getattr(self, name) is not None)

    def can_have(self, class_name: str, attribute: str) -> bool:
        """Whether boxes of a class can have an attribute: by `decode.class_attributes`, else as nuScenes has it.

        Of what nuScenes does not know, a class can have any attribute and an attribute any class.
        """
        if class_name in self.decode.class_attributes:
            return attribute in self.decode.class_attributes[class_name]
        if attribute not in NUSCENES_ATTRIBUTES or class_name not in NUSCENES_CLASS_ATTRIBUTES:
            return True
        return attribute in NUSCENES_CLASS_ATTRIBUTES[class_name]
